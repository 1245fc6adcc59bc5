"""A page that is opened again shows the visit of its browser tab, and joins the runs that went on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.state_holder import SessionState

from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.ui.events import UNQUEUED, Updates, Values
from amused.ui.history import HistoryEntry, HistoryView
from amused.ui.kept_images import KeptImagesView
from amused.ui.results import ResultState, ResultView, show_again
from amused.ui.runs import join_runs
from amused.ui.tab import Tab
from amused.ui.visits import Visit, Visits

STILL_RUNNING = "A run is going on: let it end, or stop it first."

FIND_JS = "() => window.amusedFindVisit()"
HOLD_JS = "(id) => window.amusedHoldVisit(id)"


class VisitView:
    """Hidden: `id` is what the browser says of its visit, then the visit's id; `visit` is the State of a Visit.

    `joining` changes when there are runs to join.
    """

    def __init__(self) -> None:
        self.id = gr.Textbox(visible="hidden", label="Visit", elem_id="visit")
        self.joining = gr.Number(0, visible="hidden", container=False)
        self.visit = gr.State(None)


@dataclass(frozen=True)
class Reopening:
    """Opens visits in the page. `lists` is the State of the SharedLists of the visit."""

    visits: Visits
    view: VisitView
    result: ResultView
    tabs: Sequence[Tab]
    tab_bar: gr.Tabs
    tray: KeptImagesView
    history: HistoryView
    lists: gr.State

    @property
    def inputs(self) -> set[Block]:
        return {self.view.id, self.tray.state, self.result.state}

    @property
    def outputs(self) -> list[Block]:
        own = [self.view.id, self.view.joining, self.view.visit, self.tray.state, self.result.state, self.tab_bar]
        inputs = [component for tab in self.tabs for component in tab.sources]
        return [*own, *self.result.outputs, *self.tray.outputs, *self.history.outputs, *inputs]

    def find(self, page: gr.Blocks) -> Any:
        """The event after which `open` can be called."""
        return page.load(None, None, self.view.id, js=FIND_JS, **UNQUEUED)

    def open(self, values: Values, session: str | None) -> Updates:
        """Show a visit again; a new one has what the page has already, at first its ready images."""
        claim = VisitClaim.read(values[self.view.id])
        own: ResultState = values[self.result.state]
        if not own.num_runs and not own.images:
            own.images = own.shown = self.result.ready
        visit = self.visits.open(claim.id, claim.is_taken, own, values[self.tray.state], session)
        visit.forget_missing_files()
        updates: Updates = {self.view.id: visit.id, self.view.visit: visit, self.tray.state: visit.tray}
        if visit.state is not own:
            updates |= show_again(self.result, visit.state, own) | give_inputs_again(visit.state, own)
        if visit.state.awaits_end:
            updates[self.view.joining] = time.time()
        if visit.task is not None:
            updates[self.tab_bar] = gr.Tabs(selected=visit.task)
        if visit.tray.kept.images:
            updates |= self.tray.show(visit.tray.kept)
        if visit.history.entries:
            updates |= self.history.show(visit.history)
        return updates

    def restore_states(self, states: SessionState, session: str | None) -> None:
        """Give a page that is still open its visit again.

        Gradio (6.31) forgets the states of a page whose connection broke an hour ago, as that of a computer that slept,
        and of the sessions that were used the longest ago.
        """
        visit = self.visits.of_session(session)
        if visit is None:
            return
        for state, value in (
            (self.view.visit, visit),
            (self.result.state, visit.state),
            (self.tray.state, visit.tray),
            (self.lists, visit.shared),
            (self.history.shown, visit.history.entries),
        ):
            if state._id not in states:
                states[state._id] = value

    def connect(self, opened: Any) -> None:
        """`opened` is the event that has called `open`."""
        result = self.result
        opened.then(None, self.view.id, None, js=HOLD_JS, **UNQUEUED)
        self.view.joining.change(
            partial(join_runs, result),
            {result.state},
            result.outputs,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )
        result.ended.change(self.show_history, self.view.visit, self.history.outputs, **UNQUEUED)
        for tab in self.tab_bar.children:  # selecting a tab from code fires its own event, not the bar's
            remember = partial(remember_tab, tab.id)  # type: ignore[attr-defined]
            tab.select(remember, self.view.visit, None, trigger_mode="multiple", **UNQUEUED)  # type: ignore[attr-defined]

    def show_history(self, visit: Visit | None) -> Updates:
        return {} if visit is None else self.history.show(visit.history)

    def clear(self, visit: Visit | None) -> Updates:
        if visit is not None:
            visit.history.entries = ()
        return {} if visit is None else self.history.show(visit.history)

    def restore(self, entry: HistoryEntry, visit: Visit) -> Updates:
        """The images of an entry, and its tab."""
        state = visit.state
        if state.num_runs:
            raise UserError(STILL_RUNNING)
        state.images = state.shown = entry.images
        state.groups, state.note = (), entry.title
        shown = {**show_again(self.result, state), **self.result.bring_into_view(state, 0)}
        return {**shown, self.tab_bar: gr.Tabs(selected=entry.task)}


def give_inputs_again(state: ResultState, own: ResultState) -> Updates:
    """The inputs of a visit, except those that the visitor has already changed on this page: they become the visit's.

    Args:
        state, own: of the visit and of the page.
    """
    given = {component: value for component, value in own.inputs.items() if value != component.value}
    state.inputs |= given
    return {component: value for component, value in state.inputs.items() if component not in given}


def remember_tab(task: str, visit: Visit | None) -> None:
    if visit is not None:
        visit.task = task


def recipe_of(entry: HistoryEntry) -> Recipe:
    """That of its last image, with the seeds of all that share it."""
    last = entry.images[-1].recipe
    seeds = [image.seed for image in entry.images if image.recipe.with_seeds(last.seeds) == last]
    return last.with_seeds(list(dict.fromkeys(seeds)))


@dataclass(frozen=True)
class VisitClaim:
    """What the browser says of its visit as the page opens.

    Attributes:
        id: of its visit.
        is_taken: another of its tabs has that open.
        is_reload: of a page that was open in the same tab.
    """

    id: str = ""
    is_taken: bool = False
    is_reload: bool = False

    @classmethod
    def read(cls, said: Any) -> VisitClaim:
        try:
            found = json.loads(said)
            return cls(str(found["id"]), bool(found["taken"]), bool(found["reload"]))
        except (TypeError, ValueError, KeyError):
            return cls()
