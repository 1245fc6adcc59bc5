"""Workers of Ray against one process: how throughput grows with their number, and what an image costs more."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from amused.memory import keep_freed_memory
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Result
from amused.serving.queue import ReportProgress
from amused.serving.ray_workers import RayWorkers
from amused.serving.runtime import load_model
from amused.serving.worker import LoadModel, ModelHost
from amused.serving.workers import WorkerPool

COUNTS = (2, 4, 8)
STEPS, STEP_SECONDS = 12, 0.04
IMAGES_PER_WORKER = 12
PROMPT = "a pixel art character with square red glasses"
NUM_NOUNS = 16


@dataclass(frozen=True)
class SleepingStep:
    index: int
    seed: int
    step: int
    steps: int
    tokens: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True)
class SleepingImage:
    index: int
    seed: int
    image: Image.Image
    tokens: np.ndarray
    cut: tuple[str, ...] = ()


class SleepingModel:
    """A `Model` that sleeps in each step, as a GPU leaves its CPU free; images are noise by seed."""

    traits: dict[str, Any] | None = None
    size, multiple, pixels_per_token = 256, 32, 16
    fingerprint = "sleep float32 amused-0.1.0 torch-2.13.0"
    compile_status = ""
    needs_compiling = False

    def __init__(self, name: str, step_seconds: float) -> None:
        self.name, self.step_seconds = name, step_seconds

    def read_weights(self, everything: bool = False) -> None: ...

    def compile(self, turn: Callable[[], AbstractContextManager[bool]]) -> None: ...

    def preview(self, tokens: Any, masked: Any = None, version: int | None = None) -> Image.Image:
        return Image.new("RGB", (self.size, self.size))

    def generate(
        self, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Generator[SleepingStep | SleepingImage]:
        tokens = np.zeros((16, 16), np.int64)
        for index, seed in enumerate(recipe.seeds):
            for step in range(1, recipe.steps + 1):
                time.sleep(self.step_seconds)
                yield SleepingStep(index, seed, step, recipe.steps, tokens, tokens > 0)
            noise = np.random.default_rng(seed).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
            yield SleepingImage(index, seed, Image.fromarray(noise), tokens)


def load_sleeping(name: str, report: ReportProgress, step_seconds: float = STEP_SECONDS) -> SleepingModel:
    return SleepingModel(name, step_seconds)


def recipes(count: int, **options: Any) -> list[Recipe]:
    return [Recipe(TEXT_TO_IMAGE, PROMPT, (seed,), **options) for seed in range(count)]


@contextmanager
def started(load: LoadModel, count: int) -> Generator[WorkerPool]:
    """A pool whose workers have all loaded nouns."""
    with WorkerPool(RayWorkers(load, count), "nouns") as pool:
        while f"{count} of {count}" not in pool.status():
            time.sleep(0.05)
        yield pool


def sample(pool: WorkerPool, images: Iterable[Recipe], previews: bool = True) -> Generator[object]:
    with pool.enter("nouns", previews) as run:
        yield from run.sample(enumerate(images))


def timed(events: Iterable[object]) -> tuple[float, list[Result]]:
    """The seconds until all events have come, and the results among them."""
    began = time.monotonic()
    results = [event for event in events if isinstance(event, Result)]
    return time.monotonic() - began, results


def with_sleep(counts: Sequence[int] = COUNTS, repeats: int = 5) -> dict[str, Any]:
    """The share of N times the throughput that N workers reach, and the overhead of an image with one of them.

    The overhead is the median of several turns of both, after one that is not counted.
    """
    images = recipes(IMAGES_PER_WORKER, steps=STEPS)
    host = ModelHost(load_sleeping)
    for _ in host.load("nouns"):
        pass
    here, more = [], []
    with started(load_sleeping, 1) as pool:
        timed(sample(pool, images))
        for _ in range(repeats):
            alone, _ = timed(event for one in images for event in host.sample(one, (None, None), True))
            here.append(alone / len(images))
            more.append(timed(sample(pool, images))[0] / len(images) - here[-1])
    seconds, overhead = statistics.median(here), statistics.median(more)
    shares = []
    for count in counts:
        with started(load_sleeping, count) as pool:
            spent, _ = timed(sample(pool, recipes(count * IMAGES_PER_WORKER, steps=STEPS)))
        shares.append(round(IMAGES_PER_WORKER * seconds / spent, 3))
    return {"seconds": round(seconds, 4), "overhead_seconds": round(overhead, 4), "shares": shares}


def with_nouns(repeats: int, num_images: int = NUM_NOUNS) -> dict[str, Any]:
    """Seconds per image of two workers with a thread each, and of a process with two, in turns.

    `same`: the workers' images have the bytes that a process with one thread makes, and the tokens of that with two,
    whose convolutions round other last bits.
    """
    import torch

    keep_freed_memory()
    host, images = ModelHost(partial(load_model, compile="off")), recipes(num_images)
    for _ in host.load("nouns"):
        pass

    def here(threads: int) -> tuple[float, list[Result]]:
        torch.set_num_threads(threads)
        return timed(event for one in images for event in host.sample(one, (None, None), False))

    ours, reference = [], []
    with started(partial(load_model, compile="off"), 2) as pool:
        _, exact = here(1)  # this turn reads weights, there and here
        _, made = timed(sample(pool, images, previews=False))
        for _ in range(repeats):
            seconds, made_here = here(2)
            reference.append(seconds / num_images)
            seconds, made = timed(sample(pool, images, previews=False))
            ours.append(seconds / num_images)
    made.sort(key=lambda result: result.index)
    same_tokens = all(np.array_equal(one.tokens, other.tokens) for one, other in zip(made, made_here, strict=True))
    return {
        "seconds": round(statistics.median(ours), 4),
        "reference_seconds": round(statistics.median(reference), 4),
        "same": same_tokens and digest(made) == digest(exact),
    }


def digest(results: Sequence[Result]) -> str:
    return hashlib.sha256(b"".join(result.image.tobytes() for result in results)).hexdigest()
