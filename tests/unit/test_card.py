"""The table of the published card: its arithmetic and its report, on a CPU with tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny import tiny_checkpoint

import amused
from amused.benchmark import card
from amused.benchmark.card import RUNS, card_table, matmul_rate, measure_card, operations_of_image
from amused.benchmark.weights import SIZES as PUBLISHED
from amused.benchmark.weights import VQGAN_CONFIG

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ON_CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("card") / "tiny")


class TimedSide:
    """Answers as a worker does: a second per image in warm-up, half of it afterwards."""

    def __init__(self, library: str, model: str, dtype: str, device: str, compile: str, batch: int) -> None:
        assert batch == 1, "a single image must not be filled up to a batch"
        self.what, self.note, self.compiled_for = (library, compile), "", 0

    def __enter__(self) -> TimedSide:
        if self.what == ("diffusers", "inductor"):
            raise RuntimeError("The worker ended with exit status 1.")
        return self

    def __exit__(self, *_: object) -> None: ...

    def generate(self, request: dict) -> dict:
        if request.get("compile"):
            self.compiled_for = request["batch"]
            return {"seconds": 100.0, "peak": 1}
        assert self.compiled_for == request["num_images"] and request["steps"] == 12
        self.note = f"runs {self.what[1]}" if self.what[0] == "amused" else ""
        return {"seconds": request["num_images"] / 2, "peak": 10**9 * request["num_images"]}


def test_every_figure_is_in_the_table_and_in_the_file(tiny, tmp_path: Path) -> None:
    made = measure_card(lambda size: tiny, 2, **ON_CPU, open_side=TimedSide)
    assert [(row["size"], row["batch"]) for row in made["rows"][::5]] == [(256, 1), (256, 8), (512, 1), (512, 8)]
    assert [(row["library"], row["mode"]) for row in made["rows"][:5]] == list(RUNS)
    eight = made["rows"][5]
    assert (eight["seconds"], eight["peak"]) == (4.0, 8 * 10**9)
    share = 8 * operations_of_image(amused.load(tiny, device="cpu").checkpoint) / made["flops_per_second"] / 4
    assert eight["limit_share"] == pytest.approx(share, abs=1e-4)
    lines = card_table(json.loads(json.dumps(made))).splitlines()
    assert f"| 256 | 8 | amused | eager | 4.000 | 8.00 GB | {eight['limit_share']:.1%} |" in lines
    assert "| 512 | 1 | diffusers | compiled | not measured | | |" in lines
    assert "- amused, CUDA graph, 256, batch 1: runs graph" in lines
    assert "- diffusers, compiled, 512, batch 8: not measured: The worker ended with exit status 1." in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_it_ends_in_time(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 150))
    monkeypatch.setattr(card, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    made = measure_card(lambda size: tiny, 1, **ON_CPU, open_side=TimedSide)
    assert sum("seconds" in row for row in made["rows"]) == 4  # two processes were started before 400 s
    assert "out of time" in card_table(made)


def test_a_real_process_on_a_cpu(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "RUNS", [("amused", "graph")])
    made = measure_card(lambda size: tiny, 1, **ON_CPU, sizes=[64], batches=[1, 2])
    assert all(row["seconds"] > 0 and row["limit_share"] > 0 and row["peak"] > 10**8 for row in made["rows"]), made
    assert "CUDA graphs need a CUDA device" in made["rows"][0]["note"]
    assert card_table(made).count("\n| 64 |") == 2


def test_the_limit_counts_all_steps_of_a_published_model() -> None:
    """Against a count by hand of the linear layers of its 22 transformer layers, most of the work."""
    config = PUBLISHED[256]
    hidden, inner, tokens = config.hidden_size, config.intermediate_size, 256
    by_hand = 12 * 2 * 2 * tokens * config.num_hidden_layers * (6 * hidden**2 + 3 * hidden * inner)
    counted = operations_of_image(SimpleNamespace(transformer=config, vqgan=VQGAN_CONFIG))
    assert by_hand < counted < 1.6 * by_hand


def test_the_rate_is_that_of_one_matmul() -> None:
    assert 1e8 < matmul_rate("cpu", "float32", side=256) < 1e14


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it measures for minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amused.benchmark", "--card", "--work", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "--card measures a GPU, and this machine has no CUDA device."
    assert result.returncode == 1
