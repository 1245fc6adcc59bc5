"""The two sides of a comparison: worker processes that take turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Side:
    """A worker process and its model. Use as a context manager: entering waits until the model is loaded.

    Args:
        compile: how the network runs, one of `COMPILE_MODES`; "inductor" also for diffusers.
        batch: images that a GPU samples together.

    Attributes:
        note: what the worker says about how the network runs.

    Raises:
        RuntimeError: from any call, the worker has ended.
    """

    def __init__(
        self,
        library: str,
        model: str,
        dtype: str,
        device: str,
        quantize: str | None = None,
        compile: str = "off",
        batch: int | None = None,
    ) -> None:
        command = [sys.executable, "-m", "amused.benchmark.worker", library, model, dtype, "--device", device]
        command += ["--quantize", quantize] if quantize else []
        command += ["--compile", compile]
        batch_limit = {"AMUSED_BATCH": str(batch)} if batch else {}
        self.note = ""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **batch_limit},
        )

    def __enter__(self) -> Side:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes the worker's input, which ends it

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a request: its "seconds", and the "peak" memory of the worker so far in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        reply = self._read()
        self.note = reply.pop("note", "")
        return reply

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The worker ended with exit status {self.process.wait()}.")


WARM_UP = {"steps": 1, "num_images": 1}  # reads weights and allocates


def take_turns(
    sides: Sequence[Side],
    requests: Iterator[list[dict[str, Any]]],
    repeats: int,
    warm_up: Mapping[str, int] = WARM_UP,
) -> dict[str, float]:
    """Median seconds per image of each side, and their ratio; the first, shortened turn is not counted.

    Args:
        requests: a request per side for each turn.
        warm_up: what the first turn changes in its requests.
    """
    timings: list[list[dict[str, Any]]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        turn_requests = next(requests)
        if turn == 0:
            turn_requests = [{**request, **warm_up} for request in turn_requests]
        for side, request, timed in zip(sides, turn_requests, timings):
            timing = side.generate(request)
            if turn:
                timed.append({**timing, "seconds": timing["seconds"] / request["num_images"]})
    return summarize(timings)


def summarize(timings: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Median seconds and largest peak of one or two sides; of two, also the median of the ratios of each turn."""
    seconds = [statistics.median(timing["seconds"] for timing in timed) for timed in timings]
    peaks = [max(timing["peak"] for timing in timed) for timed in timings]
    summary = {"seconds": round(seconds[0], 6), "peak": peaks[0]}
    if len(timings) == 2:
        summary |= {
            "reference_seconds": round(seconds[1], 6),
            "reference_peak": peaks[1],
            "ratio": round(statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*timings)), 3),
        }
    return summary
