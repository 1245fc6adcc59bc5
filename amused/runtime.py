"""The one loaded model of a process: which models can be chosen, loading one, switching, and sampling with it.

Knows about processes, memory and ZeroGPU. Knows nothing of pages, and nothing of how a picture is made.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import UserError
from .recipe import Recipe

log = logging.getLogger(__name__)

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
SIZES = {"amused-256": (256, 16), "amused-512": (512, 32)}  # known before they are downloaded: size and multiple
LOADING_SECONDS = 0.2  # between two looks at how a load goes
PREVIEW_SECONDS = 0.35  # at least this long between two previews
PREVIEW_SHARE = 0.2  # of the time of a run that previews may take

Progress = Callable[[float | None, str], None]  # the share done where it is known, and what is being done


class GivenUpError(Exception):
    """Nobody waits for this load any more."""


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen.

    `download` is its size on the way here, None where nothing is downloaded; `size` the side in pixels of the pictures
    that it was made for, and `multiple` what must divide the sides of others.
    """

    name: str
    about: str
    download: str | None = None
    traits: dict[str, Any] | None = None
    size: int = 256
    multiple: int = 32


@dataclass(frozen=True)
class Working:
    """One sampling step is done; `preview` shows the picture so far, where there was time to draw it."""

    index: int
    seed: int
    step: int
    steps: int
    preview: Image.Image | None


@dataclass(frozen=True)
class Finished:
    """A picture is done; `tokens` (h, w) can be used to vary it without encoding it again."""

    index: int
    seed: int
    image: Image.Image
    tokens: Any


def has_cuda() -> bool:
    """Whether CUDA can be used. Torch is asked only where a driver is seen: importing it takes seconds."""
    if ON_ZERO_GPU:
        return True
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def choices() -> list[Choice]:
    """The models that can be had by name: those that come with the package, then the published ones."""
    from .checkpoint import TRAITS
    from .hub import BUNDLED, PUBLISHED, bundled_names

    found = []
    for name in bundled_names():
        file = BUNDLED / name / TRAITS
        traits = json.loads(file.read_text("utf-8")) if file.is_file() else None
        found.append(Choice(name, "small and quick, comes with this page", traits=traits))
    for name, published in PUBLISHED.items():
        size, multiple = SIZES[name]
        about = f"any subject, {published.download} download"
        found.append(Choice(name, about, published.download, size=size, multiple=multiple))
    return found


def load_model(name: str, progress: Progress | None = None) -> Any:
    """A model with its weights in memory, ready to sample."""
    import amused

    def tell(file: str, done: int, total: int) -> None:
        if progress is not None:
            part = f" of {total / 1e6:.0f}" if total else ""
            progress(done / total if total else None, f"Downloading {name}: {file}, {done / 1e6:.0f}{part} MB")

    model = amused.load(name, progress=tell)
    if progress is not None:
        progress(None, f"Loading {name}")
    model.read_weights()
    return model


class Runtime:
    """Holds at most one model. Every sampling goes through here, so that nobody loads a second one beside it."""

    def __init__(
        self,
        models: list[Choice] | None = None,
        load: Callable[[str, Progress | None], Any] = load_model,
        default: str | None = None,
    ) -> None:
        self.models = choices() if models is None else models
        self._load = load
        self._model: Any = None
        self._name: str | None = None
        self._lock = threading.Lock()
        self._paces: dict[str, float] = {}
        self.default = default or ("amused-512" if has_cuda() else "nouns")
        if self.default not in {choice.name for choice in self.models}:
            self.models = [*self.models, Choice(self.default, "chosen at the start")]
        self._sample = on_gpu(self._sample_here, gpu_seconds)

    def choice(self, name: str) -> Choice:
        for choice in self.models:
            if choice.name == name:
                return choice
        raise UserError(f"There is no model of that name here; choose one of {', '.join(c.name for c in self.models)}.")

    def is_loaded(self, name: str) -> bool:
        return self._name == name

    def made(self) -> str | None:
        """What the loaded model's pictures depend on beside their recipes (`Amused.made`); None before a load."""
        return getattr(self._model, "made", None)

    def cut(self, recipe: Recipe) -> bool:
        """Whether a prompt of the recipe is longer than its model reads. Asked once the model is loaded."""
        model = self.get_model(recipe.model)
        return any(model.prompt_is_cut(prompt) for prompt in (recipe.prompt, recipe.negative_prompt))

    def get_model(self, name: str, progress: Progress | None = None) -> Any:
        """The model of that name, loaded once whoever asks first; the former one is freed before another is loaded.

        `progress` is called while it loads, and may raise to give up.
        """
        self.choice(name)
        with self._lock:
            if self._name == name:
                return self._model
            self._model, self._name = None, None
            free_memory()
            self._model = self._load(name, progress)
            self._name = name
            return self._model

    def loading(self, name: str) -> Iterator[tuple[str, float | None]]:
        """Wait for the model, telling what is done meanwhile and the share of it. Closing this gives the wait up."""
        if self.is_loaded(name):
            return
        given_up = threading.Event()
        news: tuple[str, float | None] = (f"Loading {name}", None)
        failures: list[Exception] = []

        def tell(share: float | None, text: str) -> None:
            nonlocal news
            if given_up.is_set():
                raise GivenUpError
            news = (text, share)

        def work() -> None:
            try:
                self.get_model(name, tell)
            except GivenUpError:
                log.info("loading %s was given up", name)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work, name=f"load {name}", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield news
                thread.join(LOADING_SECONDS)
        finally:
            given_up.set()
        if failures:
            raise failures[0]

    def warm_up(self) -> threading.Thread:
        """Load the default model behind the page, so that the first visitor waits less."""

        def work() -> None:
            try:
                started = time.monotonic()
                self.get_model(self.default)
                log.info("%s is ready after %.1f s", self.default, time.monotonic() - started)
            except Exception:
                log.exception("the model could not be loaded ahead; the first request will try again")

        thread = threading.Thread(target=work, name="warm-up", daemon=True)
        thread.start()
        return thread

    def measures(self, name: str) -> tuple[int, int]:
        """The side in pixels of a model's pictures and what must divide the sides of others; loads nothing."""
        with_both = self._model if self._name == name and self._model is not None else self.choice(name)
        return with_both.size, with_both.multiple

    def pace(self, name: str) -> float | None:
        """Seconds that a step took in earlier runs of a model, finishing the pictures included, or None."""
        return self._paces.get(name)

    def sized(self, recipe: Recipe, image: Image.Image | None) -> Recipe:
        """The recipe with a size for a given picture: its own shape, the longer side as the model was made for."""
        keeps_its_size = recipe.only_masked or recipe.parent is not None
        if image is None or recipe.width or recipe.height or keeps_its_size:
            return recipe
        size, multiple = self.measures(recipe.model)
        scale = size / max(image.size)
        width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in image.size)
        return replace(recipe, width=width, height=height)

    def generate(
        self, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Iterator[Working | Finished]:
        """Sample a recipe with its model. Can be closed between any two events; one at a time is the caller's care."""
        self.choice(recipe.model)
        return self._timed(recipe, self._sample(recipe, image, mask))

    def _timed(self, recipe: Recipe, events: Iterator[Working | Finished]) -> Iterator[Working | Finished]:
        """Pass events on and learn from them how long a step takes."""
        began = time.monotonic()
        try:
            for event in events:
                if isinstance(event, Finished):
                    steps = (recipe.steps - recipe.start) * (event.index + 1)
                    self._paces[recipe.model] = (time.monotonic() - began) / steps
                yield event
        finally:
            events.close()

    def _sample_here(
        self, recipe: Recipe, image: Image.Image | None, mask: Image.Image | None
    ) -> Iterator[Working | Finished]:
        from .pipeline import Picture

        # Asked again although the caller may have loaded it: a forked GPU process can hold an older one.
        model = self.get_model(recipe.model)
        previews = PreviewPace()
        events = model.generate(recipe, image, mask)
        try:
            for event in events:
                if isinstance(event, Picture):
                    yield Finished(event.index, event.seed, event.image, event.tokens)
                    continue
                preview = None
                if event.step < event.steps and previews.is_due():
                    with previews:
                        preview = model.preview(event.tokens, event.masked)
                yield Working(event.index, event.seed, event.step, event.steps, preview)
        finally:
            events.close()


class PreviewPace:
    """Keeps previews from slowing down the pictures: not too often, and within a share of the time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = 0.0
        self._spent = 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if self._last == 0.0:
            return True
        return now - self._last >= PREVIEW_SECONDS and self._spent <= PREVIEW_SHARE * (now - self._began)

    def __enter__(self) -> None:
        self._last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._spent += time.monotonic() - self._last


def free_memory() -> None:
    """Give back what the former model held, before the next one asks for it."""
    gc.collect()
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and not ON_ZERO_GPU:
        torch.cuda.empty_cache()


def gpu_seconds(recipe: Recipe, image: Image.Image | None, mask: Image.Image | None) -> int:
    """How long to ask a shared GPU for: visitors have a few minutes a day, so no more than is needed."""
    return min(120, 15 + round(0.1 * recipe.steps * len(recipe.seeds)))


def on_gpu(task: Callable[..., Any], duration: Callable[..., int]) -> Callable[..., Any]:
    """`spaces.GPU` on ZeroGPU, the task itself everywhere else (where `spaces` need not be installed)."""
    if not ON_ZERO_GPU:
        return task
    import spaces

    return spaces.GPU(task, duration=duration)
