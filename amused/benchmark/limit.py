"""How far a step is from what the processor can do: its matrix products alone, timed with the same shapes."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import amused
from amused.recipe.recipe import Recipe

REPEATS = 5


@torch.inference_mode()
def products(model: Path, dtype: str) -> dict[str, float]:
    """Seconds of a guided step, of its linear layers' products alone, and the rate of these in operations a second."""
    loaded = amused.load(model, device="cpu", dtype=dtype)
    step = loaded.step(Recipe("text_to_image", "a red cat", (0,)))
    shapes: Counter[tuple[int, int, int]] = Counter()

    def note(layer: torch.nn.Module, given: tuple[torch.Tensor], _: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Linear):
            shapes[(given[0].numel() // layer.in_features, layer.in_features, layer.out_features)] += 1

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    step()
    handle.remove()
    alone, operations = 0.0, 0
    for (rows, width, out), count in shapes.items():
        x, weight = (torch.randn(side, width).to(loaded.dtype) for side in (rows, out))
        alone += count * timed(lambda x=x, weight=weight: F.linear(x, weight))
        operations += count * 2 * rows * width * out
    whole = timed(step)
    return {"seconds": round(whole, 3), "products": round(alone, 3), "operations_a_second": round(operations / alone)}


def timed(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
