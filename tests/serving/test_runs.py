"""The runs of one tab: one after the other, stopped, given up, refused, and what a failure leaves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
from fake import FakeModel, fake_runtime, numbers

from amused.errors import UserError
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Choice, Runtime
from amused.serving.scheduler import MAX_WAITING_RUNS
from amused.ui.run import FAILED, OUT_OF_MEMORY, Run, TabState, ask_to_stop, explain, sample


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def start(runtime: Runtime, tab: TabState, first: int, count: int = 1) -> Iterator[list[Any]]:
    recipe = Recipe(TEXT_TO_IMAGE, "a fox", tuple(range(first, first + count)), model="nouns", steps=2)
    tab.press()
    return sample(runtime, Run(), tab, True, lambda: Request((recipe,)))


def is_nothing(update: list[Any]) -> bool:
    return all(value == gr.skip() for value in update)


def until_first_image(running: Iterator[list[Any]]) -> Run:
    return next(update[2] for update in running if isinstance(update[2], Run) and update[2].made)


def finish(running: Iterator[list[Any]]) -> Run:
    return [update[2] for update in running if isinstance(update[2], Run)][-1]


def test_a_second_run_waits_for_the_first_and_adds_to_its_pictures() -> None:
    runtime, tab = fake_runtime(), TabState()
    first = start(runtime, tab, 10, 2)
    next(first)
    second = start(runtime, tab, 20)
    assert is_nothing(next(second)) and is_nothing(next(second))  # the status is that of the first
    assert [shot.seed for shot in finish(first).shots] == [10, 11]
    run = finish(second)
    assert [shot.seed for shot in run.shots] == [10, 11, 20] and run.note.startswith("1 picture in")
    assert [shot.seed for shot in finish(start(runtime, tab, 30)).shots] == [30]


def test_another_visitor_is_told_how_many_are_before_them_and_takes_turns() -> None:
    runtime = fake_runtime()
    sweep = start(runtime, TabState(), 100, 64)
    while "step 1 of 2" not in str(next(sweep)[0]):
        pass  # until it is at work
    single = start(runtime, TabState(), 1)
    told = [next(single)[0] for _ in range(2)]
    assert "Starting" in told[0] and "Queued: 1 ahead of you" in told[1]
    while "Queued: 1 ahead of you" not in str(next(sweep)[0]):
        pass  # until its first picture is done
    assert finish(single).made == 1
    sweep.close()
    assert (
        numbers(runtime)["amused_pictures_total"] <= 1 + 2
    )  # of the sweep's 64 the first, and the next if it was quick


@pytest.mark.parametrize("which_ends_first", [0, 1])
def test_stop_ends_the_run_at_work_and_drops_those_that_wait(which_ends_first: int) -> None:
    runtime, tab = fake_runtime(), TabState()
    first, second = start(runtime, tab, 10, 64), start(runtime, tab, 20)
    assert [shot.seed for shot in until_first_image(first).shots] == [10]
    next(second)
    pressed = start(runtime, tab, 30)  # the server has yet to hear of this one
    ask_to_stop(runtime, tab)
    ended = {}
    for index in (which_ends_first, 1 - which_ends_first):
        ended[index] = [update[2] for update in (first, second)[index] if isinstance(update[2], Run)]
    note = "Stopped: 1 picture of 64 kept. 2 waiting runs were dropped"
    assert [run.note for run in ended[0]] == [note] and ended[1] == []
    assert all(is_nothing(update) for update in pressed) and [shot.seed for shot in tab.last.shots] == [10]
    assert tab.last.note == note
    assert numbers(runtime)['amused_requests_total{outcome="stopped"}'] == 3
    assert [shot.seed for shot in finish(start(runtime, tab, 40)).shots] == [40]


def test_stop_leaves_other_tabs_alone() -> None:
    runtime, tab, other = fake_runtime(), TabState(), TabState()
    stopped, kept = start(runtime, tab, 10, 64), start(runtime, other, 20)
    next(stopped)
    next(kept)
    ask_to_stop(runtime, tab)
    assert finish(stopped).note == "Stopped" and finish(kept).made == 1


def test_stop_before_the_run_began() -> None:
    runtime, tab = fake_runtime(), TabState()
    first = start(runtime, tab, 10)
    ask_to_stop(runtime, tab)
    assert finish(first).note == "Stopped"
    assert finish(start(runtime, tab, 20)).made == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_that_is_given_up_leaves_the_tab_to_the_next(which: int) -> None:
    runtime, tab = fake_runtime(), TabState()
    runs = [start(runtime, tab, 10, 64), start(runtime, tab, 20)]
    for run in runs:
        next(run)
    runs[which].close()
    if which == 0:
        assert finish(runs[1]).made == 1
    else:
        ask_to_stop(runtime, tab)
        finish(runs[0])
    assert not tab.runs and numbers(runtime)["amused_runs"] == 0


def test_no_more_than_a_few_runs_of_a_tab_wait() -> None:
    runtime, tab = fake_runtime(), TabState()
    runs = [start(runtime, tab, 10 * index) for index in range(MAX_WAITING_RUNS + 1)]
    for run in runs:
        next(run)
    with pytest.raises(gr.Error, match="of your runs are waiting already"):
        next(start(runtime, tab, 900))
    for run in runs:
        finish(run)
    assert len(tab.last.shots) == len(runs)


def test_a_failed_run_tells_a_sentence_keeps_the_pictures_and_holds_nothing() -> None:
    held: list[weakref.ref] = []

    class Failing(FakeModel):
        def generate(self, recipe: Recipe, *given: Any) -> Any:
            yield from super().generate(recipe.with_seeds(recipe.seeds[:1]), *given)
            tensors = np.zeros(1000)
            held.append(weakref.ref(tensors))
            raise MemoryError

    runtime, tab = Runtime([Choice("nouns", "")], lambda name, tell: Failing(name), default="nouns"), TabState()
    updates = []
    with pytest.raises(gr.Error) as failure:
        for update in start(runtime, tab, 10, 3):
            updates.append(update)
    assert failure.value.message == OUT_OF_MEMORY and failure.value.__context__ is None
    run = updates[-1][2]
    assert run.note == OUT_OF_MEMORY and [shot.seed for shot in run.shots] == [10]
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
