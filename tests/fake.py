"""A stand-in for a model: pictures that depend on the seed, the prompt and the picture given, at any speed wanted."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Request, Result
from amused.serving.model import Model
from amused.serving.queue import ReportProgress
from amused.serving.runtime import Choice, Runtime

TRAITS: dict[str, Any] = {
    "backgrounds": {"cool": "d5d7e1", "warm": "e1d7d5", "sky": "9cc8ee", "dark": "1f1d29"},
    "bodies": ["body-orange", "body-teal", "body-light-blue", "body-grayscale-1"],
    "accessories": ["accessory-heart", "accessory-checker-bw"],
    "heads": ["head-baseball", "head-cat", "head-mountain-snowcap", "head-toaster", "head-whale-alive"],
    "glasses": ["glasses-square-red", "glasses-square-black", "glasses-hip-rose", "glasses-square-fullblack"],
}


@dataclass(frozen=True)
class FakeStep:
    index: int
    seed: int
    step: int
    steps: int
    tokens: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True)
class FakeImage:
    index: int
    seed: int
    image: Image.Image
    tokens: np.ndarray
    cut: tuple[str, ...]


class FakeModel:
    """A `Model` (the type checker holds it to that). A token is a colour; a picture is its 16x16 tokens as squares."""

    traits: dict[str, Any] | None = TRAITS
    multiple = 32
    pixels_per_token = 16
    fingerprint = "cpu float32 amused-0.1.0 torch-2.13.0"
    compile_status = ""
    needs_compiling = False

    def __init__(
        self, name: str, size: int = 256, step_seconds: float = 0.0, before_step: Callable[[], None] | None = None
    ) -> None:
        self.name, self.size, self.step_seconds, self.before_step = name, size, step_seconds, before_step
        cells = np.random.default_rng(1)
        self.colours = cells.integers(0, 256, (256, 3), dtype=np.uint8)

    def read_weights(self, everything: bool = False) -> None: ...

    def compile(self, turn: Callable[[], AbstractContextManager[bool]]) -> None: ...

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        pixels = self.size // tokens.shape[0]
        colours: np.ndarray = self.colours[tokens]
        return colours.repeat(pixels, 0).repeat(pixels, 1)

    def preview(self, tokens: np.ndarray, masked: np.ndarray | None = None, version: int | None = None) -> Image.Image:
        colours = self.decode(tokens)
        if masked is not None:
            pixels = self.size // tokens.shape[0]
            colours[masked.repeat(pixels, 0).repeat(pixels, 1)] = 210
        return Image.fromarray(colours)

    def tokens(self, recipe: Recipe, seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """What a picture ends with, and when each cell of it is revealed: at 0 where it is there from the start."""
        random = np.random.default_rng([seed, zlib.crc32(recipe.prompt.encode())])
        tokens = random.integers(0, 256, (side, side))
        order = random.random((side, side))
        if recipe.parent is None:
            return tokens, order
        before, _ = self.tokens(recipe.parent, recipe.parent.seeds[0], side)
        anew = random.random((side, side)) < (recipe.share or 0)
        if recipe.cells is not None:
            anew.flat[list(recipe.cells)] = True
        return np.where(anew, tokens, before), np.where(anew, order, 0)

    def generate(
        self, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Generator[FakeStep | FakeImage]:
        side = 16
        texts = {"prompt": recipe.prompt, "negative prompt": recipe.negative_prompt}
        used = ("prompt", "negative prompt") if recipe.guidance_scale > 1 else ("prompt",)
        cut = tuple(name for name in used if len(texts[name].split()) > 75)
        for index, seed in enumerate(recipe.seeds):
            tokens, order = self.tokens(recipe, seed, side)
            for step in range(1, recipe.steps + 1):
                if self.before_step:
                    self.before_step()
                time.sleep(self.step_seconds)
                masked = order > step / recipe.steps
                yield FakeStep(index, seed, step, recipe.steps, np.where(masked, 0, tokens), masked)
            made = self.decode(tokens)
            if image is not None and recipe.parent is None:
                size = image.size if recipe.only_masked else (recipe.width or self.size, recipe.height or self.size)
                made = np.asarray(Image.fromarray(made).resize(size))
                before = np.asarray(image.convert("RGB").resize(size))
                if mask is not None:
                    inside = np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 0
                    made = np.where(inside[..., None], made, before)
                else:
                    made = (before * (1 - (recipe.strength or 0)) + made * (recipe.strength or 0)).astype(np.uint8)
            yield FakeImage(index, seed, Image.fromarray(made), tokens, cut)


def load_fake(name: str, report: ReportProgress, step_seconds: float = 0.0) -> Model:
    """What the processes of workers import by its name."""
    return FakeModel(name, step_seconds=step_seconds)


class Turnstile:
    """Lets steps pass freely until a test holds it, and then as many as `passes` is released."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.passes = threading.Semaphore(0)

    def reset(self) -> None:
        self.open.set()
        self.reached.clear()
        while self.passes.acquire(blocking=False):
            pass

    def __call__(self) -> None:
        self.reached.set()
        deadline = time.monotonic() + 60
        while not self.open.is_set() and not self.passes.acquire(timeout=0.02):
            if time.monotonic() > deadline:
                raise TimeoutError


def fake_runtime(
    step_seconds: float = 0.0, load_seconds: float = 0.0, before_step: Callable[[], None] | None = None, **limits: Any
) -> Runtime:
    """A runtime whose models are fakes: the bundled one, and one that pretends to be a download."""

    def load(name: str, report: ReportProgress) -> Model:
        for tenth in range(10):
            time.sleep(load_seconds / 10)
            report(tenth / 10, f"Loading {name}")
        return FakeModel(name, step_seconds=step_seconds, before_step=before_step)

    models = [
        Choice("nouns", "in the box, nothing to download", None, TRAITS),
        Choice("amused-256", "1.6 GB download on first use", "1.6 GB"),
        Choice("amused-512", "1.7 GB download on first use", "1.7 GB"),
    ]
    return Runtime(models, load, default="nouns", **limits)


def sampled(
    runtime: Runtime, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
) -> Iterator[Progress | Result]:
    """The steps and images of a run."""
    for event in runtime.run(lambda: Request((recipe,), image, mask)):
        if isinstance(event, Progress | Result):
            yield event


def numbers(runtime: Runtime) -> dict[str, float]:
    """What the owner's page shows, by name and label."""
    lines = runtime.metrics.text().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
