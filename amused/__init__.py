"""aMUSEd: text to image with a masked-token model, in about 12 parallel steps.

import amused
model = amused.load("nouns")
images = model.text_to_image("a pixel art character with red glasses", seeds=[8, 9])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from amused.checkpoints.hub import DownloadProgress
    from amused.generation.pipeline import Amused, Picture, Step

__version__ = "0.5.0"
__all__ = ["Amused", "CheckpointError", "Picture", "Recipe", "Step", "UserError", "load"]


def load(
    name_or_path: str | Path = "nouns",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: DownloadProgress | None = None,
    quantize: str | None = None,
    adapters: str | Path | None = None,
    compile: str = "off",
) -> Amused:
    """Return a model: its configurations are read now (and downloaded if need be), its weights on first use.

    Args:
        name_or_path: "nouns" (bundled), "amused-256", "amused-512", a folder, or "owner/name" on the Hub.
        device: "cpu" or "cuda"; by default the GPU if there is one.
        dtype: "float32", "float16" or "bfloat16"; by default the fastest on the device.
        progress: called with (file, bytes so far, total bytes) during a download.
        quantize: "int8" computes the transformer's large matmuls in 8-bit integers, faster on a CPU with VNNI; output
            differs from the unquantized model.
        adapters: a folder of fine-tuned adapters, selected by name with `adapter`.
        compile: what `Amused.compile` may try on a GPU: "auto" or "graph" (CUDA graphs, images stay the same),
            "inductor" (also compiled layers, images may change), or "off".

    Raises:
        UserError: no such model, a failed download, or an unsupported device or dtype.
        CheckpointError: a configuration is invalid; names the file and the key.
    """
    from pathlib import Path

    from amused.checkpoints.hub import locate
    from amused.generation.pipeline import Amused
    from amused.generation.placement import place

    placement, folder = place(device, dtype, quantize), Path(adapters) if adapters else None
    return Amused(locate(name_or_path, progress), placement, folder, compile)


def __getattr__(name: str) -> Any:
    if name in ("Amused", "Picture", "Step"):  # torch is imported only when needed
        from amused.generation import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
