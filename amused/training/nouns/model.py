"""The transformer of the bundled checkpoint: configuration, batches and loss."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from amused.generation.sampling import apply_cfg
from amused.model.text import encode_text, tokenize
from amused.model.transformer import Conditioning, UViT, UViTConfig
from amused.recipe.words import PARTS
from amused.training.nouns.data import (
    BACKGROUNDS,
    NO_ACCESSORY,
    SCALE,
    SIZE,
    Noun,
    Nouns,
    Vocabulary,
    caption,
    training_caption,
)
from amused.training.nouns.text import WIDTH

LENGTH = SIZE * SIZE
CODES = 240  # colours of the data

# The network knows positions only from zero padding. Eight convolutional stages carry it to all 16x16 cells before the
# transformer layers.
CONFIG = UViTConfig(
    hidden_size=192,
    cond_embed_dim=WIDTH,
    micro_cond_encode_dim=32,
    micro_cond_embed_dim=5 * 32,
    encoder_hidden_size=WIDTH,
    vocab_size=256,
    codebook_size=CODES,
    in_channels=96,
    block_out_channels=96,
    num_res_blocks=8,
    downsample=True,
    upsample=True,
    block_num_heads=4,
    num_hidden_layers=3,
    num_attention_heads=6,
    intermediate_size=512,
    sample_size=SIZE,
)
MASK = CONFIG.vocab_size - 1

KINDS_OF_MASK = 4  # images of a batch by turns, see `Masker.draw`
OTHERS = 4  # characters that an image may be mixed up with
VISIBLE = 0.25  # weight of a visible token in the loss, where some are wrong; a masked one has 1
MOST_WRONG = 0.3  # largest share of wrong tokens among the visible ones; with more, the model distrusts right ones too
SMALLEST = 32  # masked tokens of an image, at least
DIFFICULTY_RATE = 0.02  # of the running average of the loss by position
FEW_TRAITS, LAST_PHASE = 300, 800  # steps at which the curriculum goes on
ACCESSORIES = 0.25  # share of characters that wear one


class TextToTokens(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.transformer = UViT(CONFIG)
        initialize(self.transformer)

    def condition(self, ids: Tensor, index: Tensor) -> Conditioning:
        """Of the captions `index` (batch,) of `ids` (captions, length)."""
        hidden, pooled = (each[index] for each in encode_text(self.text_encoder, ids))
        pixels = float(SIZE * SCALE)
        micro = torch.tensor([[pixels, pixels, 0.0, 0.0, 6.0]], device=ids.device).expand(len(hidden), -1)
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


class Art:
    """Characters as tokens.

    Attributes:
        palette: the colours of the codes, (codes, 3) in [0, 255].
        index: of each trait in `layers`.
        layers: (traits, length), the code of each art pixel, -1 where it is transparent.
    """

    def __init__(self, nouns: Nouns) -> None:
        backgrounds = np.array([tuple(bytes.fromhex(color)) for color in BACKGROUNDS.values()], dtype=np.uint8)
        used = np.unique(np.concatenate([layer[layer > 0] for layer in nouns.layers.values()]))
        palette = np.unique(np.concatenate([nouns.palette[used], backgrounds]), axis=0)
        code = {tuple(color): index for index, color in enumerate(palette.tolist())}
        codes = np.array([-1, *(code.get(tuple(color), -1) for color in nouns.palette[1:].tolist())])
        flat = [np.full(LENGTH, code[tuple(color)]) for color in backgrounds.tolist()]
        layers = [*flat, *(codes[layer.ravel()] for layer in nouns.layers.values())]
        self.palette = torch.from_numpy(palette)
        self.index = {name: index for index, name in enumerate([*BACKGROUNDS, *nouns.layers])}
        self.layers = torch.from_numpy(np.stack(layers))

    def traits(self, noun: Noun) -> list[int]:
        """Indices of `layers`, from bottom to top."""
        return [self.index[name] for name in astuple(noun)]

    def compose(self, traits: Tensor) -> Tensor:
        """Indices of `layers`, (..., traits), to tokens (..., length)."""
        bottom, *upper = self.layers[traits].unbind(dim=-2)
        for layer in upper:
            bottom = torch.where(layer < 0, bottom, layer)
        return bottom


@dataclass
class Examples(IterableDataset[dict[str, Tensor]]):
    """Batches of random characters, from `step` on, the same for any number of workers.

    Each has `traits`, (batch, 1 + OTHERS, traits): a character and those it may be mixed up with, as indices of
    `Art.layers`; and `ids`, (batch + 1, text length), of its captions and the empty one.
    """

    art: Art
    known: Vocabulary
    tokenizer: CLIPTokenizer
    size: int
    step: int
    seed: int
    held_out: float

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return map(self.draw, itertools.count(self.step + first, stride))

    def draw(self, step: int) -> dict[str, Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        vocabulary, varied = curriculum(step, self.known)
        captions, traits = [], []
        for index in range(self.size):
            noun = vocabulary.sample(rng, ACCESSORIES if varied else 0.0, self.held_out)
            text, named = training_caption(noun, rng) if varied else (caption(noun), set(PARTS))
            captions.append(text)
            traits.append([self.art.traits(each) for each in (noun, *others(noun, named, vocabulary, rng, index))])
        return {"traits": torch.tensor(traits), "ids": tokenize(self.tokenizer, [*captions, ""])}


def others(noun: Noun, named: set[str], vocabulary: Vocabulary, rng: random.Random, index: int) -> list[Noun]:
    """What an image may be mixed up with.

    By turns characters that the caption fits as well, since the sampler's first tokens are drawn independently of each
    other; and one that differs in a trait, which is what the corrector and image to image have to find.
    """
    if index % KINDS_OF_MASK == 1:
        unnamed = [part for part in PARTS if part not in named]  # in order: draws must not depend on a set's
        return [vocabulary.vary(noun, rng, unnamed) for _ in range(OTHERS)]
    return [vocabulary.vary(noun, rng, [rng.choice(PARTS)])] * OTHERS


def curriculum(step: int, known: Vocabulary) -> tuple[Vocabulary, bool]:
    """What a step teaches: few traits in one wording first, then all traits, then any wording and accessories.

    Returns:
        The traits, and whether captions vary and leave out traits, and characters wear accessories.
    """
    if step < FEW_TRAITS:
        few = Vocabulary(known.backgrounds, known.bodies[:8], [NO_ACCESSORY], known.heads[:8], known.glasses[:8])
        return few, False
    return known, step >= LAST_PHASE


@dataclass(frozen=True)
class Batch:
    """Training data.

    Attributes:
        ids: (batch + 1, text length), of captions and the empty one.
        tokens: (batch, length).
        inputs: (batch, side, side), the tokens with some of them masked or wrong.
        weights: (batch, length), of each position in the loss.
    """

    ids: Tensor
    tokens: Tensor
    inputs: Tensor
    weights: Tensor


class Masker:
    """Makes training data of examples, and knows which positions are difficult: most of an image is background."""

    def __init__(self, art: Art, device: torch.device, seed: int) -> None:
        self.art, self.device = art, device
        art.layers = art.layers.to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.difficulty = torch.ones(LENGTH, device=device)

    def draw(self, examples: Mapping[str, Tensor]) -> Batch:
        """Mask tokens, a quarter of the images whole, the others by the cosine schedule (MUSE, section 2.4).

        By turns: all masked; masked where the loss has been high, as the sampler leaves an image, with tokens of other
        characters that the caption fits; masked anywhere; masked where the loss has been high, with tokens of a
        character that differs in a trait.
        """
        whole = self.art.compose(examples["traits"].to(self.device, non_blocking=True))
        tokens, rest = whole[:, 0], whole[:, 1:]
        size = len(tokens)
        ratio = torch.cos(self.uniform(size, 1) * math.pi / 2)
        ratio[::KINDS_OF_MASK] = 1.0
        keys = -self.uniform(size, LENGTH).log().neg().log()  # Gumbel noise
        keys[1::2] += (self.difficulty + 0.001).log()
        counts = (ratio * LENGTH).ceil().clamp(min=SMALLEST)
        masked = keys.argsort(dim=1, descending=True).argsort(dim=1) < counts
        most = torch.zeros_like(ratio)
        most[1::KINDS_OF_MASK] = MOST_WRONG + (1 - MOST_WRONG) * ratio[1::KINDS_OF_MASK]
        most[3::KINDS_OF_MASK] = MOST_WRONG
        wrong = self.uniform(size, LENGTH) < most * self.uniform(size, 1)
        which = torch.randint(OTHERS, (size, 1, LENGTH), device=self.device, generator=self.generator)
        inputs = torch.where(wrong, rest.gather(1, which)[:, 0], tokens).masked_fill(masked, MASK)
        wanted = torch.where(masked, 1.0, torch.where(most > 0, VISIBLE, 0.0))
        ids = examples["ids"].to(self.device, non_blocking=True)
        return Batch(ids, tokens, inputs.view(-1, SIZE, SIZE), wanted * (self.difficulty + 0.02))

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self.generator)

    def update_difficulty(self, errors: Tensor, inputs: Tensor) -> None:
        """Average the errors (batch, length) at masked positions."""
        masked = (inputs == MASK).flatten(1)
        mean = (errors * masked).sum(dim=0) / masked.sum(dim=0).clamp(min=1)
        self.difficulty.lerp_(torch.where(masked.any(dim=0), mean, self.difficulty), DIFFICULTY_RATE)


def losses(model: TextToTokens, batch: Batch, guidance_scale: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy given the caption, (batch, length), detached, and the loss to train on.

    The loss covers three predictions: with the caption, and for a quarter of the images also without it and from the
    guided logits that the sampler uses. Without the last, guidance raises the noisy ratio of two small probabilities to
    a power: codes that never occur at a position win, and images are full of specks.
    """
    count = len(batch.tokens)
    paired = slice(count // 4)
    index = torch.arange(count + count // 4, device=batch.ids.device).clamp(max=count)
    conditioning = model.condition(batch.ids, index)
    logits = model.transformer(torch.cat([batch.inputs, batch.inputs[paired]]), conditioning).float()
    conditional, unconditional = logits.tensor_split([count])
    guided = apply_cfg(unconditional, conditional[paired], guidance_scale)
    errors = cross_entropy(conditional, batch.tokens)
    with_caption = weighted_mean(errors, batch.weights)
    without, with_guidance = (
        weighted_mean(cross_entropy(each, batch.tokens[paired]), batch.weights[paired])
        for each in (unconditional, guided)
    )
    # Divide by the scale, since the gradient of the guided term grows with it.
    return errors.detach(), with_caption + 0.2 * without + 0.3 * with_guidance / guidance_scale


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    return (errors * weights).sum() / weights.sum()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits (batch, positions, codes), by position."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
