"""The benchmark runs; its figures are no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_checkpoint

from amused.benchmark.report import chart, table
from amused.benchmark.rows import ROWS, Row
from amused.benchmark.sides import Side, take_turns

ROOT = Path(__file__).parent.parent
FOUND = {"seconds": 2.0, "peak": 10**9, "reference_seconds": 3.0, "reference_peak": 2 * 10**9, "ratio": 1.5}


def test_both_sides_take_turns(tmp_path: Path) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    with Side("amused", model, "float32", "cpu") as ours, Side("diffusers", model, "float32", "cpu") as other:
        for task in ("text_to_image", "image_to_image"):  # diffusers inpaints no grid of less than 16 tokens
            found = take_turns([ours, other], Row("", task=task, pictures=2, steps=3).requests(), repeats=1)
            assert found["ratio"] == pytest.approx(found["reference_seconds"] / found["seconds"], rel=0.2)
            assert found["peak"] > 10**8


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amused.benchmark", "--rows", "nouns", "--repeats", "1", "--work", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| bundled checkpoint, one picture | " in result.stdout
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["nouns"]["seconds"] > 0


def test_every_row_is_in_the_table_and_comparisons_in_the_chart() -> None:
    limit = {"seconds": 1.2, "products": 0.9, "operations_a_second": 4 * 10**11}
    measured = {name: limit if row.kind == "limit" else FOUND for name, row in ROWS.items()}
    assert table(measured).count("\n") == len(ROWS) + 1
    assert "| 256, one picture | 2.00 s, 1.00 GB | 3.00 s, 2.00 GB | 1.50 | 1.4 |" in table(measured)
    few, many = (chart({name: FOUND for name in names}, "here") for names in (["256"], ["256", "512", "inpaint"]))
    assert isinstance(many, Image.Image) and many.height > few.height
