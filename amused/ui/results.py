"""The results, which all tabs share: a status, a gallery that fills, and the loop that shows a run's events in them.

Knows no task: a `RunAction` says how a run reads its request.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import gradio as gr
from gradio.blocks import Block

from amused.recipe.seeds import format_seeds
from amused.serving import jobs
from amused.serving.jobs import Event, Progress, Request, Started, Summary
from amused.serving.queue import Status
from amused.serving.runtime import Runtime
from amused.ui.events import NO_CHANGE, SAMPLING, UI_ONLY, Updates, Values, hidden_number
from amused.ui.explain import explain
from amused.ui.files import GeneratedImage, caption, save_input, save_preview, save_result
from amused.ui.history import History
from amused.ui.live_runs import LiveRun, Watcher, watch
from amused.ui.queue_list import DROP_JS, drop, show_waiting
from amused.ui.settings import Settings
from amused.ui.status import busy_line, describe_progress, describe_summary, status_line

REQUEST_TIMEOUT = 60.0  # seconds until a requested run has arrived, or never will

MORE = 4  # images that continue a sweep

WAITING = json.dumps(busy_line("Waiting for the model"))
MAX_TILES = 100_000
ARRIVED_JS = f"(number) => window.amusedArrived(number % {MAX_TILES})"
ANNOUNCE_JS = "(text) => window.amusedAnnounce(text)"

# State


class Requested(NamedTuple):
    """A run that was asked for and has not begun. It `has_waited` if another run of its page was before it."""

    has_waited: bool
    num_stops: int
    time: float


@dataclass(eq=False)
class ResultState:
    """What the events of a page share about its runs. It is their session.

    Attributes:
        images: of the latest run that has finished one, and of those that it was added to.
        shown: the finished ones in the gallery: those of the run before until a new one has something to show.
        opened: index in the gallery of the image that is open; if none is, -1 or None.
        note: how the run ended that made the last of them; empty while it goes on.
        groups: where in `images` those of a run begin that was added to others, and what they are.
        num_runs: runs that are queued or going on.
        num_stops: how often Stop was pressed.
        num_dropped: queued runs that the last Stop cancelled.
        num_arrived: runs whose first image was brought into view.
        awaits_end: a page that was opened again shows a run, of which it has yet to hear.
        live: the same runs as `num_runs` counts, the one that goes on first.
        status: what is shown of the run that goes on.
        history: of the visit.
    """

    images: tuple[GeneratedImage, ...] = ()
    shown: tuple[GeneratedImage, ...] = ()
    opened: Any = None
    note: str = ""
    groups: tuple[tuple[int, str], ...] = ()
    requested: list[Requested] = field(default_factory=list)
    num_runs: int = 0
    num_stops: int = 0
    num_dropped: int = 0
    num_arrived: int = 0
    awaits_end: bool = False
    live: tuple[LiveRun, ...] = ()
    status: str = ""
    history: History = field(default_factory=History)

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


@dataclass(frozen=True, kw_only=True)
class PartlyMade(Request):
    """A request of which some images were made before; its recipes are the others, perhaps none."""

    made: tuple[GeneratedImage, ...] = ()


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

    `ready` are the images to arrive at.

    Attributes:
        controls: by task.
        place: the column of the results, which a tab may add to.
        more: continues the sweep, see `gallery_actions`.
        gallery: a click opens an image large in its place.
        index: of an image in the gallery, see `events.send_instead`.
        details: below it, the facts and the actions of the open image, built by `gallery_actions`.
        sheet: of a grid.
        state: a ResultState.
        write_metadata: whether files carry their recipe.
        arrived: changes when the first image of a run is there; its index, see `ShownRun.bring_into_view`.
        outputs: all that runs update.
        ended: a number that changes when a run has ended. Follow this, not `state`: a State that changes in an event
            with `queue=False` triggers nothing (Gradio 6.31).
    """

    def __init__(self, tasks: Sequence[str], hint: str, ready: tuple[GeneratedImage, ...] = ()) -> None:
        self.controls = {task: RunControls(task) for task in tasks}
        self.hint = hint
        with gr.Column(scale=6, min_width=320, elem_classes="result") as self.place:
            self.gallery = gr.Gallery(
                [image.tile for image in ready],
                label="Images",
                show_label=False,
                format="png",
                columns=columns_for(len(ready)),
                object_fit="contain",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="result-gallery",
                elem_classes="images",
            )
            self.groups = gr.HTML(visible="hidden", elem_id="result-groups")
            self.status = gr.HTML(status_line(hint), padding=False, elem_id="result-status", elem_classes="status-box")
            self.details = gr.Column(visible=False, elem_id="result-picked", elem_classes="details")
            self.more = gr.Button(f"{MORE} more", size="sm", visible=bool(ready), elem_id="result-next")
            self.index = hidden_number()
            self.arrived = hidden_number()
            self.ended = gr.Number(0, visible="hidden", elem_id="result-ended")
            self.sheet = gr.Image(
                label="Grid",
                show_label=False,  # it would cover the sheet's own heading
                visible=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_id="result-sheet",
            )
        self.state, self.write_metadata = gr.State(ResultState(ready, ready)), gr.State(True)
        self.progress = [controls.progress for controls in self.controls.values()]
        self.stops = [controls.stop for controls in self.controls.values()]
        self.waiting = [controls.waiting for controls in self.controls.values()]
        self.shown_by_runs: list[Block] = [
            self.status, self.gallery, self.groups, self.details, self.more, self.arrived, self.ended, *self.progress,
            *self.stops, *self.waiting,
        ]  # fmt: skip
        self.outputs = self.shown_by_runs

    def offer_stop(self, is_offered: bool) -> Updates:
        return dict.fromkeys(self.stops, gr.Button(visible=is_offered))

    def show_waiting(self, state: ResultState) -> Updates:
        return dict.fromkeys(self.waiting, show_waiting(state.live))


def build_progress(elem_id: str, **options: Any) -> gr.HTML:
    return gr.HTML(padding=False, elem_id=elem_id, elem_classes="progress", **options)


# Events


@dataclass(frozen=True)
class RunAction:
    """What a button runs.

    Attributes:
        read: the request, from the values of `inputs`; raises UserError to refuse.
        name: what it makes, for people.
        progress: where the status is shown again; at Generate, in all tabs, if nothing else is said.
        append: add to the images in the gallery instead of replacing them, as a run that starts from one of them does.
        opens: open the first image in the gallery at the end.
        settings: whose field gets the random seeds that were drawn, to be used again.
        remark: a sentence about the images of a complete run, before its note.
        finish: updates of `outputs` from the request and its finished images, also after Stop.
    """

    read: Callable[[Values], Request]
    inputs: AbstractSet[Block] = frozenset()
    name: Callable[[Values], str] = lambda values: ""
    progress: gr.HTML | None = None
    append: bool = False
    opens: bool = False
    settings: Settings | None = None
    remark: Callable[[Values, Sequence[GeneratedImage]], str] = lambda values, images: ""
    finish: Callable[[Any, Sequence[GeneratedImage]], Updates] = lambda request, images: {}
    outputs: tuple[Block, ...] = ()


def connect_result(runtime: Runtime, view: ResultView) -> None:
    """Bring new images into view, announce how a run ends, stop runs, and drop those that wait."""

    def stop(values: Values) -> Updates:
        stop_runs(runtime, values[view.state])
        return {view.status: busy_line("Stopping"), **view.offer_stop(False)}

    def drop_run(state: ResultState, event: gr.EventData) -> Updates:
        drop(state.live, getattr(event, "run", None))
        return view.show_waiting(state)

    view.arrived.change(None, view.arrived, None, js=ARRIVED_JS, **UI_ONLY)
    view.status.change(None, view.status, None, js=ANNOUNCE_JS, **UI_ONLY)
    gr.on([one.click for one in view.stops], stop, {view.state}, [view.status, *view.stops], **UI_ONLY)
    dropped: list[Any] = [one.click for one in view.waiting]
    gr.on(dropped, drop_run, view.state, view.waiting, trigger_mode="multiple", **UI_ONLY)


def connect(runtime: Runtime, view: ResultView, events: list[Any], action: RunAction) -> None:
    """Start a run at any of these events. Runs of a page queue behind each other."""
    progress = places_of(view, action)
    waiting = [view.status, *progress, *view.stops]
    gr.on(events, None, None, waiting, js=waiting_js(1 + len(progress), len(view.stops)), show_progress="hidden")
    gr.on(events, lambda state: state.request(), view.state, None, trigger_mode="multiple", **UI_ONLY)
    inputs = {view.state, view.write_metadata, *action.inputs}
    own: list[Block] = [*progress, *action.outputs]
    if action.settings is not None:
        inputs.add(action.settings.random_seeds)
        own.append(action.settings.seeds)
    view.outputs = list(dict.fromkeys([*view.outputs, *own]))
    running = gr.on(
        events,
        partial(run_live, runtime, view, action),
        inputs,
        list(dict.fromkeys([*view.shown_by_runs, *own])),
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple",
        **SAMPLING,
    )
    # Also of a run that never began. "multiple": else Gradio drops the end of a run that follows quickly.
    ended, outputs = partial(show_end, view, progress), list(dict.fromkeys([*view.shown_by_runs, *progress]))
    running.failure(ended, {view.state}, outputs, trigger_mode="multiple", **UI_ONLY)


def places_of(view: ResultView, action: RunAction) -> list[gr.HTML]:
    """Where the status is shown again."""
    return view.progress if action.progress is None else [action.progress]


def waiting_js(num_statuses: int, num_stops: int) -> str:
    """Runs in the browser when the button is pressed, before the server answers: the statuses, and Stop."""
    stop = "{__type__: 'update', visible: true}"
    return f"() => [{', '.join([WAITING] * num_statuses + [stop] * num_stops)}]"


def stop_runs(runtime: Runtime, state: ResultState) -> None:
    """Stop the run of the page, and cancel those queued behind it or still on their way."""
    state.num_stops += 1
    state.num_dropped = max(0, state.num_runs + len(state.requested) - 1)
    runtime.stop(state)


def run_live(runtime: Runtime, view: ResultView, action: RunAction, values: Values) -> Iterator[Updates]:
    """Start a run and show it while the page is there."""
    state: ResultState = values[view.state]
    run, watcher, progress = LiveRun(action.name(values)), Watcher(), places_of(view, action)
    state.live = (*state.live, run)

    def updates() -> Generator[Updates]:
        try:
            for update in stream_run(runtime, view, action, values, run):
                if (status := update.get(view.status)) is not None:
                    state.status = status
                    update |= dict.fromkeys(progress, status)
                yield update
        finally:
            state.live = tuple(other for other in state.live if other is not run)

    run.start(updates(), watcher)
    yield view.show_waiting(state)
    yield from watch([run], watcher)
    yield show_end(view, progress, values)


def stream_run(
    runtime: Runtime, view: ResultView, action: RunAction, values: Values, run: LiveRun | None = None
) -> Generator[Updates]:
    """Generate the images of one request, and show every step. An error keeps the finished images."""
    state: ResultState = values[view.state]
    requested, run = state.begin(), run or LiveRun(action.name(values))
    shown = ShownRun(view, action, values, requested.has_waited, run)
    sentence = None

    def should_stop() -> bool:
        return run.is_dropped or state.num_stops > requested.num_stops

    try:
        for event in runtime.run(lambda: action.read(values), state, should_stop):
            yield from shown.show(event)
    except Exception as error:
        sentence = explain(error)
    finally:
        state.num_runs -= 1
        if shown.images:
            state.history.add(run.name, shown.images)
    if sentence is not None:  # outside of `except`, where the error and all that it refers to would live on
        if shown.num_tiles or not state.num_runs:  # otherwise the page shows another run
            state.note = sentence
        raise gr.Error(sentence, print_exception=False)


class ShownRun:
    """One run as it is shown; `show` turns an event into updates, and keeps the images and the note of the page."""

    def __init__(self, view: ResultView, action: RunAction, values: Values, has_waited: bool, run: LiveRun) -> None:
        self.view, self.action, self.values, self.has_waited, self.run = view, action, values, has_waited, run
        self.state: ResultState = values[view.state]
        self.earlier: tuple[GeneratedImage, ...] = ()  # in the gallery before those of this run
        self.finished: dict[int, GeneratedImage] = {}  # by index: workers finish them in any order
        self.has_tiles = False
        self.made: tuple[GeneratedImage, ...] = ()  # those of the request that were made before this run
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
            place = len(self.earlier) + len(self.made) + sum(index < event.index for index in self.finished)
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
        """The finished ones, in the order of the request, after those made before."""
        return (*self.made, *(self.finished[index] for index in sorted(self.finished)))

    def start(self, event: Started) -> Updates:
        self.request, self.run.has_started = event.request, True
        joins = self.action.append or self.has_waited or starts_from(event.request, self.state.images)
        self.earlier = self.state.images if joins else ()
        self.made = event.request.made if isinstance(event.request, PartlyMade) else ()
        self.num_tiles = len(self.earlier) + len(self.made) + event.num_images
        self.state.note = ""
        updates: Updates = {
            self.view.status: busy_line("Starting"),
            **self.view.offer_stop(True),
            **self.view.show_waiting(self.state),
        }
        if not self.earlier:
            updates |= self.close()
        settings = self.action.settings
        # Typed seeds stay: the visitor may be typing the next ones.
        if settings is not None and self.values[settings.random_seeds]:
            updates[settings.seeds] = format_seeds(event.request.recipes[0].seeds)
        return updates

    def end(self, event: Summary) -> Updates:
        if self.has_waited and not self.num_tiles:  # cancelled in the queue: the note is that of the earlier run
            return {}
        note = describe_summary(event, self.state.num_dropped)
        if self.made:
            note = f"{note}; {len(self.made)} made before" if event.num_images else "All images were made before"
        if not event.stopped and (remark := self.action.remark(self.values, self.images)):
            note = f"{remark} {note}"
        if self.earlier and self.run.name:
            note = f"{self.run.name}: {note}"
        self.state.note = note
        if not self.images:
            return {}
        updates: Updates = {} if self.has_tiles else self.tiles()  # all were made before
        self.state.images = self.earlier + self.images
        updates |= self.action.finish(self.request, self.images)
        if self.action.opens:
            updates |= self.bring_into_view()
            self.state.opened = len(self.earlier)
            updates[self.view.gallery] = gr.Gallery(selected_index=self.state.opened)
        return updates

    def tiles(self, working: Progress | None = None, **options: Any) -> Updates:
        self.state.shown = self.earlier + self.images
        label = "" if working is None else self.request.label(working.index)
        gallery = partial(show_gallery, self.state.shown, self.num_tiles, working, label)
        if self.has_tiles:
            return {self.view.gallery: gallery(**options)}
        self.has_tiles = True
        self.state.groups = (*self.state.groups, (len(self.earlier), self.run.name)) if self.earlier else ()
        updates: Updates = {self.view.gallery: gallery(**options)}
        if not self.earlier:
            updates = {**self.close(), self.view.gallery: gallery(selected_index=None)}
        if not self.action.opens:
            updates |= self.bring_into_view()
        return {**updates, self.view.groups: show_groups(self.state.groups)}

    def bring_into_view(self) -> Updates:
        """The first image of this run. One that waited leaves the visitor at what they do."""
        if self.has_waited:
            return {}
        self.state.num_arrived += 1
        return {self.view.arrived: self.state.num_arrived * MAX_TILES + len(self.earlier)}

    def close(self) -> Updates:
        """Close the open image. It goes with those of the run before.

        Done at the start already: a gallery (Gradio 6.31) that loses its open image selects another one. And again with
        the first new image, as a visitor may have opened one meanwhile.
        """
        self.state.opened = None
        return {self.view.gallery: gr.Gallery(selected_index=None), self.view.details: gr.Column(visible=False)}


def starts_from(request: Request, images: Sequence[GeneratedImage]) -> bool:
    """Whether the input image is one of these."""
    digests = {image.digest for image in images}
    return any(recipe.first.image in digests for recipe in request.recipes)


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
        **view.offer_stop(bool(state.requested)),
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
        view.details: gr.Column(visible=False),
    }


def join_runs(view: ResultView, values: Values) -> Iterator[Updates]:
    """Show the runs that went on while their page was away, until the last one has ended. It may have meanwhile."""
    yield NO_CHANGE  # a generator that yields nothing would empty all outputs
    watcher = Watcher()
    state: ResultState = values[view.state]
    for run in (runs := state.live):
        run.add(watcher)
    failure = None
    try:
        yield from watch(runs, watcher)
    except Exception as error:
        failure = error
    if state.awaits_end:
        state.awaits_end = False
        yield show_end(view, view.progress, values)
    if failure is not None:
        raise failure


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
