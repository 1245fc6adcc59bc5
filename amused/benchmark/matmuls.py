"""How close a sampling step is to the limit of the CPU: it is compared with its matmuls alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import amused
from amused.generation.compiled import seconds_of
from amused.recipe.recipe import Recipe

REPEATS = 5


@torch.inference_mode()
def measure_matmuls(model: Path, dtype: str) -> dict[str, float]:
    """Seconds of a guided step, seconds of the matmuls of its linear layers alone, and their operations per second."""
    loaded = amused.load(model, device="cpu", dtype=dtype)
    step = loaded.step(Recipe("text_to_image", "a red cat", (0,)))
    shapes: Counter[tuple[int, int, int]] = Counter()

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Linear):
            shapes[(inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features)] += 1

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    step()
    hook.remove()
    seconds, operations = 0.0, 0
    for (rows, in_features, out_features), calls in shapes.items():
        x, weight = (torch.randn(size, in_features).to(loaded.dtype) for size in (rows, out_features))
        seconds += calls * median_seconds(partial(F.linear, x, weight))
        operations += calls * 2 * rows * in_features * out_features
    return {
        "seconds": round(median_seconds(step), 3),
        "matmul_seconds": round(seconds, 3),
        "flops_per_second": round(operations / seconds),
    }


def median_seconds(work: Callable[[], object]) -> float:
    """Median of several calls after one that is not counted."""
    work()
    return statistics.median(seconds_of(torch.device("cpu"), work) for _ in range(REPEATS))
