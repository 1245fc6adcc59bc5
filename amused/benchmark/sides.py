"""The two sides of a comparison, as processes that take turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Side:
    """A worker process with its model; `make` asks it for pictures and gives seconds and peak memory."""

    def __init__(
        self,
        library: str,
        model: str,
        dtype: str,
        device: str,
        quantize: str | None = None,
        compiled: bool = False,
    ) -> None:
        command = [sys.executable, "-m", "amused.benchmark.worker", library, model, dtype, "--device", device]
        command += ["--quantize", quantize] if quantize else []
        command += ["--compiled"] if compiled else []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )

    def __enter__(self) -> Side:
        self.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the worker ended with {self.process.wait()}")

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()


WARM_UP = {"steps": 1, "pictures": 1}  # reads weights and allocates


def take_turns(
    sides: Sequence[Side],
    requests: Iterator[list[dict[str, Any]]],
    repeats: int,
    warm_up: Mapping[str, int] = WARM_UP,
) -> dict[str, float]:
    """Median seconds a picture of each side and their ratio, after one turn, made short, that is not counted."""
    found: list[list[dict[str, Any]]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        request = next(requests)
        if turn == 0:
            request = [{**part, **warm_up} for part in request]
        for side, part, answers in zip(sides, request, found):
            answer = side.make(part)
            if turn:
                answers.append({**answer, "seconds": answer["seconds"] / part["pictures"]})
    return summary(found)


def summary(found: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    seconds = [statistics.median(answer["seconds"] for answer in answers) for answers in found]
    peaks = [max(answer["peak"] for answer in answers) for answers in found]
    result = {"seconds": round(seconds[0], 3), "peak": peaks[0]}
    if len(found) == 2:
        result |= {
            "reference_seconds": round(seconds[1], 3),
            "reference_peak": peaks[1],
            "ratio": round(statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*found)), 3),
        }
    return result
