"""Logits of the masked tokens, with classifier-free guidance. Cached where images share them, only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amused.generation.batches import repeat
from amused.generation.compiled import RunFeatures, eager_features
from amused.generation.sampling import StepPlan, apply_cfg
from amused.model.transformer import Conditioning, UViT, concatenate
from amused.recipe.recipe import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, VARY, Recipe

RANDOM_START = (IMAGE_TO_IMAGE, VARY)  # the tasks whose first tokens depend on the seed


@dataclass
class EncodedPrompt:
    """The prompt-only work of the network.

    Attributes:
        conditioning: `UViT.condition` of a batch of 1.
        fully_masked_features: of an image of mask tokens, (1, n, channels); the start of text to image, computed once.
    """

    conditioning: Conditioning
    fully_masked_features: Tensor | None = None


class Predictor:
    """Predicts the tokens of batches of one recipe, guided if there are two prompts.

    Args:
        prompts: the prompt, after the negative prompt if there is guidance.
        batch_size: images per batch, the same at every call.
        features: runs the network for this run; by default eagerly.
    """

    # CUDA graphs hold inference tensors. If a run's were ordinary ones, torch would compile each layer for both.
    @torch.inference_mode()
    def __init__(
        self,
        network: UViT,
        prompts: Sequence[EncodedPrompt],
        recipe: Recipe,
        batch_size: int,
        mask_token_id: int,
        features: RunFeatures | None = None,
    ) -> None:
        self.network, self.prompts, self.mask_token_id = network, prompts, mask_token_id
        self.batch_size, self.features = batch_size, features or eager_features(network)
        self.guidance_scale = recipe.guidance_scale
        self.starts_fully_masked = recipe.task == TEXT_TO_IMAGE
        self.starts_alike = recipe.task not in RANDOM_START
        self.conditioning = concatenate([prompt.conditioning for prompt in prompts])  # p
        # Images of one prompt are neighbours: first all without the prompt, then all with it.
        self.batch_conditioning = repeat(self.conditioning, batch_size)
        self.first_logits: Tensor | None = None  # shared by all images that start from the same tokens

    def masked_idx(self, tokens: Tensor) -> Tensor | None:
        """Positions that need logits, (b, k) ascending, where k is the most masked tokens of an image.

        Rows with fewer masked tokens are filled up with other positions. None means all positions: on a GPU, where
        counting would wait for the device and shapes are to stay fixed.
        """
        if tokens.device.type != "cpu":
            return None
        masked = tokens.flatten(1) == self.mask_token_id
        most = int(masked.sum(dim=1).max())
        return (~masked).byte().argsort(dim=1, stable=True)[:, :most].sort(dim=1).values

    def __call__(self, tokens: Tensor, step: StepPlan, masked_idx: Tensor | None) -> Tensor:
        """Logits of tokens (b, h, w): (b, n, codebook), or (b, k, codebook) at the positions of `masked_idx`."""
        if step.number == 0:  # what is given is scored, the same for all seeds
            return self._logits(self._one(tokens), masked_idx)
        if step.number > 1 or not self.starts_alike:
            return self._logits(self._features(tokens), masked_idx)
        if self.first_logits is None:
            features = self._fully_masked(tokens) if self.starts_fully_masked else self._one(tokens)
            self.first_logits = self._logits(features, None if masked_idx is None else masked_idx[:1])
        return self.first_logits.expand(len(tokens), -1, -1)

    def _features(self, tokens: Tensor) -> Tensor:
        """(p * b, n, channels) for p prompts."""
        if len(tokens) == 1:
            return self.features(tokens, self.conditioning)
        return self.features(tokens.repeat(len(self.prompts), 1, 1), self.batch_conditioning)

    def _one(self, tokens: Tensor) -> Tensor:
        """Features of the first image alone, (p, n, channels). Exact, as are all that outlive a run."""
        return self.features(tokens[:1], self.conditioning, is_exact=True)

    def _fully_masked(self, tokens: Tensor) -> Tensor:
        features = []
        for prompt in self.prompts:
            if prompt.fully_masked_features is None:
                prompt.fully_masked_features = self.features(tokens[:1], prompt.conditioning, is_exact=True)
            features.append(prompt.fully_masked_features)
        return torch.cat(features)

    def _logits(self, features: Tensor, masked_idx: Tensor | None) -> Tensor:
        if masked_idx is not None:
            index = masked_idx.repeat(len(self.prompts), 1)  # p*b k
            features = features[torch.arange(len(index))[:, None], index]
        logits = self.network.mlm_layer(features)
        if len(self.prompts) == 1:
            return logits
        unconditional, conditional = logits.chunk(2)
        return apply_cfg(unconditional, conditional, self.guidance_scale)
