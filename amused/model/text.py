"""CLIP's text encoder and tokenizer (arXiv 2103.00020, section 2.4), both from transformers.

transformers takes longer to import than torch, so it is imported inside the functions: by the thread that loads a
model, while another one reads the transformer's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amused.memory import paused_collection

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

ACTIVATIONS = ("quick_gelu", "gelu")
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True)
class TextConfig:
    """The keys of `text_encoder/config.json` that change what CLIP computes, with transformers' defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads must divide hidden_size")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be {' or '.join(ACTIVATIONS)}")


def build_text_encoder(config: TextConfig, initializer_factor: float = 1.0) -> CLIPTextModelWithProjection:
    """An untrained text encoder, its random weights scaled by `initializer_factor`."""
    with paused_collection():  # as a model is loaded, transformers is first imported here
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**asdict(config), initializer_factor=initializer_factor))


def config_of(encoder: CLIPTextModelWithProjection) -> TextConfig:
    return TextConfig(**{key: getattr(encoder.config, key) for key in TextConfig.__dataclass_fields__})


def set_position_ids(encoder: CLIPTextModelWithProjection, device: torch.device | str) -> None:
    """Fill the one buffer that is not stored with the weights: the positions 0, 1, 2, ..."""
    length = encoder.config.max_position_embeddings
    encoder.text_model.embeddings.position_ids = torch.arange(length, device=device).expand((1, -1))


def encode_text(encoder: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What conditions the transformer.

    Args:
        ids: (batch, length), from `tokenize`.

    Returns:
        The input of the last layer, (batch, length, hidden_size), and the embeddings of whole texts, (batch,
        projection_dim).
    """
    text = encoder(ids, output_hidden_states=True)
    return text.hidden_states[-2], text.text_embeds


def new_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> CLIPTokenizer:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    # transformers hands pairs on to tokenizers, which wants them; its own hint says list[str].
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)  # type: ignore[arg-type]


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder, read without the network.

    Raises:
        ValueError: it lacks a file or a token. transformers and its parsers raise other exceptions as well.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    files = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise ValueError("files are missing")  # transformers would make up a vocabulary of three tokens
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.unk_token not in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False):
        raise ValueError("the unknown token is not in the vocabulary")
    if not {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} <= tokenizer.get_vocab().keys():
        raise ValueError("a special token has no id")
    tokenize(tokenizer, [""])
    return tokenizer


def num_ids(tokenizer: CLIPTokenizer) -> int:
    """One more than the largest id."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


# A tokenizer keeps the settings of its last call and cannot change them while another thread uses it, so both functions
# below pass the same ones.


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Ids of texts, (batch, model_max_length), truncated or padded."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def is_truncated(tokenizer: CLIPTokenizer, text: str) -> bool:
    """Whether `tokenize` leaves out the end of a text."""
    chunks = tokenizer([text], padding="max_length", truncation=True, return_overflowing_tokens=True).input_ids
    return len(chunks) > 1
