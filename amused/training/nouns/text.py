"""Tokenizer and text encoder of the bundled checkpoint: small CLIP ones with one token per caption word."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from amused.checkpoints.save import write_tokenizer
from amused.model.text import END, START, WORD_END, TextConfig, build_text_encoder, new_tokenizer, num_ids
from amused.training.nouns.data import Nouns, caption_words

MAX_LENGTH = 40
WIDTH = 128


def train_tokenizer(nouns: Nouns, folder: Path) -> CLIPTokenizer:
    """Learn merges that make every caption word one token, and write CLIP's tokenizer files to `folder`."""
    words = [word for word in caption_words(nouns) if word.isalpha()]
    learned = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    learned.train_from_iterator(
        words * 2,
        trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, end_of_word_suffix=WORD_END, show_progress=False),
    )
    merges = [tuple(merge) for merge in json.loads(learned.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [symbol + WORD_END for symbol in alphabet]
    entries = dict.fromkeys([*alphabet, *ends, *map("".join, merges), START, END])
    tokenizer = new_tokenizer({entry: i for i, entry in enumerate(entries)}, merges, MAX_LENGTH)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, tokenizer)
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A text encoder with random weights for this tokenizer."""
    config = TextConfig(
        vocab_size=num_ids(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return build_text_encoder(config)
