"""The runs of a page: one after the other, stopped, abandoned, refused, and what a failure leaves."""

from __future__ import annotations

import errno
import itertools
import os
import re
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from fake import FakeImage, FakeModel, Turnstile, fake_runtime, numbers
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers.tabs import build_tab, values_of
from PIL import Image
from starlette.testclient import TestClient

from amused.errors import UserError
from amused.generation.images import digest
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Event, Request, Result, Started, Summary
from amused.serving.queue import MAX_WAITING_RUNS
from amused.serving.runtime import Choice, Runtime
from amused.ui import history, live_runs
from amused.ui.events import NO_CHANGE, Updates, merge
from amused.ui.explain import DISK_FULL, FAILED, OUT_OF_MEMORY, explain
from amused.ui.files import GeneratedImage
from amused.ui.grid import GridSection
from amused.ui.kept_images import KeptImages, write_bundle, write_sheet, write_single
from amused.ui.page import AmusedBlocks
from amused.ui.queue_list import drop, show_waiting
from amused.ui.results import ResultState, show_again, show_end
from amused.ui.runs import RunAction, join_runs, run_live, stop_runs, stream_run
from amused.ui.tabs import text
from amused.ui.uploads import GatedBlocks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


class Visitor:
    """One browser tab, with the page's text tab in it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.tab = build_tab(text.build, runtime)
        self.state = ResultState()
        self.clock = itertools.count(1)

    @property
    def seeds(self) -> list[int]:
        return [image.seed for image in self.state.images]

    def start(self, first: int, count: int = 1, **changes: Any) -> Iterator[Updates]:
        action = RunAction(read=self.tab.read, inputs=self.tab.inputs, settings=self.tab.settings)
        action = replace(action, **{name: changes.pop(name) for name in ("append", "remark") if name in changes})
        values = values_of(self.tab, self.state, seeds=str(first), count=count, steps=2, **changes)
        values = {**values, self.tab.result.pressed_at: next(self.clock)}
        return stream_run(self.runtime, self.tab.result, action, values)

    def stop(self) -> None:
        stop_runs(self.runtime, self.state, next(self.clock))

    def status(self, update: Updates) -> str:
        return str(update.get(self.tab.result.status, ""))

    def until_first_image(self, running: Iterator[Updates]) -> None:
        while not self.state.images:
            next(running)


def is_nothing(update: Updates) -> bool:
    return update == gr.skip()


def finish(running: Iterator[Updates]) -> None:
    for _ in running:
        pass


def test_a_second_run_waits_for_the_first_and_adds_to_its_images() -> None:
    visitor = Visitor(fake_runtime())
    first = visitor.start(10, 2)
    next(first)
    second = visitor.start(20)
    assert is_nothing(next(second)) and is_nothing(next(second))  # the status is that of the first
    finish(first)
    assert visitor.seeds == [10, 11]
    finish(second)
    assert visitor.seeds == [10, 11, 20] and visitor.state.note.startswith("1 image in")
    finish(visitor.start(30))
    assert visitor.seeds == [30]


def test_another_visitor_is_told_how_many_are_ahead_and_takes_turns() -> None:
    runtime = fake_runtime()
    one, other = Visitor(runtime), Visitor(runtime)
    sweep = one.start(100, 64)
    while "step 1 of 2" not in one.status(next(sweep)):
        pass  # until it is at work
    single = other.start(1)
    statuses = [other.status(next(single)) for _ in range(2)]
    assert "Starting" in statuses[0] and "Queued: 1 ahead of you" in statuses[1]
    while "Queued: 1 ahead of you" not in one.status(next(sweep)):
        pass  # until its first image is done
    finish(single)
    assert len(other.seeds) == 1
    sweep.close()
    # Of the sweep's 64 the first, and the next if it was quick.
    assert numbers(runtime)["amused_pictures_total"] <= 1 + 2


@pytest.mark.parametrize("which_ends_first", [0, 1])
def test_stop_ends_the_run_at_work_and_cancels_those_that_wait(which_ends_first: int) -> None:
    visitor = Visitor(runtime := fake_runtime())
    first, second = visitor.start(10, 64), visitor.start(20)
    visitor.until_first_image(first)
    assert visitor.seeds == [10]
    next(second)
    late = visitor.start(30)  # the server has yet to hear of this one
    visitor.stop()
    note = "Stopped after 1 of 64. Cancelled 1 queued run"
    for running in (first, second) if which_ends_first == 0 else (second, first):
        updates = list(running)
        assert running is first or all(is_nothing(update) for update in updates)
        assert visitor.state.note == (note if running is first or which_ends_first == 0 else "")
    finish(late)
    assert visitor.seeds == [10]
    assert numbers(runtime)['amused_requests_total{outcome="stopped"}'] == 3
    finish(visitor.start(40))
    assert visitor.seeds == [40]


def test_a_run_that_is_asked_for_after_stop_goes_on() -> None:
    visitor = Visitor(fake_runtime())
    first, second = visitor.start(10, 64), visitor.start(20)
    next(first)
    next(second)
    visitor.stop()
    third = visitor.start(30)
    assert is_nothing(next(third))
    finish(first)
    assert visitor.state.note == "Stopped. Cancelled 1 queued run"
    assert all(is_nothing(update) for update in second)
    finish(third)
    assert visitor.state.note.startswith("1 image in") and visitor.seeds == [30]


def test_stop_leaves_other_tabs_alone() -> None:
    runtime = fake_runtime()
    visitor, other = Visitor(runtime), Visitor(runtime)
    stopped, kept = visitor.start(10, 64), other.start(20)
    next(stopped)
    next(kept)
    visitor.stop()
    finish(stopped)
    finish(kept)
    assert visitor.state.note == "Stopped" and len(other.seeds) == 1


def test_stop_before_the_run_began() -> None:
    visitor = Visitor(fake_runtime())
    first = visitor.start(10)
    visitor.stop()
    finish(first)
    assert visitor.state.note == "Stopped"
    finish(visitor.start(20))
    assert len(visitor.seeds) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_an_abandoned_run_leaves_the_tab_to_the_next(which: int) -> None:
    visitor = Visitor(runtime := fake_runtime())
    runs = [visitor.start(10, 64), visitor.start(20)]
    for run in runs:
        next(run)
    runs[which].close()
    if which == 0:
        finish(runs[1])
        assert len(visitor.seeds) == 1
    else:
        visitor.stop()
        finish(runs[0])
    assert not visitor.state.num_runs and numbers(runtime)["amused_runs"] == 0


def test_no_more_than_a_few_runs_of_a_tab_wait() -> None:
    visitor = Visitor(fake_runtime())
    runs = [visitor.start(10 * index) for index in range(MAX_WAITING_RUNS + 1)]
    for run in runs:
        next(run)
    with pytest.raises(gr.Error, match="of your runs are waiting already"):
        next(visitor.start(900))
    for run in runs:
        finish(run)
    assert len(visitor.seeds) == len(runs)


def test_an_action_can_append_and_remark_on_what_it_made() -> None:
    visitor = Visitor(fake_runtime())
    finish(visitor.start(10, 2))
    seen: list[int] = []

    def remark(values: Any, images: Any) -> str:
        seen.extend(image.seed for image in images)
        return "The same image."

    finish(visitor.start(20, append=True, remark=remark))
    assert visitor.seeds == [10, 11, 20] and seen == [20]
    assert visitor.state.note.startswith("The same image. 1 image in")


@pytest.mark.parametrize("is_own", [True, False])
def test_a_run_that_starts_from_an_image_in_the_gallery_adds_to_it(is_own: bool) -> None:
    """And closes the image that is open: all are seen."""
    visitor = Visitor(runtime := fake_runtime())
    finish(visitor.start(10, 2))
    visitor.state.opened = 1
    image = Image.open(visitor.state.images[1].path) if is_own else Image.new("RGB", (256, 256), "teal")
    recipe = Recipe("image_to_image", "a cow", (3,), steps=2, strength=0.5, image=digest(image))
    action = RunAction(read=lambda _: Request((recipe,), image), name=lambda _: "a cow")
    finish(stream_run(runtime, visitor.tab.result, action, values_of(visitor.tab, visitor.state)))
    assert visitor.seeds == ([10, 11, 3] if is_own else [3])
    assert visitor.state.groups == (((2, "a cow"),) if is_own else ())
    assert visitor.state.opened is None


@pytest.mark.parametrize("is_random", [True, False])
def test_random_seeds_are_shown_and_typed_ones_stay(is_random: bool) -> None:
    visitor = Visitor(fake_runtime())
    shown = [
        update[visitor.tab.settings.seeds]
        for update in visitor.start(10, 3, random_seeds=is_random)
        if visitor.tab.settings.seeds in update
    ]
    assert shown == ([str(visitor.seeds[0])] if is_random else [])


def test_the_end_is_shown_unless_the_next_run_goes_on() -> None:
    visitor = Visitor(fake_runtime())
    values = values_of(visitor.tab, visitor.state)
    finish(visitor.start(10))
    view = visitor.tab.result
    shown = show_end(view, view.progress, values)
    assert (
        "1 image in" in shown[view.status]
        and len(shown[view.gallery].value) == 1
        and not any(shown[stop].visible for stop in view.stops)
    )
    second = visitor.start(20)
    next(second)
    assert set(show_end(view, view.progress, values)) == {view.ended}


def live(visitor: Visitor, first: int, count: int = 1) -> Iterator[Updates]:
    """As the page starts a run: it goes on without the page."""
    action = RunAction(read=visitor.tab.read, inputs=visitor.tab.inputs, name=visitor.tab.name)
    values = values_of(visitor.tab, visitor.state, seeds=str(first), count=count, steps=2, prompt=f"fox {first}")
    return run_live(visitor.runtime, visitor.tab.result, action, values)


def wait_for(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def join(visitor: Visitor, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Updates]:
    """As a page that is opened again."""
    view = visitor.tab.result
    show_again(view, visitor.state)
    meanwhile()
    return join_runs(view, {view.state: visitor.state})


def leave_after_the_first_image(visitor: Visitor, turnstile: Turnstile) -> None:
    """Start a run of two images and close its page; the second waits in its first step."""
    running = live(visitor, 10, 2)
    next(running)
    assert turnstile.reached.wait(60)
    running.close()
    turnstile.passes.release(3)
    wait_for(lambda: visitor.seeds == [10])


def test_a_run_goes_on_without_its_page_and_is_joined_by_the_next() -> None:
    turnstile = Turnstile()
    turnstile.open.clear()
    visitor = Visitor(runtime := fake_runtime(before_step=turnstile))
    view = visitor.tab.result
    leave_after_the_first_image(visitor, turnstile)
    again = join(visitor)
    next(again)
    turnstile.open.set()
    updates = list(again)
    assert visitor.seeds == [10, 11] and not visitor.state.live
    assert "2 images in" in updates[-1][view.status] and view.ended in updates[-1]
    assert [sweep.title for sweep in visitor.state.history.entries] == ["fox 10"]
    assert numbers(runtime)['amused_requests_total{outcome="done"}'] == 1


def test_a_run_that_ends_while_its_page_is_opened_again_is_not_shown_for_ever() -> None:
    turnstile = Turnstile()
    turnstile.open.clear()
    visitor = Visitor(fake_runtime(before_step=turnstile))
    running = live(visitor, 10, 2)
    next(running)
    running.close()

    def end() -> None:
        turnstile.open.set()
        wait_for(lambda: not visitor.state.live)

    *_, last = join(visitor, meanwhile=end)
    assert "2 images in" in visitor.status(last)
    assert list(join(visitor)) == [NO_CHANGE]


def test_a_joined_run_that_fails_shows_its_end() -> None:
    turnstile = Turnstile()
    turnstile.open.clear()

    def step() -> None:
        turnstile()
        if turnstile.open.is_set():
            raise MemoryError

    visitor = Visitor(fake_runtime(before_step=step))
    leave_after_the_first_image(visitor, turnstile)
    shown = join(visitor)
    next(shown)
    turnstile.open.set()
    last = ""
    with pytest.raises(gr.Error):
        for update in shown:
            last = visitor.status(update)
    assert OUT_OF_MEMORY in last and visitor.seeds == [10]


def test_of_several_joined_runs_the_first_error_is_told() -> None:
    turnstile = Turnstile()
    turnstile.open.clear()

    def step() -> None:
        turnstile()
        raise MemoryError

    visitor = Visitor(fake_runtime(before_step=step))
    for first in (10, 20):
        running = live(visitor, first)
        next(running)
        wait_for(lambda: visitor.state.num_runs == len(visitor.state.live))
        running.close()
    shown = join(visitor)
    next(shown)
    turnstile.open.set()
    with pytest.raises(gr.Error) as refused:
        finish(shown)
    assert refused.value.message == OUT_OF_MEMORY


def test_stop_before_the_first_image_leaves_the_names_of_groups() -> None:
    visitor = Visitor(runtime := fake_runtime())
    finish(visitor.start(10, 2))
    action = RunAction(read=visitor.tab.read, name=lambda _: "more", append=True)
    values = values_of(visitor.tab, visitor.state, seeds="20", steps=2)
    finish(stream_run(runtime, visitor.tab.result, action, values))
    assert visitor.state.groups == ((2, "more"),)
    stopped = visitor.start(30, 2)
    for update in stopped:
        if "step 1 of 2" in visitor.status(update):
            break
    visitor.stop()
    finish(stopped)
    assert visitor.seeds == [10, 11, 20] and visitor.state.groups == ((2, "more"),)


def test_a_page_that_is_slower_than_its_run_gets_what_it_missed_as_one_update() -> None:
    visitor = Visitor(fake_runtime())
    finish(live(visitor, 5, 2))
    running = live(visitor, 10, 3)
    next(running)
    wait_for(lambda: not visitor.state.live)
    missed, *rest, end = running
    gallery = missed[visitor.tab.result.gallery].constructor_args
    assert [label for _, label in gallery["value"]] == ["seed 10", "seed 11", "seed 12"]
    assert gallery["selected_index"] is None and all(is_nothing(update) for update in rest)
    assert "Image 3 of 3" in visitor.status(missed)
    assert "3 images in" in visitor.status(end) and visitor.tab.result.ended in end


def test_a_quick_run_updates_its_page_a_few_times_a_second() -> None:
    visitor = Visitor(fake_runtime())
    began = time.monotonic()
    updates = list(live(visitor, 10, 32))
    # The queue, the first one, the last one, the end.
    assert len(updates) <= 4 + (time.monotonic() - began) / live_runs.PACE
    assert visitor.seeds == list(range(10, 42))


def test_a_run_that_nobody_comes_back_to_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_runs, "AWAY_SECONDS", 0)
    visitor = Visitor(runtime := fake_runtime())
    running = live(visitor, 10, 64)
    while not visitor.state.images:
        next(running)
    running.close()
    wait_for(lambda: numbers(runtime)['amused_requests_total{outcome="left"}'] == 1)
    wait_for(lambda: not visitor.state.live)
    assert 1 <= len(visitor.seeds) < 64 and len(visitor.state.history.entries) == 1
    assert list(join(visitor)) == [NO_CHANGE]
    finish(live(visitor, 20))
    assert visitor.seeds == [20]


def test_a_waiting_run_is_listed_and_can_be_dropped_without_those_behind_it() -> None:
    turnstile = Turnstile()
    turnstile.open.clear()
    visitor = Visitor(runtime := fake_runtime(before_step=turnstile))
    runs = []
    for first in (10, 20, 30):
        runs.append(live(visitor, first))
        shown = next(runs[-1])[visitor.tab.result.waiting[0]]
        wait_for(lambda: visitor.state.num_runs == len(runs))
    assert "fox 10" not in shown and "Drop fox 20" in shown and "Drop fox 30" in shown
    (number,) = (run.number for run in visitor.state.live if run.name == "fox 20")
    for wrong in ("0", None, -1, visitor.state.live[0].number if visitor.state.live[0].has_started else -1):
        drop(visitor.state.live, wrong)
    drop(visitor.state.live, number)
    assert "fox 20" not in show_waiting(visitor.state.live)
    turnstile.open.set()
    for run in runs:
        finish(run)
    assert visitor.seeds == [10, 30]
    assert numbers(runtime)['amused_requests_total{outcome="stopped"}'] == 1


def test_a_grid_makes_only_the_cells_that_are_not_there() -> None:
    visitor = Visitor(runtime := fake_runtime())
    with gr.Blocks():
        section = GridSection(visitor.tab)

    def make(guidance: str, seeds: str) -> np.ndarray:
        """The corners of the sheet's cells, in gallery colours."""
        axes = dict(zip(section.axes, ("guidance", guidance, "seed", seeds), strict=True))
        updates = list(
            run_live(runtime, visitor.tab.result, section.action, {**values_of(visitor.tab, visitor.state), **axes})
        )
        *_, sheet = (update[section.sheet].value for update in updates if section.sheet in update)
        return np.asarray(Image.open(sheet["path"] if isinstance(sheet, dict) else sheet))

    def count() -> float:
        return numbers(runtime)["amused_pictures_total"]

    make("2, 4", "5, 7")
    assert count() == 4 and visitor.seeds == [5, 5, 7, 7]
    extended = make("2, 4, 6", "5, 7")
    assert count() == 6 and sorted(visitor.seeds) == [5] * 3 + [7] * 3
    assert visitor.state.note.endswith("; 4 made before") and visitor.state.note.startswith("2 images in")
    again = make("2, 4, 6", "5, 7")
    assert count() == 6 and visitor.state.note == "All images were made before" and len(visitor.seeds) == 6
    assert len(visitor.state.history.entries) == 2
    other = Visitor(runtime)
    other.tab = visitor.tab
    visitor = other
    assert (again == extended).all() and (make("2, 4, 6", "5, 7") == extended).all()
    assert count() == 12  # another visitor has none of them
    Path(visitor.state.images[0].path).unlink()
    make("2, 4, 6", "5, 7")
    assert count() > 12  # a file is gone


def test_a_grid_that_was_stopped_has_each_image_in_its_own_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers finish images in any order."""
    visitor = Visitor(runtime := fake_runtime())
    with gr.Blocks():
        section = GridSection(visitor.tab)
    axes = dict(zip(section.axes, ("guidance", "2, 4, 6", "nothing", ""), strict=True))
    values = {**values_of(visitor.tab, visitor.state), **axes}
    request = section.read(values)

    def make(*indices: int) -> np.ndarray:
        """The sheet after these images."""

        def events(*_: Any) -> Iterator[Event]:
            yield Started(request, 3)
            for index in indices:
                cell = request.cells[index]
                (made,) = (event for event in FakeModel("nouns").generate(cell) if isinstance(event, FakeImage))
                yield Result(index, 0, cell, made.image, made.tokens, FakeModel.fingerprint)
            yield Summary(len(indices) < 3, len(indices), 3, 1.0)

        monkeypatch.setattr(runtime, "run", events)
        updates = list(stream_run(runtime, visitor.tab.result, section.action, values))
        *_, sheet = (update[section.sheet].value for update in updates if section.sheet in update)
        return np.asarray(Image.open(sheet["path"] if isinstance(sheet, dict) else sheet))

    is_same = (make(2, 0) == make(0, 1, 2)).all(axis=(0, 2))  # by column of pixels
    third = len(is_same) // 3
    assert is_same[:third].all() and is_same[-third:].all() and not is_same.all()


def test_the_same_prompt_twice_is_two_sweeps_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_ENTRIES", 3)
    visitor = Visitor(fake_runtime())
    for _ in range(2):
        finish(live(visitor, 10))
    assert [sweep.title for sweep in visitor.state.history.entries] == ["fox 10", "fox 10"]
    for first in (20, 30):
        finish(live(visitor, first, 5))
    sweeps = visitor.state.history.entries
    assert [sweep.title for sweep in sweeps] == ["fox 30", "fox 20", "fox 10"] and len(sweeps[0].images) == 5
    assert all(Path(sweep.thumbnail).stat().st_size < 20_000 for sweep in sweeps)


def test_a_failed_run_tells_a_sentence_keeps_the_images_and_holds_nothing() -> None:
    held: list[weakref.ref] = []

    class Failing(FakeModel):
        def generate(self, recipe: Recipe, *given: Any) -> Any:
            yield from super().generate(recipe.with_seeds(recipe.seeds[:1]), *given)
            tensors = np.zeros(1000)
            held.append(weakref.ref(tensors))
            raise MemoryError

    runtime = Runtime([Choice("nouns", "")], lambda name, tell: Failing(name), default="nouns")
    visitor = Visitor(runtime)
    with pytest.raises(gr.Error) as failure:
        finish(visitor.start(10, 3))
    assert failure.value.message == OUT_OF_MEMORY and failure.value.__context__ is None
    assert visitor.state.note == OUT_OF_MEMORY and visitor.seeds == [10]
    assert held[0]() is None
    assert numbers(runtime)['amused_requests_total{outcome="failed"}'] == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("Do this."), "Do this."),
        (MemoryError(), OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"), OUT_OF_MEMORY),
        (gr.Error("OutOfMemoryError"), OUT_OF_MEMORY),
        (gr.Error("You have used up your time on the GPU."), "You have used up your time on the GPU."),
        (KeyError("/home/someone/.cache/token"), FAILED),
    ],
)
def test_errors_are_told_without_what_nobody_needs_to_know(error: Exception, sentence: str) -> None:
    assert explain(error) == sentence


def test_the_note_names_the_text_that_was_too_long() -> None:
    visitor = Visitor(fake_runtime())
    finish(visitor.start(10, negative_prompt="hat " * 80))
    assert visitor.state.note.endswith("The negative prompt is longer than the model can read: its end was ignored")
    finish(visitor.start(10, prompt="hat " * 80))
    assert visitor.state.note.endswith("The prompt is longer than the model can read: its end was ignored")


class FullDisk:
    """In place of a temporary file: takes half of what is written, then the disk is full."""

    def __init__(self, open_file: Callable[..., Any], **options: Any) -> None:
        self.file = open_file(**options)
        self.name = self.file.name

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", partial(FullDisk, tempfile.NamedTemporaryFile))


def test_a_full_disk_is_named_and_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(fake_runtime())
    running = visitor.start(10, 3)
    visitor.until_first_image(running)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", partial(FullDisk, tempfile.NamedTemporaryFile))
    with pytest.raises(gr.Error) as refused:
        finish(running)
    assert refused.value.message == visitor.state.note == DISK_FULL and visitor.seeds == [10]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("write", [write_single, write_bundle, write_sheet])
def test_a_kept_image_that_cannot_be_written_leaves_nothing(
    write: Callable[[KeptImages, bool], str], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "kept.png")
    image = GeneratedImage(str(tmp_path / "kept.png"), 1, Recipe("text_to_image", "", (1,)), "0" * 16, (8, 8))
    with pytest.raises(OSError, match="No space"):
        write(KeptImages().keep(image), True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/srv/secret"), DISK_FULL),
        (UserError("Select an image first."), "Select an image first."),
    ],
)
def test_an_event_that_is_no_run_answers_with_a_sentence(error: Exception, sentence: str) -> None:
    def fail() -> str:
        raise error

    with GatedBlocks() as page:
        gr.Button().click(fail, None, gr.Textbox(), api_name="fail")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, show_error=False)
    try:
        with pytest.raises(AppError, match=re.escape(sentence)):
            Client(address, verbose=False).predict(api_name="/fail")
    finally:
        page.close()


def test_images_are_shown_by_seed_in_whatever_order_workers_finish_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that is open stays open when an earlier one comes."""
    visitor = Visitor(runtime := fake_runtime())
    recipe = Recipe("text_to_image", "a fox", (0, 1, 2), steps=1)
    made = [event for event in FakeModel("nouns").generate(recipe) if isinstance(event, FakeImage)]

    def events(*_: Any) -> Iterator[Event]:
        yield Started(Request((recipe,)), 3)
        for index in (1, 2, 0):
            alone, one = recipe.with_seeds([index]), made[index]
            yield Result(index, index, alone, one.image, one.tokens, FakeModel.fingerprint)
        yield Summary(False, 3, 3, 1.0, num_moved=1)

    monkeypatch.setattr(runtime, "run", events)
    running, seen = visitor.start(0, 3), []
    for update in running:
        seen.append(visitor.seeds)
        if visitor.seeds == [1, 2]:
            visitor.state.opened = 1  # seed 2
        elif visitor.seeds == [0, 1, 2] and visitor.tab.result.gallery in update:
            assert update[visitor.tab.result.gallery].selected_index == visitor.state.opened == 2
    assert [seeds for seeds, _ in groupby(seen) if seeds] == [[1], [1, 2], [0, 1, 2]]
    assert "A worker was lost: another one made 1 image" in visitor.state.note


class CountedLine(gr.Textbox):
    built = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        CountedLine.built += 1
        super().__init__(*arguments, **options)


def test_what_a_handler_leaves_alone_is_not_built_again() -> None:
    with AmusedBlocks() as page:
        first, second, state = CountedLine(), CountedLine(), gr.State(1)
        outputs = [first, second, state]
        page.load(lambda: {second: gr.Textbox(visible=False)}, None, outputs, queue=False, api_name="one")
        page.load(lambda: NO_CHANGE, None, outputs, queue=False, api_name="none")
        page.load(lambda: {first: "a", state: 2, second: "b"}, None, outputs, queue=False, api_name="all")
        page.load(lambda: {page: "?"}, None, outputs, queue=False, api_name="wrong")
        page.load(lambda kept: f"state {kept}", state, first, queue=False, api_name="kept")
    with TestClient(gr.routes.App.create_app(page)) as client:

        def call(name: str, *values: Any) -> Any:
            answer = client.post(f"/gradio_api/run/{name}", json={"data": [*values], "session_hash": "one"}).json()
            return answer.get("data")

        before = CountedLine.built
        answer = call("none")
        assert CountedLine.built == before and answer == [NO_CHANGE] * 3
        assert call("one") == [NO_CHANGE, {"__type__": "update", "visible": False}, NO_CHANGE]
        assert CountedLine.built == before + 1
        assert call("all")[:2] == ["a", "b"]
        assert call("none") == [NO_CHANGE] * 3 and call("kept", None) == ["state 2"]
        assert call("wrong") is None


def test_updates_that_arrive_together_do_what_they_do_one_after_another() -> None:
    with gr.Blocks() as page:
        gallery, state, line, button = gr.Gallery(), gr.State(), gr.Textbox(), gr.Button()
        merged = merge(
            [
                {gallery: gr.Gallery(selected_index=None), line: "Starting", button: gr.Button(visible=True)},
                {gallery: gr.Gallery([]), state: 1, line: gr.Textbox(visible=False)},
                {gallery: gr.Gallery(columns=3), state: 2, button: gr.Button(visible=False)},
            ]
        )
        page.load(lambda: merged, None, [gallery, state, line, button], queue=False, api_name="merged")
        page.load(lambda kept: kept, state, line, queue=False, api_name="kept")
    with TestClient(gr.routes.App.create_app(page)) as client:

        def call(name: str) -> list[Any]:
            return client.post(f"/gradio_api/run/{name}", json={"data": [None], "session_hash": "one"}).json()["data"]

        assert call("merged") == [
            {"__type__": "update", "selected_index": None, "value": [], "columns": 3},
            None,
            {"__type__": "update", "value": "Starting", "visible": False},
            {"__type__": "update", "visible": False},
        ]
        assert call("kept") == ["2"]
