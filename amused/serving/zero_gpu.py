"""ZeroGPU Spaces: a run borrows a GPU for a limited time, in a forked process of its own.

https://huggingface.co/docs/hub/spaces-zerogpu. `spaces` emulates CUDA in the process that serves the page, but only in
the thread that imports it. Weights that this thread puts on "cuda" before the launch are packed into a file, from which
every worker reads them.
"""

from __future__ import annotations

import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from amused.limits import MAX_SEEDS
from amused.recipe.recipe import Recipe, images_of

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))

# `spaces` asks for up to 1.5 times as much; visitors without an account have about 120 s a day.
MAX_LEASE_SECONDS = 60
START_SECONDS = 10  # until the worker has moved the weights to the GPU and made its first step
LOAD_SECONDS = 20  # for a model that is not packed
DEFAULT_PACE = 0.1  # seconds per step of a batch at native size, until measured

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


def lease_seconds(
    recipes: Sequence[Recipe], pace: Callable[[Recipe], float], is_packed: bool, batch_size: int = 1
) -> int:
    """Seconds of GPU time to ask for: what the recipes need and no more.

    Args:
        pace: gives the seconds per step of a batch, which are the same for a short one.
        is_packed: the worker need not load the model.
        batch_size: images of a recipe that are sampled together.
    """
    parents = {parent for recipe in recipes for parent in parents_of(recipe)}  # a new worker samples them again
    work = sum(pace(one) * math.ceil(len(one.seeds) / batch_size) * one.passes for one in (*recipes, *parents))
    return round(START_SECONDS + (0 if is_packed else LOAD_SECONDS) + work + 0.5)


def parents_of(recipe: Recipe) -> list[Recipe]:
    """The results, each derived from the next, that a recipe starts from."""
    return [] if recipe.parent is None else [recipe.parent, *parents_of(recipe.parent)]


class Leases:
    """Cuts the images of a run into leases of a GPU: as many as one has time for, fewer where a quota ends.

    Args:
        seconds: how long a lease for some recipes has to be.
        longest: seconds of a lease.
    """

    def __init__(self, seconds: Callable[[Sequence[Recipe]], int], longest: float) -> None:
        self._seconds, self._longest = seconds, longest
        self._most = MAX_SEEDS
        self._num_images = 0

    def next(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """The images of the next lease, the first ones of `recipes`; at least one."""
        most = min(self._most, sum(len(recipe.seeds) for recipe in recipes))
        counts = range(2, most + 1)
        self._num_images = 1 + bisect_right(
            counts, self._longest, key=lambda count: self._seconds(images_of(recipes, 0, count))
        )
        return images_of(recipes, 0, self._num_images)

    def can_go_on(self, error: LeaseError, num_done: int) -> bool:
        """Whether to ask for another lease after one ended in an error and gave `num_done` images."""
        if error.over_quota and self._num_images > 1:
            self._most = self._num_images // 2  # fewer images may be within the quota
            return True
        return not error.over_quota and num_done > 0


def on_gpu(task: Callable[Arguments, Returned], duration: Callable[Arguments, int]) -> Callable[Arguments, Returned]:
    """`spaces.GPU` on ZeroGPU; elsewhere the task itself, and `spaces` need not be installed."""
    if not ON_ZERO_GPU:
        return task
    import spaces

    return spaces.GPU(task, duration=duration)
