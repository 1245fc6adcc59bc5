"""The one loaded model: loaded once, the former one freed, loads that fail or are given up, previews within bounds."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fake import FakeModel, fake_runtime

from amused.errors import UserError
from amused.recipe import TEXT_TO_IMAGE, Recipe
from amused.runtime import Choice, Finished, Progress, Runtime, Working

CHOICES = [Choice("nouns", "small"), Choice("amused-256", "large", "1.6 GB")]


def runtime_of(load: Callable[[str, Progress | None], Any]) -> Runtime:
    return Runtime(CHOICES, load, default="nouns")


def test_twenty_at_once_load_one_model() -> None:
    loads: list[str] = []
    everybody = threading.Barrier(20)

    def load(name: str, progress: Progress | None) -> FakeModel:
        loads.append(name)
        return FakeModel(name)

    runtime = runtime_of(load)
    models: list[Any] = []

    def ask() -> None:
        everybody.wait()
        models.append(runtime.get_model("nouns"))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["nouns"]
    assert len(models) == 20 and all(model is models[0] for model in models)


def test_switching_frees_the_former_model_before_the_next_is_loaded() -> None:
    former: list[weakref.ref] = []

    def load(name: str, progress: Progress | None) -> FakeModel:
        gc.collect()
        assert all(reference() is None for reference in former)
        model = FakeModel(name)
        former.append(weakref.ref(model))
        return model

    runtime = runtime_of(load)
    for name in ("nouns", "amused-256", "nouns"):
        runtime.get_model(name)
        assert runtime.is_loaded(name)
    assert len(former) == 3


def test_a_failed_load_is_told_and_tried_again() -> None:
    failures = [UserError("The disk is full.")]

    def load(name: str, progress: Progress | None) -> FakeModel:
        if failures:
            raise failures.pop()
        return FakeModel(name)

    runtime = runtime_of(load)
    with pytest.raises(UserError, match="disk is full"):
        list(runtime.loading("nouns"))
    assert not runtime.is_loaded("nouns")
    list(runtime.loading("nouns"))
    assert runtime.is_loaded("nouns")


def test_loading_tells_what_it_does() -> None:
    told = threading.Event()

    def load(name: str, progress: Progress | None) -> FakeModel:
        progress(0.5, "Downloading half of it")
        assert told.wait(60)
        return FakeModel(name)

    runtime = runtime_of(load)
    for news in runtime.loading("amused-256"):
        if news == ("Downloading half of it", 0.5):
            told.set()
    assert told.is_set()
    assert list(runtime.loading("amused-256")) == []


def test_a_load_that_nobody_waits_for_ends() -> None:
    ended = threading.Event()

    def load(name: str, progress: Progress | None) -> FakeModel:
        if name == "nouns":
            return FakeModel(name)
        try:
            while True:
                progress(None, "Downloading")
        finally:
            ended.set()

    runtime = runtime_of(load)
    waiting = runtime.loading("amused-256")
    next(waiting)
    waiting.close()
    assert ended.wait(60)
    assert runtime.get_model("nouns").name == "nouns"


def test_only_listed_models_are_loaded() -> None:
    runtime = fake_runtime()
    for name in ("../secrets", "owner/other", ""):
        with pytest.raises(UserError, match="choose one of nouns"):
            runtime.get_model(name)


def test_a_model_named_at_the_start_is_a_choice() -> None:
    runtime = Runtime(CHOICES, lambda name, progress: FakeModel(name), default="owner/other")
    assert runtime.get_model(runtime.default).name == "owner/other"


def test_previews_come_during_a_picture_and_do_not_dominate() -> None:
    class SlowPreviews(FakeModel):
        previews = 0

        def preview(self, *tokens: Any) -> Any:
            self.previews += 1
            time.sleep(0.05)
            return super().preview(*tokens)

    model = SlowPreviews("nouns")
    runtime = runtime_of(lambda name, progress: model)
    events = list(runtime.generate(Recipe(TEXT_TO_IMAGE, "a fox", (1, 2), steps=50)))
    assert sum(isinstance(event, Finished) for event in events) == 2
    assert sum(isinstance(event, Working) for event in events) == 100
    assert 1 <= model.previews <= 3


def test_a_closed_run_stops_the_model() -> None:
    steps: list[int] = []
    runtime = fake_runtime(before_step=lambda: steps.append(1))
    events = runtime.generate(Recipe(TEXT_TO_IMAGE, "a fox", tuple(range(64))))
    next(events)
    events.close()
    assert len(steps) == 1
