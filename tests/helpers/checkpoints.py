"""Loading parts of a checkpoint, and being refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amused.checkpoints.hub import locate
from amused.errors import CheckpointError

TRANSFORMER = "transformer/diffusion_pytorch_model.fp16.safetensors"
VQGAN = "vqvae/diffusion_pytorch_model.fp16.safetensors"
TEXT = "text_encoder/model.fp16.safetensors"
CPU, FLOAT = torch.device("cpu"), torch.float32


def refused(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    sentence = str(caught.value)
    assert all(part in sentence for part in parts), sentence
    assert "/tmp" not in sentence and "\n" not in sentence and len(sentence) < 400
    return sentence


def load(folder: Path, file: str = TRANSFORMER) -> torch.nn.Module:
    checkpoint = locate(folder)
    loader = {
        TRANSFORMER: checkpoint.load_transformer,
        VQGAN: checkpoint.load_vqgan,
        TEXT: checkpoint.load_text_encoder,
    }[file]
    return loader(CPU, FLOAT)
