"""Text conditioning for training: captions and validation prompts as token ids or as embeddings cached on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from amused.atomic import atomic_dir, write_json
from amused.checkpoints.weights import Checkpoint
from amused.model.text import encode_text, is_truncated, tokenize
from amused.training.finetune.data import CACHE_FORMAT, component_id, short_digest

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

log = logging.getLogger(__name__)

TEXTS_PER_FILE = 512
TEXTS_PER_BATCH = 16


class CaptionEncoder:
    """Turns captions and validation prompts into what `TrainingModel` takes.

    While the text encoder is frozen, every text is encoded once and the encoder is freed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        captions: Sequence[str],
        prompts: Sequence[str],
        *,
        cache: Path,
        device: torch.device,
        dtype: torch.dtype,
        train_text_encoder: bool,
    ) -> None:
        self.device = device
        tokenizer = checkpoint.load_tokenizer()
        warn_of_long(tokenizer, captions, "captions")
        warn_of_long(tokenizer, prompts, "validation prompts")
        self.tokenizer = tokenizer if train_text_encoder else None
        if self.tokenizer is None:
            self.captions = cache_embeddings(checkpoint, ["", *captions], cache, device, dtype)
            self.prompts = cache_embeddings(checkpoint, ["", *prompts], cache, device, dtype)

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """The `texts` of `TrainingModel.forward`."""
        if self.tokenizer is not None:
            return (tokenize(self.tokenizer, captions).to(self.device),)
        return self.captions.read(captions, self.device)

    def encode_prompts(
        self, prompts: Sequence[str], text_encoder: CLIPTextModelWithProjection | None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, length, width) and pooled embeddings (batch, width) of validation prompts.

        Args:
            text_encoder: the one being trained, None while it is frozen.
        """
        if self.tokenizer is None or text_encoder is None:
            return self.prompts.read(prompts, self.device)
        return encode_text(text_encoder, tokenize(self.tokenizer, prompts).to(self.device))


def warn_of_long(tokenizer: CLIPTokenizer, texts: Sequence[str], what: str) -> None:
    cut = {text for text in {*texts} if is_truncated(tokenizer, text)}
    if cut:
        count = sum(text in cut for text in texts)
        log.warning("%d of %d %s are longer than the model can read; their end is ignored.", count, len(texts), what)


class CachedEmbeddings:
    """Embeddings of texts on disk, read when needed. Row i belongs to the i-th distinct text."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self.places = {text: divmod(i, TEXTS_PER_FILE) for i, text in enumerate(dict.fromkeys(texts))}
        num_files = max(file for file, _ in self.places.values()) + 1
        self.files = [safe_open(folder / f"{i:05}.safetensors", framework="pt") for i in range(num_files)]

    def read(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, length, width) and pooled embeddings (batch, width), float32."""
        hidden, pooled = (torch.cat([self._row(text, key) for text in texts]) for key in ("hidden", "pooled"))
        return hidden.to(device), pooled.to(device)

    def _row(self, text: str, key: str) -> Tensor:
        file, row = self.places[text]
        tensor: Tensor = self.files[file].get_slice(key)[row : row + 1]
        return tensor.clone().float()


def cache_embeddings(
    checkpoint: Checkpoint, texts: Sequence[str], cache: Path, device: torch.device, dtype: torch.dtype
) -> CachedEmbeddings:
    """Embeddings of texts, stored as `dtype`; computed unless the cache has them."""
    texts = list(dict.fromkeys(texts))
    key = [CACHE_FORMAT, component_id(checkpoint, "text_encoder"), str(dtype), texts]
    folder = cache / f"texts-{short_digest(key)}"
    if not folder.is_dir():
        tokenizer, encoder = checkpoint.load_tokenizer(), checkpoint.load_text_encoder(device, torch.float32)
        with atomic_dir(folder) as part, torch.inference_mode():
            for start in tqdm(range(0, len(texts), TEXTS_PER_FILE), desc="Encoding captions", disable=len(texts) < 2):
                chunk = texts[start : start + TEXTS_PER_FILE]
                batches = [chunk[i : i + TEXTS_PER_BATCH] for i in range(0, len(chunk), TEXTS_PER_BATCH)]
                rows = [encode_text(encoder, tokenize(tokenizer, batch).to(device)) for batch in batches]
                hidden, pooled = (torch.cat(tensors).to("cpu", dtype) for tensors in zip(*rows))
                save_file({"hidden": hidden, "pooled": pooled}, part / f"{start // TEXTS_PER_FILE:05}.safetensors")
            write_json(part / "texts.json", texts)
    return CachedEmbeddings(folder, texts)
