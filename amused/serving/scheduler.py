"""Turns at the one loaded model: who is next, which model is in memory, and one load for all who wait for it.

Runs take turns picture by picture, in the order in which they came or came back, so that a sweep of many seeds does not
keep a single picture waiting. There is never more than one model in memory: those who wait for another get theirs when
nobody is left who uses the present one, or, if that takes long, after `PATIENCE` seconds. Knows threads and the names
of models; nothing of recipes, pictures or pages.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from amused.errors import UserError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # a waiting run looks up at least this often, to tell its place and to notice that it is given up
PATIENCE = 30.0  # seconds that a model stays in use while others wait for another one

BUSY = "Too many people are waiting at the moment: try again in a minute."

Progress = Callable[[float | None, str], None]
"""Called while a model is fetched or read: the share done where it is known, and what is being done."""


class GivenUpError(Exception):
    """Nobody waits for this model any more."""


@dataclass(frozen=True)
class Waiting:
    """A run waits: for its turn, or for its model, of which `share` is there where that is known."""

    text: str
    share: float | None = None


class Load:
    """A model on its way: first its files, while others go on with the present one, then into memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fetched = False
        self.news = Waiting(f"Loading {name}")


class Turn:
    """One run's place. `let_go` is called, from any thread, when the model is taken from a run between its turns."""

    def __init__(self, turns: Turns, let_go: Callable[[], None]) -> None:
        self._turns = turns
        self.let_go = let_go
        self.name: str | None = None
        self.since = 0.0
        self.failure: Exception | None = None

    def admitted(self) -> Iterator[Waiting]:
        """Wait until few enough others are at work."""
        yield from self._turns._until(self, lambda: self._turns._is_inside(self))

    def wait(self, name: str) -> Iterator[Waiting]:
        """Wait for the turn and for the model of that name, which is then in memory.

        Raises:
            UserError and others: what went wrong with the load that this run waited for.
        """
        self._turns._join(self, name)
        yield from self._turns._until(self, lambda: self._turns._holder is self)

    @property
    def model(self) -> Any:
        """The model, for as long as the turn lasts."""
        return self._turns.model

    @property
    def is_held(self) -> bool:
        return self._turns._holder is self

    def pass_on(self) -> bool:
        """Let others have their turn, if there are any; whether so."""
        return self._turns._release(self, only_if_wanted=True)

    def release(self) -> None:
        self._turns._release(self)

    def leave(self) -> None:
        """Give up turn and place. Quick, and can be called from any thread and more than once."""
        self._turns._leave(self)


class Turns:
    """The line in front of the model.

    Args:
        load: gives the model of a name with its files in place, but not yet in memory. It may take minutes, and gets
            a `Progress` to tell, which raises when nobody waits any more.
        read: brings such a model into memory. When it is called the former model has been dropped.
        at_once: so many runs take turns; further ones wait until one has ended.
        queue: so many may do so; whoever comes then is refused.
    """

    def __init__(
        self, load: Callable[[str, Progress], Any], read: Callable[[Any], None], at_once: int, queue: int
    ) -> None:
        self._load, self._read = load, read
        self._at_once, self._queue = at_once, queue
        self._changed = threading.Condition()
        self._open: list[Turn] = []  # by arrival
        self._line: list[Turn] = []  # those that wait for the model, by when they came or came back
        self._holder: Turn | None = None
        self._loads: dict[str, Load] = {}
        self._reading: Load | None = None
        self._switched = 0.0
        self.model: Any = None
        self.name: str | None = None

    def enter(self, let_go: Callable[[], None] = lambda: None) -> Turn:
        """A place for a run.

        Raises:
            UserError: as many wait as may.
        """
        turn = Turn(self, let_go)
        with self._changed:
            if len(self._open) >= self._at_once + self._queue:
                raise UserError(BUSY)
            self._open.append(turn)
        return turn

    def counts(self) -> tuple[int, int]:
        """How many runs there are, and how many of them are not at work at this moment."""
        with self._changed:
            return len(self._open), len(self._open) - (self._holder is not None)

    # What a turn asks for.

    def _is_inside(self, turn: Turn) -> bool:
        return turn not in self._open or self._open.index(turn) < self._at_once

    def _join(self, turn: Turn, name: str) -> None:
        with self._changed:
            if self._holder is turn and self.name == name:
                return
            if self._holder is turn:
                self._holder = None
            turn.name, turn.since, turn.failure = name, time.monotonic(), None
            self._line.append(turn)
            self._advance()

    def _until(self, turn: Turn, reached: Callable[[], bool]) -> Iterator[Waiting]:
        def decided() -> bool:
            return turn.failure is not None or reached()

        while True:
            with self._changed:
                if turn.failure is not None:
                    raise turn.failure
                if reached():
                    return
                news = self._news(turn)
            yield news
            with self._changed:
                self._advance()  # for patience that has come to its end
                self._changed.wait_for(decided, LOOK_SECONDS)

    def _release(self, turn: Turn, only_if_wanted: bool = False) -> bool:
        with self._changed:
            if self._holder is not turn or (only_if_wanted and not self._line):
                return False
            self._holder = None
            self._advance()
            return True

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            if turn in self._open:
                self._open.remove(turn)
            if turn in self._line:
                self._line.remove(turn)
            if self._holder is turn:
                self._holder = None
            self._advance()
            self._changed.notify_all()  # for those who wait to be admitted

    def _news(self, turn: Turn) -> Waiting:
        load = self._loads.get(turn.name or "")
        if load is not None and (load is self._reading or not load.fetched):
            return load.news
        ahead = self._line.index(turn) + (self._holder is not None) if turn in self._line else self._open.index(turn)
        return Waiting(f"Waiting, {ahead} before you" if ahead else "Waiting for the model")

    # Who is next.

    def _advance(self) -> None:
        """Give the turn to the next one, or start to read the model that the next one wants. The lock is held."""
        if self._holder is not None or self._reading is not None:
            return
        for turn in self._line:
            if turn.name != self.name and turn.name not in self._loads:
                self._start(turn.name or "")
        ready = [turn for turn in self._line if turn.name == self.name or self._loads[turn.name or ""].fetched]
        if not ready:
            return
        following = ready[0]
        if following.name != self.name:
            # Runs between two pictures count: they come back at once, and a switch for each picture would help nobody.
            present = any(turn.name == self.name for turn in self._open)
            if present and time.monotonic() - max(following.since, self._switched) < PATIENCE:
                following = next((turn for turn in ready if turn.name == self.name), following)
                if following.name != self.name:
                    return
        if following.name == self.name:
            self._line.remove(following)
            self._holder = following
        else:
            for turn in self._open:
                turn.let_go()
            self.model, self.name = None, None
            self._reading = self._loads[following.name or ""]
        self._changed.notify_all()

    # Loads.

    def _start(self, name: str) -> None:
        load = self._loads[name] = Load(name)
        threading.Thread(target=self._work, args=(load,), name=f"load {name}", daemon=True).start()

    def _work(self, load: Load) -> None:
        """Fetch a model, wait until the present one is not in use, and read it."""
        model, failure = None, None
        try:
            model = self._load(load.name, lambda share, text: self._tell(load, Waiting(text, share)))
            self._until_free_for(load)
            self._read(model)
        except GivenUpError:
            model = None
            log.info("loading %s was given up", load.name)
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
                    self.model, self.name, self._switched = model, load.name, time.monotonic()
            if failure is not None:
                for turn in [turn for turn in self._line if turn.name == load.name]:
                    turn.failure = failure
                    self._line.remove(turn)
            self._advance()
            self._changed.notify_all()

    def _tell(self, load: Load, news: Waiting) -> None:
        with self._changed:
            load.news = news
            self._check_wanted(load)

    def _until_free_for(self, load: Load) -> None:
        with self._changed:
            load.fetched, load.news = True, Waiting(f"Loading {load.name}")
            self._advance()
            while self._reading is not load:
                self._check_wanted(load)
                self._changed.wait(LOOK_SECONDS)

    def _check_wanted(self, load: Load) -> None:
        if not any(turn.name == load.name for turn in self._line):
            raise GivenUpError


def forget_frames(error: BaseException) -> None:
    """Let go of what an error's frames hold: tensors of gigabytes would live as long as the error."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        traceback.clear_frames(cause.__traceback__)
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
