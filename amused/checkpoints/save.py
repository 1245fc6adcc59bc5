"""Writing a checkpoint in the published layout, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amused.checkpoints.catalog import INDEX, TRAITS
from amused.checkpoints.checkpoint import (
    CLASSES,
    CONFIGS,
    SCHEDULER,
    SCHEDULES,
    TOKENIZER,
    WEIGHTS,
    is_finite,
    read_checkpoint,
)
from amused.errors import CheckpointError, UserError
from amused.model.text_encoder import TextEncoder
from amused.model.tokenizer import Tokenizer
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN

DIFFUSERS = "0.25.0"  # the first version that reads this layout


def save_checkpoint(
    folder: str | Path,
    *,
    transformer: UViT,
    vqgan: VQGAN,
    text_encoder: TextEncoder,
    tokenizer: Tokenizer | str | Path,
    masking_schedule: str = "cosine",
    traits: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    variant: str | None = "fp16",
) -> None:
    """Write a whole checkpoint in the published layout, which diffusers' AmusedPipeline reads as well.

    It is written beside `folder` and put in its place when it is whole, so that an interruption leaves the old one.

    Args:
        tokenizer: one in memory, or a folder with the files of one.
        dtype: of the weights in the files.
        variant: part of the weights' file names: "fp16", or None for full precision.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / INDEX).is_file() and any(folder.iterdir()):
        raise UserError("The folder to save to holds something else than a checkpoint, choose another.")
    if masking_schedule not in SCHEDULES:
        raise UserError(f"The masking schedule must be one of {', '.join(SCHEDULES)}.")
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        for component in ("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler"):
            (beside / component).mkdir(parents=True)
        for component, network in (("transformer", transformer), ("vqvae", vqgan), ("text_encoder", text_encoder)):
            write_weights(beside, component, network, dtype, variant)
        for component, config in (("transformer", transformer.config), ("vqvae", vqgan.config)):
            described = {"_class_name": CLASSES[component], "_diffusers_version": DIFFUSERS}
            write_json(beside / CONFIGS[component], {**described, **dataclasses.asdict(config)})
        described = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
        write_json(beside / CONFIGS["text_encoder"], {**described, **dataclasses.asdict(text_encoder.config)})
        write_tokenizer(beside / "tokenizer", tokenizer)
        write_json(
            beside / SCHEDULER,
            {
                "_class_name": "AmusedScheduler",
                "_diffusers_version": DIFFUSERS,
                "mask_token_id": transformer.config.vocab_size - 1,
                "masking_schedule": masking_schedule,
            },
        )
        if traits is not None:
            write_json(beside / TRAITS, dict(traits))
        write_json(
            beside / INDEX,
            {
                "_class_name": "AmusedPipeline",
                "_diffusers_version": DIFFUSERS,
                "scheduler": ["diffusers", "AmusedScheduler"],
                "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "transformer": ["diffusers", "UVit2DModel"],
                "vqvae": ["diffusers", "VQModel"],
            },
        )
        read_checkpoint(beside, folder.name)
        replace_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")


def write_weights(folder: Path, component: str, network: nn.Module, dtype: torch.dtype, variant: str | None) -> None:
    from safetensors.torch import save_file

    file = f"{WEIGHTS[component]}{f'.{variant}' if variant else ''}.safetensors"
    state = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in network.state_dict().items()}
    for key, tensor in state.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{file} is not written: {key} holds a value that is not a finite number in {dtype}.")
    save_file(state, folder / file, metadata={"format": "pt"})


def write_tokenizer(folder: Path, tokenizer: Tokenizer | str | Path) -> None:
    if isinstance(tokenizer, (str, Path)):
        for file in TOKENIZER:
            source = Path(tokenizer) / Path(file).name
            if source.is_file():
                shutil.copyfile(source, folder / source.name)
        return
    tokenizer.write(folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is or was. Both names are on one file system."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = new.with_name(new.name + ".old")
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
