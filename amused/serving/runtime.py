"""The models of a process: which can be chosen, and visits of runs that sample with them.

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

import numpy as np
from PIL import Image

from amused.checkpoints.adapters import list_adapters, with_digests
from amused.checkpoints.catalog import BUNDLED, PUBLISHED, TRAITS, bundled_names
from amused.errors import UserError
from amused.limits import QUEUE_LENGTH, REQUEST_SECONDS, RUNS_AT_ONCE
from amused.recipe.recipe import Recipe
from amused.serving.metrics import DONE, FAILED, LEFT, REFUSED, STOPPED, Counters
from amused.serving.scheduler import Progress, Turns, Waiting

log = logging.getLogger(__name__)

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
SIZES = {"amused-256": (256, 16), "amused-512": (512, 32)}  # known before they are downloaded: size and multiple
PREVIEW_SECONDS = 0.35  # at least this long between two previews
PREVIEW_SHARE = 0.2  # of the time of a run that previews may take


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
    """A picture is done.

    `tokens` is an array (h, w); `made` says what its every bit depends on beside the recipe (`Amused.made`), `cut`
    whether a prompt was longer than the model reads.
    """

    index: int
    seed: int
    image: Image.Image
    tokens: np.ndarray
    made: str
    cut: bool


@dataclass(frozen=True)
class Refused:
    """The recipe cannot be made of what was given. An event, as errors lose their sentence between processes."""

    sentence: str


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


def load_model(name: str, progress: Progress, quantize: str | None = None, adapters: Path | None = None) -> Any:
    """A model whose files are all on this machine; nothing of it is in memory before `read_weights`."""
    import amused

    def tell(file: str, done: int, total: int) -> None:
        part = f" of {total / 1e6:.0f}" if total else ""
        progress(done / total if total else None, f"Downloading {name}: {file}, {done / 1e6:.0f}{part} MB")

    model = amused.load(name, progress=tell, quantize=quantize, adapters=adapters)
    model.checkpoint.fetch_weights()
    return model


def read_model(model: Any) -> None:
    """Bring a model into memory, when what the former one held has been given back."""
    free_memory()
    # What a forked process reads is read again by the next one.
    model.read_weights(everything=ON_ZERO_GPU)


class Runtime:
    """Holds at most one model. Every sampling goes through a visit, so that nobody loads a second one beside it.

    `load` gives the model of a name with its files in place; its `read_weights` then brings it into memory. `adapters`
    is the folder of adapters that the owner offers, None for none.
    """

    def __init__(
        self,
        models: list[Choice] | None = None,
        load: Callable[[str, Progress], Any] = load_model,
        default: str | None = None,
        at_once: int = RUNS_AT_ONCE,
        queue: int = QUEUE_LENGTH,
        adapters: Path | None = None,
    ) -> None:
        self.models = choices() if models is None else models
        self.adapters = adapters
        self.counters = Counters()
        self._load = load
        self._turns = Turns(load, read_model, at_once, queue)
        self._paces: dict[str, float] = {}
        self._measures: dict[str, tuple[int, int]] = {}
        self.default = default or ("amused-512" if has_cuda() else "nouns")
        if self.default not in {choice.name for choice in self.models}:
            self.models = [*self.models, Choice(self.default, "chosen at the start")]
        self._sample = on_gpu(self._sample_here, gpu_seconds)

    def choice(self, name: str) -> Choice:
        for choice in self.models:
            if choice.name == name:
                return choice
        raise UserError(f"There is no model of that name here; choose one of {', '.join(c.name for c in self.models)}.")

    def adapters_for(self, model: str) -> list[str]:
        """The names of the adapters that can be chosen with a model."""
        return [adapter.name for adapter in list_adapters(self.adapters) if adapter.fits(model)]

    def named(self, recipe: Recipe) -> Recipe:
        """The recipe with the digests of its adapters; raises UserError if one is not here, or another one."""
        return with_digests(self.adapters, recipe)

    def is_loaded(self, name: str) -> bool:
        return self._turns.name == name

    def visit(self) -> Visit:
        """A place for one run, to be used as a context.

        Raises:
            UserError: too many others wait.
        """
        try:
            return Visit(self)
        except UserError as error:
            self.counters.add(None, REFUSED, why=str(error))
            raise

    def warm_up(self) -> threading.Thread:
        """Load the default model behind the page, so that the first visitor waits less."""

        def work() -> None:
            started = time.monotonic()
            turn = self._turns.enter()
            try:
                for _ in turn.wait(self.default):
                    pass
                log.info("%s is ready after %.1f s", self.default, time.monotonic() - started)
            except Exception as error:
                log.warning("the model could not be loaded ahead; the first request will try again: %s", error)
            finally:
                turn.leave()

        thread = threading.Thread(target=work, name="warm-up", daemon=True)
        thread.start()
        return thread

    def measures(self, name: str) -> tuple[int, int]:
        """The side in pixels of a model's pictures and what must divide the sides of others; loads nothing."""
        choice = self.choice(name)
        return self._measures.get(name, (choice.size, choice.multiple))

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

    def numbers(self) -> dict[str, float]:
        """What the owner can see, by its name in the form of Prometheus."""
        runs, waiting = self._turns.counts()
        return {**self.counters.numbers(), "amused_runs": runs, "amused_runs_waiting": waiting}

    def _sample_here(
        self, recipe: Recipe, image: Image.Image | None, mask: Image.Image | None
    ) -> Iterator[Working | Finished | Refused]:
        from amused.generation.pipeline import Picture

        model = self._turns.model
        if self._turns.name != recipe.model:
            # Only in the forked process of a shared GPU, which can hold an older model than was asked for.
            model = self._turns.model = None
            model = self._load(recipe.model, lambda share, text: None)
            read_model(model)
            self._turns.model, self._turns.name = model, recipe.model
        previews = PreviewPace()
        cut = any(model.prompt_is_cut(prompt) for prompt in (recipe.prompt, recipe.negative_prompt))
        events = model.generate(recipe, image, mask)
        try:
            for event in events:
                if isinstance(event, Picture):
                    tokens = np.asarray(event.tokens)  # can be sent from one process to another, as all of this
                    yield Finished(event.index, event.seed, event.image, tokens, model.made, cut)
                    continue
                preview = None
                if event.step < event.steps and previews.is_due():
                    with previews:
                        preview = model.preview(event.tokens, event.masked)
                yield Working(event.index, event.seed, event.step, event.steps, preview)
        except UserError as error:
            yield Refused(str(error))
        finally:
            events.close()


class Visit:
    """One run, from the door on: waiting, sampling by turns with others, and a line in the log at its end.

    Attributes:
        stopped: to be set by the caller that ends it early because the visitor said so.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._turn = runtime._turns.enter(self._let_go)
        self._lock = threading.Lock()
        self._events: Iterator[Working | Finished | Refused] | None = None
        self._entered = time.monotonic()
        self._recipe: Recipe | None = None
        self._wanted = self._pictures = 0
        self._worked = 0.0
        self._loaded = False
        self.stopped = False

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._let_go()
        self._turn.leave()
        if kind is None:
            outcome = STOPPED if self.stopped else DONE
        elif issubclass(kind, UserError):
            outcome = REFUSED
        else:
            outcome = FAILED if issubclass(kind, Exception) else LEFT
        why = str(error) if outcome == REFUSED else None if outcome != FAILED or kind is None else kind.__name__
        waited = time.monotonic() - self._entered - self._worked
        self._runtime.counters.add(self._recipe, outcome, self._pictures, self._wanted, waited, self._worked, why)

    def admitted(self) -> Iterator[Waiting]:
        """Wait until few enough others are at work. Before anything large is read."""
        yield from self._turn.admitted()

    def wait(self, name: str) -> Iterator[Waiting]:
        """Wait for a turn and for the model. Can be closed at any time, as what follows it."""
        self._runtime.choice(name)
        yield from self._turn.wait(name)
        model = self._turn.model
        self._runtime._measures[name] = model.size, model.multiple
        self._loaded = True
        if ON_ZERO_GPU:  # each run has a process, and with it a model, of its own
            self._turn.release()

    def generate(
        self, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Iterator[Waiting | Working | Finished]:
        """Sample a recipe with its model, letting others have their turn after each picture.

        Raises:
            UserError: the recipe cannot be made of what was given, or the run has taken all the time that it gets.
        """
        self._recipe = self._recipe or recipe
        self._wanted += len(recipe.seeds)
        steps = recipe.steps - recipe.start
        done = 0
        while done < len(recipe.seeds):
            if not self._turn.is_held and not (ON_ZERO_GPU and self._loaded):
                yield from self.wait(recipe.model)
            if self._events is None:
                # The pictures that are done are not made again: a seed gives the same one alone and in any sweep.
                first = done
                self._events = self._runtime._sample(recipe.with_seeds(recipe.seeds[first:]), image, mask)
                worked = self._worked
            while True:
                event = self._next()
                yielded = replace(event, index=event.index + first)
                if isinstance(event, Finished):
                    break
                yield yielded
            done += 1
            self._pictures += 1
            self._runtime._paces[recipe.model] = (self._worked - worked) / (steps * (done - first))
            if done == len(recipe.seeds):
                self._let_go()
            # Before the picture goes out: it is saved and sent while the next one's first step is made.
            self._turn.pass_on()
            yield yielded

    def _next(self) -> Working | Finished:
        if self._worked > REQUEST_SECONDS:
            raise UserError(
                f"This has taken {REQUEST_SECONDS} seconds, as long as one run may: what is finished is kept. "
                "Ask for fewer pictures or steps."
            )
        began = time.monotonic()
        try:
            event = next(self._events)
        finally:
            self._worked += time.monotonic() - began
        if isinstance(event, Refused):
            raise UserError(event.sentence)
        return event

    def _let_go(self) -> None:
        with self._lock:
            events, self._events = self._events, None
            if events is not None:
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
