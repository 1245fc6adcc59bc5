"""Runs and the one loaded model: turns picture by picture, one load for all, the former one freed, failures."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake import FakeModel, fake_runtime, sampled

from amused.errors import UserError
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving import runtime as runtimes
from amused.serving import scheduler
from amused.serving.runtime import Choice, Finished, Runtime, Working
from amused.serving.scheduler import BUSY, Progress, Waiting

CHOICES = [Choice("nouns", "small"), Choice("amused-256", "large", "1.6 GB")]


def runtime_of(load: Callable[[str, Progress], Any], **limits: int) -> Runtime:
    return Runtime(CHOICES, load, default="nouns", **limits)


def recipe(prompt: str = "a fox", seeds: int = 1, steps: int = 3, model: str = "nouns") -> Recipe:
    return Recipe(TEXT_TO_IMAGE, prompt, tuple(range(seeds)), steps=steps, model=model)


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run each in a thread; what they gave or raised."""
    given: list[Any] = [None] * len(tasks)

    def run(index: int) -> None:
        try:
            given[index] = tasks[index]()
        except Exception as error:
            given[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return given


def make(runtime: Runtime, asked: Recipe) -> list[Finished]:
    return [event for event in sampled(runtime, asked) if isinstance(event, Finished)]


class Order:
    """What the model was asked for, step by step, by prompt."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[str] = []
        self.in_memory: list[weakref.ref] = []
        self.most_in_memory = 0

    def load(self, name: str, progress: Progress) -> FakeModel:
        order = self

        class Model(FakeModel):
            def read_weights(self, everything: bool = False) -> None:
                order.names.append(name)
                self.weights = np.zeros(1000)
                order.in_memory.append(weakref.ref(self.weights))
                alive = sum(reference() is not None for reference in order.in_memory)
                order.most_in_memory = max(order.most_in_memory, alive)

            def generate(self, recipe: Recipe, *given: Any) -> Any:
                for event in super().generate(recipe, *given):
                    order.steps.append(recipe.prompt)
                    yield event

        return Model(name)


def test_twenty_at_once_load_one_model() -> None:
    order = Order()
    runtime = runtime_of(order.load, queue=20)
    asked = [recipe(f"a fox {index}") for index in range(20)]
    made = together(*(lambda one=one: make(runtime, one) for one in asked))
    assert order.names == ["nouns"]
    alone = fake_runtime()
    for one, (event,) in zip(asked, made):
        assert (event.tokens == make(alone, one)[0].tokens).all()


def test_a_load_that_fails_is_told_to_all_who_waited_and_tried_again_by_who_comes_then() -> None:
    loads: list[str] = []
    runtime = runtime_of(lambda name, progress: fail_once(name), queue=20)
    everybody = threading.Event()

    def fail_once(name: str) -> FakeModel:
        loads.append(name)
        if len(loads) == 1:
            assert everybody.wait(60)
            raise UserError("The disk is full.")
        return FakeModel(name)

    def ask() -> list[Finished]:
        with runtime.visit() as visit:
            waiting = visit.wait("nouns")
            next(waiting)
            arrived.release()
            list(waiting)
        return []

    arrived = threading.Semaphore(0)

    def let_it_fail() -> None:
        for _ in range(20):
            assert arrived.acquire(timeout=60)
        everybody.set()

    *errors, _ = together(*[ask] * 20, let_it_fail)
    assert [str(error) for error in errors] == ["The disk is full."] * 20
    assert loads == ["nouns"] and not runtime.is_loaded("nouns")
    assert len(make(runtime, recipe())) == 1
    assert loads == ["nouns", "nouns"]


def test_switching_frees_the_former_model_before_the_next_is_read() -> None:
    order = Order()
    runtime = runtime_of(order.load)
    for name in ("nouns", "amused-256", "nouns"):
        make(runtime, recipe(model=name))
        assert runtime.is_loaded(name)
    gc.collect()
    assert order.names == ["nouns", "amused-256", "nouns"]
    assert order.most_in_memory == 1


def test_a_sweep_does_not_keep_a_single_picture_waiting() -> None:
    order = Order()
    runtime = runtime_of(order.load)
    with runtime.visit() as visit:
        sweep = visit.generate(recipe("sweep", seeds=64, steps=2))
        while not isinstance(next(sweep), Finished):
            pass
        next(sweep)  # a step of the second picture: now somebody comes
        with runtime.visit() as other:
            single = other.generate(recipe("single", steps=2))
            assert next(single) == Waiting("Waiting, 1 before you")
            while not isinstance(next(sweep), Finished):
                pass
            assert next(sweep) == Waiting("Waiting, 1 before you")
            assert [type(event) for event in single] == [Working, Working, Finished]
        rest = [event for event in sweep if isinstance(event, Finished)]
    assert len(rest) == 62 and [event.index for event in rest] == list(range(2, 64))
    steps = "".join(prompt[1] for prompt in order.steps)  # two steps and a picture each
    assert steps == "www" * 2 + "iii" + "www" * 62


def test_runs_at_the_same_time_get_their_own_pictures_in_turns() -> None:
    runtime = fake_runtime(queue=8)
    asked = [recipe(f"a fox {index}", seeds=4) for index in range(8)]
    for one, made in zip(asked, together(*(lambda one=one: make(runtime, one) for one in asked))):
        alone = make(fake_runtime(), one)
        assert [event.seed for event in made] == [0, 1, 2, 3]
        assert all((ours.tokens == theirs.tokens).all() for ours, theirs in zip(made, alone))


def test_two_models_are_taken_in_turns_of_patience_and_never_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of each in turn would load a model for each; waiting for the end of a sweep would take for ever."""
    monkeypatch.setattr(scheduler, "PATIENCE", 0.2)
    order = Order()
    runtime = runtime_of(order.load)
    slow = threading.Event()
    sweep, single = recipe("sweep", seeds=64, steps=2), recipe("single", seeds=2, steps=2, model="amused-256")

    def make_slowly() -> list[Finished]:
        made = []
        for event in sampled(runtime, sweep):
            if isinstance(event, Finished):
                made.append(event)
                slow.set()
                time.sleep(0.01)
        return made

    def come_later() -> list[Finished]:
        assert slow.wait(60)
        return make(runtime, single)

    first, second = together(make_slowly, come_later)
    assert [event.seed for event in first] == list(range(64)) and len(second) == 2
    assert order.names == ["nouns", "amused-256", "nouns"]
    assert order.most_in_memory == 1
    alone = make(fake_runtime(), sweep)
    assert all((ours.tokens == theirs.tokens).all() for ours, theirs in zip(first, alone))


def test_others_go_on_while_a_model_is_downloaded() -> None:
    begun, fetched = threading.Event(), threading.Event()

    def load(name: str, progress: Progress) -> FakeModel:
        if name == "amused-256":
            progress(0.5, "Downloading half of it")
            begun.set()
            assert fetched.wait(60)
        return FakeModel(name)

    runtime = runtime_of(load)
    make(runtime, recipe())
    with runtime.visit() as visit:
        news = visit.wait("amused-256")
        first = next(news)
        assert begun.wait(60)
        assert {first, next(news)} >= {Waiting("Downloading half of it", 0.5)}
        assert len(make(runtime, recipe())) == 1
        fetched.set()
        list(news)
        assert runtime.is_loaded("amused-256")


def test_a_load_that_nobody_waits_for_ends() -> None:
    ended = threading.Event()

    def load(name: str, progress: Progress) -> FakeModel:
        if name == "nouns":
            return FakeModel(name)
        try:
            while True:
                progress(None, "Downloading")
        finally:
            ended.set()

    runtime = runtime_of(load)
    with runtime.visit() as visit:
        next(visit.wait("amused-256"))
    assert ended.wait(60)
    assert len(make(runtime, recipe())) == 1


def test_only_so_many_are_let_in_and_who_comes_then_is_told_at_once() -> None:
    runtime = fake_runtime(at_once=1, queue=1)
    with runtime.visit() as first:
        assert list(first.admitted()) == []
        with runtime.visit() as second:
            door = second.admitted()
            assert next(door) == Waiting("Waiting, 1 before you")
            with pytest.raises(UserError) as refusal:
                runtime.visit()
            assert str(refusal.value) == BUSY
            first.__exit__(None, None, None)
            assert list(door) == []
    assert runtime.numbers()["amused_runs"] == 0
    assert runtime.numbers()['amused_requests_total{outcome="refused"}'] == 1


@pytest.mark.parametrize("when", ["waiting", "working", "loading", "between"])
def test_a_run_that_is_given_up_makes_way(when: str) -> None:
    runtime = fake_runtime(load_seconds=0.2)
    if when != "loading":
        make(runtime, recipe())
    with runtime.visit() as busy:
        if when == "waiting":
            next(busy.generate(recipe(seeds=64)))
        with runtime.visit() as visit:
            events = visit.generate(recipe(seeds=64))
            event = next(events)
            assert isinstance(event, Waiting if when in ("waiting", "loading") else Working)
            while when == "between" and not isinstance(event, Finished):
                event = next(events)
    assert len(make(runtime, recipe())) == 1
    assert runtime.numbers()["amused_runs"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_twenty_five_are_closed_at_random_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps: list[int] = []
    runtime = fake_runtime(before_step=lambda: steps.append(1), queue=25)
    for _ in range(25):
        with runtime.visit() as visit:
            events = visit.generate(recipe(seeds=4, steps=5))
            for _ in range(int(random.integers(0, 24))):
                next(events)
        before = len(steps)
        assert len(make(runtime, recipe(steps=2))) == 1
        assert len(steps) == before + 2  # nothing of the closed one was made any more


def test_one_run_works_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "REQUEST_SECONDS", 0.05)
    runtime = fake_runtime(step_seconds=0.01)
    made = []
    with pytest.raises(UserError, match="as long as one run may"):
        for event in sampled(runtime, recipe(seeds=64, steps=2)):
            made.append(event)
    assert any(isinstance(event, Finished) for event in made) and len(made) < 64
    assert len(make(runtime, recipe(steps=2))) == 1


@pytest.mark.parametrize("when", ["load", "first step", "middle step", "decode"])
def test_memory_that_runs_out_comes_back(when: str) -> None:
    """Twenty times in a row: what the failed run held is let go, and the next person gets a picture."""
    held: list[weakref.ref] = []
    failing = True

    class Hungry(FakeModel):
        def run_out(self) -> None:
            tensors = np.zeros(1_000_000)
            held.append(weakref.ref(tensors))
            if failing:
                raise MemoryError("out of memory")

        def read_weights(self, everything: bool = False) -> None:
            if when == "load":
                self.run_out()

        def generate(self, recipe: Recipe, *given: Any) -> Any:
            for number, event in enumerate(super().generate(recipe, *given)):
                if number == {"first step": 0, "middle step": 2, "decode": 4}.get(when):
                    self.run_out()
                yield event

    runtime = runtime_of(lambda name, progress: Hungry(name))
    for _ in range(20):
        with pytest.raises(MemoryError):
            make(runtime, recipe(steps=4))
    gc.collect()
    assert len(held) == 20 and all(reference() is None for reference in held)
    failing = False
    assert len(make(runtime, recipe(steps=4))) == 1


def test_only_listed_models_are_loaded() -> None:
    runtime = fake_runtime()
    for name in ("../secrets", "owner/other", ""):
        with runtime.visit() as visit, pytest.raises(UserError, match="choose one of nouns"):
            next(visit.wait(name))


def test_a_model_named_at_the_start_is_a_choice() -> None:
    runtime = Runtime(CHOICES, lambda name, progress: FakeModel(name), default="owner/other")
    runtime.warm_up().join(60)
    assert runtime.is_loaded("owner/other")


def test_previews_come_during_a_picture_and_do_not_dominate() -> None:
    class SlowPreviews(FakeModel):
        previews = 0

        def preview(self, *tokens: Any) -> Any:
            self.previews += 1
            time.sleep(0.05)
            return super().preview(*tokens)

    model = SlowPreviews("nouns")
    runtime = runtime_of(lambda name, progress: model)
    events = list(sampled(runtime, recipe(seeds=2, steps=50)))
    assert sum(isinstance(event, Finished) for event in events) == 2
    assert sum(isinstance(event, Working) for event in events) == 100
    assert 1 <= model.previews <= 3


def test_each_request_has_a_line_in_the_log_and_no_prompt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "amused.serving.metrics")
    runtime = fake_runtime()
    make(runtime, recipe("a secret\nfox", seeds=2))
    with pytest.raises(UserError), runtime.visit() as visit:
        next(visit.wait("nowhere"))
    with runtime.visit() as visit:
        next(visit.generate(recipe(seeds=2)))
        visit.stopped = True
    monkeypatch.setenv("AMUSED_LOG_PROMPTS", "1")
    make(runtime, recipe("a secret\nfox"))
    done, refused, stopped, told = caplog.messages
    assert "outcome=done pictures=2/2" in done and "model='nouns' task=text_to_image steps=3" in done
    assert "secret" not in done and "prompt='a secret\\nfox'" in told
    assert "outcome=refused" in refused and "outcome=stopped pictures=0/2" in stopped
    numbers = runtime.numbers()
    assert numbers['amused_requests_total{outcome="done"}'] == 2 and numbers["amused_pictures_total"] == 3
    assert numbers["amused_memory_bytes"] > 10_000_000
