"""Checkpoints in the published shapes with random weights, to measure without the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from amused.checkpoints.save import save_checkpoint
from amused.model.text import END, START, WORD_END, TextConfig, build_text_encoder, new_tokenizer
from amused.model.transformer import UViT, UViTConfig
from amused.model.vqgan import VQGAN, VQGANConfig

LOGITS_STD = 2.0  # tokens differ, and none always wins
LEVELS = 5
VQGAN_CONFIG = VQGANConfig(
    down_block_types=("DownEncoderBlock2D",) * LEVELS,
    up_block_types=("UpDecoderBlock2D",) * LEVELS,
    block_out_channels=(128, 256, 256, 512, 768),
    layers_per_block=2,
    latent_channels=64,
    sample_size=256,
    num_vq_embeddings=8192,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
)
SIZES = {
    256: UViTConfig(sample_size=16),
    512: UViTConfig(sample_size=32, downsample=True, upsample=True),
}
CLIP_L = TextConfig(
    hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12
)
WORDS = ("a", "red", "blue", "cat", "dog", "hat")


def random_checkpoint(folder: Path, size: int) -> None:
    """Write a checkpoint in the shapes of amused-256 or amused-512: 1.6 GB. The same size gives the same weights."""
    torch.manual_seed(size)
    tokenizer = byte_tokenizer(WORDS)
    text = replace(
        CLIP_L,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        transformer, vqgan, text_encoder = UViT(SIZES[size]), VQGAN(VQGAN_CONFIG), build_text_encoder(text)
    for network in (transformer, vqgan, text_encoder):
        network.to_empty(device="cpu").requires_grad_(False)
        fill(network)
    scale_logits(transformer)
    save_checkpoint(folder, transformer=transformer, vqgan=vqgan, text_encoder=text_encoder, tokenizer=tokenizer)


def fill(network: nn.Module) -> None:
    """Set random weights that keep the scale of activations: norms near 1, codes near unit length."""
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            parameter.uniform_(-0.05, 0.05)
            if name.endswith("weight"):
                parameter.add_(1.0)
        else:
            fan_in = parameter.shape[1] if "embedding" in name else parameter[0].numel()
            bound = (1 / fan_in) ** 0.5
            parameter.uniform_(-bound, bound)


def scale_logits(transformer: UViT) -> None:
    """Scale the last layer so that logits have a standard deviation of `LOGITS_STD`."""
    config = transformer.config
    tokens = torch.randint(config.codebook_size, (1, 8, 8))
    tokens[:, ::2] = config.vocab_size - 1
    with torch.no_grad():
        conditioning = transformer.condition(
            torch.randn(1, 77, config.encoder_hidden_size), torch.randn(1, config.cond_embed_dim), torch.zeros(1, 5)
        )
        logits = transformer(tokens, conditioning)
        transformer.mlm_layer.conv2.weight.mul_(LOGITS_STD / logits.std())


def byte_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A tokenizer with CLIP's byte-level alphabet that merges only these words to one token."""
    letters = sorted(ByteLevel.alphabet())
    symbols = letters + [letter + WORD_END for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                symbols.append(parts[0] + parts[1])
            parts[:2] = [parts[0] + parts[1]]
    symbols += [START, END]
    return new_tokenizer({symbol: i for i, symbol in enumerate(symbols)}, merges, max_length=77)
