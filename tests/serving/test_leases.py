"""Leases of a GPU on ZeroGPU: how long, for which images, and what happens when one is refused or ends early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from fake import fake_runtime
from PIL import Image

from amused.errors import UserError
from amused.recipe.grid import expand
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, VARY, Recipe, images_of
from amused.serving import jobs
from amused.serving.jobs import Event, Progress, Request, Result
from amused.serving.queue import Status
from amused.serving.zero_gpu import LOAD_SECONDS, MAX_LEASE_SECONDS, START_SECONDS, Leases, lease_seconds

MODEL = {"model": "nouns"}
PARENT = Recipe(TEXT_TO_IMAGE, "a", (1,), steps=30, **MODEL)
RECIPE = Recipe(TEXT_TO_IMAGE, "a fox", (1,), **MODEL)


class Visitor:
    """Runs recipes on ZeroGPU with a pace of 0.1 s per step.

    Attributes:
        leases: the images of each lease that was asked for.
        refuse: given their number so far, raises what `spaces` raises.
        end_early: the same, after an image of the lease.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jobs, "ON_ZERO_GPU", True)
        self.runtime = fake_runtime()
        monkeypatch.setattr(self.runtime, "note_pace", lambda *_: None)
        sample = self.runtime.sample
        self.leases: list[list[Recipe]] = []
        self.refuse: Callable[[int], None] = lambda number: None
        self.end_early: Callable[[int], None] = lambda number: None

        def lend(recipes: Sequence[Recipe], *given: Any) -> Iterator[Any]:
            assert len(images_of(recipes, 0, 2)) == 1 or self.runtime.lease_seconds(recipes) <= MAX_LEASE_SECONDS
            self.leases.append([*recipes])
            self.refuse(len(self.leases))
            for event in sample(recipes, *given):
                yield event
                if isinstance(event, Result):
                    self.end_early(len(self.leases))

        monkeypatch.setattr(self.runtime, "sample", lend)

    def run(self, recipes: Sequence[Recipe]) -> Iterator[Event]:
        return self.runtime.run(lambda: Request(tuple(recipes)))

    @property
    def num_images(self) -> list[int]:
        """Of each lease."""
        return [sum(len(recipe.seeds) for recipe in recipes) for recipes in self.leases]


@pytest.fixture
def visitor(monkeypatch: pytest.MonkeyPatch) -> Visitor:
    return Visitor(monkeypatch)


def over_quota(_: int) -> None:
    raise gr.Error("You have exceeded your quota.", title="ZeroGPU quota exceeded")


def grid_of(columns: str, rows: str = "1-3") -> tuple[Recipe, ...]:
    return expand(RECIPE, "steps", columns, "seed", rows).recipes


def results_of(events: Iterator[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result)]


def test_a_grid_takes_one_lease(visitor: Visitor) -> None:
    recipes = grid_of("4, 8, 12")
    results = results_of(visitor.run(recipes))
    assert visitor.leases == [[*recipes]]
    assert [result.index for result in results] == [*range(9)]
    assert [result.recipe for result in results] == [*recipes]
    alone = [results_of(fake_runtime().run(lambda recipe=recipe: Request((recipe,))))[0] for recipe in recipes]
    assert [result.image.tobytes() for result in results] == [result.image.tobytes() for result in alone]


def test_a_long_grid_takes_as_few_leases_as_their_length_allows(visitor: Visitor) -> None:
    recipes = grid_of("100", "1-8")
    events = [*visitor.run(recipes)]
    assert visitor.num_images == [3, 3, 2]  # 10 s each, after 30 s for the worker and the model
    results = results_of(iter(events))
    assert [(result.index, result.seed) for result in results] == [*enumerate(range(1, 9))]
    texts = [event.text for event in events if isinstance(event, Status)]
    assert [text for text in texts if "finished" in text] == [
        f"{done} of 8 images are finished; asking for a GPU for the others" for done in (3, 6)
    ]


def test_a_sweep_of_several_seeds_per_recipe_is_cut_anywhere(visitor: Visitor) -> None:
    recipes = [replace(RECIPE, seeds=range(2), steps=100), replace(RECIPE, seeds=range(5), steps=100, prompt="an owl")]
    results = results_of(visitor.run(recipes))
    assert visitor.num_images == [3, 3, 1]
    assert [result.index for result in results] == [*range(7)]
    assert [(result.recipe.prompt, result.seed) for result in results] == [
        *(("a fox", seed) for seed in range(2)),
        *(("an owl", seed) for seed in range(5)),
    ]


def test_a_lease_that_ends_early_costs_no_image(visitor: Visitor) -> None:
    def abort(number: int) -> None:
        if number == 1:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error")

    visitor.end_early = abort
    recipes = grid_of("4, 8")
    results = results_of(visitor.run(recipes))
    assert visitor.leases == [[*recipes], [*recipes[1:]]]
    assert [result.recipe for result in results] == [*recipes]


def test_fewer_images_are_asked_for_where_the_quota_ends(visitor: Visitor) -> None:
    def refuse(number: int) -> None:
        if visitor.num_images[-1] > 2 or number > 4:
            over_quota(number)

    visitor.refuse = refuse
    results = []
    with pytest.raises(UserError, match=r"^You have exceeded your quota\. Finished and kept: 4 of 9 images\.$"):
        for event in visitor.run(grid_of("4, 8, 12")):
            results += [event] if isinstance(event, Result) else []
    assert visitor.num_images == [9, 4, 2, 2, 2, 1]
    assert [result.index for result in results] == [*range(4)]


def test_an_error_of_ours_ends_the_run(visitor: Visitor) -> None:
    def fail(_: int) -> None:
        raise gr.Error("ValueError", title="ZeroGPU worker error")

    visitor.end_early = fail
    with pytest.raises(gr.Error, match="ValueError"):
        [*visitor.run(grid_of("4, 8"))]
    assert len(visitor.leases) == 1


@pytest.mark.parametrize(
    ("recipes", "pace", "steps"),
    [
        ([Recipe(TEXT_TO_IMAGE, "a", (1,), **MODEL)], 0.1, 12),
        ([Recipe(TEXT_TO_IMAGE, "a", (1, 2, 3), steps=20, **MODEL)], 0.1, 60),
        ([Recipe(IMAGE_TO_IMAGE, "a", (1, 2), steps=20, strength=0.5, **MODEL)], 0.1, 20),
        ([Recipe(INPAINT, "a", (1,), steps=20, **MODEL)], 0.2, 20),
        ([Recipe(VARY, "a", (1, 2), share=0.5, parent=PARENT, **MODEL)], 0.1, 54),
        ([Recipe(VARY, "a", (1,), share=share, parent=PARENT, **MODEL) for share in (0.5, 0.6)], 0.1, 54),
        ([Recipe(TEXT_TO_IMAGE, "a", (1,), steps=steps, **MODEL) for steps in (5, 10, 15)], 0.1, 30),
    ],
)
def test_a_gpu_is_borrowed_for_as_long_as_the_steps_take(recipes: list[Recipe], pace: float, steps: int) -> None:
    wanted, packed = START_SECONDS + pace * steps, lease_seconds(recipes, lambda _: pace, is_packed=True)
    assert wanted <= packed <= wanted + 1
    assert lease_seconds(recipes, lambda _: pace, is_packed=False) == packed + LOAD_SECONDS


@pytest.mark.parametrize(("num_seeds", "batches"), [(1, 1), (4, 1), (5, 2), (64, 16)])
def test_images_that_are_sampled_together_share_the_time(num_seeds: int, batches: int) -> None:
    recipe = Recipe(VARY, "a", range(num_seeds), share=0.5, parent=PARENT, **MODEL)
    wanted = START_SECONDS + batches * recipe.passes + PARENT.passes
    assert wanted <= lease_seconds([recipe], lambda _: 1, is_packed=True, batch_size=4) <= wanted + 1


@pytest.mark.parametrize("on_zero_gpu", [False, True])
def test_the_pace_is_that_of_a_batch(on_zero_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a batch takes a second here, whether it is full or not."""
    runtime, seconds, noted = fake_runtime(), count(), []
    clock = SimpleNamespace(now=next(seconds), monotonic=lambda: clock.now)
    monkeypatch.setattr(jobs, "ON_ZERO_GPU", on_zero_gpu)
    monkeypatch.setattr(jobs, "time", clock)

    def sample(recipes: Sequence[Recipe], *_: Any) -> Iterator[Any]:
        image, tokens = Image.new("RGB", (16, 16)), np.zeros((1, 1))
        for batch, num_steps in (((0, 1, 2, 3), 2), ((0, 1), 3), ((2,), 3)):  # the first runs out of memory
            for step in range(1, num_steps + 1):
                clock.now = next(seconds)
                for index in batch:
                    yield Progress(index, index, step, 3, None)
            for index in batch if len(batch) < 4 else ():
                yield Result(index, index, RECIPE, image, tokens, "", ends_batch=index == batch[-1])

    monkeypatch.setattr(runtime, "sample", sample)
    monkeypatch.setattr(runtime, "note_pace", lambda recipe, pace, batch_size: noted.append((pace, batch_size)))
    results_of(runtime.run(lambda: Request((replace(RECIPE, seeds=range(3), steps=3),))))
    assert noted == [(1.0, 2), (1.0, 1)]


def test_the_size_of_a_batch_is_learned_and_not_forgotten() -> None:
    runtime, sweep = fake_runtime(), replace(RECIPE, seeds=range(8), steps=10)
    for batch_size, steps in ((1, 80), (4, 20), (1, 20)):
        runtime.note_pace(RECIPE, 1.0, batch_size)
        wanted = START_SECONDS + LOAD_SECONDS + steps
        assert wanted <= runtime.lease_seconds([sweep]) <= wanted + 1


def test_derived_images_are_as_large_as_the_one_they_come_from() -> None:
    large = replace(RECIPE, width=512, height=512)
    varied = Recipe(VARY, "a", (1,), share=0.5, parent=large, **MODEL)
    runtime = fake_runtime()
    assert runtime.expected_pace(varied) == runtime.expected_pace(large) == 4 * runtime.expected_pace(RECIPE)


@pytest.mark.parametrize("pace", [0.001, 0.05, 0.1, 1, 100])
def test_a_lease_holds_as_many_images_as_fit(pace: float) -> None:
    sweep = replace(RECIPE, seeds=range(64))

    def seconds(recipes: Sequence[Recipe]) -> int:
        return lease_seconds(recipes, lambda _: pace, is_packed=True)

    (lease,) = Leases(seconds, MAX_LEASE_SECONDS).next([sweep])
    count = len(lease.seeds)
    assert lease.seeds == sweep.seeds[:count]
    assert count == 1 or seconds([lease]) <= MAX_LEASE_SECONDS
    assert count == 64 or seconds([sweep.with_seeds(range(count + 1))]) > MAX_LEASE_SECONDS
