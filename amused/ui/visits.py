"""What a browser tab has, kept at the server: a reload, a lost connection or a closed tab loses nothing.

A visit is known by a random id, which the browser tab keeps (`amusedVisit` in page.html). A second tab of a browser
gets a visit of its own, with what was kept and made until then.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from amused.limits import SESSIONS
from amused.ui.browser_storage import SharedLists
from amused.ui.history import History
from amused.ui.kept_images import KeptImages, Tray
from amused.ui.results import ResultState
from amused.ui.tab import returnable


@dataclass(eq=False)
class Visit:
    """`task` is that of the tab that is open."""

    state: ResultState
    history: History = field(default_factory=History)
    tray: Tray = field(default_factory=Tray)
    task: str | None = None
    shared: SharedLists = field(default_factory=SharedLists)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def __post_init__(self) -> None:
        self.state.history = self.history

    def forget_missing_files(self) -> None:
        """Files are kept for a limited time."""
        state = self.state
        images = tuple(image for image in state.images if Path(image.path).exists())
        if images != state.images:
            state.images, state.groups = images, ()
        state.shown = tuple(image for image in state.shown if Path(image.path).exists())
        self.history.forget_missing_files()
        self.tray.change(without_missing_files)
        state.inputs = {component: returnable(value) for component, value in state.inputs.items()}


def without_missing_files(kept: KeptImages) -> KeptImages:
    images = tuple(image for image in kept.images if Path(image.path).exists())
    return kept if images == kept.images else KeptImages(images, stars=kept.stars).select(len(images) - 1)


class Visits:
    """The visits of a page; beyond `limit` the one that was used the longest ago is forgotten."""

    def __init__(self, limit: int = SESSIONS) -> None:
        self._limit = limit
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._by_session: WeakValueDictionary[str, Visit] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, id: str, is_taken: bool, state: ResultState, tray: Tray, session: str | None = None) -> Visit:
        """The visit of that id, or a new one with this state. What the page has kept by then, in `tray`, is added.

        Args:
            is_taken: another tab of the browser has it open; the new one begins with its history and what it kept.
            session: Gradio's, of the page.
        """
        with self._lock:
            found = self._visits.get(id)
            if found is not None and not is_taken:
                found.tray.change(lambda kept: kept.join(tray.kept))
                if state.live and not found.state.live:  # the visitor was quicker than the page
                    found.state, state.history = state, found.history
                visit = found
            else:
                visit = Visit(state, tray=tray)
                if found is not None:
                    visit.history.entries, visit.shared = found.history.entries, found.shared
                    former = found.tray.kept
                    visit.tray.change(former.join)
            self._visits[visit.id] = visit
            self._visits.move_to_end(visit.id)
            while len(self._visits) > self._limit:
                self._visits.popitem(last=False)
            if session is not None:
                self._by_session[session] = visit
            return visit

    def of_session(self, session: str | None) -> Visit | None:
        """The visit that a page with this session has opened."""
        with self._lock:
            visit = None if session is None else self._by_session.get(session)
            if visit is not None and visit.id in self._visits:
                self._visits.move_to_end(visit.id)
            return visit
