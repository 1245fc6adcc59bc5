"""Outputs that follow inputs: after several quick changes, the answer to the latest one stays.

Gradio's `trigger_mode="always_last"` alone does not guarantee this: between a change and its request it gathers the
inputs, which uploads the image of an editor, and changes in that time start requests that are answered in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from amused.ui.events import LATEST, NO_CHANGE, UNQUEUED, Updates, Values, hidden_number

COUNT_JS = "() => (window.amusedChanges = (window.amusedChanges || 0) + 1)"


@dataclass
class LatestVersion:
    """The number of the latest change. One object is shared by all events of a page."""

    number: float = 0


def sync(
    changing: Sequence[Component], answer: Callable[[Values], Updates], inputs: set[Block], outputs: Sequence[Block]
) -> None:
    """Update `outputs` by `answer(values of inputs)` whenever one of `changing` changes."""
    number, latest = hidden_number(0), gr.State(LatestVersion())

    def answer_latest(values: Values) -> Updates:
        version: LatestVersion = values[latest]
        mine = values[number]
        if mine < version.number:
            return NO_CHANGE
        version.number = mine
        updates = answer(values)
        return updates if version.number == mine else NO_CHANGE

    # The number is read before the values, so a higher number comes with values at least as new.
    changes = [component.change for component in changing]  # type: ignore[attr-defined]
    gr.on(changes, None, None, number, js=COUNT_JS, **UNQUEUED).then(
        answer_latest, {number, latest, *inputs}, list(outputs), **LATEST
    )


def hide_progress(page: gr.Blocks) -> None:
    """Do not let Gradio show progress on the outputs of UI-only events.

    Gradio (6.31) asks every component on which progress may be shown for its value again. Called inside the page, when
    all its events are there: to enter it again would build it twice.
    """
    nowhere = gr.HTML(visible=False)
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [nowhere]
