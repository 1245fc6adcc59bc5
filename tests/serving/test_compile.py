"""Compiling behind the running page: after a run, with the model to itself, and never instead of a visitor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from fake import FakeModel, fake_runtime, sampled
from gradio import Blocks

import app
from amused.recipe.recipe import Recipe
from amused.serving import queue
from amused.serving.jobs import Request
from amused.serving.queue import RunQueue
from amused.serving.runtime import Choice, Runtime

RECIPE = Recipe("text_to_image", "a red cat", (1, 2), model="nouns", steps=3)
Turn = Callable[[], AbstractContextManager[bool]]


class CompilingModel(FakeModel):
    """Its `compile` blocks until the test releases it: first before it takes a turn, then within one."""

    compile_status = "The network runs as a CUDA graph"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.needs_compiling = True
        self.compiling, self.may_take_turn = threading.Event(), threading.Event()
        self.within, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.turns: list[bool] = []

    def compile(self, turn: Turn) -> None:
        self.compiling.set()
        assert self.may_take_turn.wait(60)
        with turn() as is_ours:
            self.turns.append(is_ours)
            self.within.set()
            assert self.may_end.wait(60)
        self.needs_compiling = False
        self.ended.set()


def runtime_of(*models: FakeModel) -> Runtime:
    by_name = {model.name: model for model in models}
    choices = [Choice(name, "") for name in by_name]
    return Runtime(choices, lambda name, report: by_name[name], default=models[0].name)


def line_of(*models: FakeModel) -> RunQueue:
    by_name = {model.name: model for model in models}
    return RunQueue(lambda name, report: by_name[name], lambda model: None, 4, 4)


def use(line: RunQueue, name: str) -> None:
    with line.enter() as slot:
        list(slot.acquire(name))


def test_visitors_are_served_while_it_compiles_and_wait_only_for_its_turn() -> None:
    model = CompilingModel("nouns")
    runtime = runtime_of(model)
    assert runtime.compile_status() == ""
    assert len(list(sampled(runtime, RECIPE))) == 8
    assert model.compiling.wait(60) and runtime.compile_status() == model.compile_status
    assert len(list(sampled(runtime, RECIPE))) == 8  # nobody waits for a compiler
    model.may_take_turn.set()
    assert model.within.wait(60) and model.turns == [True]
    events = runtime.run(lambda: Request((RECIPE,)))
    first = [next(events) for _ in range(3)]
    assert any(isinstance(event, queue.Status) for event in first), first
    model.may_end.set()
    assert model.ended.wait(60)
    assert sum(1 for _ in events) > 8
    assert runtime.queue.counts() == (0, 0)


def test_a_run_that_is_closed_early_is_compiled_for_too() -> None:
    model = CompilingModel("nouns")
    runtime = runtime_of(model)
    events = sampled(runtime, RECIPE)
    next(events)
    events.close()
    assert model.compiling.wait(60)
    model.may_take_turn.set()
    model.may_end.set()
    assert model.ended.wait(60)


def test_one_thread_compiles_and_an_error_ends_no_run(caplog: pytest.LogCaptureFixture) -> None:
    model, calls = CompilingModel("nouns"), []

    def compile(turn: Turn) -> None:
        calls.append(turn)
        raise RuntimeError("no compiler")

    model.compile = compile
    runtime = runtime_of(model)
    for expected in (1, 2):  # tried again after the next run
        assert len(list(sampled(runtime, RECIPE))) == 8
        wait_until(lambda: "could not be compiled" in caplog.text and not runtime._compiling.locked())
        assert len(calls) == expected
        caplog.clear()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_model_that_is_gone_gets_no_turn_and_is_not_loaded_again() -> None:
    one, other = FakeModel("one"), FakeModel("other")
    line = line_of(one, other)
    use(line, "one")
    use(line, "other")
    with line.turn_with(one) as is_ours:
        assert not is_ours
    assert line.model is other


def test_a_turn_waited_for_is_given_up_when_the_model_is_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FakeModel("one"), FakeModel("other")
    line = line_of(one, other)
    found = []
    with line.enter() as holder:
        list(holder.acquire("one"))
        switching = threading.Thread(target=use, args=(line, "other"))
        switching.start()
        wait_until(holder.yield_turn)  # now the other model is fetched, and waits for this one to be out of use
        wait_until(lambda: line._loads["other"].fetched)
        list(holder.acquire("one"))

        def compile() -> None:
            with line.turn_with(one) as is_ours:
                found.append(is_ours)

        waiting = threading.Thread(target=compile)
        waiting.start()
        wait_until(lambda: len(line._waiting) == 2)
        monkeypatch.setattr(queue, "SWITCH_TIMEOUT", 0.0)
    for thread in (switching, waiting):
        thread.join(60)
    assert found == [False] and line.model is other and line.counts() == (0, 0)


def test_the_page_asks_at_each_visit_and_offers_no_endpoint_for_it() -> None:
    page: Blocks = app.build_page(fake_runtime())
    (event,) = [one for one in page.fns.values() if getattr(one.fn, "__name__", "") == "compile_status"]
    assert event.targets[0][1] == "load" and event.api_visibility == "private"
