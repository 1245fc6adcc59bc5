"""Reads a checkpoint's weights into its networks.

A checkpoint is a folder in the published layout: `transformer/`, `vqvae/`, `text_encoder/`, `tokenizer/`, `scheduler/`.
Networks are built on the meta device, which allocates nothing. Weights come from safetensors files only, one for each
network or several with an index; every tensor's name, shape, type and values are checked, and a network gets either all
of them or none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amused.checkpoints.catalog import FORMER, INDEX
from amused.checkpoints.config import CONFIGS, TOKENIZER, CheckpointConfig, read_configs, shown
from amused.checkpoints.json_file import read_json
from amused.errors import CheckpointError
from amused.model.text import build_text_encoder, num_ids, read_tokenizer, set_position_ids
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

Fetch = Callable[[str], bool]
"""Downloads a file of this name into the checkpoint's folder; False if its source has none."""

WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model",
    "vqvae": "vqvae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
VARIANTS = ("fp16", None)  # the preferred one first
MAX_TOKENIZER_BYTES = 16_000_000
MAX_HEADER_BYTES = 16_000_000
BYTES_AT_ONCE = 100_000_000

# Older versions of transformers saved this constant with the weights.
LEGACY_KEYS = frozenset(("text_model.embeddings.position_ids",))
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


class SkipInit(TorchFunctionMode):
    """Skips `torch.nn.init`, which on the meta device is useless and imports torch's compiler."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def on_meta(build: Callable[[Config], Network], config: Config) -> Network:
    """A network without memory for its weights."""
    with torch.device("meta"), SkipInit():
        return build(config)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointConfig):
    """A checkpoint with valid configurations; the `load_` methods read its weights.

    Attributes:
        fetch: downloads a missing file, if the checkpoint comes from the hub.
        former: an earlier version of this checkpoint, for the recipes that it made.
    """

    name: str
    folder: Path
    fetch: Fetch | None = None
    former: Checkpoint | None = None

    def load_transformer(self, device: torch.device | str, dtype: torch.dtype) -> UViT:
        return self._fill(on_meta(UViT, self.transformer), "transformer", device, dtype)

    def load_vqgan(self, device: torch.device | str, dtype: torch.dtype, half: str | None = None) -> VQGAN:
        """The VQ-GAN, or for inference only one of `vqgan.HALVES`, which cannot be saved.

        The whole file is checked in either case.
        """
        network = on_meta(VQGAN, self.vqgan)
        names = dict(network.state_dict())
        if half is not None:
            network.keep(half)
        self._fill(network, "vqvae", device, dtype, names)
        if half is not None and torch.device(device).type == "cpu":
            network.fuse_upsampling()
        # Convolutions on a CPU are faster with channels last.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack this form
        return network

    def load_text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> CLIPTextModelWithProjection:
        network = self._fill(on_meta(build_text_encoder, self.text_encoder), "text_encoder", device, dtype)
        set_position_ids(network, device)
        return network

    def load_tokenizer(self) -> CLIPTokenizer:
        for path in (self.folder / "tokenizer").rglob("*"):
            if not path.is_dir() and not path.is_file():
                raise CheckpointError(f"tokenizer/{shown(path.name)} is not a regular file.")
            if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise CheckpointError(f"tokenizer/{path.name} is too large for a tokenizer.")
        vocabulary = TOKENIZER[0]
        try:
            tokenizer = read_tokenizer(self.folder / "tokenizer")
        except Exception as error:  # transformers and its parsers raise all kinds
            raise CheckpointError(f"{vocabulary} and the files next to it are not a CLIP tokenizer.") from error
        if num_ids(tokenizer) > self.text_encoder.vocab_size:
            raise CheckpointError(
                f"{vocabulary} has {num_ids(tokenizer)} entries, "
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
        """Read the network's weights. The files must hold exactly the tensors of `names`, by default the network's."""
        wanted = network.state_dict()
        state: dict[str, Tensor] = {}
        for file, expected in self._shards(component, names or wanted).items():
            needed = [name for name in expected if name in wanted]
            state |= read_weights(self.folder / file, file, expected, torch.device(device), dtype, needed)
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval().requires_grad_(False)

    def fetch_weights(self) -> None:
        """Download all weights now instead of at first use."""
        for component in WEIGHTS:
            file = self._weights(component)
            if is_index(file):
                for shard in set(read_index(self.folder, file).values()):
                    self._find([shard])

    def _shards(self, component: str, names: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The tensors of `names` by the file that has them; the files are downloaded if need be."""
        file = self._weights(component)
        if not is_index(file):
            return {file: dict(names)}
        shards: dict[str, dict[str, Tensor]] = {}
        index = read_index(self.folder, file)
        check_names(file, index, names)
        for name, tensor in names.items():
            shards.setdefault(index[name], {})[name] = tensor
        return {self._find([shard]): part for shard, part in shards.items()}

    def _weights(self, component: str) -> str:
        """The component's weights file, or the index of its shards. Half precision if there is a choice."""
        half, full = weight_files(component)
        return self._find([half, *(index_file(component, variant) for variant in VARIANTS), full])

    def _find(self, names: list[str]) -> str:
        """The first of the files that is there, else the first that can be downloaded."""
        for name in names:
            if (self.folder / name).is_file():
                return name
        if self.fetch is not None:
            for name in names:
                if self.fetch(name):
                    return name
        raise CheckpointError(f"{names[-1]} is missing.")


def weights_file(component: str, variant: str | None) -> str:
    return f"{WEIGHTS[component]}{f'.{variant}' if variant else ''}.safetensors"


def index_file(component: str, variant: str | None) -> str:
    """Where the files of a component are listed, if its weights are in several."""
    return f"{WEIGHTS[component]}.safetensors.index{f'.{variant}' if variant else ''}.json"


def weight_files(component: str) -> list[str]:
    """The possible names of a component's weights in one file, the preferred one first."""
    return [weights_file(component, variant) for variant in VARIANTS]


def is_index(file: str) -> bool:
    return file.endswith(".json")


def read_index(folder: Path, file: str) -> dict[str, str]:
    """The file that holds a tensor, by the tensor's name."""
    index = read_json(folder, file).get("weight_map")
    if not isinstance(index, dict):
        raise CheckpointError(f"{file} has no weight_map.")
    for shard in index.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]{0,199}\.safetensors", shard, re.ASCII):
            raise CheckpointError(f"{file} names a file that is not a safetensors file next to it.")
    place = file.rpartition("/")[0]
    return {name: f"{place}/{shard}" for name, shard in index.items()}


def check_names(file: str, found: Collection[str], expected: Collection[str]) -> None:
    """Refuse a file that lacks a tensor of the network or has others."""
    names = set(found)
    for name in expected:
        if name not in names:
            raise CheckpointError(f"{file}: {name} is missing.")
    for name in sorted(names - set(expected) - LEGACY_KEYS):
        raise CheckpointError(f"{file}: {shown(name)} is not part of this network.")


def read_checkpoint(folder: Path, name: str, fetch: Fetch | None = None) -> Checkpoint:
    """A checkpoint, with the former version in its folder `FORMER`, if there is one."""
    former = read_checkpoint(folder / FORMER, name) if (folder / FORMER / INDEX).is_file() else None
    checkpoint = Checkpoint(name=name, folder=folder, fetch=fetch, former=former, **vars(read_configs(folder)))
    if former is not None and (former.size != checkpoint.size or former.multiple % checkpoint.multiple):
        raise CheckpointError(f"{FORMER}: its images have other sizes.")
    return checkpoint


def read_weights(
    path: Path,
    file: str,
    expected: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    wanted: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file as `dtype`.

    Args:
        path: the file.
        file: its name inside the checkpoint, for error messages.
        expected: the names and shapes that the file must have, as a state dict; its values do not matter.
        wanted: the names of the tensors to read; all by default.
    """
    from safetensors import SafetensorError, safe_open

    check_header(path, file)
    state: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as weights:
            check_names(file, weights.keys(), expected)
            for key, tensor in expected.items():
                stored = weights.get_slice(key)
                if stored.get_dtype() not in FLOATS:
                    raise CheckpointError(f"{file}: {key} is of the type {stored.get_dtype()}, not floating point.")
                if stored.get_shape() != list(tensor.shape):
                    raise CheckpointError(f"{file}: {key} is {stored.get_shape()}, not {list(tensor.shape)}.")
        keys = list(expected if wanted is None else wanted)
        while keys:
            # Reopened now and then: the pages of a mapped file count as memory until it is closed.
            with safe_open(path, framework="pt", device="cpu") as weights:
                size = 0
                while keys and size < BYTES_AT_ONCE:
                    key = keys.pop(0)
                    stored = weights.get_tensor(key)
                    size += stored.nbytes
                    # A copy: a tensor backed by the file would change or crash with it.
                    state[key] = stored.to(device, dtype, copy=True)
                    if not is_finite(state[key]):
                        raise CheckpointError(f"{file}: {key} holds a value that is not a finite number in {dtype}.")
                    del stored
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a complete safetensors file: download or copy it again.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    return state


def check_header(path: Path, file: str) -> None:
    """Refuse an absurd header by its length alone: safetensors would parse 100 MB of it."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file} is not a safetensors file: its header cannot be {length} bytes long.")


def is_finite(tensor: Tensor) -> bool:
    # Minimum and maximum are NaN if any value is: one fast pass without a temporary.
    return tensor.numel() == 0 or all(math.isfinite(bound.item()) for bound in tensor.aminmax())
