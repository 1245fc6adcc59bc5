"""Low-rank adapters (LoRA, arXiv 2106.09685) in peft's layout: finding, reading and merging them into a network.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`; what it changes of the text encoder
lies in a folder of that name within. Files are taken for hostile: only safetensors are read, every matrix must fit a
linear layer of the network, and nothing is merged before all of it has been checked. Knows neither peft nor training.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import check_header, is_finite, read_json, shown
from .errors import CheckpointError, UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRANSFORMER, TEXT_ENCODER = PARTS = ("transformer", "text_encoder")
FINISHED = "adapter"  # where fine-tuning leaves one within its output folder

MAX_ADAPTERS = 200
MAX_BYTES = 2_000_000_000
MAX_RANK = 4096
NAME = re.compile(r"[^\W_][\w .+-]{0,63}")
KEY = re.compile(r"base_model\.model\.(?P<layer>[\w.]{1,200})\.lora_(?P<side>[AB])\.weight", re.ASCII)
PLAIN = {  # settings of peft that change what is computed, and their only value that is supported
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class LowRank:
    """A change of one matrix: `scale * up @ down`, (out, rank) by (rank, in)."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: its changes by component, then by layer. `base`: the model that it was made for."""

    name: str
    digest: str
    parts: dict[str, dict[str, LowRank]] = field(repr=False)
    base: str | None = None


@dataclass(frozen=True)
class Listed:
    """An adapter that can be chosen."""

    name: str
    digest: str
    base: str | None


def list_adapters(folder: Path | None) -> list[Listed]:
    """The usable adapters of a folder, by name: its folders that hold one, or a finished run of fine-tuning."""
    if folder is None or not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir())[:MAX_ADAPTERS]:
        try:
            place = find_adapter(folder, path.name)
            found.append(Listed(path.name, digest_of(place), base_of(read_json(place, CONFIG))))
        except (UserError, CheckpointError, OSError):
            continue
    return found


def find_adapter(folder: Path | None, name: str) -> Path:
    if folder is not None and NAME.fullmatch(name):
        for place in (folder / name, folder / name / FINISHED):
            if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
                return place
    raise UserError("There is no adapter of that name here: choose one that is listed.")


def digest_of(place: Path) -> str:
    """16 hexadecimal digits that change with anything that the adapter does."""
    digest = hashlib.sha256()
    for part in (place, place / TEXT_ENCODER):
        for file in (part / CONFIG, part / WEIGHTS):
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def base_of(config: dict[str, Any]) -> str | None:
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and len(base) <= 100 else None


def read_adapter(folder: Path | None, name: str) -> Adapter:
    """Read an adapter of a folder by its name.

    Raises:
        UserError: there is none of that name.
        CheckpointError: its files are unusable; names the file.
    """
    place = find_adapter(folder, name)
    parts = {TRANSFORMER: read_part(place)}
    if (place / TEXT_ENCODER / CONFIG).is_file():
        parts[TEXT_ENCODER] = read_part(place / TEXT_ENCODER)
    return Adapter(name, digest_of(place), parts, base_of(read_json(place, CONFIG)))


def read_part(place: Path) -> dict[str, LowRank]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(place, CONFIG)
    alpha = read_alpha(config)
    path = place / WEIGHTS
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{WEIGHTS} is larger than {MAX_BYTES // 1_000_000_000} GB.")
    check_header(path, WEIGHTS)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{WEIGHTS} is not a whole safetensors file, copy it again.") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None or tensor.dim() != 2 or not tensor.is_floating_point():
            raise CheckpointError(f"{WEIGHTS}: {shown(key)} is not part of a LoRA adapter of linear layers.")
        if not is_finite(tensor):
            raise CheckpointError(f"{WEIGHTS}: {shown(key)} holds a value that is not a finite number.")
        sides.setdefault(match["layer"], {})[match["side"]] = tensor.float()
    if not sides:
        raise CheckpointError(f"{WEIGHTS} holds no adapter.")
    layers = {}
    for layer, pair in sides.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1] or pair["A"].shape[0] > MAX_RANK:
            raise CheckpointError(f"{WEIGHTS}: the two matrices of {shown(layer)} do not fit each other.")
        rank = pair["A"].shape[0]
        layers[layer] = LowRank(pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return layers


def read_alpha(config: dict[str, Any]) -> float:
    """`lora_alpha`, of an adapter whose settings are all supported."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{CONFIG}: peft_type is {shown(config.get('peft_type'))}, only LORA is supported.")
    for key, plain in PLAIN.items():
        if key in config and config[key] not in (plain, None):
            raise CheckpointError(f"{CONFIG}: {key} is {shown(config[key])}, which is not supported.")
    alpha = config.get("lora_alpha")
    if type(alpha) not in (int, float) or not 0 < alpha <= 100_000:
        raise CheckpointError(f"{CONFIG}: lora_alpha is {shown(alpha)}, possible are 0 to 100000.")
    return float(alpha)


# Merging


def check_fits(adapter: Adapter, part: str, network: nn.Module) -> None:
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, change in adapter.parts[part].items():
        layer = layers.get(name)
        if layer is None or layer.weight.shape != (change.up.shape[0], change.down.shape[1]):
            made = f" It was made for {adapter.base}." if adapter.base else ""
            raise UserError(f"The adapter {adapter.name} is not for this model: choose another.{made}")


@torch.inference_mode()
def merge(network: nn.Module, layers: dict[str, LowRank], strength: float) -> dict[str, Tensor]:
    """Add the changes to the network's weights, in place; gives the weights as they were, for `restore`."""
    before = {}
    for name, change in layers.items():
        weight = network.get_submodule(name).weight
        before[name] = weight.detach().clone()
        down, up = (side.to(weight.device) for side in (change.down, change.up))
        weight.detach().copy_(weight.float() + strength * change.scale * (up @ down))
    return before


@torch.inference_mode()
def restore(network: nn.Module, before: dict[str, Tensor]) -> None:
    """Put the weights back as `merge` found them, bit for bit."""
    for name, weight in before.items():
        network.get_submodule(name).weight.detach().copy_(weight)
