"""Runs and the one loaded model: turns picture by picture, one load for all, the former one freed, failures."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeModel, fake_runtime, numbers, sampled
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest
from amused.recipe.recipe import INPAINT, TEXT_TO_IMAGE, Recipe
from amused.serving import jobs, queue
from amused.serving.jobs import Event, Progress, Request, Result, Started, Summary
from amused.serving.queue import BUSY, ReportProgress, Status
from amused.serving.runtime import Choice, Runtime

CHOICES = [Choice("nouns", "small"), Choice("amused-256", "large", "1.6 GB")]


def runtime_of(load: Callable[[str, ReportProgress], Any], **limits: Any) -> Runtime:
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


def start(runtime: Runtime, asked: Recipe, **options: Any) -> Generator[Event]:
    return runtime.run(lambda: Request((asked,)), **options)


def make(runtime: Runtime, asked: Recipe) -> list[Result]:
    return [event for event in sampled(runtime, asked) if isinstance(event, Result)]


class Order:
    """What the model was asked for, step by step, by prompt."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[str] = []
        self.in_memory: list[weakref.ref] = []
        self.most_in_memory = 0

    def load(self, name: str, progress: ReportProgress) -> FakeModel:
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
    runtime = runtime_of(lambda name, progress: fail_once(name), at_once=20)
    everybody = threading.Event()

    def fail_once(name: str) -> FakeModel:
        loads.append(name)
        if len(loads) == 1:
            assert everybody.wait(60)
            raise UserError("The disk is full.")
        return FakeModel(name)

    def ask() -> list[Result]:
        events = start(runtime, recipe())
        assert isinstance(next(events), Started) and isinstance(next(events), Status)
        arrived.release()
        return [event for event in events if isinstance(event, Result)]

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


def test_a_sweep_does_not_keep_a_single_image_waiting() -> None:
    order = Order()
    runtime = runtime_of(order.load)
    sweep = start(runtime, recipe("sweep", seeds=64, steps=2))
    while not isinstance(next(sweep), Result):
        pass
    next(sweep)  # a step of the second image: now somebody comes
    single = start(runtime, recipe("single", steps=2))
    assert isinstance(next(single), Started) and next(single) == Status("Queued: 1 ahead of you")
    while not isinstance(next(sweep), Result):
        pass
    assert next(sweep) == Status("Queued: 1 ahead of you")
    assert [type(event) for event in single] == [Progress, Progress, Result, Summary]
    rest = [event for event in sweep if isinstance(event, Result)]
    assert len(rest) == 62 and [event.index for event in rest] == list(range(2, 64))
    steps = "".join(prompt[1] for prompt in order.steps)  # two steps and an image each
    assert steps == "www" * 2 + "iii" + "www" * 62


def test_runs_at_the_same_time_get_their_own_pictures_in_turns() -> None:
    runtime = fake_runtime(queue=8)
    asked = [recipe(f"a fox {index}", seeds=4) for index in range(8)]
    for one, made in zip(asked, together(*(lambda one=one: make(runtime, one) for one in asked))):
        alone = make(fake_runtime(), one)
        assert [event.seed for event in made] == [0, 1, 2, 3]
        assert all((ours.tokens == theirs.tokens).all() for ours, theirs in zip(made, alone))


def test_two_models_are_taken_in_turns_and_never_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of each in turn would load a model for each; waiting for the end of a sweep would take for ever."""
    monkeypatch.setattr(queue, "SWITCH_TIMEOUT", 0.2)
    order = Order()
    runtime = runtime_of(order.load)
    slow = threading.Event()
    sweep, single = recipe("sweep", seeds=64, steps=2), recipe("single", seeds=2, steps=2, model="amused-256")

    def make_slowly() -> list[Result]:
        made = []
        for event in sampled(runtime, sweep):
            if isinstance(event, Result):
                made.append(event)
                slow.set()
                time.sleep(0.01)
        return made

    def come_later() -> list[Result]:
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

    def load(name: str, progress: ReportProgress) -> FakeModel:
        if name == "amused-256":
            progress(0.5, "Downloading half of it")
            begun.set()
            assert fetched.wait(60)
        return FakeModel(name)

    runtime = runtime_of(load)
    make(runtime, recipe())
    events = start(runtime, recipe(model="amused-256"))
    assert isinstance(next(events), Started)
    first = next(events)
    assert begun.wait(60)
    assert {first, next(events)} >= {Status("Downloading half of it", 0.5)}
    assert len(make(runtime, recipe())) == 1
    fetched.set()
    assert isinstance(list(events)[-1], Summary) and runtime.is_loaded("amused-256")


def test_a_load_that_nobody_waits_for_ends() -> None:
    ended = threading.Event()

    def load(name: str, progress: ReportProgress) -> FakeModel:
        if name == "nouns":
            return FakeModel(name)
        try:
            while True:
                progress(None, "Downloading")
        finally:
            ended.set()

    runtime = runtime_of(load)
    events = start(runtime, recipe(model="amused-256"))
    assert isinstance(next(events), Started) and isinstance(next(events), Status)
    events.close()
    assert ended.wait(60)
    assert len(make(runtime, recipe())) == 1


def test_only_so_many_are_let_in_and_who_comes_then_is_refused_at_once() -> None:
    runtime = fake_runtime(at_once=1, queue=1)
    first, second = start(runtime, recipe()), start(runtime, recipe())
    assert isinstance(next(first), Started)
    assert next(second) == Status("Queued: 1 ahead of you")
    with pytest.raises(UserError) as refusal:
        next(start(runtime, recipe()))
    assert str(refusal.value) == BUSY
    first.close()
    assert isinstance(next(second), Started)
    second.close()
    assert numbers(runtime)["amused_runs"] == 0
    assert numbers(runtime)['amused_requests_total{outcome="refused"}'] == 1


@pytest.mark.parametrize("when", ["waiting", "working", "loading", "between", "started", "at the end"])
def test_a_run_that_is_given_up_makes_way(when: str) -> None:
    runtime = fake_runtime(load_seconds=0.2)
    if when != "loading":
        make(runtime, recipe())
    busy = start(runtime, recipe(seeds=64))
    while when == "waiting" and not isinstance(next(busy), Progress):
        pass
    kind = {"waiting": Status, "loading": Status, "working": Progress, "started": Started, "at the end": Summary}
    events = start(runtime, recipe(seeds=2))
    while not isinstance(next(events), kind.get(when, Result)):
        pass
    events.close()
    busy.close()
    assert len(make(runtime, recipe())) == 1
    assert numbers(runtime)["amused_runs"] == 0


def test_a_run_that_is_forgotten_makes_way() -> None:
    runtime = fake_runtime()
    events = start(runtime, recipe(seeds=64))
    while not isinstance(next(events), Progress):
        pass
    del events
    gc.collect()
    assert len(make(runtime, recipe())) == 1
    assert numbers(runtime)["amused_runs"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_twenty_five_are_closed_at_random_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps: list[int] = []
    runtime = fake_runtime(before_step=lambda: steps.append(1), queue=25)
    for _ in range(25):
        events = start(runtime, recipe(seeds=4, steps=5))
        for _ in range(int(random.integers(0, 24))):
            next(events)
        events.close()
        before = len(steps)
        assert len(make(runtime, recipe(steps=2))) == 1
        assert len(steps) == before + 2  # nothing of the closed one was made any more


def test_one_run_works_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REQUEST_SECONDS", 0.5)
    runtime = fake_runtime(step_seconds=0.02)
    made = []
    with pytest.raises(UserError, match=r"Stopped after the .* s limit; finished images are kept"):
        for event in sampled(runtime, recipe(seeds=64, steps=2)):
            made.append(event)
    assert any(isinstance(event, Result) for event in made) and len(made) < 64
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
        with pytest.raises(UserError, match="choose one of nouns"):
            next(start(runtime, recipe(model=name)))


def test_a_model_named_at_the_start_is_a_choice() -> None:
    runtime = Runtime(CHOICES, lambda name, progress: FakeModel(name), default="owner/other")
    (choice,) = [choice for choice in runtime.models if choice.name == "owner/other"]
    assert choice.download  # the page must not call it ready
    runtime.warm_up().join(60)
    assert runtime.is_loaded("owner/other")


def test_the_size_of_a_model_is_known_once_it_is_loaded() -> None:
    runtime = Runtime([], lambda name, progress: FakeModel(name, size=64), default="owner/other")
    runtime.warm_up().join(60)
    assert runtime.native_size("owner/other") == (64, 32)


def test_a_model_folder_is_known_by_its_name_and_its_path_stays_here(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("mine", "nouns")]
    for folder in folders:
        folder.mkdir()
    (tmp_path / "link").symlink_to("mine")
    asked = []

    def load(name: str, progress: object) -> FakeModel:
        asked.append(name)
        return FakeModel(name)

    for given, name in ((folders[0], "mine"), (tmp_path / "link", "mine"), (folders[1], "nouns-2")):
        runtime = Runtime(CHOICES, load, default=str(given))
        assert runtime.default == runtime.models[-1].name == name
        (result,) = [event for event in start(runtime, recipe(model=name)) if isinstance(event, Result)]
        assert result.recipe.model == name and asked[-1] == str(given)
        with pytest.raises(UserError) as refused:
            runtime.choice(str(given))
        assert str(tmp_path) not in str(refused.value)


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
    assert sum(isinstance(event, Result) for event in events) == 2
    assert sum(isinstance(event, Progress) for event in events) == 100
    assert 1 <= model.previews <= 3


def test_each_request_has_a_line_in_the_log_and_no_prompt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "amused.serving.metrics")
    runtime = fake_runtime()
    make(runtime, recipe("a secret\nfox", seeds=2))
    with pytest.raises(UserError):
        next(start(runtime, recipe(model="nowhere")))
    stopped = start(runtime, recipe(seeds=2), session="a tab")
    next(stopped)
    assert runtime.stop("a tab") == 1
    assert [(event.stopped, event.num_done) for event in stopped if isinstance(event, Summary)] == [(True, 0)]
    monkeypatch.setenv("AMUSED_LOG_PROMPTS", "1")
    make(runtime, recipe("a secret\nfox"))
    done, refused, stopped_line, told = caplog.messages
    assert "outcome=done images=2/2" in done and "model='nouns' task=text_to_image steps=3" in done
    assert "secret" not in done and "prompt='a secret\\nfox'" in told
    assert "outcome=refused" in refused and "outcome=stopped images=0/2" in stopped_line
    counted = numbers(runtime)
    assert counted['amused_requests_total{outcome="done"}'] == 2 and counted["amused_pictures_total"] == 3
    assert counted["amused_memory_bytes"] > 10_000_000


def test_a_request_is_read_once_there_is_a_place_for_it() -> None:
    runtime = fake_runtime(at_once=1)
    read: list[int] = []

    def read_request() -> Request:
        read.append(1)
        return Request((recipe(),))

    first, second = start(runtime, recipe()), runtime.run(read_request)
    next(first)
    next(second)
    assert not read
    first.close()
    next(second)
    assert read


def test_a_grid_is_one_run_of_many_recipes() -> None:
    runtime = fake_runtime()
    grid = tuple(recipe("a fox", seeds=1, steps=steps) for steps in (2, 3, 5))
    events = list(runtime.run(lambda: Request(grid)))
    results = [event for event in events if isinstance(event, Result)]
    assert [(event.index, event.recipe.steps) for event in results] == [(0, 2), (1, 3), (2, 5)]
    progress = [event for event in events if isinstance(event, Progress)]
    assert [round(event.share * 10) for event in progress] == list(range(1, 11))
    assert {event.num_images for event in progress} == {3} and progress[-1].seconds_left == 0
    assert isinstance(events[-1], Summary) and events[-1].num_done == events[-1].num_images == 3
    assert numbers(runtime)['amused_requests_total{outcome="done"}'] == 1


def test_a_result_says_all_that_replays_it() -> None:
    runtime = fake_runtime()
    image, mask = Image.new("RGB", (64, 32), "teal"), Image.new("L", (64, 32), 255)
    asked = Recipe(INPAINT, "a fox", (1, 2), steps=2, model="nouns")
    results = [event for event in runtime.run(lambda: Request((asked,), image, mask)) if isinstance(event, Result)]
    for result, seed in zip(results, (1, 2), strict=True):
        assert result.recipe.seeds == (seed,) and (result.recipe.width, result.recipe.height) == (256, 128)
        assert result.recipe.image == digest(image) and result.recipe.mask == digest(mask)


# Owners


def owned(runtime: Runtime, prompt: str, session: str = "a tab", seeds: int = 2) -> Generator[Event]:
    return start(runtime, recipe(prompt, seeds=seeds, steps=2), session=session)


def last(events: Generator[Event]) -> tuple[bool, int]:
    """Whether a run was stopped, and how many images it made."""
    *_, summary = events
    assert isinstance(summary, Summary)
    return summary.stopped, summary.num_done


def test_runs_of_one_session_go_one_after_the_other_in_the_order_they_came() -> None:
    order = Order()
    runtime = runtime_of(order.load)
    runs = [owned(runtime, f"run {number}") for number in range(3)]
    statuses = [next(run) for run in runs]
    assert isinstance(statuses[0], Started)
    assert statuses[1:] == [Status(f"Queued: {ahead} ahead of you", behind_own=True) for ahead in (1, 2)]
    together(*(lambda run=run: list(run) for run in reversed(runs)))
    assert order.steps == [f"run {number}" for number in range(3) for _ in range(6)]


def test_a_waiting_run_of_a_session_takes_nobody_s_place() -> None:
    runtime = fake_runtime(at_once=2)
    mine = [owned(runtime, "mine") for _ in range(3)]
    for run in mine:
        next(run)
    other = owned(runtime, "other", session="another tab")
    assert isinstance(next(other), Started)
    for run in (*mine, other):
        run.close()


def test_a_session_s_runs_that_wait_are_limited() -> None:
    runtime = fake_runtime()
    runs = [owned(runtime, "mine") for _ in range(queue.MAX_WAITING_RUNS + 1)]
    for run in runs:
        next(run)
    with pytest.raises(UserError, match="of your runs are waiting already"):
        next(owned(runtime, "one too many"))
    assert isinstance(next(owned(runtime, "other", session="another tab")), Started)
    runs[2].close()
    assert next(owned(runtime, "once more")) == Status("Queued: 4 ahead of you", behind_own=True)


@pytest.mark.parametrize("when", ["started", "sampling", "loading"])
def test_stop_ends_the_session_s_run_and_those_behind_it(when: str) -> None:
    runtime = fake_runtime(load_seconds=0.2 if when == "loading" else 0)
    first, second = owned(runtime, "first", seeds=64), owned(runtime, "second")
    while not isinstance(next(first), {"started": Started, "sampling": Result, "loading": Status}[when]):
        pass
    next(second)
    other = owned(runtime, "other", session="another tab")
    next(other)
    assert runtime.stop("a tab") == 2
    for run, num_images in ((first, 64), (second, 0)):
        (summary,) = run
        assert isinstance(summary, Summary) and summary.stopped and summary.num_images == num_images
    assert last(other) == (False, 2) and last(owned(runtime, "later")) == (False, 2)


def test_stop_wakes_runs_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when they next say how things stand."""
    monkeypatch.setattr(queue, "STATUS_SECONDS", 1000.0)
    runtime = fake_runtime()
    held = owned(runtime, "held", session="another tab")
    while not isinstance(next(held), Progress):
        pass
    waiting = owned(runtime, "waiting")
    next(waiting)
    seen = threading.Event()

    def wait() -> list[Event]:
        events = []
        for event in waiting:
            seen.set()
            events.append(event)
        return events

    def stop() -> None:
        assert seen.wait(60)
        runtime.stop("a tab")

    events, _ = together(wait, stop)
    assert (
        isinstance(events[-1], Summary)
        and events[-1].stopped
        and all(isinstance(event, Status) for event in events[:-1])
    )
    held.close()


def test_a_stop_from_before_the_run_came_counts() -> None:
    runtime = fake_runtime()
    (summary,) = start(runtime, recipe(), session="a tab", should_stop=lambda: True)
    assert isinstance(summary, Summary) and summary.stopped and summary.num_images == 0


# The queue alone


def test_a_slot_whose_wait_is_given_up_does_not_hold_the_model() -> None:
    line = queue.RunQueue(lambda name, report: FakeModel(name), lambda model: None, 4, 4)
    with line.enter() as first, line.enter() as second, line.enter() as third:
        list(first.acquire("nouns"))
        waiting = second.acquire("nouns")
        next(waiting)
        waiting.close()
        first.release()
        list(third.acquire("nouns"))
        assert third.holds_model and not second.holds_model
        third.release()
        list(second.acquire("nouns"))
        assert second.holds_model and second.model.name == "nouns"
    assert line.counts() == (0, 0)


def test_the_first_load_does_not_wait_for_runs_that_have_asked_for_no_model() -> None:
    line = queue.RunQueue(lambda name, report: FakeModel(name), lambda model: None, 4, 4)
    with line.enter() as first, line.enter():
        began = time.monotonic()
        list(first.acquire("nouns"))
        assert time.monotonic() - began < queue.SWITCH_TIMEOUT / 2


def test_runs_between_two_turns_are_told_when_their_model_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SWITCH_TIMEOUT", 0.0)
    line = queue.RunQueue(lambda name, report: FakeModel(name), lambda model: None, 4, 4)
    preempted: list[str] = []
    with (
        line.enter(on_preempt=lambda: preempted.append("first")) as first,
        line.enter(on_preempt=lambda: preempted.append("second")) as second,
    ):
        list(first.acquire("nouns"))
        first.release()
        assert preempted == []
        list(second.acquire("amused-256"))
        assert line.model_name == "amused-256" and preempted == ["first"]
        second.release()
        list(first.acquire("nouns"))
        assert preempted == ["first", "second"]


def test_a_slot_that_was_left_gets_nothing() -> None:
    line = queue.RunQueue(lambda name, report: FakeModel(name), lambda model: None, 4, 4)
    slot = line.enter()
    slot.leave()
    slot.leave()
    with pytest.raises(queue.StoppedError):
        list(slot.acquire("nouns"))
    assert line.counts() == (0, 0) and line.model is None
