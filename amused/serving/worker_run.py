"""A run at the pool: its images, which of them a worker takes next, and what is heard of them.

The pool's lock guards all of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Result
from amused.serving.queue import STATUS_SECONDS, Status

if TYPE_CHECKING:
    from amused.serving.workers import WorkerPool

MAX_ATTEMPTS = 3  # at an image that loses its workers
MAX_UNREAD = 64  # images of a run that nobody has taken; then its others wait

MOVED = "A worker was lost: another one is making its images"
HOPELESS = f"This image was abandoned: it crashed {MAX_ATTEMPTS} workers."

Images = Iterator[tuple[int, Recipe]]


@dataclass(frozen=True)
class Task:
    """Images of a run that one worker samples together: seeds of one recipe, with their indices within the run."""

    run: Run
    recipe: Recipe
    indices: tuple[int, ...]


@dataclass(eq=False)
class Seat:
    """A worker of the pool, with all that comes in its place after it is lost.

    Attributes:
        place: where it runs, for people.
        model: what it holds or is loading; "" for none.
        losses: in a row, without a finished image.
    """

    number: int
    place: str = ""
    model: str = ""
    batch_size: int = 1
    state: str = "starting"  # or "loading", "ready", "busy", "given up"
    losses: int = 0
    since: float = field(default_factory=time.monotonic)  # it holds the model


class Run:
    """Images of one run and how far they are. Made by `WorkerPool.enter`; leaves the pool at the end of the context.

    Attributes:
        num_moved: images that were given to another worker.
        worked: seconds that workers have sampled for it.
    """

    def __init__(self, pool: WorkerPool, model: str, previews: bool) -> None:
        self._pool, self.model, self.previews = pool, model, previews
        self.changed = threading.Condition(pool.lock)
        self._images: Images | None = None  # not yet begun
        self._next: tuple[int, Recipe] | None = None  # the first of `_images`
        self._returned: list[tuple[int, Recipe]] = []  # of lost workers, to be made before others
        self._lost: dict[int, list[Seat]] = {}  # the workers that an image was lost with
        self.in_work: dict[int, Recipe] = {}
        self._steps: dict[int, Progress] = {}  # the latest of each image, until it is read
        self._results: deque[Result] = deque()
        self._news: deque[Status] = deque()
        self.failure: Exception | None = None
        self.inputs: Any = None
        self.num_moved = 0
        self.worked = 0.0
        self.since = self.served = time.monotonic()
        self.closed = False

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.leave(self)

    def wait_for_model(self) -> Generator[Status]:
        """Wait until a worker has loaded the model, now or earlier: its size is known from then on."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.failure is not None or self._pool.knows(self.model), STATUS_SECONDS)
                if self.failure is not None:
                    raise self.failure
                if self._pool.knows(self.model):
                    return
                status = self._pool.status_of(self)
            yield status

    def sample(
        self, images: Iterable[tuple[int, Recipe]], image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Generator[Status | Progress | Result]:
        """Sample images, which are read as workers get free; results come in the order in which they are finished.

        Yields something every second, so that it can be closed.

        Args:
            images: recipes of one seed each, with the indices that steps and results have.
        """
        self.inputs = self._pool.engine.share((image, mask))
        with self.changed:
            self._images = iter(images)
            self._peek()
            self._pool.work_changed.notify_all()
        last: Status | Progress | None = None
        while True:
            with self.changed:
                self.changed.wait_for(self._has_news, STATUS_SECONDS)
                event = self._take_news()
                if event is None:
                    if self.failure is not None:
                        raise self.failure
                    if self._is_done():
                        return
                    event = last if isinstance(last, Progress) and self.in_work else self._pool.status_of(self)
            if not isinstance(event, Result):
                last = event
            yield event

    def first_in_work(self) -> int | None:
        """Index of the first image that a worker samples."""
        with self.changed:
            return min(self.in_work, default=None)

    # What follows is called with the lock held.

    def _has_news(self) -> bool:
        return bool(self._results or self._steps or self._news or self.failure) or self._is_done()

    def _is_done(self) -> bool:
        return self._images is not None and self._next is None and not self._returned and not self.in_work

    def _take_news(self) -> Status | Progress | Result | None:
        if self._news:
            return self._news.popleft()
        if self._results:
            if len(self._results) == MAX_UNREAD:
                self._pool.work_changed.notify_all()
            return self._results.popleft()
        return self._steps.pop(next(iter(self._steps))) if self._steps else None

    def _peek(self) -> None:
        self._next = None if self._images is None else next(self._images, None)

    def wants(self, seat: Seat) -> bool:
        """Whether it has images for a worker that has its model."""
        if self.failure is not None or len(self._results) >= MAX_UNREAD:
            return False
        return self._next is not None or any(self._may_try(index, seat) for index, _ in self._returned)

    def needs_model(self) -> bool:
        return self.failure is None and (self._images is None or self._next is not None or bool(self._returned))

    def _may_try(self, index: int, seat: Seat) -> bool:
        """An image that was lost with a worker goes to another one, where there is one."""
        lost = self._lost.get(index, [])
        return seat not in lost or all(other in lost for other in self._pool.living())

    def take(self, seat: Seat) -> Task:
        """The next images for a worker: lost ones first, as many seeds of one recipe as it samples together."""
        returned = [entry for entry in self._returned if self._may_try(entry[0], seat)]
        chosen: list[tuple[int, Recipe]] = []
        while len(chosen) < seat.batch_size:
            entry = returned.pop(0) if returned else self._next
            if entry is None or (chosen and not alike(entry[1], chosen[0][1])):
                break
            if entry in self._returned:
                self._returned.remove(entry)
            else:
                self._peek()
            chosen.append(entry)
        self.in_work.update(chosen)
        self.served = time.monotonic()
        recipe = chosen[0][1].with_seeds([entry.seeds[0] for _, entry in chosen])
        return Task(self, recipe, tuple(index for index, _ in chosen))

    def put(self, event: Progress | Result) -> None:
        if isinstance(event, Progress):
            former = self._steps.get(event.index)
            if event.preview is None and former is not None:
                event = replace(event, preview=former.preview)
            self._steps[event.index] = event
        elif self.in_work.pop(event.index, None) is not None:
            self._steps.pop(event.index, None)
            self._results.append(event)
        self.changed.notify()

    def give_back(self, task: Task, seat: Seat) -> None:
        """The unfinished images of a lost worker."""
        lost = [(index, self.in_work.pop(index)) for index in task.indices if index in self.in_work]
        if not lost or self.closed:
            return
        for index, _ in lost:
            self._steps.pop(index, None)
            self._lost.setdefault(index, []).append(seat)
            if len(self._lost[index]) >= MAX_ATTEMPTS:
                self.fail(UserError(HOPELESS))
        self._returned = sorted([*self._returned, *lost], key=lambda entry: entry[0])
        self.num_moved += len(lost)
        self._news.append(Status(MOVED))
        self.changed.notify()

    def is_last_attempt(self, indices: Iterable[int]) -> bool:
        """Whether one of these images is given up if it is lost once more."""
        return any(len(self._lost.get(index, ())) + 1 >= MAX_ATTEMPTS for index in indices)

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.changed.notify()


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ in their seeds alone."""
    return one.with_seeds([0]) == other.with_seeds([0])
