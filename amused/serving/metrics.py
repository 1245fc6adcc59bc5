"""What the owner of a page sees: a log line for each run, and `/metrics` in the text format of Prometheus.

No prompt is logged unless `AMUSED_LOG_PROMPTS` is set: a run is known by the digest of its recipe. There is no
`/metrics` unless the owner sets `AMUSED_OWNER_TOKEN`, the password that a browser then asks for.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from amused.errors import UserError
from amused.limits import switched_on
from amused.recipe.links import to_query
from amused.recipe.recipe import Recipe

log = logging.getLogger(__name__)

DONE, STOPPED, LEFT, REFUSED, FAILED = OUTCOMES = ("done", "stopped", "left", "refused", "failed")
"""How a run ends: complete; by Stop; the visitor left or cancelled; by a rule; by an error."""

TOKEN_VARIABLE = "AMUSED_OWNER_TOKEN"
MIN_TOKEN_LENGTH = 16
CHALLENGE = {"www-authenticate": 'Basic realm="aMUSEd metrics"'}

prometheus_client.disable_created_metrics()


class Metrics:
    """Totals since the start. `count_runs` gives how many runs there are, and how many of them wait."""

    def __init__(self, count_runs: Callable[[], tuple[int, int]]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=self.registry)

        def gauge(name: str, about: str, value: Callable[[], float]) -> None:
            Gauge(name, about, registry=self.registry).set_function(value)

        self._requests = counter("amused_requests", "Requests by how they ended", "outcome")
        for outcome in OUTCOMES:
            self._requests.labels(outcome)  # 0 until there is one
        self._images = counter("amused_pictures", "Finished images")
        self._waited = counter("amused_waiting_seconds", "Seconds that requests waited")
        self._worked = counter("amused_working_seconds", "Seconds that the model worked")
        started = time.time()
        gauge("amused_uptime_seconds", "Seconds since the start", lambda: round(time.time() - started))
        gauge("amused_runs", "Runs that sample or wait", lambda: count_runs()[0])
        gauge("amused_runs_waiting", "Runs that wait", lambda: count_runs()[1])
        self.registry.register(MemoryCollector())

    def add(
        self,
        recipe: Recipe | None,
        outcome: str,
        num_done: int = 0,
        num_images: int = 0,
        waited: float = 0.0,
        worked: float = 0.0,
        why: str | None = None,
    ) -> None:
        """Count a run that has ended, and log it in one line without line breaks, whatever was sent.

        Args:
            recipe: the first one, None where there was no valid one.
            num_done: finished images, of `num_images` that were wanted.
            waited, worked: seconds.
            why: the reason for a refusal or a failure, for the log.
        """
        self._requests.labels(outcome).inc()
        self._images.inc(num_done)
        self._waited.inc(max(0.0, waited))
        self._worked.inc(worked)
        parts = [f"run outcome={outcome} images={num_done}/{num_images} waited={waited:.1f}s worked={worked:.1f}s"]
        if recipe is not None:
            digest = hashlib.sha256(to_query(recipe).encode()).hexdigest()[:16]
            parts.append(f"recipe={digest} model={recipe.model!r} task={recipe.task} steps={recipe.steps}")
        if why is not None:
            parts.append(f"why={why!r}")
        if recipe is not None and switched_on("AMUSED_LOG_PROMPTS"):
            parts.append(f"prompt={recipe.prompt!r}")
        log.info(" ".join(parts))

    def text(self) -> str:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry).decode()


class MemoryCollector(Collector):
    """Bytes in use; unknown ones are left out."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with contextlib.suppress(OSError, ValueError):  # Linux alone has this file
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
            for name, about, key in (
                ("amused_memory_bytes", "Resident memory in bytes", "VmRSS"),
                ("amused_memory_peak_bytes", "The most resident memory so far in bytes", "VmHWM"),
            ):
                yield GaugeMetricFamily(name, about, 1024 * int(status[key].split()[0]))
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            about = "Allocated GPU memory in bytes"
            yield GaugeMetricFamily("amused_gpu_memory_bytes", about, torch.cuda.memory_allocated())


def routes(metrics: Metrics) -> list[Route]:
    """The route `/metrics`, or none.

    Raises:
        UserError: the owner's token is too short.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        return []
    if len(token) < MIN_TOKEN_LENGTH:
        raise UserError(f"{TOKEN_VARIABLE} must have at least {MIN_TOKEN_LENGTH} characters.")

    async def show(request: Request) -> Response:
        if not hmac.compare_digest(password(request.headers.get("authorization", "")), token.encode()):
            return PlainTextResponse("The owner token is required.\n", 401, CHALLENGE)
        headers = {"cache-control": "no-store", "content-type": CONTENT_TYPE_LATEST}
        return PlainTextResponse(metrics.text(), headers=headers)

    return [Route("/metrics", show)]


def password(header: str) -> bytes:
    """The password of a basic authorization header, for any user name; empty if there is none."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
