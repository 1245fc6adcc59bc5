"""Runs: what a button runs, and the loop that shows a run's events in the results.

Knows no task: a `RunAction` says how a run reads its request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from amused.recipe.seeds import format_seeds
from amused.serving import jobs
from amused.serving.jobs import Event, Progress, Request, Started, Summary
from amused.serving.queue import Status
from amused.serving.runtime import Runtime
from amused.ui.events import NO_CHANGE, SAMPLING, UNQUEUED, Updates, Values, merge, send
from amused.ui.explain import explain
from amused.ui.files import GeneratedImage, save_input, save_result
from amused.ui.live_runs import LiveRun, Watcher, watch
from amused.ui.queue_list import drop
from amused.ui.results import ARRIVED_JS, ResultState, ResultView, show_end, show_gallery, show_groups
from amused.ui.settings import Settings
from amused.ui.status import busy_line, describe_progress, describe_summary

WAITING = json.dumps(busy_line("Waiting for the model"))


@dataclass(frozen=True)
class RunAction:
    """What a button runs.

    Attributes:
        read: the request, from the values of `inputs`; raises UserError to refuse.
        name: what it makes, for people.
        progress: where the status is shown again; at Generate, in all tabs, if nothing else is said.
        append: add to the images in the gallery instead of replacing them. Runs that start from one of them add, too.
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


@dataclass(frozen=True, kw_only=True)
class PartialRequest(Request):
    """A request of which some images exist; its recipes are the others, perhaps none."""

    existing: tuple[GeneratedImage, ...] = ()


def connect_result(runtime: Runtime, view: ResultView) -> None:
    """Bring new images into view, stop runs, and drop those that wait."""

    def stop(values: Values) -> Updates:
        state: ResultState = values[view.state]
        stop_runs(runtime, state, values[view.pressed_at])
        if not state.num_runs:  # the page has yet to hear that the run has ended
            return show_end(view, view.progress, values)
        return {**dict.fromkeys([view.status, *view.progress], busy_line("Stopping")), **view.offer_stop(False)}

    def drop_run(state: ResultState, event: gr.EventData) -> Updates:
        drop(state.live, getattr(event, "run", None))
        return view.show_waiting(state)

    view.arrived.change(None, view.arrived, None, js=ARRIVED_JS, **UNQUEUED)
    inputs: set[Block] = {view.state, view.pressed_at}
    stops: list[Any] = [one.click for one in view.stops]
    gr.on(stops, stop, inputs, view.shown_by_runs, js=send(inputs), **UNQUEUED)
    dropped: list[Any] = [one.click for one in view.waiting]
    gr.on(dropped, drop_run, view.state, view.waiting, trigger_mode="multiple", **UNQUEUED)


def connect(runtime: Runtime, view: ResultView, events: list[Any], action: RunAction) -> None:
    """Start a run at any of these events. Runs of a page queue behind each other."""
    progress = places_of(view, action)
    waiting = [view.status, *progress, *view.stops]
    gr.on(events, None, None, waiting, js=waiting_js(1 + len(progress), len(view.stops)), show_progress="hidden")
    inputs = {view.state, view.write_metadata, view.pressed_at, *action.inputs}
    own: list[Block] = [*progress, *action.outputs]
    if action.settings is not None:
        inputs.add(action.settings.random_seeds)
        own.append(action.settings.seeds)
    view.outputs = list(dict.fromkeys([*view.outputs, *own]))
    view.places = list(dict.fromkeys([*view.places, *progress]))
    running = gr.on(
        events,
        partial(run_live, runtime, view, action),
        inputs,
        list(dict.fromkeys([*view.shown_by_runs, *own])),
        js=send(inputs),
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple",
        **SAMPLING,
    )
    # Also of a run that never began. "multiple": else Gradio drops the end of a run that follows quickly.
    ended, outputs = partial(show_end, view, progress), list(dict.fromkeys([*view.shown_by_runs, *progress]))
    running.failure(ended, {view.state}, outputs, trigger_mode="multiple", **UNQUEUED)


def places_of(view: ResultView, action: RunAction) -> list[gr.HTML]:
    """Where the status is shown again."""
    return view.progress if action.progress is None else [action.progress]


def waiting_js(num_statuses: int, num_stops: int) -> str:
    """Runs in the browser when the button is pressed, before the server answers: the statuses, and Stop."""
    stop = "{__type__: 'update', visible: true}"
    return f"() => [{', '.join([WAITING] * num_statuses + [stop] * num_stops)}]"


def stop_runs(runtime: Runtime, state: ResultState, pressed_at: float) -> None:
    """Stop the run of the page, and cancel those queued behind it or still on their way."""
    state.stopped_at = pressed_at
    state.num_dropped = max(0, state.num_runs - 1)
    runtime.stop(state)


def run_live(runtime: Runtime, view: ResultView, action: RunAction, values: Values) -> Iterator[Updates]:
    """Start a run and show it while the page is there."""
    state: ResultState = values[view.state]
    run, watcher, progress = LiveRun(action.name(values)), Watcher(), places_of(view, action)
    state.add(run)

    def updates() -> Generator[Updates]:
        try:
            for update in stream_run(runtime, view, action, values, run):
                if (status := update.get(view.status)) is not None:
                    state.status = status
                    update |= dict.fromkeys(progress, status)
                yield update
        finally:
            state.remove(run)

    run.start(updates(), watcher)
    yield {**view.show_waiting(state), **view.offer_stop(True)}
    yield from watch([run], watcher)
    yield merge([show_end(view, progress, values), run.last])


def stream_run(
    runtime: Runtime, view: ResultView, action: RunAction, values: Values, run: LiveRun | None = None
) -> Generator[Updates]:
    """Generate the images of one request, and show every step. An error keeps the finished images."""
    state: ResultState = values[view.state]
    run, pressed_at = run or LiveRun(action.name(values)), values[view.pressed_at]
    shown = ShownRun(view, action, values, state.begin(), run)
    sentence = None

    def should_stop() -> bool:
        return run.is_dropped or state.stopped_at > pressed_at

    try:
        for event in runtime.run(lambda: action.read(values), state, should_stop):
            yield from shown.show(event)
    except Exception as error:
        sentence = explain(error)
    finally:
        state.num_runs -= 1
        if shown.finished:
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
        self.closes = not (action.append or has_waited)  # the open image
        self.num_openings = self.state.num_openings
        self.groups: tuple[tuple[int, str], ...] = ()
        self.has_tiles = False
        self.existing: tuple[GeneratedImage, ...] = ()  # those of the request that were made before this run
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
            place = len(self.earlier) + len(self.existing) + sum(index < event.index for index in self.finished)
            options: dict[str, Any] = {}
            if place < len(self.state.shown) and type(self.state.opened) is int and place <= self.state.opened:
                self.state.opened += 1  # the open image stays open
                options["selected_index"] = self.state.opened
            self.finished[event.index] = image
            self.keep_images()
            updates = self.tiles(**options)
        else:
            updates = self.end(event)
        yield updates or NO_CHANGE

    @property
    def images(self) -> tuple[GeneratedImage, ...]:
        """The finished ones, in the order of the request, after those made before."""
        return (*self.existing, *(self.finished[index] for index in sorted(self.finished)))

    def start(self, event: Started) -> Updates:
        self.request, self.run.has_started = event.request, True
        replaces = self.closes and not starts_from(event.request, self.state.images)
        self.earlier = () if replaces else self.state.images
        self.groups = (*self.state.groups, (len(self.earlier), self.run.name)) if self.earlier else ()
        self.existing = event.request.existing if isinstance(event.request, PartialRequest) else ()
        self.num_tiles = len(self.earlier) + len(self.existing) + event.num_images
        self.state.note = ""
        updates: Updates = {
            self.view.status: busy_line("Starting"),
            **self.view.offer_stop(True),
            **self.view.show_waiting(self.state),
        }
        if self.closes:
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
        if self.existing:
            note = f"{note}; {len(self.existing)} made before" if event.num_images else "All images were made before"
        if not event.stopped and (remark := self.action.remark(self.values, self.images)):
            note = f"{remark} {note}"
        if self.earlier and self.run.name:
            note = f"{self.run.name}: {note}"
        self.state.note = note
        if not self.images:
            return {}
        updates: Updates = {} if self.has_tiles else self.tiles()  # all were made before
        self.keep_images()
        if self.action.opens:
            self.run.last = self.open()
            return updates
        return updates | self.action.finish(self.request, self.images)

    def keep_images(self) -> None:
        self.state.images, self.state.groups = self.earlier + self.images, self.groups

    def open(self) -> Updates:
        """Open the first image, unless the visitor has opened something else meanwhile, perhaps to paint on it."""
        if self.state.num_openings != self.num_openings:
            return {}
        self.state.num_openings += 1
        self.state.opened = len(self.earlier)
        gallery = gr.Gallery(selected_index=self.state.opened)
        return {**self.action.finish(self.request, self.images), **self.bring_into_view(), self.view.gallery: gallery}

    def tiles(self, working: Progress | None = None, **options: Any) -> Updates:
        self.state.shown = self.earlier + self.images
        label = "" if working is None else self.request.label(working.index)
        gallery = partial(show_gallery, self.state.shown, self.num_tiles, working, label)
        if self.has_tiles:
            return {self.view.gallery: gallery(**options)}
        self.has_tiles = True
        updates: Updates = {self.view.gallery: gallery(**options)}
        if self.closes:
            updates = {**self.close(), self.view.gallery: gallery(selected_index=None)}
        if not self.action.opens:
            updates |= self.bring_into_view()
        return {**updates, self.view.groups: show_groups(self.groups)}

    def bring_into_view(self) -> Updates:
        """The first image of this run. One that waited leaves the visitor at what they do."""
        if self.has_waited:
            return {}
        return self.view.bring_into_view(self.state, len(self.earlier))

    def close(self) -> Updates:
        """Close the open image and hide the sheet of a grid before.

        Done at the start already: a gallery (Gradio 6.31) that loses its open image selects another one. And again with
        the first new image, as a visitor may have opened one meanwhile.
        """
        self.state.opened = None
        self.state.num_openings += 1
        return {self.view.gallery: gr.Gallery(selected_index=None), **self.view.hide_details()}


def starts_from(request: Request, images: Sequence[GeneratedImage]) -> bool:
    """Whether the input image is one of these. A grid shows its cells alone."""
    if isinstance(request, PartialRequest):
        return False
    digests = {image.digest for image in images}
    return any(recipe.first.image in digests for recipe in request.recipes)


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
        yield merge([show_end(view, view.places, values), *(run.last for run in runs)])
    if failure is not None:
        raise failure
