"""ZeroGPU Spaces: a run borrows a GPU for a limited time, in a forked process of its own.

https://huggingface.co/docs/hub/spaces-zerogpu. `spaces` emulates CUDA in the process that serves the page, but only in
the thread that imports it. Weights that this thread puts on "cuda" before the launch are packed into a file, from which
every worker reads them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from amused.recipe.recipe import Recipe

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))

# `spaces` asks for up to 1.5 times as much; visitors without an account have about 120 s a day.
MAX_LEASE_SECONDS = 60
START_SECONDS = 10  # until the worker has moved the weights to the GPU and made its first step
LOAD_SECONDS = 20  # for a model that is not packed
DEFAULT_PACE = 0.1  # seconds per step of an image at native size, until measured

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class LeaseError(Exception):
    """`spaces` lent no GPU, or took it back. The message is its sentence for the visitor.

    Attributes:
        over_quota: it was asked for more seconds than this visitor may have.
    """

    def __init__(self, sentence: str, over_quota: bool) -> None:
        super().__init__(sentence)
        self.over_quota = over_quota


def lease_error(error: Exception) -> LeaseError | None:
    """What an exception of `spaces`, a `gradio.Error` with a title, says about the lease; None for any other."""
    title, sentence = getattr(error, "title", ""), str(getattr(error, "message", ""))
    if title in ("ZeroGPU quota exceeded", "ZeroGPU illegal duration"):
        return LeaseError(sentence, over_quota=True)
    if title == "ZeroGPU worker error" and sentence != "GPU task aborted":
        return None  # an exception of ours in the worker
    return LeaseError(sentence, over_quota=False) if title.startswith("ZeroGPU") else None


def has_cuda() -> bool:
    """Whether CUDA can be used. Imports torch, which takes seconds, only where there is a driver."""
    if ON_ZERO_GPU:
        return True
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def lease_seconds(recipe: Recipe, pace: float, is_packed: bool) -> int:
    """Seconds of GPU time to ask for: what the recipe needs and no more.

    Args:
        pace: seconds per step of one image, at the recipe's size.
        is_packed: the worker need not load the model.
    """
    steps = len(recipe.seeds) * recipe.passes + parent_steps(recipe)
    return round(START_SECONDS + (0 if is_packed else LOAD_SECONDS) + pace * steps + 0.5)


def seeds_per_lease(recipe: Recipe, pace: float, is_packed: bool) -> int:
    """How many of a recipe's seeds one lease is long enough for, at least one."""
    spare = MAX_LEASE_SECONDS - lease_seconds(recipe.with_seeds(recipe.seeds[:1]), pace, is_packed)
    return max(1, 1 + int(spare / (pace * recipe.passes)))


def parent_steps(recipe: Recipe) -> int:
    """Steps of the images whose tokens a recipe starts from: a new worker samples them again."""
    if recipe.parent is None:
        return 0
    return recipe.parent.passes + parent_steps(recipe.parent)


def on_gpu(task: Callable[Arguments, Returned], duration: Callable[Arguments, int]) -> Callable[Arguments, Returned]:
    """`spaces.GPU` on ZeroGPU; elsewhere the task itself, and `spaces` need not be installed."""
    if not ON_ZERO_GPU:
        return task
    import spaces

    return spaces.GPU(task, duration=duration)
