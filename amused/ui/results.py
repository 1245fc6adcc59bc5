"""The result area that all tabs share, and the state that its runs (`runs`) update."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from amused.serving.jobs import Progress
from amused.ui.events import Updates, Values, hidden_number, selected_index, sent_number
from amused.ui.files import GeneratedImage, caption, save_preview
from amused.ui.history import History
from amused.ui.live_runs import LiveRun
from amused.ui.queue_list import DROP_JS, show_waiting
from amused.ui.status import status_line

MORE = 4  # images that continue a sweep

MAX_TILES = 100_000
ARRIVED_JS = f"(number) => window.amusedArrived(number % {MAX_TILES})"

# State


@dataclass(eq=False)
class ResultState:
    """What the events of a page share about its runs. It is their session.

    Attributes:
        images: of the latest run that has finished one, after those that it was appended to.
        shown: the finished ones in the gallery: those of the run before until a new one has something to show.
        opened: index in the gallery of the image that is open, or None.
        num_openings: how often an image or a form was opened or closed.
        note: how the latest run ended; empty while it goes on.
        groups: where in `images` those of a run begin that was added to others, and what they are.
        num_runs: runs that are queued or going on.
        stopped_at: when Stop was last pressed, as `ResultView.pressed_at`: it ends the runs that were asked for before.
        num_dropped: queued runs that the last Stop cancelled.
        num_arrived: how often an image was brought into view.
        awaits_end: a page that was opened again shows a run, of which it has yet to hear.
        live: the same runs as `num_runs` counts, the one that goes on first.
        status: what is shown of the run that goes on.
        inputs: what the tabs have besides their settings: value by component.
        history: of the visit.
    """

    images: tuple[GeneratedImage, ...] = ()
    shown: tuple[GeneratedImage, ...] = ()
    opened: Any = None
    num_openings: int = 0
    note: str = ""
    groups: tuple[tuple[int, str], ...] = ()
    num_runs: int = 0
    stopped_at: float = 0.0
    num_dropped: int = 0
    num_arrived: int = 0
    awaits_end: bool = False
    live: tuple[LiveRun, ...] = ()
    status: str = ""
    inputs: dict[Component, Any] = field(default_factory=dict)
    history: History = field(default_factory=History)
    _lock: ClassVar[threading.Lock] = threading.Lock()  # of all, as Gradio copies a State's first value

    def add(self, run: LiveRun) -> None:
        with self._lock:
            self.live = (*self.live, run)

    def remove(self, run: LiveRun) -> None:
        with self._lock:
            self.live = tuple(other for other in self.live if other is not run)

    def begin(self) -> bool:
        """A run arrives. Whether it waits for another run of its page."""
        self.num_runs += 1
        return self.num_runs > 1


# Components


class RunControls:
    """Where a tab shows the runs of the page: at its Generate button. Built before the tabs, each renders its own.

    `waiting` lists the runs that wait, each of which can be dropped.
    """

    def __init__(self, task: str) -> None:
        self.stop = gr.Button("Stop", visible=False, scale=1, min_width=80, elem_id=f"{task}-stop", render=False)
        self.progress = build_progress(f"{task}-progress", render=False)
        self.waiting = gr.HTML(padding=False, js_on_load=DROP_JS, elem_id=f"{task}-waiting", render=False)


class ResultView:
    """The components that runs fill.

    Attributes:
        ready: the images that a new visitor sees first.
        controls: by task.
        more: continues the sweep, see `gallery_actions`.
        gallery: a click opens an image large in its place.
        index: of the image in the gallery that is open, as the visitor sees it.
        details: below it, the facts and the actions of the open image, built by `gallery_actions`.
        sheet: of a grid.
        state: a ResultState.
        write_metadata: whether files carry their recipe.
        arrived: see `bring_into_view`.
        pressed_at: when a button was pressed, in milliseconds of the browser's clock.
        shown_by_runs: what any run may update.
        outputs: all that runs update, with what only some do.
        progress: the status again, at Generate in each tab.
        places: all where the status is shown again.
        ended: a number that changes when a run has ended. Follow this, not `state`: a State that changes in an event
            with `queue=False` triggers nothing (Gradio 6.31).
    """

    def __init__(self, tasks: Sequence[str], hint: str, ready: tuple[GeneratedImage, ...] = ()) -> None:
        self.controls = {task: RunControls(task) for task in tasks}
        self.hint, self.ready = hint, ready
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            self.gallery = gr.Gallery(
                [image.tile for image in ready],
                label="Images",
                show_label=False,
                format="png",
                columns=columns_for(len(ready)),
                fit_columns=False,  # the first images of a run have the size of the last
                object_fit="contain",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="result-gallery",
                elem_classes="images",
            )
            self.groups = gr.HTML(visible="hidden", elem_id="result-groups")
            self.status = gr.HTML(
                status_line(hint),
                padding=False,
                js_on_load="element.ariaLive = 'polite'",  # what changes in it is announced
                elem_id="result-status",
                elem_classes="status-box",
            )
            self.details = gr.Column(visible=False, elem_id="result-details", elem_classes="details")
            self.more = gr.Button(f"{MORE} more", size="sm", visible=bool(ready), elem_id="result-more")
            self.index = selected_index(self.gallery)
            self.arrived = hidden_number()
            self.pressed_at = sent_number("Date.now()")
            self.ended = gr.Number(0, visible="hidden", container=False, elem_id="result-ended")
            self.sheet = gr.Image(
                label="Grid",
                show_label=False,  # it would cover the sheet's own heading
                visible=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_id="result-sheet",
            )
        self.state, self.write_metadata = gr.State(ResultState()), gr.State(True)
        self.progress = [controls.progress for controls in self.controls.values()]
        self.stops = [controls.stop for controls in self.controls.values()]
        self.waiting = [controls.waiting for controls in self.controls.values()]
        self.shown_by_runs: list[Block] = [
            self.status, self.gallery, self.groups, self.details, self.more, self.arrived, self.ended, *self.progress,
            *self.stops, *self.waiting, self.sheet,
        ]  # fmt: skip
        self.outputs, self.places = self.shown_by_runs, self.progress

    def hide_details(self) -> Updates:
        """Without an open image, and without the sheet of a grid that is not there any more."""
        return {self.details: gr.Column(visible=False), self.sheet: gr.Image(visible=False)}

    def offer_stop(self, is_offered: bool) -> Updates:
        return dict.fromkeys(self.stops, gr.Button(visible=is_offered))

    def bring_into_view(self, state: ResultState, index: int) -> Updates:
        """Scroll to an image of the gallery, or to the one that is open."""
        state.num_arrived += 1
        return {self.arrived: state.num_arrived * MAX_TILES + index}

    def show_waiting(self, state: ResultState) -> Updates:
        return dict.fromkeys(self.waiting, show_waiting(state.live))


def build_progress(elem_id: str, **options: Any) -> gr.HTML:
    return gr.HTML(padding=False, elem_id=elem_id, elem_classes="progress", **options)


# What it shows


def show_end(view: ResultView, progress: Sequence[gr.HTML], values: Values) -> Updates:
    """What the page shows after a run, unless the next one is already going on."""
    state: ResultState = values[view.state]
    ended: Updates = {view.ended: time.time()}
    if state.num_runs:
        return ended if progress is view.progress else {**ended, **dict.fromkeys(progress, "")}
    state.shown = state.images
    return {
        **ended,
        view.status: status_line(state.note or "Stopped"),
        view.gallery: show_gallery(state.images),
        view.groups: show_groups(state.groups),
        view.more: gr.Button(visible=bool(state.images)),
        **view.offer_stop(False),
        **view.show_waiting(state),
        **dict.fromkeys([*view.progress, *progress], ""),
    }


def show_again(view: ResultView, state: ResultState, former: ResultState | None = None) -> Updates:
    """All that a page that is opened again shows of its runs.

    Args:
        former: what it shows now. If that has the same images, the one that the visitor may have opened stays open.
    """
    going = state.awaits_end = bool(state.num_runs)
    status = state.status if going else status_line(state.note or view.hint)
    updates: Updates = {
        view.state: state,
        view.status: status,
        view.groups: show_groups(state.groups),
        view.more: gr.Button(visible=bool(state.images)),
        **dict.fromkeys(view.progress, status if going else ""),
        **view.offer_stop(going),
        **view.show_waiting(state),
    }
    if former is not None and former.shown == state.shown:
        state.opened = former.opened
        return updates
    state.opened = None
    return {
        **updates,
        view.gallery: show_gallery(state.shown, selected_index=None),
        **view.hide_details(),
    }


def show_groups(groups: Sequence[tuple[int, str]]) -> str:
    """For page.html, which writes each name above the first image of its group."""
    return "".join(f'<i data-first="{first}">{html.escape(name)}</i>' for first, name in groups if name)


def image_at(images: Sequence[GeneratedImage], index: Any) -> GeneratedImage | None:
    """The selected image, by an index that a browser sent."""
    return images[index] if type(index) is int and 0 <= index < len(images) else None


def show_gallery(
    images: tuple[GeneratedImage, ...],
    num_tiles: int | None = None,
    working: Progress | None = None,
    label: str = "",
    **options: Any,
) -> gr.Gallery:
    """The finished images, and the preview of the next, with its label, if there is one."""
    tiles = [image.tile for image in images]
    if working is not None and working.preview is not None:
        tiles.append((save_preview(working.preview), caption(label, working.seed)))
    return gr.Gallery(value=tiles, columns=columns_for(num_tiles or len(tiles)), **options)


def columns_for(count: int) -> int:
    return 1 if count <= 1 else 2 if count <= 4 else 3 if count in (5, 6, 9) else 4 if count <= 32 else 6
