"""aMUSEd: pictures from text by masked tokens, in a few parallel steps.

import amused
model = amused.load("nouns")
images = model.text_to_image("a pixel art character with square red glasses", seeds=[8, 9])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from amused.checkpoints.hub import Progress
    from amused.generation.pipeline import Amused, Picture, Step

__version__ = "0.4.0"
__all__ = ["Amused", "CheckpointError", "Picture", "Recipe", "Step", "UserError", "load"]


def load(
    name_or_path: str | Path = "nouns",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    quantize: str | None = None,
    adapters: str | Path | None = None,
) -> Amused:
    """A model, ready at once: its configurations are checked now, its weights are read at first use.

    Args:
        name_or_path: "nouns" (bundled), "amused-256", "amused-512", a folder, or "owner/name" on the hub.
        device: "cpu" or "cuda"; by default the GPU where there is one.
        dtype: "float32", "float16" or "bfloat16"; by default what is fastest on the device.
        progress: called with (file, bytes so far, bytes in all) during a download.
        quantize: "int8" computes the transformer's large products in 8-bit integers, faster on a CPU that has VNNI
            units; the pictures are others than without.
        adapters: a folder of fine-tuned adapters, which the methods then take by name as `adapter`.

    Raises:
        UserError: there is no such model, it cannot be downloaded, or the device cannot do what is asked for.
        CheckpointError: its configurations are unusable; names the file and the key.
    """
    from pathlib import Path

    from amused.checkpoints.hub import locate
    from amused.generation.pipeline import Amused
    from amused.generation.placement import place

    return Amused(locate(name_or_path, progress), place(device, dtype, quantize), Path(adapters) if adapters else None)


def __getattr__(name: str) -> Any:
    if name in ("Amused", "Picture", "Step"):  # torch is imported only when something needs it
        from amused.generation import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
