"""What the owner of a page can see of it: a log line for each request, and counters since the start.

No prompt is written down unless `AMUSED_LOG_PROMPTS` is set: a request is known by the digest of its recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from amused.limits import switched_on
from amused.recipe.links import to_query
from amused.recipe.recipe import Recipe

log = logging.getLogger(__name__)

DONE, STOPPED, LEFT, REFUSED, FAILED = OUTCOMES = ("done", "stopped", "left", "refused", "failed")
"""How a request can end: all pictures made; by the button; the visitor went or cancelled; by a rule; by an error."""


class Metrics:
    """Sums since the start, safe to add to from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self.requests: Counter[str] = Counter({outcome: 0 for outcome in OUTCOMES})
        self.pictures = 0
        self.worked = self.waited = 0.0

    def add(
        self,
        recipe: Recipe | None,
        outcome: str,
        pictures: int = 0,
        wanted: int = 0,
        waited: float = 0.0,
        worked: float = 0.0,
        why: str | None = None,
    ) -> None:
        """A request has ended, with so many of the pictures that it wanted.

        `recipe` is the first, or None where there was no valid one; `why` it was refused or failed, for the log.
        """
        with self._lock:
            self.requests[outcome] += 1
            self.pictures += pictures
            self.waited += waited
            self.worked += worked
        log.info(describe(recipe, outcome, pictures, wanted, waited, worked, why))

    def numbers(self) -> dict[str, float]:
        """Every counter under its name, in the form of Prometheus."""
        with self._lock:
            return {
                **{f'amused_requests_total{{outcome="{name}"}}': number for name, number in self.requests.items()},
                "amused_pictures_total": self.pictures,
                "amused_waiting_seconds_total": round(self.waited, 3),
                "amused_working_seconds_total": round(self.worked, 3),
                "amused_uptime_seconds": round(time.time() - self._started),
                **memory(),
            }


def describe(
    recipe: Recipe | None, outcome: str, pictures: int, wanted: int, waited: float, worked: float, why: str | None
) -> str:
    """One line about a request, without line breaks whatever was sent."""
    parts = [f"request outcome={outcome} pictures={pictures}/{wanted} waited={waited:.1f}s worked={worked:.1f}s"]
    if recipe is not None:
        digest = hashlib.sha256(to_query(recipe).encode()).hexdigest()[:16]
        parts.append(f"recipe={digest} model={recipe.model!r} task={recipe.task} steps={recipe.steps}")
    if why is not None:
        parts.append(f"why={why!r}")
    if recipe is not None and switched_on("AMUSED_LOG_PROMPTS"):
        parts.append(f"prompt={recipe.prompt!r}")
    return " ".join(parts)


def memory() -> dict[str, float]:
    """Bytes in use: resident, at the most so far, and on the GPU; what cannot be known is left out."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):  # Linux alone has this file
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
        for name, key in (("amused_memory_bytes", "VmRSS"), ("amused_memory_peak_bytes", "VmHWM")):
            found[name] = 1024 * int(status[key].split()[0])
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["amused_gpu_memory_bytes"] = torch.cuda.memory_allocated()
    return found
