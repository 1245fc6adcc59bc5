"""Runs that go on at the server when their page is gone, and are joined again by the next one.

A run is the generator of its updates (`runs.stream_run`). A thread takes them one by one and hands each to the pages
that watch. A run that nobody watches for `AWAY_SECONDS` is given up.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from amused.limits import AWAY_SECONDS
from amused.ui.events import NO_CHANGE, Updates, merge

NUMBERS = itertools.count()
PATIENCE = 1.0  # seconds: a watching page gets something at least this often, so that it can leave
PACE = 0.25  # seconds between two updates: each takes a tenth of a second of a core, which the model may need


@dataclass(frozen=True)
class Ended:
    run: LiveRun


Watcher = queue.SimpleQueue[Updates | Ended]


class LiveRun:
    """A run in a thread of its own.

    Attributes:
        number: by which a page names it.
        name: what it makes, for people.
        has_started: it no longer waits for another run of its page.
        is_dropped: to be cancelled, without those behind it.
        error: the sentence that it ended with.
        last: what its pages show in the same update as its end: of two quick updates of a component, Gradio (6.31)
            may drop what only the first one changes.
    """

    def __init__(self, name: str) -> None:
        self.number, self.name = next(NUMBERS), name
        self.has_started = self.is_dropped = False
        self.error: Exception | None = None
        self.last: Updates = {}
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self._alone_since = time.monotonic()
        self._has_ended = False

    def start(self, updates: Generator[Updates], watcher: Watcher) -> None:
        self.add(watcher)
        # In the caller's context: ZeroGPU finds the visitor's request there.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._work, updates), name="run", daemon=True).start()

    def add(self, watcher: Watcher) -> None:
        with self._lock:
            if self._has_ended:
                watcher.put(Ended(self))
            else:
                self._watchers.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
                self._alone_since = time.monotonic()

    def _work(self, updates: Generator[Updates]) -> None:
        try:
            for update in updates:
                if not self._hand_out(update):
                    updates.close()
        except Exception as error:
            self.error = error
        with self._lock:
            self._has_ended = True
            for watcher in self._watchers:
                watcher.put(Ended(self))
            self._watchers.clear()

    def _hand_out(self, update: Updates) -> bool:
        """Whether somebody takes it, or may come back."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put(update)
            return bool(self._watchers) or time.monotonic() - self._alone_since < AWAY_SECONDS


def take(watcher: Watcher, due: float) -> list[Updates | Ended]:
    """All that arrives until `due`, of `time.monotonic`, or until a run ends; nothing if nothing does for a moment."""
    arrived: list[Updates | Ended] = []
    with contextlib.suppress(queue.Empty):
        arrived.append(watcher.get(timeout=PATIENCE))
        while not isinstance(arrived[-1], Ended):
            arrived.append(watcher.get(timeout=max(0.0, due - time.monotonic())))
    return arrived


def watch(runs: Sequence[LiveRun], watcher: Watcher) -> Iterator[Updates]:
    """The updates of runs to which the watcher was added, until all have ended; then the first error, if any.

    What arrives within `PACE`, or while the page is still busy with the last update, is one update.
    """
    going, due = len(runs), 0.0
    try:
        while going:
            arrived = take(watcher, due)
            due = time.monotonic() + PACE
            going -= sum(isinstance(one, Ended) for one in arrived)
            yield merge([one for one in arrived if not isinstance(one, Ended) and one is not NO_CHANGE]) or NO_CHANGE
    finally:
        for run in runs:
            run.remove(watcher)
    for run in runs:
        if run.error is not None:
            raise run.error
