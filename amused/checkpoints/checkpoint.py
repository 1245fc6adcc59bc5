"""Checkpoints: whether one can be trusted, and its networks.

A checkpoint is a folder in the layout of the published ones (`transformer/`, `vqvae/`, `text_encoder/`, `tokenizer/`,
`scheduler/`). Every file is taken for hostile: configurations are checked key by key before a network is built, weights
are read from safetensors only, tensor by tensor, and never half loaded. Where a checkpoint comes from it does not know.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amused.checkpoints.catalog import INDEX, TRAITS
from amused.errors import CheckpointError
from amused.model.text_encoder import TextConfig, TextEncoder
from amused.model.tokenizer import Tokenizer
from amused.model.transformer import UViT, UViTConfig
from amused.model.vqgan import VQGAN, VQGANConfig

Fetch = Callable[[str], bool]
"""Puts a file of this name into the checkpoint's folder; False where its source has none."""

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
    "tokenizer/tokenizer.json",
)
SMALL_FILES = (INDEX, TRAITS, SCHEDULER, *CONFIGS.values(), *TOKENIZER)
REQUIRED_FILES = (SCHEDULER, *CONFIGS.values(), TOKENIZER_CONFIG)
WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model",
    "vqvae": "vqvae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
CLASSES = {"transformer": "UVit2DModel", "vqvae": "VQModel"}
SCHEDULES = ("cosine", "linear")

MAX_CONFIG_BYTES = 1_000_000
MAX_TOKENIZER_BYTES = 16_000_000
MAX_HEADER_BYTES = 16_000_000
MAX_PARAMETERS = 5_000_000_000
BYTES_AT_ONCE = 100_000_000
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

# Older versions of transformers saved this constant with the weights.
LEGACY_KEYS = frozenset(("text_model.embeddings.position_ids",))
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


class Unfilled(TorchFunctionMode):
    """Networks that are built within get no random weights: torch imports its compiler to draw them on "meta"."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def unfilled(kind: Callable[[Config], Network], config: Config) -> Network:
    """A network whose weights are still to come."""
    with torch.device("meta"), Unfilled():
        return kind(config)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configurations have been read and agree. Its weights are read by the `load_` methods."""

    name: str
    folder: Path
    transformer: UViTConfig
    vqgan: VQGANConfig
    text_encoder: TextConfig
    mask_token_id: int
    masking_schedule: str  # "cosine" or "linear"
    traits: dict[str, Any] | None = None
    fetch: Fetch | None = None

    @property
    def size(self) -> int:
        """The side in pixels of the pictures it was made for."""
        return self.transformer.sample_size * self.vqgan.scale_factor

    def load_transformer(self, device: torch.device | str, dtype: torch.dtype) -> UViT:
        network = unfilled(UViT, self.transformer)
        return self._fill(network, "transformer", device, dtype)

    def load_vqgan(self, device: torch.device | str, dtype: torch.dtype, half: str | None = None) -> VQGAN:
        """The whole, or for work the half of it that encodes or decodes (`vqgan.HALVES`), which cannot be saved.

        The file is checked as a whole in any case.
        """
        network = unfilled(VQGAN, self.vqgan)
        names = dict(network.state_dict())
        if half is not None:
            network.keep(half)
        self._fill(network, "vqvae", device, dtype, names)
        if half is not None and torch.device(device).type == "cpu":
            network.join()
        # Convolutions on a processor are quicker with the channels last.
        return network.to(memory_format=torch.channels_last)

    def load_text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
        network = unfilled(TextEncoder, self.text_encoder)
        return self._fill(network, "text_encoder", device, dtype)

    def tokenizer(self) -> Tokenizer:
        for file in TOKENIZER:
            if (self.folder / file).is_file() and (self.folder / file).stat().st_size > MAX_TOKENIZER_BYTES:
                raise CheckpointError(f"{file} is larger than a tokenizer can be.")
        vocabulary = TOKENIZER[0]
        try:
            tokenizer = Tokenizer.read(self.folder / "tokenizer")
        except Exception as error:  # the library raises what its parsers happen to raise
            raise CheckpointError(f"{vocabulary} and its neighbours are not a CLIP tokenizer.") from error
        if len(tokenizer) > self.text_encoder.vocab_size:
            raise CheckpointError(
                f"{vocabulary} has {len(tokenizer)} entries, "
                f"{CONFIGS['text_encoder']} has vocab_size {self.text_encoder.vocab_size}."
            )
        return tokenizer

    def _fill(
        self,
        network: Network,
        component: str,
        device: torch.device | str,
        dtype: torch.dtype,
        names: Mapping[str, Tensor] | None = None,
    ) -> Network:
        """Give the network its weights from the file, whose tensors must be those of `names`, by default its own."""
        file, wanted = self._weights(component), network.state_dict()
        state = read_weights(self.folder / file, file, names or wanted, torch.device(device), dtype, wanted.keys())
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval().requires_grad_(False)

    def fetch_weights(self) -> None:
        """Download now what would be at first use. Reads nothing."""
        for component in WEIGHTS:
            self._weights(component)

    def _weights(self, component: str) -> str:
        """The name of the component's weights, in half precision where there is a choice; downloaded if need be."""
        names = weight_files(component)
        for name in names:
            if (self.folder / name).is_file():
                return name
        for name in names if self.fetch else ():
            if self.fetch(name):
                return name
        raise CheckpointError(f"{names[-1]} is missing.")


def weight_files(component: str) -> list[str]:
    """The names that a component's weights can have, the preferred one first."""
    return [f"{WEIGHTS[component]}{variant}.safetensors" for variant in (".fp16", "")]


# Reading configurations


def read_checkpoint(folder: Path, name: str, fetch: Fetch | None = None) -> Checkpoint:
    transformer = read_config(folder, "transformer", UViTConfig)
    vqgan = read_config(folder, "vqvae", VQGANConfig)
    text_encoder = read_config(folder, "text_encoder", TextConfig)
    for component, count in (
        ("transformer", transformer_parameters(transformer)),
        ("vqvae", vqgan_parameters(vqgan)),
        ("text_encoder", text_parameters(text_encoder)),
    ):
        if count > MAX_PARAMETERS:
            raise CheckpointError(f"{CONFIGS[component]} asks for {count / 1e9:.0f} billion parameters.")
    if transformer.sample_size > MAX_TOKENS_A_SIDE:
        raise CheckpointError(
            f"{CONFIGS['transformer']}: sample_size is {transformer.sample_size}, "
            f"at most {MAX_TOKENS_A_SIDE} is possible."
        )

    scheduler = read_json(folder, SCHEDULER)
    check_class(scheduler, SCHEDULER, "AmusedScheduler")
    mask_token_id = scheduler.get("mask_token_id")
    if type(mask_token_id) is not int:
        raise CheckpointError(f"{SCHEDULER}: mask_token_id is not a whole number.")
    masking_schedule = scheduler.get("masking_schedule", "cosine")
    if masking_schedule not in SCHEDULES:
        raise CheckpointError(f"{SCHEDULER}: masking_schedule is not one of {', '.join(SCHEDULES)}.")

    for left, left_value, right, right_value in (
        (
            f"{CONFIGS['transformer']}: codebook_size",
            transformer.codebook_size,
            f"num_vq_embeddings of {CONFIGS['vqvae']}",
            vqgan.num_vq_embeddings,
        ),
        (
            f"{SCHEDULER}: mask_token_id",
            mask_token_id,
            f"the last of vocab_size of {CONFIGS['transformer']}",
            transformer.vocab_size - 1,
        ),
        (
            f"{CONFIGS['text_encoder']}: hidden_size",
            text_encoder.hidden_size,
            f"encoder_hidden_size of {CONFIGS['transformer']}",
            transformer.encoder_hidden_size,
        ),
        (
            f"{CONFIGS['text_encoder']}: projection_dim",
            text_encoder.projection_dim,
            f"cond_embed_dim of {CONFIGS['transformer']}",
            transformer.cond_embed_dim,
        ),
    ):
        if left_value != right_value:
            raise CheckpointError(f"{left} is {shown(left_value)} but {right} is {shown(right_value)}.")

    length = read_json(folder, TOKENIZER_CONFIG).get("model_max_length")
    if type(length) is not int or not 2 <= length <= text_encoder.max_position_embeddings:
        raise CheckpointError(
            f"{TOKENIZER_CONFIG}: model_max_length is {shown(length)}, "
            f"{CONFIGS['text_encoder']} has max_position_embeddings {text_encoder.max_position_embeddings}."
        )
    return Checkpoint(
        name=name,
        folder=folder,
        transformer=transformer,
        vqgan=vqgan,
        text_encoder=text_encoder,
        mask_token_id=mask_token_id,
        masking_schedule=masking_schedule,
        traits=read_traits(folder),
        fetch=fetch,
    )


def read_json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_CONFIG_BYTES // 1_000_000} MB.")
        data = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{file} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, a number of 5,000 digits
        raise CheckpointError(f"{file} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return data


def read_config(folder: Path, component: str, kind: type[Config]) -> Config:
    file = CONFIGS[component]
    data = read_json(folder, file)
    fields = {field.name for field in dataclasses.fields(kind)}
    if component in CLASSES:
        check_class(data, file, CLASSES[component])
    # Keys that change nothing are many (other libraries' bookkeeping) and passed over; one that changed the network
    # would show as a key of the weights that is missing or too many.
    hints = typing.get_type_hints(kind)
    values = {key: checked(file, key, value, hints[key]) for key, value in data.items() if key in fields}
    try:
        return kind(**values)
    except ValueError as error:
        raise CheckpointError(f"{file}: {str(error)[:300]}.") from error


def check_class(data: Mapping[str, Any], file: str, wanted: str) -> None:
    if data.get("_class_name") != wanted:
        raise CheckpointError(f"{file}: _class_name is {shown(data.get('_class_name'))}, not {wanted}.")


def checked(file: str, key: str, value: Any, hint: Any) -> Any:
    """The value if it is of the type that the annotation says, and of a size that makes sense."""
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
            raise CheckpointError(f"{file}: {key} is {shown(value)}, possible are {least} to {most}.")
        return value
    if hint is float and type(value) in (int, float):
        if not 0 <= value <= 1000:  # also refuses NaN
            raise CheckpointError(f"{file}: {key} is {shown(value)}, possible are 0 to 1000.")
        return float(value)
    raise CheckpointError(f"{file}: {key} is {shown(value)}, which is not of the type {hint.__name__}.")


def shown(value: Any) -> str:
    """A value of an untrusted file, short and printable."""
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
        else:
            valid = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not valid:
            raise CheckpointError(f"{TRAITS}: {shown(key)} is not what a list of traits looks like.")
    return traits


# Estimates, to refuse what cannot be meant before anything of that size is built; smaller terms are left out.


def transformer_parameters(config: UViTConfig) -> int:
    hidden, width, inner = config.hidden_size, config.block_out_channels, config.intermediate_size
    layer = 14 * hidden**2 + 3 * hidden * inner
    block = 16 * width**2 + 3 * hidden * width
    embeddings = (config.vocab_size + config.codebook_size + 2 * width) * config.in_channels
    conditions = hidden * (config.micro_cond_embed_dim + config.cond_embed_dim + hidden + config.encoder_hidden_size)
    return (
        config.num_hidden_layers * layer
        + 2 * config.num_res_blocks * block
        + 2 * hidden * width
        + (8 * width**2 if config.downsample else 0)
        + embeddings
        + conditions
    )


def vqgan_parameters(config: VQGANConfig) -> int:
    resnets = 2 * config.layers_per_block + 1
    levels = sum(18 * width**2 * resnets for width in config.block_out_channels)
    return (
        levels
        + 4 * 18 * config.block_out_channels[-1] ** 2
        + 18 * config.block_out_channels[-1] * config.latent_channels
        + config.codebook_dim * (config.num_vq_embeddings + 2 * config.latent_channels)
    )


def text_parameters(config: TextConfig) -> int:
    hidden = config.hidden_size
    layer = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    embeddings = hidden * (config.vocab_size + config.max_position_embeddings + config.projection_dim)
    return config.num_hidden_layers * layer + embeddings


# Reading weights


def read_weights(
    path: Path,
    file: str,
    expected: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    wanted: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must be those of `expected`, in the wanted precision.

    Args:
        path: the file.
        file: its name inside the checkpoint, for error messages.
        expected: a state dict whose names and shapes are right; its values do not matter.
        wanted: the names of those to read; all by default.
    """
    from safetensors import SafetensorError, safe_open

    check_header(path, file)
    state: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as weights:
            found = set(weights.keys()) - LEGACY_KEYS
            for key in expected:
                if key not in found:
                    raise CheckpointError(f"{file}: {key} is missing.")
            for key in sorted(found - set(expected)):
                raise CheckpointError(f"{file}: {shown(key)} is not part of this network.")
            for key, tensor in expected.items():
                stored = weights.get_slice(key)
                if stored.get_dtype() not in FLOATS:
                    raise CheckpointError(f"{file}: {key} is of the type {stored.get_dtype()}, not floating point.")
                if stored.get_shape() != list(tensor.shape):
                    raise CheckpointError(f"{file}: {key} is {stored.get_shape()}, not {list(tensor.shape)}.")
        keys = list(expected if wanted is None else wanted)
        while keys:
            # Opened anew now and then: what has been read of a file counts as memory until it is closed.
            with safe_open(path, framework="pt", device="cpu") as weights:
                size = 0
                while keys and size < BYTES_AT_ONCE:
                    key = keys.pop(0)
                    stored = weights.get_tensor(key)
                    size += stored.nbytes
                    # A copy, as tensors that still lie in the file would change or crash with it.
                    state[key] = stored.to(device, dtype, copy=True)
                    if not is_finite(state[key]):
                        raise CheckpointError(f"{file}: {key} holds a value that is not a finite number in {dtype}.")
                    del stored
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file, download or copy it again.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    return state


def check_header(path: Path, file: str) -> None:
    """Refuse an absurd header by its length alone: the library would parse 100 MB of it."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file} is not a safetensors file: its header cannot be {length} bytes long.")


def is_finite(tensor: Tensor) -> bool:
    # The least and the largest value, which are NaN if any value is: one quick pass without a temporary.
    return tensor.numel() == 0 or all(math.isfinite(bound.item()) for bound in tensor.aminmax())
