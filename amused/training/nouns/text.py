"""Tokenizer and text encoder of the bundled checkpoint: small CLIP ones with one token per caption word."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from amused.atomic import atomic_dir
from amused.checkpoints.save import write_tokenizer
from amused.model.text import (
    END,
    START,
    WORD_END,
    TextConfig,
    build_text_encoder,
    new_tokenizer,
    num_ids,
    read_tokenizer,
)
from amused.training.nouns.data import Nouns, caption_words

MAX_LENGTH = 40
WIDTH = 128


def prepare_tokenizer(nouns: Nouns, folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder; trained and written there first if it is not there.

    A run keeps its tokenizer: training breaks ties at random, so a second one would give other ids to the same words.
    """
    if not folder.is_dir():
        tokenizer = train_tokenizer(nouns)
        with atomic_dir(folder) as part:
            write_tokenizer(part, tokenizer)
    return read_tokenizer(folder)


def train_tokenizer(nouns: Nouns) -> CLIPTokenizer:
    """Learn merges that make every caption word one token."""
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
    return new_tokenizer({entry: i for i, entry in enumerate(entries)}, merges, MAX_LENGTH)


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
