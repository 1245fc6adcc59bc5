"""The transformer of the bundled checkpoint: configuration, batches, loss, and sampling at art resolution."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from amused.generation.sampling import apply_cfg
from amused.model.text import encode_text, tokenize
from amused.model.transformer import Conditioning, UViT, UViTConfig, concatenate
from amused.training.nouns.data import SCALE, SIZE, Nouns, Vocabulary, caption, training_caption
from amused.training.nouns.text import WIDTH
from amused.training.nouns.vqgan import CONFIG as VQGAN_CONFIG
from amused.training.sampling import sample_tokens

GRID = SIZE // 2
LENGTH = GRID * GRID
CODES = VQGAN_CONFIG.num_vq_embeddings

# The network knows positions only from zero padding. Four convolutional stages carry it to all 8x8 cells before the
# transformer layers.
CONFIG = UViTConfig(
    hidden_size=160,
    cond_embed_dim=WIDTH,
    micro_cond_encode_dim=32,
    micro_cond_embed_dim=5 * 32,
    encoder_hidden_size=WIDTH,
    vocab_size=CODES + 8,
    codebook_size=CODES,
    in_channels=112,
    block_out_channels=112,
    num_res_blocks=4,
    downsample=True,
    upsample=True,
    block_num_heads=4,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=384,
    sample_size=GRID,
)
MASK = CONFIG.vocab_size - 1

VISIBLE = 0.25  # how often a visible token is in the loss, relative to a masked one
MOST_WRONG = 0.3  # largest share of wrong tokens among the visible ones; with more, the model distrusts right ones too
SMALLEST = 8  # masked tokens of an image, at least
DIFFICULTY_RATE = 0.02  # of the running average of the loss by position


class TextToTokens(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.transformer = UViT(CONFIG)
        initialize(self.transformer)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        hidden, pooled = encode_text(self.text_encoder, tokenize(self.tokenizer, captions))
        pixels = float(SIZE * SCALE)
        micro = torch.tensor([[pixels, pixels, 0.0, 0.0, 6.0]]).expand(len(captions), -1)
        return self.transformer.condition(hidden, pooled, micro)


def initialize(transformer: UViT) -> None:
    """Initialize by fan-in; modulations start as the identity."""
    for name, parameter in transformer.named_parameters():
        if name.endswith("embeddings.weight"):
            nn.init.normal_(parameter, std=0.5)
        elif "cond_embeds_mapper" in name or (".norm" in name and name.endswith("linear.weight")):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1 and "channelwise_norm" not in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


@dataclass(frozen=True)
class Batch:
    """Training data.

    Attributes:
        tokens: (batch, length).
        inputs: (batch, grid, grid), the tokens with some of them masked.
        positions: (batch, sampled), positions whose loss is computed: masked ones, and some of those with wrong tokens.
    """

    captions: list[str]
    tokens: Tensor
    inputs: Tensor
    positions: Tensor


class Batches:
    """Draws random batches.

    Positions of the loss are drawn more often where the loss has been high, since most of an image is background. Their
    losses are not weighted.

    Args:
        codebook: (codes, 12), values of 2x2 art pixels in [-1, 1].
    """

    def __init__(self, nouns: Nouns, codebook: Tensor, seed: int) -> None:
        self.nouns, self.codebook = nouns, codebook
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.codes: dict[bytes, int] = {}  # of patches seen so far
        self.difficulty = torch.ones(LENGTH)

    def encode(self, art: NDArray[np.uint8]) -> Tensor:
        """Art pixels (batch, 32, 32, 3) to tokens (batch, length)."""
        cells = art.reshape(len(art), GRID, 2, GRID, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 12)
        unique, inverse = np.unique(np.ascontiguousarray(cells).view("V12")[:, 0], return_inverse=True)
        keys = [key.tobytes() for key in unique]
        new = [key for key in keys if key not in self.codes]
        if new:
            values = torch.from_numpy(np.frombuffer(b"".join(new), np.uint8).reshape(-1, 12).copy()).float() / 127.5 - 1
            nearest = torch.cdist(values, self.codebook).argmin(dim=1).tolist()
            self.codes.update(zip(new, nearest))
        ids = np.array([self.codes[key] for key in keys])
        return torch.from_numpy(ids[inverse].reshape(len(art), LENGTH))

    def draw(
        self,
        vocabulary: Vocabulary,
        size: int,
        *,
        varied: bool,
        accessories: float,
        sampled: int,
        held_out: float = 0.0,
    ) -> Batch:
        """One batch: a quarter is fully masked, the rest by the cosine schedule (MUSE, section 2.4).

        Every other image is masked where the loss has been high, as the sampler leaves it. If captions vary, half of
        those images also show some tokens of a character with another head, say. The model has to find these, which is
        what the corrector and image to image ask of it.

        Args:
            size: of the batch.
            varied: whether captions have any wording and leave out traits.
            accessories, held_out: shares of characters, see `Vocabulary.sample`.
            sampled: positions per image whose loss is computed; one can be drawn twice.
        """
        nouns = [vocabulary.sample(self.rng, accessories, held_out) for _ in range(size)]
        captions = [training_caption(noun, self.rng) if varied else caption(noun) for noun in nouns]
        tokens = self.encode(np.stack([self.nouns.render(noun) for noun in nouns]))
        ratio = torch.cos(self.uniform(size, 1) * math.pi / 2)
        ratio[::4] = 1.0
        keys = -self.uniform(size, LENGTH).log().neg().log()  # Gumbel noise
        keys[1::2] += (self.difficulty + 0.001).log()
        counts = (ratio * LENGTH).ceil().clamp(min=SMALLEST)
        masked = keys.argsort(dim=1, descending=True).argsort(dim=1) < counts
        wanted = torch.where(masked, 1.0, 0.0)
        inputs = tokens
        if varied:
            others = self.encode(np.stack([self.nouns.render(vocabulary.vary(noun, self.rng)) for noun in nouns]))
            wrong = self.uniform(size, LENGTH) < MOST_WRONG * self.uniform(size, 1)
            wrong[::2] = wrong[1::4] = False
            inputs = torch.where(wrong, others, tokens)
            wanted[1::2].clamp_(min=VISIBLE)
        weights = (self.difficulty + 0.02) * wanted
        positions = torch.multinomial(weights, sampled, replacement=True, generator=self.generator)
        inputs = inputs.masked_fill(masked, MASK).view(-1, GRID, GRID)
        return Batch(captions, tokens, inputs, positions)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def update_difficulty(self, positions: Tensor, losses: Tensor) -> None:
        """Average the losses (batch, sampled) by position into `difficulty`."""
        flat, values = positions.flatten(), losses.detach().flatten()
        total = torch.zeros(LENGTH).index_add_(0, flat, values)
        count = torch.zeros(LENGTH).index_add_(0, flat, torch.ones_like(values))
        seen = count > 0
        change = total[seen] / count[seen] - self.difficulty[seen]
        self.difficulty[seen] += DIFFICULTY_RATE * count[seen].clamp(max=10) * change


def losses(model: TextToTokens, batch: Batch, guidance_scale: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy given the caption, (batch, sampled), detached, and the loss to train on.

    The loss covers three predictions: with the caption, and for half of the images also without it and from the guided
    logits that the sampler uses. Without the last, guidance raises the noisy ratio of two small probabilities to a
    power: codes that never occur at a position win, and images are full of specks.
    """
    paired = slice(len(batch.captions) // 2)
    targets = batch.tokens.gather(1, batch.positions)
    conditioning = concatenate([model.condition(batch.captions), model.condition([""] * len(batch.captions[paired]))])
    features = model.transformer.features(torch.cat([batch.inputs, batch.inputs[paired]]), conditioning)
    index = torch.cat([batch.positions, batch.positions[paired]])[..., None].expand(-1, -1, features.shape[-1])
    logits = model.transformer.mlm_layer(features.gather(1, index))
    conditional, unconditional = logits.tensor_split([len(targets)])
    guided = apply_cfg(unconditional, conditional[paired], guidance_scale)
    with_caption = cross_entropy(conditional, targets)
    without, with_guidance = (cross_entropy(each, targets[paired]).mean() for each in (unconditional, guided))
    # Divide by the scale, since the gradient of the guided term grows with it.
    return with_caption.detach(), with_caption.mean() + 0.3 * without + 0.5 * with_guidance / guidance_scale


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits (batch, positions, codes), by position."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def sample(model: TextToTokens, captions: Sequence[str]) -> Tensor:
    """Tokens of one image per caption, (batch, length); image i has seed i."""
    with torch.no_grad():
        unconditional, conditional = (model.condition(texts) for texts in ([""] * len(captions), captions))
    return sample_tokens(model.transformer, unconditional, conditional, GRID, range(len(captions))).flatten(1)


@torch.no_grad()
def initialize_from(model: TextToTokens, codebook: Tensor, source: Mapping[str, Tensor], old_codebook: Tensor) -> None:
    """Take over the weights of a model with other codes: each code starts as the nearest old one.

    Args:
        codebook: (codes, 12), of `model`.
        source: state of a `TextToTokens`.
        old_codebook: its codes.
    """
    nearest = torch.cdist(codebook, old_codebook).argmin(dim=1)
    special = torch.arange(len(old_codebook), len(source["transformer.embed.embeddings.weight"]))
    rows = {
        "transformer.embed.embeddings.weight": torch.cat([nearest, special]),
        "transformer.mlm_layer.conv2.weight": nearest,
    }
    model.load_state_dict({name: tensor[rows[name]] if name in rows else tensor for name, tensor in source.items()})


def codebook_art(codebook: Tensor, tokens: Tensor) -> Tensor:
    """Tokens (batch, length) to art pixels (batch, 3, 32, 32), from the codebook alone, without the decoder."""
    cells = (codebook[tokens] + 1) / 2
    return cells.view(-1, GRID, GRID, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, SIZE, SIZE)
