"""Reads and validates a checkpoint's configuration files.

Every file is untrusted and checked key by key before anything is built from it. Errors name the file and the key.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from amused.checkpoints.catalog import GENERATION_CONFIG, INDEX, TRAITS, read_defaults
from amused.checkpoints.json_file import read_json
from amused.errors import CheckpointError
from amused.model.text import TextConfig
from amused.model.transformer import UViTConfig
from amused.model.vqgan import VQGANConfig

CONFIGS = {
    "transformer": "transformer/config.json",
    "vqvae": "vqvae/config.json",
    "text_encoder": "text_encoder/config.json",
}
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
TOKENIZER = (
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    TOKENIZER_CONFIG,
    "tokenizer/special_tokens_map.json",
    "tokenizer/added_tokens.json",
    "tokenizer/tokenizer.json",
)
SMALL_FILES = (INDEX, TRAITS, GENERATION_CONFIG, SCHEDULER, *CONFIGS.values(), *TOKENIZER)
REQUIRED_FILES = (SCHEDULER, *CONFIGS.values(), TOKENIZER_CONFIG)
CLASSES = {"transformer": "UVit2DModel", "vqvae": "VQModel"}
SCHEDULES = ("cosine", "linear")
PRIVATE = {"tile_size": "_tile_size"}
"""Fields that other libraries do not know, by their keys in the files: they ignore underscored ones in silence."""

MAX_WIDTH = 65_536
MAX_TOKENS_A_SIDE = 256
MAX_OF = {  # where MAX_WIDTH would be absurd
    "num_hidden_layers": 256,
    "num_res_blocks": 64,
    "layers_per_block": 64,
    "vocab_size": 1_000_000,
    "codebook_size": 1_000_000,
    "num_vq_embeddings": 1_000_000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1_000_000,
    "eos_token_id": 1_000_000,
    "pad_token_id": 1_000_000,
}
MAX_LIST = 8
MAX_STRING = 100
# Keys of tokenizer_config.json that make transformers read other files than ours, or take arguments we do not check.
FOREIGN_TOKENIZER_KEYS = ("fast_tokenizer_files", "gguf_file", "init_inputs")

Config = TypeVar("Config", UViTConfig, VQGANConfig, TextConfig)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The configurations of a checkpoint, valid and consistent with each other.

    Attributes:
        defaults: values for the fields `OF_A_MODEL` of a recipe.
    """

    transformer: UViTConfig
    vqgan: VQGANConfig
    text_encoder: TextConfig
    mask_token_id: int
    masking_schedule: str  # "cosine" or "linear"
    traits: dict[str, Any] | None = None
    defaults: dict[str, Any]

    @property
    def version(self) -> int:
        return self.defaults["model_version"]

    @property
    def size(self) -> int:
        """The native width and height of an image, in pixels."""
        return self.transformer.sample_size * self.vqgan.scale_factor

    @property
    def multiple(self) -> int:
        """Width and height must be multiples of it: one token in pixels, or two where the U-ViT halves the grid."""
        return self.vqgan.scale_factor * (2 if self.transformer.downsample else 1)


def read_configs(folder: Path) -> CheckpointConfig:
    transformer = read_config(folder, "transformer", UViTConfig)
    vqgan = read_config(folder, "vqvae", VQGANConfig)
    text_encoder = read_config(folder, "text_encoder", TextConfig)
    if transformer.sample_size > MAX_TOKENS_A_SIDE:
        raise CheckpointError(
            f"{CONFIGS['transformer']}: sample_size is {transformer.sample_size}, must be at most {MAX_TOKENS_A_SIDE}."
        )

    scheduler = read_json(folder, SCHEDULER)
    check_class(scheduler, SCHEDULER, "AmusedScheduler")
    mask_token_id = scheduler.get("mask_token_id")
    if type(mask_token_id) is not int:
        raise CheckpointError(f"{SCHEDULER}: mask_token_id is not a whole number.")
    masking_schedule = scheduler.get("masking_schedule", "cosine")
    if masking_schedule not in SCHEDULES:
        raise CheckpointError(f"{SCHEDULER}: masking_schedule is not one of {', '.join(SCHEDULES)}.")

    u_vit, text = CONFIGS["transformer"], CONFIGS["text_encoder"]
    check_equal(
        f"{u_vit}: codebook_size",
        transformer.codebook_size,
        f"num_vq_embeddings of {CONFIGS['vqvae']}",
        vqgan.num_vq_embeddings,
    )
    last = transformer.vocab_size - 1
    check_equal(f"{SCHEDULER}: mask_token_id", mask_token_id, f"the last of vocab_size of {u_vit}", last)
    hidden, projected = transformer.encoder_hidden_size, transformer.cond_embed_dim
    check_equal(f"{text}: hidden_size", text_encoder.hidden_size, f"encoder_hidden_size of {u_vit}", hidden)
    check_equal(f"{text}: projection_dim", text_encoder.projection_dim, f"cond_embed_dim of {u_vit}", projected)

    tokenizer = read_json(folder, TOKENIZER_CONFIG)
    for key in FOREIGN_TOKENIZER_KEYS:
        if tokenizer.get(key):
            raise CheckpointError(f"{TOKENIZER_CONFIG}: {key} is not supported.")
    length = tokenizer.get("model_max_length")
    if type(length) is not int or not 2 <= length <= text_encoder.max_position_embeddings:
        raise CheckpointError(
            f"{TOKENIZER_CONFIG}: model_max_length is {shown(length)}, "
            f"{CONFIGS['text_encoder']} has max_position_embeddings {text_encoder.max_position_embeddings}."
        )
    return CheckpointConfig(
        transformer=transformer,
        vqgan=vqgan,
        text_encoder=text_encoder,
        mask_token_id=mask_token_id,
        masking_schedule=masking_schedule,
        traits=read_traits(folder),
        defaults=read_defaults(folder),
    )


def check_equal(name: str, value: int, other: str, expected: int) -> None:
    if value != expected:
        raise CheckpointError(f"{name} is {value} but {other} is {expected}.")


def read_config(folder: Path, component: str, kind: type[Config], file: str | None = None) -> Config:
    """`file`: if not the component's own."""
    file = file or CONFIGS[component]
    data = read_json(folder, file)
    fields = {PRIVATE.get(field.name, field.name): field.name for field in dataclasses.fields(kind)}
    if component in CLASSES:
        check_class(data, file, CLASSES[component])
    # Unknown keys are ignored: most are bookkeeping of other libraries. One that changes the network shows up as a
    # missing or an unexpected key in the weights.
    hints = typing.get_type_hints(kind)
    values = {
        fields[key]: checked(file, key, value, hints[fields[key]]) for key, value in data.items() if key in fields
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise CheckpointError(f"{file}: {str(error)[:300]}.") from error


def check_class(data: Mapping[str, Any], file: str, wanted: str) -> None:
    if data.get("_class_name") != wanted:
        raise CheckpointError(f"{file}: _class_name is {shown(data.get('_class_name'))}, not {wanted}.")


def checked(file: str, key: str, value: Any, hint: Any) -> Any:
    """The value, if it has the annotated type and is within bounds."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_LIST:
            raise CheckpointError(f"{file}: {key} is not a list of 1 to {MAX_LIST} entries.")
        return tuple(checked(file, key, item, typing.get_args(hint)[0]) for item in value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str) and len(value) <= MAX_STRING:
        return value
    if hint is int and type(value) is int:
        least = 0 if key.endswith("_token_id") else 1
        most = MAX_OF.get(key, MAX_WIDTH)
        if not least <= value <= most:
            raise CheckpointError(f"{file}: {key} is {shown(value)}, must be from {least} to {most}.")
        return value
    if hint is float and type(value) in (int, float):
        if not 0 <= value <= 1000:  # also refuses NaN
            raise CheckpointError(f"{file}: {key} is {shown(value)}, must be from 0 to 1000.")
        return float(value)
    raise CheckpointError(f"{file}: {key} is {shown(value)}, which is not of the type {hint.__name__}.")


def shown(value: Any) -> str:
    """A value from an untrusted file, short and printable."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."


def read_traits(folder: Path) -> dict[str, Any] | None:
    if not (folder / TRAITS).is_file():
        return None
    traits = read_json(folder, TRAITS)
    for key, value in traits.items():
        if key == "backgrounds":
            valid = isinstance(value, dict) and all(
                isinstance(colour, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", colour) for colour in value.values()
            )
            kind = "an object of colours"
        elif key == "words":
            valid = isinstance(value, dict) and all(isinstance(word, str) for word in value.values())
            kind = "an object of strings"
        else:
            valid = isinstance(value, list) and all(isinstance(item, str) for item in value)
            kind = "a list of strings"
        if not valid:
            raise CheckpointError(f"{TRAITS}: {shown(key)} must be {kind}.")
    return traits
