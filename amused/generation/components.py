"""The parts of a checkpoint: loaded on first use, packed, quantized, or with an adapter merged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from amused.checkpoints.adapters import TEXT_ENCODER, TRANSFORMER, with_digests
from amused.checkpoints.lora import check_fits, merged, read_adapter
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.lru_cache import LRUCache
from amused.generation.placement import Placement
from amused.model.packed import can_pack, pack, pack_now
from amused.model.quantized import quantize
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN
from amused.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

CACHED_ADAPTERS = 2  # merged networks share all weights that the adapter leaves alone

Value = TypeVar("Value")

AdapterKey = tuple[str | None, float]
"""An adapter's digest, and the strength at which it is merged."""


@dataclass(frozen=True)
class Networks:
    """The networks that depend on a recipe's adapter. `key` is None without one."""

    transformer: UViT
    text_encoder: CLIPTextModelWithProjection
    key: AdapterKey | None = None


class Lazy(Generic[Value]):
    """Loads a value on first use. Concurrent callers share one load; failures are retried."""

    def __init__(self, load: Callable[[], Value]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[Value] | None = None

    @property
    def is_requested(self) -> bool:
        return self._future is not None

    def get(self) -> Value:
        with self._lock:
            future, mine = self._future or Future(), self._future is None
            self._future = future
        if mine:
            try:
                future.set_result(self._load())
            except BaseException as error:
                with self._lock:
                    self._future = None
                future.set_exception(error)
        return future.result()


class Components:
    """The parts of one model. Safe to use from several threads."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement, adapters: Path | None) -> None:
        self._placement, self._adapters = placement, adapters
        device, dtype = placement.device, placement.dtype
        self.tokenizer = Lazy(checkpoint.load_tokenizer)
        self.text_encoder = Lazy(lambda: checkpoint.load_text_encoder(device, dtype))
        self.transformer = Lazy(lambda: load_transformer(checkpoint, placement))
        # The encoder runs in float32: a rounding error there is another token.
        self.encoder = Lazy(lambda: checkpoint.load_vqgan(device, torch.float32, half="encoder"))
        self.decoder = Lazy(lambda: load_decoder(checkpoint, placement))
        self._adapted: LRUCache[AdapterKey, Networks] = LRUCache(CACHED_ADAPTERS)

    def load(self, with_encoder: bool = False) -> None:
        """Load what every image needs, or everything, in this thread: on ZeroGPU others have no CUDA."""
        for part in (self.text_encoder, self.tokenizer, self.transformer, self.decoder):
            part.get()
        if with_encoder:
            self.encoder.get()

    def start_loading(self) -> None:
        """Load the large components in the background, while the prompt is encoded."""

        def work() -> None:
            for part in (self.text_encoder, self.transformer, self.decoder):
                with contextlib.suppress(Exception):  # the caller of `get` sees the error
                    part.get()

        if not self.transformer.is_requested:
            threading.Thread(target=work, name="load components", daemon=True).start()

    def networks(self, recipe: Recipe) -> Networks:
        """The networks for a recipe, with its adapter merged if it has one.

        Raises:
            UserError: the adapter is missing, changed, for another model, or the weights are quantized.
            CheckpointError: the files of the adapter are unusable.
        """
        if recipe.adapter is None or recipe.adapter_strength == 0:
            return Networks(self.transformer.get(), self.text_encoder.get())
        if self._placement.quantize:
            raise UserError("Adapters do not work with --quantize: choose no adapter.")
        key = (with_digests(self._adapters, recipe).adapter_digest, recipe.adapter_strength)
        networks = self._adapted.get(key)
        if networks is None:
            networks = self._merge(recipe.adapter, recipe.adapter_strength, key)
            self._adapted.put(key, networks)
        return networks

    def _merge(self, name: str, strength: float, key: AdapterKey) -> Networks:
        adapter = read_adapter(self._adapters, name)
        text_encoder, transformer = self.text_encoder.get(), self.transformer.get()
        pack_now(transformer)
        check_fits(adapter, TRANSFORMER, transformer)
        if TEXT_ENCODER in adapter.parts:
            check_fits(adapter, TEXT_ENCODER, text_encoder)
            text_encoder = merged(text_encoder, adapter.parts[TEXT_ENCODER], strength)
        return Networks(merged(transformer, adapter.parts[TRANSFORMER], strength), text_encoder, key)


def load_transformer(checkpoint: Checkpoint, placement: Placement) -> UViT:
    transformer = checkpoint.load_transformer(placement.device, placement.dtype)
    if placement.quantize:
        return quantize(transformer)
    return pack(transformer) if can_pack(placement.device, placement.dtype) else transformer


def load_decoder(checkpoint: Checkpoint, placement: Placement) -> VQGAN:
    half, config = placement.dtype, checkpoint.vqgan
    # A decoder that works on tiles is constructed: bfloat16 has too few digits for it.
    in_float32 = (half == torch.float16 and config.force_upcast) or config.tile_size is not None
    return checkpoint.load_vqgan(placement.device, torch.float32 if in_float32 else placement.dtype, half="decoder")
