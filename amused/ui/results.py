"""The result side of a tab: a status, a gallery that fills, and the loop that shows a run's events in them.

Knows no task: a `RunAction` says how a run reads its request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from gradio.blocks import Block

from amused.recipe.seeds import format_seeds
from amused.serving import jobs
from amused.serving.jobs import Event, Progress, Request, Started, Summary
from amused.serving.queue import Status
from amused.serving.runtime import Runtime
from amused.ui.events import NO_CHANGE, SAMPLING, UI_ONLY, Updates, Values
from amused.ui.explain import explain
from amused.ui.files import GeneratedImage, caption, save_input, save_preview, save_result
from amused.ui.latest import COUNT_JS
from amused.ui.status import busy_line, describe_progress, describe_summary, status_line

if TYPE_CHECKING:
    from amused.ui.tab import Tab

REQUEST_TIMEOUT = 60.0  # seconds until a requested run has arrived, or never will

MORE = 4  # images that continue a sweep

# Runs in the browser when the button is pressed, before the server answers.
WAITING_JS = f"() => [{json.dumps(busy_line('Waiting for the model'))}, {{__type__: 'update', visible: true}}]"

# State


class Requested(NamedTuple):
    """A run that was asked for and has not begun. It `has_waited` if another run of its tab was before it."""

    has_waited: bool
    num_stops: int
    time: float


@dataclass(eq=False)
class TabState:
    """What the events of one tab in one browser share. It is the session of the tab's runs.

    Attributes:
        images: of the latest run that has finished one, and of those that it was added to.
        shown: the finished ones in the gallery: those of the run before until a new one has something to show.
        opened: index in the gallery of the image that is open.
        note: how the run ended that made the last of them; empty while it goes on.
        num_runs: runs that are queued or going on.
        num_stops: how often Stop was pressed.
        num_dropped: queued runs that the last Stop cancelled.
    """

    images: tuple[GeneratedImage, ...] = ()
    shown: tuple[GeneratedImage, ...] = ()
    opened: Any = None
    note: str = ""
    requested: list[Requested] = field(default_factory=list)
    num_runs: int = 0
    num_stops: int = 0
    num_dropped: int = 0

    def request(self) -> None:
        self._forget_lost()
        has_waited = bool(self.num_runs or self.requested)
        self.requested.append(Requested(has_waited, self.num_stops, time.monotonic()))

    def begin(self) -> Requested:
        """A requested run arrives."""
        self._forget_lost()
        self.num_runs += 1
        return self.requested.pop(0) if self.requested else Requested(self.num_runs > 1, self.num_stops, 0)

    def _forget_lost(self) -> None:
        """Drop requests whose run never arrived: Gradio refused it, or the visitor left."""
        oldest = time.monotonic() - REQUEST_TIMEOUT
        self.requested = [one for one in self.requested if one.time > oldest]


# Components


class ResultView:
    """The components that runs of a tab fill.

    `ready` are the images to arrive at.

    Attributes:
        more: continues the sweep, see `gallery_actions`.
        gallery: a click opens an image large in its place.
        details: below it, the facts and the actions of the open image, built by `gallery_actions`.
        state: a TabState.
        write_metadata: whether files carry their recipe.
        ended: a number that changes when a run has ended. Follow this, not `state`: a State that changes in an event
            with `queue=False` triggers nothing (Gradio 6.31).
    """

    def __init__(self, task: str, hint: str, stop: gr.Button, ready: tuple[GeneratedImage, ...] = ()) -> None:
        self.stop = stop
        self.gallery = gr.Gallery(
            [image.tile for image in ready],
            label="Images",
            show_label=False,
            format="png",
            columns=columns_for(len(ready)),
            object_fit="contain",
            interactive=False,
            buttons=["download", "download_all", "fullscreen"],
            elem_id=f"{task}-gallery",
            elem_classes="images",
        )
        self.status = gr.HTML(status_line(hint), padding=False, elem_id=f"{task}-status", elem_classes="status-box")
        self.more = gr.Button(f"{MORE} more", size="sm", visible=bool(ready), elem_id=f"{task}-next")
        self.details = gr.Column(visible=False, elem_id=f"{task}-picked", elem_classes="details")
        self.ended = gr.Number(0, visible="hidden", elem_id=f"{task}-ended")
        self.state, self.write_metadata = gr.State(TabState(ready, ready)), gr.State(True)


# Events


@dataclass(frozen=True)
class RunAction:
    """What a button runs in its tab.

    Attributes:
        read: the request, from the values of `inputs`; raises UserError to refuse.
        append: add to the images in the gallery instead of replacing them.
        opens: open the first image in the gallery at the end.
        shows_seeds: put random seeds into their field, to be used again.
        remark: a sentence about the images of a complete run, before its note.
        finish: updates of `outputs` from the request and its finished images, also after Stop.
    """

    read: Callable[[Values], Request]
    inputs: AbstractSet[Block] = frozenset()
    append: bool = False
    opens: bool = False
    shows_seeds: bool = False
    remark: Callable[[Values, Sequence[GeneratedImage]], str] = lambda values, images: ""
    finish: Callable[[Any, Sequence[GeneratedImage]], Updates] = lambda request, images: {}
    outputs: tuple[Block, ...] = ()


def connect(
    runtime: Runtime,
    tab: Tab,
    events: list[Any],
    action: RunAction,
    before_read: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Start a run at any of these events. Runs of a tab queue behind each other.

    `before_read(events)` connects what must happen before the inputs are read, and returns its last event.
    """
    view = tab.result
    gr.on(events, None, None, [view.status, view.stop], js=WAITING_JS, show_progress="hidden")
    gr.on(events, lambda state: state.request(), view.state, None, trigger_mode="multiple", **UI_ONLY)
    start = partial(gr.on, events) if before_read is None else before_read(events).then
    running = start(
        partial(stream_run, runtime, tab, action),
        {view.state, view.write_metadata, tab.settings.random_seeds, *action.inputs},
        list(dict.fromkeys([view.status, view.gallery, view.details, view.stop, tab.settings.seeds, *action.outputs])),
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple",
        **SAMPLING,
    )
    # Runs also after an error. "multiple": else Gradio drops the end of a run that follows quickly, and its status
    # stays at the last step.
    outputs = [view.status, view.gallery, view.more, view.stop]
    for ended in (running.then, running.failure):
        ended(partial(show_end, view), {view.state}, outputs, trigger_mode="multiple", **UI_ONLY)
        ended(None, None, view.ended, js=COUNT_JS, **UI_ONLY)


def connect_stop(runtime: Runtime, view: ResultView) -> None:
    def stop(values: Values) -> Updates:
        stop_runs(runtime, values[view.state])
        return {view.status: busy_line("Stopping"), view.stop: gr.Button(visible=False)}

    view.stop.click(stop, {view.state}, [view.status, view.stop], **UI_ONLY)


def stop_runs(runtime: Runtime, state: TabState) -> None:
    """Stop the tab's run, and cancel those queued behind it or still on their way."""
    state.num_stops += 1
    state.num_dropped = max(0, state.num_runs + len(state.requested) - 1)
    runtime.stop(state)


def stream_run(runtime: Runtime, tab: Tab, action: RunAction, values: Values) -> Iterator[Updates]:
    """Generate the images of one request, and show every step. An error keeps the finished images."""
    state: TabState = values[tab.result.state]
    requested = state.begin()
    shown = ShownRun(tab, action, values, requested.has_waited)
    sentence = None
    try:
        for event in runtime.run(lambda: action.read(values), state, lambda: state.num_stops > requested.num_stops):
            yield from shown.show(event)
    except Exception as error:
        sentence = explain(error)
    finally:
        state.num_runs -= 1
    if sentence is not None:  # outside of `except`, where the error and all that it refers to would live on
        if shown.num_tiles or not state.num_runs:  # otherwise the tab shows another run
            state.note = sentence
        raise gr.Error(sentence, print_exception=False)


class ShownRun:
    """One run as its tab shows it; `show` turns an event into updates, and keeps the tab's images and note."""

    def __init__(self, tab: Tab, action: RunAction, values: Values, has_waited: bool) -> None:
        self.tab, self.action, self.values, self.has_waited = tab, action, values, has_waited
        self.view = tab.result
        self.state: TabState = values[tab.result.state]
        self.earlier: tuple[GeneratedImage, ...] = ()  # in the gallery before those of this run
        self.finished: dict[int, GeneratedImage] = {}  # by index: workers finish them in any order
        self.has_tiles = False
        self.num_tiles = 0  # of the gallery, once all images are finished
        self.request: Request
        self.inputs: tuple[str | None, str | None] = (None, None)

    def show(self, event: Event) -> Iterator[Updates]:
        updates: Updates = {}
        if isinstance(event, Status):
            if not event.behind_own:  # otherwise the status is that of the earlier run
                updates = {self.view.status: busy_line(event.text, event.share)}
        elif isinstance(event, Started):
            yield self.start(event)
            # Saved after the page shows that the run has started: saving takes a moment.
            self.inputs = save_input(event.request.image), save_input(event.request.mask, "mask.png")
            return
        elif isinstance(event, Progress):
            updates = {self.view.status: busy_line(describe_progress(event), event.share)}
            if event.preview is not None:
                updates |= self.tiles(event)
        elif isinstance(event, jobs.Result):
            label = self.request.label(event.index)
            image = save_result(event, self.values[self.view.write_metadata], *self.inputs, label)
            place = len(self.earlier) + sum(index < event.index for index in self.finished)
            options: dict[str, Any] = {}
            if place < len(self.state.shown) and type(self.state.opened) is int and place <= self.state.opened:
                self.state.opened += 1  # the open image stays open
                options["selected_index"] = self.state.opened
            self.finished[event.index] = image
            self.state.images = self.earlier + self.images
            updates = self.tiles(**options)
        else:
            updates = self.end(event)
        yield updates or NO_CHANGE

    @property
    def images(self) -> tuple[GeneratedImage, ...]:
        """The finished ones, in the order of the request."""
        return tuple(self.finished[index] for index in sorted(self.finished))

    def start(self, event: Started) -> Updates:
        self.request = event.request
        self.earlier = self.state.images if self.action.append or self.has_waited else ()
        self.num_tiles = len(self.earlier) + event.num_images
        self.state.note = ""
        updates: Updates = {self.view.status: busy_line("Starting"), self.view.stop: gr.Button(visible=True)}
        if not self.earlier:
            updates |= self.close()
        settings = self.tab.settings
        # Typed seeds stay: the visitor may be typing the next ones.
        if self.action.shows_seeds and self.values[settings.random_seeds]:
            updates[settings.seeds] = format_seeds(event.request.recipes[0].seeds)
        return updates

    def end(self, event: Summary) -> Updates:
        if self.has_waited and not event.num_images:  # cancelled in the queue: the note is that of the earlier run
            return {}
        note = describe_summary(event, self.state.num_dropped)
        if not event.stopped and (remark := self.action.remark(self.values, self.images)):
            note = f"{remark} {note}"
        self.state.note = note
        if not self.images:
            return {}
        updates = self.action.finish(self.request, self.images)
        if self.action.opens:
            self.state.opened = len(self.earlier)
            updates[self.view.gallery] = gr.Gallery(selected_index=self.state.opened)
        return updates

    def tiles(self, working: Progress | None = None, **options: Any) -> Updates:
        self.state.shown = self.earlier + self.images
        label = "" if working is None else self.request.label(working.index)
        gallery = partial(show_gallery, self.state.shown, self.num_tiles, working, label)
        if self.earlier or self.has_tiles:
            return {self.view.gallery: gallery(**options)}
        self.has_tiles = True
        return {**self.close(), self.view.gallery: gallery(selected_index=None)}

    def close(self) -> Updates:
        """Close the open image. It goes with those of the run before.

        Done at the start already: a gallery (Gradio 6.31) that loses its open image selects another one. And again with
        the first new image, as a visitor may have opened one meanwhile.
        """
        self.state.opened = None
        return {self.view.gallery: gr.Gallery(selected_index=None), self.view.details: gr.Column(visible=False)}


def show_end(view: ResultView, values: Values) -> Updates:
    """What the tab shows after a run, unless the next one is already going on."""
    state: TabState = values[view.state]
    if state.num_runs:
        return NO_CHANGE
    state.shown = state.images
    return {
        view.status: status_line(state.note or "Stopped"),
        view.gallery: show_gallery(state.images),
        view.more: gr.Button(visible=bool(state.images)),
        view.stop: gr.Button(visible=bool(state.requested)),
    }


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
