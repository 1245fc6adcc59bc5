"""Writes a checkpoint in the published layout, atomically."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amused.atomic import atomic_dir, write_json
from amused.checkpoints.catalog import GENERATION_CONFIG, INDEX, TRAITS
from amused.checkpoints.config import CLASSES, CONFIGS, PRIVATE, SCHEDULER, SCHEDULES, TOKENIZER, read_configs
from amused.checkpoints.weights import index_file, is_finite, weights_file
from amused.errors import CheckpointError, UserError
from amused.model.text import config_of
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

DIFFUSERS = "0.25.0"  # the first version that reads this layout


def save_checkpoint(
    folder: str | Path,
    *,
    transformer: UViT,
    vqgan: VQGAN,
    text_encoder: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer | str | Path,
    masking_schedule: str = "cosine",
    traits: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    variant: str | None = "fp16",
    max_shard_size: int | str = "10GB",
) -> None:
    """Write a complete checkpoint in the published layout, which diffusers' AmusedPipeline reads as well.

    An existing checkpoint is replaced only when the new one is complete.

    Args:
        tokenizer: a tokenizer, or a folder with its files.
        defaults: the checkpoint's own settings, by field of a recipe.
        dtype: of the weights in the files.
        variant: part of the weights' file names: "fp16", or None for full precision.
        max_shard_size: of a weights file, in bytes or as "10MB"; larger ones are split, with an index.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / INDEX).is_file() and any(folder.iterdir()):
        raise UserError("The folder is not empty and holds no checkpoint: choose another one.")
    if masking_schedule not in SCHEDULES:
        raise UserError(f"The masking schedule must be one of {', '.join(SCHEDULES)}.")
    with atomic_dir(folder) as part:
        for component in ("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler"):
            (part / component).mkdir()
        for component, network in (("transformer", transformer), ("vqvae", vqgan), ("text_encoder", text_encoder)):
            write_weights(part, component, network, dtype, variant, max_shard_size)
        for component, config in (("transformer", transformer.config), ("vqvae", vqgan.config)):
            written_by = {"_class_name": CLASSES[component], "_diffusers_version": DIFFUSERS}
            values = dataclasses.asdict(config)
            private = {key: value for name, key in PRIVATE.items() if (value := values.pop(name, None)) is not None}
            write_json(part / CONFIGS[component], {**written_by, **values, **private})
        clip = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
        write_json(part / CONFIGS["text_encoder"], {**clip, **dataclasses.asdict(config_of(text_encoder))})
        if isinstance(tokenizer, (str, Path)):
            copy_tokenizer(Path(tokenizer), part / "tokenizer")
        else:
            write_tokenizer(part / "tokenizer", tokenizer)
        write_json(
            part / SCHEDULER,
            {
                "_class_name": "AmusedScheduler",
                "_diffusers_version": DIFFUSERS,
                "mask_token_id": transformer.config.vocab_size - 1,
                "masking_schedule": masking_schedule,
            },
        )
        if traits is not None:
            write_json(part / TRAITS, dict(traits))
        if defaults is not None:
            write_json(part / GENERATION_CONFIG, dict(defaults))
        write_json(
            part / INDEX,
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
        read_configs(part)


def write_weights(
    folder: Path,
    component: str,
    network: nn.Module,
    dtype: torch.dtype,
    variant: str | None,
    max_shard_size: int | str,
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    file = weights_file(component, variant)
    state = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in network.state_dict().items()}
    for key, tensor in state.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{file} is not written: {key} holds a value that is not a finite number in {dtype}.")
    pattern = Path(file).name.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=max_shard_size)
    for shard, keys in split.filename_to_tensors.items():
        save_file({key: state[key] for key in keys}, folder / component / shard, metadata={"format": "pt"})
    if split.is_sharded:
        index = index_file(component, variant)
        write_json(folder / index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def copy_tokenizer(source: Path, folder: Path) -> None:
    for file in TOKENIZER:
        path = source / Path(file).name
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def write_tokenizer(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write the published files, vocab.json and merges.txt; transformers 5 itself writes a tokenizer.json."""
    tokenizer.backend_tokenizer.model.save(str(folder))
    special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    added = {str(i): token.__getstate__() for i, token in sorted(tokenizer.added_tokens_decoder.items())}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "do_lower_case": True,
            "model_max_length": tokenizer.model_max_length,
            "tokenizer_class": "CLIPTokenizer",
            **special,
        },
    )
