"""Sampling while a model is trained: default steps, guidance and temperature of a recipe, batch in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amused.generation.sampling import apply_cfg, sampling_steps, unmask_step
from amused.model.transformer import Conditioning, UViT, concatenate
from amused.recipe.recipe import Recipe


@torch.no_grad()
def sample_tokens(
    transformer: UViT,
    unconditional: Conditioning,
    conditional: Conditioning,
    side: int,
    seeds: Sequence[int],
    guidance_scale: float = Recipe.guidance_scale,
) -> Tensor:
    """Tokens of one image per seed, (batch, side, side). Both conditionings are of this batch."""
    device, mask_id = next(transformer.parameters()).device, transformer.config.vocab_size - 1
    conditioning = concatenate([unconditional, conditional])
    tokens = torch.full((len(seeds), side, side), mask_id, device=device)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for step in sampling_steps("cosine", Recipe.steps, Recipe.temperature, (tokens == mask_id).flatten(1)):
        without_text, with_text = transformer(tokens.repeat(2, 1, 1), conditioning).float().chunk(2)
        logits = apply_cfg(without_text, with_text, guidance_scale)
        tokens = unmask_step(logits, tokens, mask_id, step, generators)
    return tokens
