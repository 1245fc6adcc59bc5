"""The networks of a checkpoint: loaded on first use, packed, quantized, or with an adapter merged."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amused.checkpoints.adapters import TEXT_ENCODER, TRANSFORMER, with_digests
from amused.checkpoints.checkpoint import Checkpoint
from amused.checkpoints.lora import check_fits, merged, read_adapter
from amused.errors import UserError
from amused.generation.lru_cache import LRUCache
from amused.generation.placement import Placement
from amused.model.packed import can_pack, pack, pack_now
from amused.model.quantized import quantize
from amused.model.text_encoder import TextEncoder
from amused.model.tokenizer import Tokenizer
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN
from amused.recipe.recipe import Recipe

LARGE = ("transformer", "decoder")
CACHED_ADAPTERS = 2  # merged networks share all weights that the adapter leaves alone


@dataclass(frozen=True)
class Networks:
    """The networks that depend on a recipe's adapter. `key` names the adapter and its strength, None without one."""

    transformer: UViT
    text_encoder: TextEncoder
    key: tuple[str, float] | None = None


class Components:
    """Loads each component once, on first use. Safe to use from several threads."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement, adapters: Path | None) -> None:
        self._checkpoint, self._placement, self._adapters = checkpoint, placement, adapters
        self._lock = threading.Lock()
        self._loads: dict[str, Future[Any]] = {}
        self._adapted: LRUCache[tuple[str, float], Networks] = LRUCache(CACHED_ADAPTERS)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._component("tokenizer")

    @property
    def text_encoder(self) -> TextEncoder:
        return self._component("text_encoder")

    @property
    def transformer(self) -> UViT:
        return self._component("transformer")

    @property
    def encoder(self) -> VQGAN:
        return self._component("encoder")

    @property
    def decoder(self) -> VQGAN:
        return self._component("decoder")

    def load(self, with_encoder: bool = False) -> None:
        """Load what every image needs, or everything. Waits for it."""
        self.start_loading()
        for name in ("tokenizer", "text_encoder", *LARGE, *(["encoder"] if with_encoder else [])):
            self._component(name)

    def start_loading(self) -> None:
        """Load the large components in the background, while the prompt is encoded."""

        def work() -> None:
            for name in LARGE:
                with contextlib.suppress(Exception):  # whoever needs the component gets the error
                    self._component(name)

        if LARGE[0] not in self._loads:
            threading.Thread(target=work, name="load components", daemon=True).start()

    @torch.inference_mode()
    def networks(self, recipe: Recipe) -> Networks:
        """The networks for a recipe, with its adapter merged if it has one.

        Raises:
            UserError: the adapter is missing, changed, for another model, or the weights are quantized.
            CheckpointError: the files of the adapter are unusable.
        """
        if recipe.adapter is None or recipe.adapter_strength == 0:
            return Networks(self.transformer, self.text_encoder)
        if self._placement.quantize:
            raise UserError(
                f"Adapters do not work with {self._placement.quantize} weights: start without quantize, or choose none."
            )
        recipe = with_digests(self._adapters, recipe)
        key = (recipe.adapter_digest, recipe.adapter_strength)
        networks = self._adapted.get(key)
        if networks is None:
            networks = self._merge(recipe, key)
            self._adapted.put(key, networks)
        return networks

    def _merge(self, recipe: Recipe, key: tuple[str, float]) -> Networks:
        adapter = read_adapter(self._adapters, recipe.adapter)
        pack_now(self.transformer)
        parts = {TRANSFORMER: self.transformer, TEXT_ENCODER: self.text_encoder}
        for name in adapter.parts:
            check_fits(adapter, name, parts[name])
        for name, layers in adapter.parts.items():
            parts[name] = merged(parts[name], layers, recipe.adapter_strength)
        return Networks(parts[TRANSFORMER], parts[TEXT_ENCODER], key)

    def _component(self, name: str) -> Any:
        """Load a component on first use. Concurrent callers share one load; failures are retried."""
        with self._lock:
            mine = name not in self._loads
            load = self._loads.setdefault(name, Future())
        if mine:
            try:
                load.set_result(self._load(name))
            except BaseException as error:
                with self._lock:
                    del self._loads[name]
                load.set_exception(error)
        return load.result()

    def _load(self, name: str) -> Any:
        device, dtype = self._placement.device, self._placement.dtype
        if name == "tokenizer":
            return self._checkpoint.tokenizer()
        if name == "text_encoder":
            return self._checkpoint.load_text_encoder(device, dtype)
        if name == "transformer":
            transformer = self._checkpoint.load_transformer(device, dtype)
            if self._placement.quantize:
                return quantize(transformer)
            return pack(transformer) if can_pack(device, dtype) else transformer
        # The encoder runs in float32: a rounding error there is another token.
        in_float32 = name == "encoder" or (dtype == torch.float16 and self._checkpoint.vqgan.force_upcast)
        return self._checkpoint.load_vqgan(device, torch.float32 if in_float32 else dtype, half=name)
