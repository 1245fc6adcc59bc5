"""ZeroGPU Spaces, where each run gets a forked process with a GPU for a limited time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image

from amused.recipe.recipe import Recipe

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
MAX_SECONDS = 120

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def has_cuda() -> bool:
    """Whether CUDA can be used. Imports torch, which takes seconds, only where there is a driver."""
    if ON_ZERO_GPU:
        return True
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def gpu_seconds(recipe: Recipe, image: Image.Image | None, mask: Image.Image | None) -> int:
    """Seconds of GPU time to request: what the recipe needs and no more: visitors have a daily quota."""
    return min(MAX_SECONDS, 15 + round(0.1 * recipe.steps * len(recipe.seeds)))


def on_gpu(task: Callable[Arguments, Returned], duration: Callable[Arguments, int]) -> Callable[Arguments, Returned]:
    """`spaces.GPU` on ZeroGPU; elsewhere the task itself, and `spaces` need not be installed."""
    if not ON_ZERO_GPU:
        return task
    import spaces

    return spaces.GPU(task, duration=duration)
