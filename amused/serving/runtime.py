"""The models of a process: which can be chosen, how they are loaded, and the one queue of runs that use them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from amused.checkpoints.adapters import list_adapters, log_once, with_digests
from amused.checkpoints.catalog import BUNDLED, PUBLISHED, TRAITS, bundled_names, read_defaults, read_sizes
from amused.errors import UserError
from amused.generation.images import digest
from amused.limits import QUEUE_LENGTH, RUNS_AT_ONCE
from amused.recipe.recipe import OF_A_MODEL, Recipe
from amused.serving import jobs
from amused.serving.jobs import Event, Job, ReadRequest
from amused.serving.metrics import Metrics
from amused.serving.model import Model
from amused.serving.queue import ReportProgress, RunQueue
from amused.serving.worker import Engine, Loaded, read_model
from amused.serving.workers import WorkerPool
from amused.serving.zero_gpu import DEFAULT_PACE, ON_ZERO_GPU, has_cuda, lease_seconds, on_gpu

log = logging.getLogger(__name__)

HUB_DOWNLOAD = "files from the Hub"  # of unknown size


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen.

    Attributes:
        download: what choosing it downloads, for people; None if nothing.
        size: side in pixels of the images it was trained on; `multiple` must divide the sides of others.
        pixels_per_token: side of a token's square in the image.
        source: what to load if not the name: a folder, whose path stays on this machine.
        defaults: its own settings, by field of a recipe; those of the published models where nothing is known.
    """

    name: str
    about: str
    download: str | None = None
    traits: dict[str, Any] | None = None
    size: int = 256
    multiple: int = 32
    pixels_per_token: int = 16
    source: str = ""
    defaults: Mapping[str, Any] = field(default_factory=lambda: {name: getattr(Recipe, name) for name in OF_A_MODEL})


INCLUDED = "pixel-art characters, included"


def choices() -> list[Choice]:
    """The models available by name: the bundled ones, then the published ones."""
    found = []
    for name in bundled_names():
        file = BUNDLED / name / TRAITS
        traits = json.loads(file.read_text("utf-8")) if file.is_file() else None
        defaults = read_defaults(BUNDLED / name)
        size, multiple, token = read_sizes(BUNDLED / name)
        found.append(Choice(name, INCLUDED, None, traits, size, multiple, token, defaults=defaults))
    for name, published in PUBLISHED.items():
        about = f"any subject, {published.download} download"
        found.append(Choice(name, about, published.download, size=published.size, multiple=published.multiple))
    return found


def choice_of(name_or_path: str, others: Collection[str]) -> Choice:
    """The owner's `--model`: a folder under its own name, numbered if one of `others` has it, or "owner/name"."""
    about = "set by --model"
    if not os.path.isdir(name_or_path):
        return Choice(name_or_path, about, HUB_DOWNLOAD)
    name = unique = Path(name_or_path).resolve().name or "model"
    number = 2
    while unique in others:
        unique, number = f"{name}-{number}", number + 1
    return Choice(unique, about, source=name_or_path, defaults=read_defaults(Path(name_or_path)))


def load_model(
    name: str,
    report: ReportProgress,
    quantize: str | None = None,
    adapters: Path | None = None,
    compile: str = "off",
) -> Model:
    """A model whose files are all on this machine. Its weights are in memory only after `read_weights`."""
    import amused

    def report_download(file: str, done: int, total: int) -> None:
        part = f" of {total / 1e6:.0f}" if total else ""
        report(done / total if total else None, f"Downloading {name}: {file}, {done / 1e6:.0f}{part} MB")

    model = amused.load(name, progress=report_download, quantize=quantize, adapters=adapters, compile=compile)
    model.checkpoint.fetch_weights()
    return model


def scaled_sides(shape: tuple[int, int], size: int, multiple: int) -> tuple[int, int]:
    """Width and height of this shape: multiples of `multiple`, the longer one being about `size`."""
    scale = size / max(shape)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in shape)
    return width, height


class Runtime:
    """Holds at most one model and the queue of runs that use it.

    Args:
        load: returns a model by its name or folder, its files in place; `read_weights` then loads its weights.
        default: the name of a model, a folder, or "owner/name" on the Hub.
        adapters: the owner's folder of adapters, or None.
        engine: starts workers, which then sample instead of this process; it also knows `load`.
    """

    def __init__(
        self,
        models: list[Choice] | None = None,
        load: Callable[[str, ReportProgress], Model] = load_model,
        default: str | None = None,
        at_once: int = RUNS_AT_ONCE,
        queue: int = QUEUE_LENGTH,
        adapters: Path | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.models = choices() if models is None else models
        self.adapters = adapters
        self._models: dict[str, Model] = {}  # on ZeroGPU, where models without weights are kept
        if ON_ZERO_GPU:
            self.queue = RunQueue(self._load_without_weights, lambda model: None, at_once, queue)
        else:
            self.queue = RunQueue(self._load_choice, read_model, at_once, queue)
        self.metrics = Metrics(self.counts)
        self._compiling = threading.Lock()
        self._load = load
        self._seconds_per_step: dict[str, float] = {}
        self._batch_sizes: dict[str, int] = {}  # the largest seen; a short batch tells less
        self._sizes: dict[str, tuple[int, int]] = {}
        self._pixels_per_token: dict[str, int] = {}
        self.default = default or ("amused-512" if has_cuda() else "nouns")
        names = {choice.name for choice in self.models}
        if self.default not in names:
            self.models = [*self.models, choice_of(self.default, names)]
            self.default = self.models[-1].name
        self.workers: WorkerPool | None = None
        if engine is not None:
            self.workers = WorkerPool(
                engine, self.default, lambda name: self.choice(name).source or name, self._note_loaded, self.note_pace
            )
            self.metrics.registry.register(self.workers)
        self.sample = on_gpu(self._sample, lambda recipes, image, mask: self.lease_seconds(recipes))

    # Choices

    def choice(self, name: str) -> Choice:
        for choice in self.models:
            if choice.name == name:
                return choice
        raise UserError(f"There is no model of that name here; choose one of {', '.join(c.name for c in self.models)}.")

    def adapters_for(self, model: str) -> list[str]:
        """The names of the adapters that can be chosen with a model: trained on it, or they do not say on which."""
        names = {None, model.rpartition("/")[2]}
        if source := self.choice(model).source:  # by the folder's name, and by that of a link to it
            names |= {Path(source).resolve().name, os.path.basename(os.path.abspath(source))}
        offered = []
        for adapter in list_adapters(self.adapters):
            if adapter.base in names:
                offered.append(adapter.name)
            else:
                log_once(f"The adapter {adapter.name!r} is not offered with {model}: it was trained on {adapter.base}.")
        return offered

    def is_loaded(self, name: str) -> bool:
        return self.queue.model_name == name if self.workers is None else self.workers.is_loaded(name)

    def native_size(self, name: str) -> tuple[int, int]:
        """The `size` and `multiple` of a model. Loads nothing."""
        choice = self.choice(name)
        return self._sizes.get(name, (choice.size, choice.multiple))

    def pixels_per_token(self, name: str) -> int:
        """Side of a token's square in the image. Loads nothing."""
        return self._pixels_per_token.get(name, self.choice(name).pixels_per_token)

    def seconds_per_step(self, name: str) -> float | None:
        """Seconds per step of a batch at native size in earlier runs of a model, decoding included, or None."""
        return self._seconds_per_step.get(name)

    def is_packed(self, name: str) -> bool:
        """Whether the workers of ZeroGPU have a model's weights from the start."""
        return name == self.default and name in self._models

    # Recipes

    def with_default_size(self, recipe: Recipe, image: Image.Image | None) -> Recipe:
        """The recipe with a size for its input image: of the same shape, the longer side as the model's own."""
        keeps_its_size = recipe.only_masked or recipe.parent is not None
        if image is None or recipe.width or recipe.height or keeps_its_size:
            return recipe
        size, multiple = self.native_size(recipe.model)
        width, height = scaled_sides(image.size, size, multiple)
        return replace(recipe, width=width, height=height)

    def freeze_recipe(self, recipe: Recipe, image: Image.Image | None, mask: Image.Image | None) -> Recipe:
        """The recipe with everything a replay needs: its size, and the digests of its adapter, image and mask."""
        recipe = with_digests(self.adapters, recipe)
        if recipe.parent is not None or image is None:
            return recipe
        recipe = self.with_default_size(recipe, image)
        mask_digest = None if mask is None else recipe.mask or digest(mask)
        return replace(recipe, image=recipe.image or digest(image), mask=mask_digest)

    # Runs

    def run(
        self,
        read_request: ReadRequest,
        session: Hashable = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Event]:
        """The whole life of a run, as events: see `amused.serving.jobs`. Close the iterator to cancel the run.

        Args:
            read_request: called once the run is admitted; raises UserError to refuse.
            session: runs of one session, such as a browser tab, go one after the other; `stop` ends them all.
            should_stop: checked after each event: covers a Stop pressed before the run was queued.

        Raises:
            UserError: the run is refused, cannot be made, or has taken all the time it gets.
        """
        return Job(self, read_request, session, should_stop).run()

    def stop(self, session: Hashable) -> int:
        """Stop the runs of this session. Returns how many there were."""
        return self.queue.stop(session)

    def counts(self) -> tuple[int, int]:
        """How many runs there are, and how many of them are not sampling at this moment."""
        runs, waiting = self.queue.counts()
        return (runs, waiting) if self.workers is None else (runs, max(0, runs - self.workers.num_active_runs()))

    def warm_up(self) -> threading.Thread:
        """Load the default model in the background, so that the first visitor waits less."""
        if self.workers is not None:
            self.workers.start()

        def work() -> None:
            started = time.monotonic()
            try:
                if self.workers is not None:
                    with self.workers.enter(self.default) as run:
                        for _ in run.wait_for_model():
                            pass
                else:
                    with self.queue.enter() as slot:
                        for _ in slot.acquire(self.default):
                            pass
                log.info("%s is ready after %.1f s", self.default, time.monotonic() - started)
                log.info("%s", self.compile_status())
            except Exception as error:
                log.warning("the model could not be loaded in advance; the first request will try again: %s", error)

        thread = threading.Thread(target=work, name="warm-up", daemon=True)
        thread.start()
        return thread

    # Loading and sampling

    def load_for_workers(self) -> None:
        """On ZeroGPU, instead of `warm_up`: load the default model in this thread, which imported `spaces`."""
        try:
            self._load_without_weights(self.default, lambda share, text: None).read_weights(everything=True)
        except Exception as error:
            self._models.pop(self.default, None)
            log.warning("the model could not be loaded before the launch; each worker loads it again: %s", error)

    def _load_choice(self, name: str, report: ReportProgress) -> Model:
        model = self._load(self.choice(name).source or name, report)
        self._note_loaded(name, model)
        return model

    def _note_loaded(self, name: str, model: Model | Loaded) -> None:
        self._sizes[name] = model.size, model.multiple
        self._pixels_per_token[name] = model.pixels_per_token

    def note_pace(self, recipe: Recipe, seconds_per_step: float, batch_size: int) -> None:
        self._batch_sizes[recipe.model] = max(batch_size, self._batch_sizes.get(recipe.model, 1))
        self._seconds_per_step[recipe.model] = seconds_per_step / self._relative_size(recipe)

    def expected_pace(self, recipe: Recipe) -> float:
        """Seconds per step of a batch of a recipe on ZeroGPU, from earlier runs of its model."""
        return (self.seconds_per_step(recipe.model) or DEFAULT_PACE) * self._relative_size(recipe)

    def _relative_size(self, recipe: Recipe) -> float:
        """Pixels by those of the model's native size, at least 1."""
        size, _ = self.native_size(recipe.model)
        first = recipe.first  # results that are derived from one keep its size
        return max(1.0, (first.width or size) * (first.height or size) / size**2)

    def lease_seconds(self, recipes: Sequence[Recipe]) -> int:
        """Seconds that recipes of one model need a GPU of ZeroGPU for."""
        model = recipes[0].model
        return lease_seconds(recipes, self.expected_pace, self.is_packed(model), self._batch_sizes.get(model, 1))

    def _load_without_weights(self, name: str, report: ReportProgress) -> Model:
        if name not in self._models:
            self._models[name] = self._load_choice(name, report)
        return self._models[name]

    def _sample(
        self, recipes: Sequence[Recipe], image: Image.Image | None, mask: Image.Image | None
    ) -> Generator[jobs.Progress | jobs.Result | jobs.Rejected]:
        if ON_ZERO_GPU:  # in a worker, which may have been forked before this model was chosen
            model: Model | None = self._load_without_weights(recipes[0].model, lambda share, text: None)
        else:
            model = self.queue.model
        assert model is not None
        try:
            yield from jobs.sample(model, recipes, image, mask)
        finally:
            self._compile_in_background(model)

    def _compile_in_background(self, model: Model) -> None:
        """After a run, if it has met something new. Later runs profit."""
        if not model.needs_compiling or not self._compiling.acquire(blocking=False):
            return

        def work() -> None:
            try:
                model.compile(partial(self.queue.turn_with, model))
            except UserError:
                pass  # too many visitors wait: after a later run
            except Exception as error:
                log.warning("the network could not be compiled", exc_info=error)
            finally:
                self._compiling.release()

        threading.Thread(target=work, name="compile", daemon=True).start()

    def compile_status(self) -> str:
        """How the network of the model in memory runs, or how the workers are; "" if that is not known."""
        if self.workers is not None:
            return self.workers.status()
        model = self.queue.model
        return model.compile_status if model is not None else ""
