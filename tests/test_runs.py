"""The runs of one tab: one after the other, stopped, given up, refused, and what a failure leaves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
from fake import FakeModel, fake_runtime

from amused.errors import UserError
from amused.recipe import TEXT_TO_IMAGE, Recipe
from amused.runtime import Choice, Runtime
from amused.ui.run import FAILED, MAX_WAITING_RUNS, OUT_OF_MEMORY, Desk, Run, explain, sample


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def start(runtime: Runtime, desk: Desk, first: int, count: int = 1, former: Run | None = None) -> Iterator[list[Any]]:
    recipe = Recipe(TEXT_TO_IMAGE, "a fox", tuple(range(first, first + count)), model="nouns", steps=2)
    desk.press()
    return sample(runtime, former or Run(), desk, True, lambda: (recipe, None, None))


def is_nothing(update: list[Any]) -> bool:
    return all(value == gr.skip() for value in update)


def finished_one(update: list[Any]) -> bool:
    return isinstance(update[2], Run) and update[2].made == 1


def finish(running: Iterator[list[Any]]) -> Run:
    return [update[2] for update in running if isinstance(update[2], Run)][-1]


def test_a_second_run_waits_for_the_first_and_adds_to_its_pictures() -> None:
    runtime, desk = fake_runtime(), Desk()
    first = start(runtime, desk, 10, 2)
    next(first)
    second = start(runtime, desk, 20)
    assert is_nothing(next(second)) and is_nothing(next(second))  # the status is that of the first
    assert [shot.seed for shot in finish(first).shots] == [10, 11]
    run = finish(second)
    assert [shot.seed for shot in run.shots] == [10, 11, 20] and run.note.startswith("1 picture in")
    assert [shot.seed for shot in finish(start(runtime, desk, 30)).shots] == [30]


def test_another_visitor_is_told_how_many_are_before_them_and_takes_turns() -> None:
    runtime = fake_runtime()
    sweep = start(runtime, Desk(), 100, 64)
    while "step 1 of 2" not in str(next(sweep)[0]):
        pass  # until it is at work
    single = start(runtime, Desk(), 1)
    told = [next(single)[0] for _ in range(2)]
    assert "Starting" in told[0] and "Waiting, 1 before you" in told[1]
    while "Waiting, 1 before you" not in str(next(sweep)[0]):
        pass  # until its first picture is done
    assert finish(single).made == 1
    sweep.close()
    assert (
        runtime.numbers()["amused_pictures_total"] <= 1 + 2
    )  # of the sweep's 64 the first, and the next if it was quick


def test_stop_ends_the_run_at_work_and_drops_those_that_wait() -> None:
    runtime, desk = fake_runtime(), Desk()
    first, second, third = start(runtime, desk, 10, 64), start(runtime, desk, 20), start(runtime, desk, 30)
    while not finished_one(next(first)):
        pass
    next(second)  # and the third has not even come to the desk
    desk.ask_to_stop()
    for waiting in (second, third):
        assert next(waiting, None) is None
    run = finish(first)
    assert run.note == "Stopped: 1 picture of 64 kept. 2 waiting runs dropped"
    assert [shot.seed for shot in run.shots] == [10]
    assert runtime.numbers()['amused_requests_total{outcome="stopped"}'] == 1
    assert runtime.numbers()["amused_pictures_total"] == 1
    assert not desk.line and not desk.pressed and not desk.stop


def test_a_waiting_run_stays_dropped_when_the_run_at_work_ends_first() -> None:
    runtime, desk = fake_runtime(), Desk()
    first, second = start(runtime, desk, 10), start(runtime, desk, 20)
    next(first)
    next(second)
    desk.ask_to_stop()
    assert finish(first).note == "Stopped. 1 waiting run dropped"
    assert next(second, None) is None
    assert [shot.seed for shot in finish(start(runtime, desk, 30)).shots] == [30]


def test_a_run_that_is_asked_for_after_stop_goes_on() -> None:
    runtime, desk = fake_runtime(), Desk()
    first, second = start(runtime, desk, 10, 64), start(runtime, desk, 20)
    next(first)
    next(second)
    desk.ask_to_stop()
    third = start(runtime, desk, 30)
    assert is_nothing(next(third))
    assert finish(first).note == "Stopped. 1 waiting run dropped"
    assert next(second, None) is None
    assert finish(third).note.startswith("1 picture in")


def test_stop_before_the_run_began() -> None:
    runtime, desk = fake_runtime(), Desk()
    first = start(runtime, desk, 10)
    desk.ask_to_stop()
    assert finish(first).note == "Stopped" and not desk.stop
    assert finish(start(runtime, desk, 20)).made == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_that_is_given_up_leaves_the_desk_to_the_next(which: int) -> None:
    runtime, desk = fake_runtime(), Desk()
    runs = [start(runtime, desk, 10, 64), start(runtime, desk, 20)]
    for run in runs:
        next(run)
    runs[which].close()
    if which == 0:
        assert finish(runs[1]).made == 1
    else:
        desk.ask_to_stop()
        finish(runs[0])
    assert not desk.line and runtime.numbers()["amused_runs"] == 0


def test_no_more_than_a_few_runs_of_a_tab_wait() -> None:
    runtime, desk = fake_runtime(), Desk()
    runs = [start(runtime, desk, 10 * index) for index in range(MAX_WAITING_RUNS + 1)]
    for run in runs:
        next(run)
    with pytest.raises(gr.Error, match="runs of this tab wait already"):
        next(start(runtime, desk, 900))
    for run in runs:
        finish(run)
    assert len(desk.last.shots) == len(runs)


def test_a_failed_run_tells_a_sentence_keeps_the_pictures_and_holds_nothing() -> None:
    held: list[weakref.ref] = []

    class Failing(FakeModel):
        def generate(self, recipe: Recipe, *given: Any) -> Any:
            yield from super().generate(recipe.with_seeds(recipe.seeds[:1]), *given)
            tensors = np.zeros(1000)
            held.append(weakref.ref(tensors))
            raise MemoryError

    runtime, desk = Runtime([Choice("nouns", "")], lambda name, tell: Failing(name), default="nouns"), Desk()
    updates = []
    with pytest.raises(gr.Error) as failure:
        for update in start(runtime, desk, 10, 3):
            updates.append(update)
    assert failure.value.message == OUT_OF_MEMORY and failure.value.__context__ is None
    run = updates[-1][2]
    assert run.note == OUT_OF_MEMORY and [shot.seed for shot in run.shots] == [10]
    assert held[0]() is None
    assert runtime.numbers()['amused_requests_total{outcome="failed"}'] == 1


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
