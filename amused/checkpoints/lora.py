"""LoRA adapters (arXiv 2106.09685) in peft's layout: reads them and merges them into networks.

Files are untrusted: only safetensors are read, every matrix must fit a linear layer of the network, and nothing is
merged before everything has been checked. Needs no peft.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from amused.checkpoints.adapters import (
    CONFIG,
    TEXT_ENCODER,
    TRANSFORMER,
    WEIGHTS,
    base_of,
    digest_of,
    find_adapter,
)
from amused.checkpoints.config import shown
from amused.checkpoints.json_file import read_json
from amused.checkpoints.weights import check_header, is_finite
from amused.errors import CheckpointError, UserError
from amused.model.packed import packed, unpacked

MAX_RANK = 4096
KEY = re.compile(r"base_model\.model\.(?P<layer>[\w.]{1,200})\.lora_(?P<side>[AB])\.weight", re.ASCII)
Network = TypeVar("Network", bound=nn.Module)
SUPPORTED = {  # peft settings that change the computation, and the one value supported
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
class LoraWeights:
    """The update of one matrix: `scale * up @ down`, (out, rank) by (rank, in)."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: its updates by component, then by layer. `base`: the model it was trained on."""

    name: str
    digest: str
    parts: dict[str, dict[str, LoraWeights]] = field(repr=False)
    base: str | None = None


def read_adapter(folder: Path | None, name: str) -> Adapter:
    """Read an adapter by its name.

    Raises:
        UserError: there is no adapter of that name.
        CheckpointError: a file of it is unusable; names the file.
    """
    place = find_adapter(folder, name)
    parts = {TRANSFORMER: read_part(place)}
    if (place / TEXT_ENCODER / CONFIG).is_file():
        parts[TEXT_ENCODER] = read_part(place / TEXT_ENCODER)
    return Adapter(name, digest_of(place), parts, base_of(read_json(place, CONFIG)))


def read_part(place: Path) -> dict[str, LoraWeights]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(place, CONFIG)
    alpha = read_alpha(config)
    path = place / WEIGHTS
    check_header(path, WEIGHTS)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{WEIGHTS} is not a complete safetensors file: download or copy it again.") from error
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
        layers[layer] = LoraWeights(
            pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        )
    return layers


def read_alpha(config: dict[str, Any]) -> float:
    """`lora_alpha`, once all settings are known to be supported."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{CONFIG}: peft_type is {shown(config.get('peft_type'))}, only LORA is supported.")
    for key, supported in SUPPORTED.items():
        if key in config and config[key] not in (supported, None):
            raise CheckpointError(f"{CONFIG}: {key} is {shown(config[key])}, which is not supported.")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 100_000:
        raise CheckpointError(f"{CONFIG}: lora_alpha is {shown(alpha)}, must be above 0 and at most 100000.")
    return float(alpha)


# Merging


def check_fits(adapter: Adapter, part: str, network: nn.Module) -> None:
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, update in adapter.parts[part].items():
        layer = layers.get(name)
        if layer is None or layer.weight.shape != (update.up.shape[0], update.down.shape[1]):
            hint = f" It was trained on {adapter.base}." if adapter.base else ""
            raise UserError(f"The adapter {adapter.name} does not fit this model: choose another one.{hint}")


@torch.no_grad()  # not inference_mode: compiled code would have to be compiled again for its tensors
def merged(network: Network, layers: dict[str, LoraWeights], strength: float) -> Network:
    """A copy of the network with the adapter merged. It shares all unchanged weights with the original."""
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for name, update in layers.items():
        weight = network.get_parameter(f"{name}.weight")
        down, up = (side.to(weight.device) for side in (update.down, update.up))
        changed = (unpacked(weight).float() + strength * update.scale * (up @ down)).to(weight.dtype)
        shared[id(weight)] = packed(changed) if weight.is_mkldnn else nn.Parameter(changed, requires_grad=False)
    return copy.deepcopy(network, shared)
