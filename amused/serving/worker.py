"""What a worker of a pool is: a process, or a thread of this one, that holds one model and samples for others.

Imports no torch and no Ray. What crosses between it and the page are recipes, input images, and events: small images
and arrays of tokens.
"""

from __future__ import annotations

import contextlib
import gc
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from amused.errors import UserError, chain
from amused.limits import MAX_BATCH
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Result, sample_one
from amused.serving.model import Model
from amused.serving.queue import ReportProgress, Status

PREVIEWED = 0.2  # seconds between the steps that a page is shown
UNSEEN = 1.0  # seconds between steps that only say that the worker lives

Inputs = tuple[Image.Image | None, Image.Image | None]
LoadModel = Callable[[str, ReportProgress], Model]


def read_model(model: Model) -> None:
    """Load a model's weights, after freeing the memory of the previous model."""
    free_memory()
    model.read_weights()


def free_memory() -> None:
    """Free the memory of the previous model before the next one needs it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class WorkerLostError(Exception):
    """The worker has died, or gives no sign of life and was killed."""


class WorkerMemoryError(Exception):
    """The worker has no memory left for these images; it lives on. The message is a sentence for the visitor."""


@dataclass(frozen=True)
class Loaded:
    """What the page wants to know of a model that a worker has loaded.

    Attributes:
        batch_size: the most images that it samples together; fewer take as long.
    """

    size: int
    multiple: int
    pixels_per_token: int
    batch_size: int
    compile_status: str


class Worker(Protocol):
    """A worker, as the pool sees it. Any call can raise WorkerLostError; closing a generator stops the work."""

    @property
    def place(self) -> str:
        """Where it runs, for the log."""

    def load(self, source: str) -> Generator[Status | Loaded]:
        """Replace its model, with news of downloads; ends with `Loaded`."""

    def sample(self, recipe: Recipe, inputs: Any, previews: bool) -> Generator[Progress | Result]:
        """Sample the seeds of a recipe.

        Args:
            inputs: as `Engine.share` gave them.
            previews: steps come with previews, as often as a page shows them; else they are signs of life.

        Raises:
            UserError: the recipe cannot be made.
            WorkerMemoryError: not here, now.
        """


class Engine(Protocol):
    """Where workers come from: this process, or Ray."""

    def start(self) -> int:
        """Called once, by a thread that lives as long as the pool. Gives the number of workers."""

    def new_worker(self, number: int) -> Worker:
        """Start a worker, in place of a former one of this number. Waits until it is there."""

    def share(self, inputs: Inputs) -> Any:
        """Put the images that a run starts from where every worker can read them."""

    def stop(self) -> None:
        """Make all calls of workers return soon."""

    def close(self) -> None:
        """End all that was started, after `stop`."""


class ModelHost:
    """A `Worker` around a model in this process. Ray makes it an actor (`ray_workers`).

    Args:
        load: gives a model by its name, with its files in place.
    """

    place = "this process"

    def __init__(self, load: LoadModel) -> None:
        self._load = load
        self._model: Model | None = None
        self._turn = threading.Lock()  # of the model: the compiler measures in between
        self._compiling: threading.Thread | None = None

    def load(self, source: str) -> Generator[Status | Loaded]:
        news: queue.SimpleQueue[Status | Loaded | Exception] = queue.SimpleQueue()
        with self._turn:
            self._model = None

        def work() -> None:
            try:
                model = self._load(source, lambda share, text: news.put(Status(text, share)))
                read_model(model)
                self._model = model
                on_gpu = getattr(getattr(model, "device", None), "type", "cpu") != "cpu"
                batch_size, status = (MAX_BATCH, model.compile_status) if on_gpu else (1, "")
                news.put(Loaded(model.size, model.multiple, model.pixels_per_token, batch_size, status))
            except Exception as error:
                news.put(error)

        threading.Thread(target=work, name=f"load {source}", daemon=True).start()
        while True:
            item = news.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Loaded):
                return

    def sample(self, recipe: Recipe, inputs: Inputs, previews: bool) -> Generator[Progress | Result]:
        model, sent = self._model, time.monotonic()
        assert model is not None
        try:
            with self._turn, contextlib.closing(sample_one(model, recipe, *inputs, previews=previews)) as events:
                for event in events:
                    too_soon = time.monotonic() - sent < (PREVIEWED if previews else UNSEEN)
                    if too_soon and isinstance(event, Progress) and event.preview is None:
                        continue
                    sent = time.monotonic()
                    yield event
        except (UserError, MemoryError) as error:
            # By name, as this imports no torch: whatever the model refuses for lack of memory.
            if any(type(cause).__name__ in ("OutOfMemoryError", "MemoryError") for cause in chain(error)):
                raise WorkerMemoryError(str(error) or "This machine is out of memory: ask for less.") from None
            raise
        self._compile_in_background(model)

    def _compile_in_background(self, model: Model) -> None:
        """As `Runtime` does for a model of its own."""
        if not model.needs_compiling or (self._compiling is not None and self._compiling.is_alive()):
            return

        @contextlib.contextmanager
        def turn() -> Generator[bool]:
            with self._turn:
                yield self._model is model

        self._compiling = threading.Thread(target=model.compile, args=(turn,), name="compile", daemon=True)
        self._compiling.start()
