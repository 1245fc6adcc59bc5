"""The networks of a checkpoint: loaded on first use, packed, quantized, or with an adapter merged."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

LARGE = ("transformer", "decoder")
CACHED_ADAPTERS = 2  # merged networks share all weights that the adapter leaves alone


AdapterKey = tuple[str | None, float]
"""An adapter's digest, and the strength at which it is merged."""


@dataclass(frozen=True)
class Networks:
    """The networks that depend on a recipe's adapter. `key` is None without one."""

    transformer: UViT
    text_encoder: CLIPTextModelWithProjection
    key: AdapterKey | None = None


class Components:
    """Loads each component once, on first use. Safe to use from several threads."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement, adapters: Path | None) -> None:
        self._checkpoint, self._placement, self._adapters = checkpoint, placement, adapters
        self._lock = threading.Lock()
        self._loads: dict[str, Future[Any]] = {}
        self._adapted: LRUCache[AdapterKey, Networks] = LRUCache(CACHED_ADAPTERS)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return self._component("tokenizer")

    @property
    def text_encoder(self) -> CLIPTextModelWithProjection:
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
            # The text encoder first: transformers is imported while another thread reads the transformer.
            return Networks(text_encoder=self.text_encoder, transformer=self.transformer)
        if self._placement.quantize:
            raise UserError(
                f"Adapters do not work with {self._placement.quantize} weights: start without quantize, or choose none."
            )
        key = (with_digests(self._adapters, recipe).adapter_digest, recipe.adapter_strength)
        networks = self._adapted.get(key)
        if networks is None:
            networks = self._merge(recipe.adapter, recipe.adapter_strength, key)
            self._adapted.put(key, networks)
        return networks

    def _merge(self, name: str, strength: float, key: AdapterKey) -> Networks:
        adapter = read_adapter(self._adapters, name)
        transformer, text_encoder = self.transformer, self.text_encoder
        pack_now(transformer)
        check_fits(adapter, TRANSFORMER, transformer)
        if TEXT_ENCODER in adapter.parts:
            check_fits(adapter, TEXT_ENCODER, text_encoder)
            text_encoder = merged(text_encoder, adapter.parts[TEXT_ENCODER], strength)
        return Networks(merged(transformer, adapter.parts[TRANSFORMER], strength), text_encoder, key)

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
            return self._checkpoint.load_tokenizer()
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
