"""The benchmark runs and reports what it measures; the figures themselves are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import tiny_checkpoint
from PIL import Image

from amused.benchmark.report import chart, table
from amused.benchmark.rows import ROWS, Row
from amused.benchmark.sides import Side, summarize, take_turns

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEASURED = {"seconds": 2.0, "peak": 10**9, "reference_seconds": 3.0, "reference_peak": 2 * 10**9, "ratio": 1.5}


class TimedSide:
    """Answers as a worker does, with given times."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.requests = iter(seconds), []

    def generate(self, request: dict) -> dict:
        self.requests.append(request)
        return {"seconds": next(self.seconds), "peak": 10**9 + len(self.requests)}


def test_a_short_first_turn_is_not_counted_and_seconds_are_per_image() -> None:
    ours, reference = TimedSide(90, 2, 4, 30), TimedSide(90, 8, 12, 60)
    row = Row("", num_images=2, steps=4, reference_steps=12)
    measured = take_turns([ours, reference], row.requests(), repeats=3)
    assert (measured["seconds"], measured["reference_seconds"]) == (2, 6)
    assert measured["ratio"] == 3
    assert [request["steps"] for request in ours.requests] == [1, 4, 4, 4]
    assert [request["steps"] for request in reference.requests] == [1, 12, 12, 12]
    prompts = [request["prompt"] for request in ours.requests]
    assert len(set(prompts)) == 4 and prompts == [request["prompt"] for request in reference.requests]


def test_the_ratio_is_the_median_of_ratios_and_the_peak_a_maximum() -> None:
    """Load that hits one turn of both sides cancels out."""
    ours = [{"seconds": 1, "peak": 5}, {"seconds": 10, "peak": 7}, {"seconds": 2, "peak": 6}]
    reference = [{"seconds": 3, "peak": 1}, {"seconds": 30, "peak": 1}, {"seconds": 4, "peak": 2}]
    summary = summarize([ours, reference])
    assert summary == {"seconds": 2, "peak": 7, "reference_seconds": 4, "reference_peak": 2, "ratio": 3}


def test_both_libraries_serve_requests(tmp_path: Path) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    with Side("amused", model, "float32", "cpu") as ours, Side("diffusers", model, "float32", "cpu") as reference:
        for task in ("text_to_image", "image_to_image"):  # diffusers cannot inpaint a grid of less than 16 tokens
            request = {"task": task, "prompt": "a red cat", "num_images": 2, "steps": 3}
            for side in (ours, reference):
                timing = side.generate(request)
                assert timing["seconds"] > 0 and timing["peak"] > 10**8


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"exit status [1-9]"),
        Side("amused", str(tmp_path / "missing"), "float32", "cpu"),
    ):
        pass


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amused.benchmark", "--rows", "nouns", "--repeats", "1", "--work", str(tmp_path)]
    command += ["--results", str(tmp_path / "new" / "results.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| nouns, one image | " in result.stdout
    assert json.loads((tmp_path / "new" / "results.json").read_text("utf-8"))["nouns"]["seconds"] > 0


def test_every_row_is_in_the_table() -> None:
    limit = {"seconds": 1.2, "matmul_seconds": 0.9, "flops_per_second": 4 * 10**11}
    workers = {"shares": [0.94, 0.9], "overhead_seconds": 0.004, "seconds": 1.0, "reference_seconds": 2.0, "same": True}
    kinds = {"limit": limit, "workers": workers}
    measurements = {name: kinds.get(row.kind, MEASURED) for name, row in ROWS.items()}
    lines = table(measurements).splitlines()
    assert len(lines) == len(ROWS) + 2
    assert "| 256, one image | 2.00 s, 1.00 GB | 3.00 s, 2.00 GB | 1.50 | 1.4 |" in lines
    assert "matmuls: 0.90 s at 400 GFLOP/s, 75%" in lines[-1]
    assert "0.94, 0.90 of as many times; 4.0 ms more per image" in lines[-3]
    assert "1.00 s | 2.00 s | 2.00 | 1, same bytes" in lines[-2]


def test_comparisons_are_in_the_chart(tmp_path: Path) -> None:
    without_reference = {"seconds": 1.0, "peak": 10**9}
    measurements = {"256": {**MEASURED, "ratio": 1.35}, "512": MEASURED, "nouns": without_reference}
    figure = chart(measurements, "two cores")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.35, 1.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["256, one image", "512, one image"]
    figure.savefig(tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width == 1000
