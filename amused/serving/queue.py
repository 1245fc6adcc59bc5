"""One loaded model, many runs: who samples next, which model is in memory, and one load for all who wait for it.

Every run has a slot in the queue. The first `at_once` of them are admitted and take turns with the model, image by
image, so that a sweep of many seeds does not hold up a single image; runs of one session, such as a browser tab, are
admitted one after the other. At most one model is in memory: runs that need another one get it when no run uses the
present one, or after `SWITCH_TIMEOUT` seconds. Knows threads and names of models; nothing of recipes, images or pages.

    with queue.enter(session=tab) as slot:
        for status in slot.acquire("nouns"):
            ...  # show it; closing the generator at any point frees the slot
        sample(slot.model)

Every method can be called from any thread; no lock is held while a generator is suspended.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass

from amused.errors import UserError, chain
from amused.serving.model import Model

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0  # a waiting run yields at least this often, so that it can be closed
SWITCH_TIMEOUT = 30.0  # seconds that a model stays in use while runs of another one wait
MAX_WAITING_RUNS = 4  # of one session, behind the one that runs

BUSY = "Too many people are waiting at the moment: try again in a minute."
TOO_MANY_OF_SESSION = f"{MAX_WAITING_RUNS} of your runs are waiting already: let one finish first."

ReportProgress = Callable[[float | None, str], None]
"""Called during a load: the fraction done, where known, and what is being done."""


class StoppedError(Exception):
    """The run was stopped, or its slot was left."""


class LoadCancelledError(Exception):
    """No run waits for this model any more."""


@dataclass(frozen=True)
class Status:
    """What a run waits for.

    Attributes:
        share: the fraction of a load that is done, where known.
        behind_own: an earlier run of the same session is still going on.
    """

    text: str
    share: float | None = None
    behind_own: bool = False


class PendingLoad:
    """A model on its way: first its files, while others use the present model, then into memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fetched = False
        self.status = Status(f"Loading {name}")


class Slot:
    """A run in the queue, made by `RunQueue.enter`. Leaves it at the end of the context.

    Attributes:
        stopped: the run was stopped, or it has left; `admit` and `acquire` then raise StoppedError.
        model_name: of the model it waits for or uses, "" before `acquire`.
    """

    def __init__(self, queue: RunQueue, session: Hashable, on_preempt: Callable[[], None]) -> None:
        self._queue = queue
        self._changed = queue._changed
        self.session = session
        self.on_preempt = on_preempt
        self.stopped = False
        self.model_name = ""
        self.since = 0.0
        self.failure: Exception | None = None

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def model(self) -> Model:
        """The model, while the slot holds it."""
        model = self._queue.model
        assert model is not None
        return model

    @property
    def holds_model(self) -> bool:
        return self._queue._holder is self

    def admit(self) -> Generator[Status]:
        """Wait until the run is one of `at_once` and the first of its session. Call before loading anything large."""
        yield from self._wait_until(lambda: self._queue._is_admitted(self))

    def acquire(self, name: str) -> Generator[Status]:
        """Wait for the turn of this run and for the model of that name, which is then in memory.

        Raises:
            StoppedError: the run was stopped.
            UserError and others: why the load failed.
        """
        self.failure = None
        yield from self.admit()
        try:
            self._queue._wait_for_turn(self, name)
            yield from self._wait_until(lambda: self.holds_model)
        except BaseException:
            self.release()
            raise

    def yield_turn(self) -> bool:
        """Release the model if another run waits. Returns whether it did."""
        with self._changed:
            if not self._queue._waiting:
                return False
            self.release()
            return True

    def release(self, for_good: bool = False) -> None:
        """Give the model back, or stop waiting for it; the run stays admitted.

        Args:
            for_good: the run does not come back for the model, so a switch to another one need not wait for it.
        """
        with self._changed:
            if for_good:
                self.model_name = ""
            self._queue._drop_turn(self)
            self._queue._advance()

    def leave(self) -> None:
        """Release the slot. Thread-safe and idempotent."""
        with self._changed:
            self.stopped = True
            if self in self._queue._slots:
                self._queue._slots.remove(self)
            self._queue._drop_turn(self)
            self._queue._advance()
            self._changed.notify_all()  # for runs that wait to be admitted

    def _wait_until(self, reached: Callable[[], bool]) -> Generator[Status]:
        def is_decided() -> bool:
            return self.stopped or self.failure is not None or reached()

        while True:
            with self._changed:
                if self.stopped:
                    raise StoppedError
                if self.failure is not None:
                    raise self.failure
                if reached():
                    return
                status = self._queue._status(self)
            yield status
            with self._changed:
                self._queue._advance()  # the switch timeout may be over
                self._changed.wait_for(is_decided, STATUS_SECONDS)


class RunQueue:
    """The queue in front of the model.

    Args:
        load: gives the model of a name with its files in place, not yet in memory. It may take minutes, and gets a
            `ReportProgress`, which raises when no run waits for that model any more.
        read: brings such a model into memory. The former model has been dropped when it is called.
        at_once: how many runs take turns.
        length: how many more may queue; others are refused.
    """

    def __init__(
        self,
        load: Callable[[str, ReportProgress], Model],
        read: Callable[[Model], None],
        at_once: int,
        length: int,
    ) -> None:
        self._load, self._read = load, read
        self._at_once, self._length = at_once, length
        self._changed = threading.Condition()
        self._slots: list[Slot] = []  # by arrival
        self._waiting: list[Slot] = []  # runs waiting for the model, in order
        self._holder: Slot | None = None
        self._loads: dict[str, PendingLoad] = {}
        self._reading: PendingLoad | None = None
        self._switched = 0.0
        self.model: Model | None = None
        self.model_name = ""

    def enter(self, session: Hashable = None, on_preempt: Callable[[], None] = lambda: None) -> Slot:
        """A slot for a run.

        Args:
            session: runs of the same session are served one after the other; None: no session.
            on_preempt: called from any thread when the model is dropped while this run is between two turns.

        Raises:
            UserError: too many runs wait, of all or of this session.
        """
        slot = Slot(self, session, on_preempt)
        with self._changed:
            if len(self._slots) >= self._at_once + self._length:
                raise UserError(BUSY)
            if len(self._of(session)) > MAX_WAITING_RUNS:
                raise UserError(TOO_MANY_OF_SESSION)
            self._slots.append(slot)
        return slot

    def stop(self, session: Hashable) -> int:
        """Stop the runs of this session. Returns how many there were."""
        with self._changed:
            slots = self._of(session)
            for slot in slots:
                slot.stopped = True
            self._changed.notify_all()
            return len(slots)

    def counts(self) -> tuple[int, int]:
        """How many runs there are, and how many of them are not sampling at this moment."""
        with self._changed:
            return len(self._slots), len(self._slots) - (self._holder is not None)

    @contextmanager
    def turn_with(self, model: Model) -> Generator[bool]:
        """Wait for a turn with this very model, for work in the background; False if another one takes its place.

        Raises:
            UserError: too many runs wait.
        """

        def give_up() -> None:
            slot.stopped = True
            self._drop_turn(slot)

        with self.enter(on_preempt=give_up) as slot:
            with self._changed:
                if self.model is model:
                    self._wait_for_turn(slot, self.model_name)
                    self._changed.wait_for(lambda: slot.holds_model or slot.stopped)
            yield slot.holds_model

    # What follows is called with the lock held.

    def _of(self, session: Hashable) -> list[Slot]:
        return [] if session is None else [slot for slot in self._slots if slot.session == session]

    def _earlier_of_session(self, slot: Slot) -> list[Slot]:
        own = self._of(slot.session)
        return own[: own.index(slot)] if slot in own else []

    def _is_admitted(self, slot: Slot) -> bool:
        """Whether it is the first of its session, and one of the first `at_once` of those."""
        if self._earlier_of_session(slot):
            return False
        before = self._slots[: self._slots.index(slot)]
        return sum(not self._earlier_of_session(other) for other in before) < self._at_once

    def _status(self, slot: Slot) -> Status:
        own = len(self._earlier_of_session(slot))
        if own:
            return Status(f"Queued: {own} ahead of you", behind_own=True)
        load = self._loads.get(slot.model_name)
        if load is not None and (load is self._reading or not load.fetched):
            return load.status
        is_admitted = slot in self._waiting
        ahead = self._waiting.index(slot) + (self._holder is not None) if is_admitted else self._slots.index(slot)
        return Status(f"Queued: {ahead} ahead of you" if ahead else "Waiting for the model")

    def _wait_for_turn(self, slot: Slot, name: str) -> None:
        with self._changed:
            if self._holder is slot and self.model_name == name:
                return
            self._drop_turn(slot)
            slot.model_name, slot.since = name, time.monotonic()
            self._waiting.append(slot)
            self._advance()

    def _drop_turn(self, slot: Slot) -> None:
        if slot in self._waiting:
            self._waiting.remove(slot)
        if self._holder is slot:
            self._holder = None

    # Who is next.

    def _advance(self) -> None:
        """Give the model to the next run, or start to load the model that the next run needs."""
        if self._holder is not None or self._reading is not None:
            return
        for slot in self._waiting:
            if slot.model_name != self.model_name and slot.model_name not in self._loads:
                self._start_load(slot.model_name)
        ready = [
            slot for slot in self._waiting if slot.model_name == self.model_name or self._loads[slot.model_name].fetched
        ]
        if not ready:
            return
        following = ready[0]
        if following.model_name != self.model_name:
            # Runs between two images count: they come back at once, and a switch for each image would help nobody.
            in_use = self.model is not None and any(slot.model_name == self.model_name for slot in self._slots)
            if in_use and time.monotonic() - max(following.since, self._switched) < SWITCH_TIMEOUT:
                following = next((slot for slot in ready if slot.model_name == self.model_name), following)
                if following.model_name != self.model_name:
                    return
        if following.model_name == self.model_name:
            self._waiting.remove(following)
            self._holder = following
        else:
            for slot in self._slots:
                if self.model is not None and slot.model_name == self.model_name:
                    slot.on_preempt()
            self.model, self.model_name = None, ""
            self._reading = self._loads[following.model_name]
        self._changed.notify_all()

    # Loads, each in a thread of its own.

    def _start_load(self, name: str) -> None:
        load = self._loads[name] = PendingLoad(name)
        threading.Thread(target=self._run_load, args=(load,), name=f"load {name}", daemon=True).start()

    def _run_load(self, load: PendingLoad) -> None:
        """Fetch a model, wait until the present one is not in use, and bring it into memory."""
        model, failure = None, None
        try:
            model = self._load(load.name, lambda share, text: self._report(load, Status(text, share)))
            self._wait_to_read(load)
            self._read(model)
        except LoadCancelledError:
            model = None
            log.info("loading %s was cancelled", load.name)
        except Exception as error:
            model, failure = None, error
            if not isinstance(error, UserError):
                log.error("%s could not be loaded", load.name, exc_info=error)
        if failure is not None:
            forget_frames(failure)
        with self._changed:
            del self._loads[load.name]
            if self._reading is load:
                self._reading = None
                if model is not None:
                    self.model, self.model_name, self._switched = model, load.name, time.monotonic()
            if failure is not None:
                for slot in [slot for slot in self._waiting if slot.model_name == load.name]:
                    slot.failure = failure
                    self._waiting.remove(slot)
            self._advance()
            self._changed.notify_all()

    def _report(self, load: PendingLoad, status: Status) -> None:
        with self._changed:
            load.status = status
            self._check_wanted(load)

    def _wait_to_read(self, load: PendingLoad) -> None:
        with self._changed:
            load.fetched, load.status = True, Status(f"Loading {load.name}")
            self._advance()
            while self._reading is not load:
                self._check_wanted(load)
                self._changed.wait(STATUS_SECONDS)

    def _check_wanted(self, load: PendingLoad) -> None:
        if not any(slot.model_name == load.name for slot in self._waiting):
            raise LoadCancelledError


def forget_frames(error: BaseException) -> None:
    """Clear the frames of an error: tensors of gigabytes would live as long as the error."""
    for cause in chain(error):
        traceback.clear_frames(cause.__traceback__)
