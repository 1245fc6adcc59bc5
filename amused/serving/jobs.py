"""One run from the queue to its log line, as a stream of events; page, grid and API consume the same ones.

A run yields `Status` while it waits, `Started` once its request is read, `Progress` after each step, `Result` after
each image, and `Summary` at its end; `Runtime.run` starts it. It samples image by image in turns with other runs.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from amused.errors import UserError
from amused.limits import REQUEST_SECONDS
from amused.recipe.recipe import Recipe, images_of
from amused.serving.metrics import DONE, FAILED, LEFT, REFUSED, STOPPED
from amused.serving.model import FinishedImage, Model
from amused.serving.queue import Slot, Status, StoppedError
from amused.serving.zero_gpu import MAX_LEASE_SECONDS, ON_ZERO_GPU, Leases, lease_error

if TYPE_CHECKING:
    from amused.serving.runtime import Runtime
    from amused.serving.workers import WorkerPool

PREVIEW_SECONDS = 0.35  # at least this long between two previews
PREVIEW_SHARE = 0.2  # of the time of a run that previews may take


@dataclass(frozen=True)
class Request:
    """What to make: recipes for one model (a grid has many or none), and the image and mask they all start from.

    `labels` tell the recipes' prompts apart, for people; there are none where one prompt is all.
    """

    recipes: tuple[Recipe, ...]
    image: Image.Image | None = None
    mask: Image.Image | None = None
    labels: tuple[str, ...] = ()

    def label(self, index: int) -> str:
        """The label of an image, by its index within the run."""
        labels = zip(self.recipes, self.labels, strict=False)
        return next(islice((label for recipe, label in labels for _ in recipe.seeds), index, None), "")


@dataclass(frozen=True)
class Started:
    """The run is admitted and its request is read; it has yet to wait for its turn and its model."""

    request: Request
    num_images: int


@dataclass(frozen=True)
class Progress:
    """Emitted after each sampling step.

    Attributes:
        index: of the image within the run.
        step: steps done of this image, from 1 to `steps`.
        preview: the image so far, where there was time to draw it.
        share: the fraction of the run that is done.
        seconds_left: an estimate for the whole run, None where it is too early for one.
        num_done: finished images of the run, where workers make several at once; else None.
    """

    index: int
    seed: int
    step: int
    steps: int
    preview: Image.Image | None
    num_images: int = 1
    share: float = 0.0
    seconds_left: float | None = None
    num_done: int | None = None


@dataclass(frozen=True)
class Result:
    """A finished image.

    Attributes:
        index: of the image within the run.
        recipe: replays exactly this image: of its seed alone, with the digests of its inputs and its size.
        tokens: an array (height, width).
        fingerprint: what every bit of the image depends on besides the recipe (`Model.fingerprint`).
        cut: names of the texts that are longer than the model can read: "prompt", "negative prompt".
        ends_batch: no image that was sampled together with this one is still to come.
    """

    index: int
    seed: int
    recipe: Recipe
    image: Image.Image
    tokens: np.ndarray
    fingerprint: str
    cut: tuple[str, ...] = ()
    ends_batch: bool = True


@dataclass(frozen=True)
class Rejected:
    """The recipe cannot be made. An event, because ZeroGPU's process drops the message of an exception."""

    sentence: str


@dataclass(frozen=True)
class Summary:
    """The run has ended, not by an error: all images are made, or it was stopped.

    Attributes:
        seconds: since it started.
        num_moved: images that were given to another worker, as the first one was lost.
    """

    stopped: bool
    num_done: int
    num_images: int
    seconds: float
    cut: tuple[str, ...] = ()
    num_moved: int = 0


Event = Status | Started | Progress | Result | Summary
ReadRequest = Callable[[], Request]


class Job:
    """One run; `run` yields its events, once.

    Args:
        read_request: called once the run is admitted, as what it reads may be large; raises UserError to refuse.
        session: runs of one session go one after the other, and `Runtime.stop` ends them all; None for no session.
        should_stop: checked after each event: covers a Stop pressed before the run was queued.
    """

    def __init__(
        self, runtime: Runtime, read_request: ReadRequest, session: Hashable, should_stop: Callable[[], bool]
    ) -> None:
        self._runtime = runtime
        self._read_request = read_request
        self._session = session
        self._should_stop = should_stop
        self._slot: Slot
        self._lock = threading.Lock()
        self._sampling: Generator[Progress | Result | Rejected] | None = None
        self._entered = self._started = time.monotonic()
        self._recipe: Recipe | None = None  # the first one, for the log
        self._num_images = self._num_done = 0
        self._num_steps = self._steps_done = 0
        self._began: float | None = None  # when the first step began
        self._worked = 0.0
        self._cut: tuple[str, ...] = ()
        self._num_moved = 0

    def run(self) -> Generator[Event]:
        # On ZeroGPU a run has a process and a model of its own, which nothing takes from it.
        on_preempt = (lambda: None) if ON_ZERO_GPU else self._drop_sampling
        try:
            self._slot = self._runtime.queue.enter(self._session, on_preempt)
        except UserError as error:
            self._runtime.metrics.add(None, REFUSED, why=str(error))
            raise
        with self._slot:
            outcome, why = LEFT, None
            try:
                try:
                    with contextlib.closing(self._stages()) as events:
                        self._check_stopped()
                        for event in events:
                            yield event
                            self._check_stopped()
                    outcome = DONE
                except StoppedError:
                    outcome = STOPPED
                self._drop_sampling()
                self._slot.release()
                # The slot is still held, so the caller handles the summary before the session's next run.
                seconds = time.monotonic() - self._started
                yield Summary(outcome == STOPPED, self._num_done, self._num_images, seconds, self._cut, self._num_moved)
            except UserError as error:
                outcome, why = REFUSED, str(error)
                raise
            except Exception as error:
                outcome, why = FAILED, type(error).__name__
                raise
            finally:
                self._drop_sampling()
                waited = max(0.0, time.monotonic() - self._entered - self._worked)  # workers work at the same time
                self._runtime.metrics.add(
                    self._recipe, outcome, self._num_done, self._num_images, waited, self._worked, why
                )

    def _check_stopped(self) -> None:
        if self._slot.stopped or self._should_stop():
            raise StoppedError

    def _stages(self) -> Generator[Event]:
        yield from self._slot.admit()
        request = self._read_request()
        for recipe in request.recipes:
            self._runtime.choice(recipe.model)
        if not request.recipes:
            yield Started(request, 0)
            return
        self._recipe = request.recipes[0]
        self._num_images = sum(len(recipe.seeds) for recipe in request.recipes)
        self._num_steps = sum(len(recipe.seeds) * recipe.passes for recipe in request.recipes)
        self._started = time.monotonic()
        yield Started(request, self._num_images)
        if self._runtime.workers is not None:
            yield from self._sample_on_workers(self._runtime.workers, request)
            return
        yield from self._acquire(self._recipe.model)
        # Only now, as the native size of some models is known once they are loaded.
        recipes = [self._runtime.freeze_recipe(recipe, request.image, request.mask) for recipe in request.recipes]
        yield from self._sample(recipes, request.image, request.mask)

    def _acquire(self, name: str) -> Generator[Status]:
        yield from self._slot.acquire(name)
        if ON_ZERO_GPU:  # each run has a process, and with it a model, of its own
            self._slot.release(for_good=True)

    def _sample(
        self, recipes: Sequence[Recipe], image: Image.Image | None, mask: Image.Image | None
    ) -> Generator[Event]:
        """Sample all images, letting other runs have their turn after each batch; on ZeroGPU in one lease or more."""
        leases = Leases(self._runtime.lease_seconds, MAX_LEASE_SECONDS if ON_ZERO_GPU else math.inf)
        first, num_steps = 0, 0
        batch: list[int] = []  # the images that are sampled together now
        since: float | None = None
        while self._num_done < self._num_images:
            if not ON_ZERO_GPU and not self._slot.holds_model:
                yield from self._acquire(recipes[0].model)
            if self._sampling is None:
                # Finished images are not made again: a seed gives the same image alone and in any sweep.
                rest = leases.next(images_of(recipes, self._num_done, self._num_images))
                if ON_ZERO_GPU and self._num_done:
                    finished = f"{self._num_done} of {self._num_images} images are finished"
                    yield Status(f"{finished}; asking for a GPU for the others")
                first, last = self._num_done, self._num_done + sum(len(recipe.seeds) for recipe in rest)
                num_steps, since = 0, None if ON_ZERO_GPU else self._worked
                batch.clear()
                self._sampling = self._runtime.sample(rest, image, mask)
            try:
                event = self._next_event(first)
            except Exception as error:
                self._drop_sampling()
                lease = lease_error(error)
                if lease is None:
                    raise
                if not leases.can_go_on(lease, self._num_done - first):
                    kept = f" Finished and kept: {self._num_done} of {self._num_images} images."
                    raise UserError(f"{lease}{kept if self._num_done else ''}") from None
                continue
            # A worker of ZeroGPU goes on while its events are handled.
            now = time.monotonic() if ON_ZERO_GPU else self._worked
            if isinstance(event, Progress):
                if event.step == 1 and event.index in batch:  # memory ran out
                    batch.clear()
                if event.index not in batch:
                    batch.append(event.index)
                if since is not None:
                    num_steps += event.index == batch[0]
            if since is None:
                since = now  # the wait for a GPU is over, and a step is done
            if isinstance(event, Result) and event.ends_batch:
                if num_steps:
                    self._runtime.note_pace(event.recipe, (now - since) / num_steps, len(batch))
                batch.clear()
                if self._num_done == last:
                    self._drop_sampling()
                # Before the image goes out: it is saved and sent while the next one's first step is made.
                self._slot.yield_turn()
            yield event

    def _sample_on_workers(self, workers: WorkerPool, request: Request) -> Generator[Event]:
        """Sample all images at once, on the workers that are free; results come in the order of finishing."""
        image, mask = request.image, request.mask
        steps: dict[int, int] = {}  # done of each image
        with workers.enter(request.recipes[0].model) as run:
            yield from run.wait_for_model()
            recipes = [self._runtime.freeze_recipe(recipe, image, mask) for recipe in request.recipes]
            passes = [recipe.passes for recipe in recipes for _ in recipe.seeds]
            images = [recipe.with_seeds([seed]) for recipe in recipes for seed in recipe.seeds]
            began = time.monotonic()
            with contextlib.closing(run.sample(enumerate(images), image, mask)) as events:
                for event in events:
                    self._worked, self._num_moved = run.worked, run.num_moved
                    self._check_time()
                    if isinstance(event, Result):
                        steps[event.index] = passes[event.index]
                        self._note_result(event)
                    elif isinstance(event, Progress):
                        steps[event.index] = event.step
                        done = sum(steps.values())
                        event = replace(
                            event,
                            preview=event.preview if event.index == run.first_in_work() else None,
                            num_images=self._num_images,
                            share=done / self._num_steps,
                            seconds_left=(time.monotonic() - began) * (self._num_steps - done) / done,
                            num_done=self._num_done if self._num_images > 1 else None,
                        )
                    yield event
            self._worked = run.worked

    def _check_time(self) -> None:
        if self._worked > REQUEST_SECONDS:
            raise UserError(
                f"Stopped after the {REQUEST_SECONDS} s limit; finished images are kept. Ask for fewer images or steps."
            )

    def _note_result(self, event: Result) -> None:
        self._num_done += 1
        self._cut = tuple(dict.fromkeys((*self._cut, *event.cut)))

    def _next_event(self, first: int) -> Progress | Result:
        """The next event of the samples, `first` of which are from before them."""
        self._check_time()
        assert self._sampling is not None
        began = time.monotonic()
        self._began = began if self._began is None else self._began
        try:
            event = next(self._sampling)
        finally:
            self._worked += time.monotonic() - began
        if isinstance(event, Rejected):
            raise UserError(event.sentence)
        event = replace(event, index=first + event.index)
        if isinstance(event, Progress):
            return self._with_totals(event)
        self._note_result(event)
        return event

    def _with_totals(self, event: Progress) -> Progress:
        self._steps_done += 1
        seconds_left = None
        if self._steps_done > 1 and self._began is not None:
            per_step = (time.monotonic() - self._began) / self._steps_done
            seconds_left = per_step * max(0, self._num_steps - self._steps_done)  # lost steps are done again
        share = min(1.0, self._steps_done / self._num_steps)
        return replace(event, num_images=self._num_images, share=share, seconds_left=seconds_left)

    def _drop_sampling(self) -> None:
        with self._lock:
            sampling, self._sampling = self._sampling, None
            if sampling is not None:
                sampling.close()


def sample(
    model: Model, recipes: Sequence[Recipe], image: Image.Image | None, mask: Image.Image | None
) -> Generator[Progress | Result | Rejected]:
    """Sample recipes with previews. On ZeroGPU in a process of its own: every event can be pickled."""
    first = 0
    try:
        for recipe in recipes:
            with contextlib.closing(sample_one(model, recipe, image, mask)) as events:
                for event in events:
                    yield replace(event, index=first + event.index)
            first += len(recipe.seeds)
    except UserError as error:
        yield Rejected(str(error))


def sample_one(
    model: Model, recipe: Recipe, image: Image.Image | None, mask: Image.Image | None, previews: bool = True
) -> Generator[Progress | Result]:
    """Sample the seeds of a recipe, with `previews` as often as a page shows them."""
    budget, batch = PreviewBudget(), set[int]()
    with contextlib.closing(model.generate(recipe, image, mask)) as events:
        for event in events:
            if isinstance(event, FinishedImage):
                batch.discard(event.index)
                alone, tokens = recipe.with_seeds([event.seed]), np.asarray(event.tokens)
                yield Result(
                    event.index, event.seed, alone, event.image, tokens, model.fingerprint, event.cut, not batch
                )
                continue
            if event.step == 1 and event.index in batch:  # memory ran out: its batch is sampled again, in smaller ones
                batch.clear()
            batch.add(event.index)
            preview = None
            if previews and event.step < event.steps and budget.allows_one():
                with budget:
                    preview = model.preview(event.tokens, event.masked, recipe.model_version)
            yield Progress(event.index, event.seed, event.step, event.steps, preview)


class PreviewBudget:
    """Keeps previews from slowing down the images: not too often, and within a share of the time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = 0.0
        self._spent = 0.0

    def allows_one(self) -> bool:
        now = time.monotonic()
        if self._last == 0.0:
            return True
        return now - self._last >= PREVIEW_SECONDS and self._spent <= PREVIEW_SHARE * (now - self._began)

    def __enter__(self) -> None:
        self._last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._spent += time.monotonic() - self._last
