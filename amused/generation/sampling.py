"""Masked-token sampling: the mask schedule and one unmasking step (MaskGIT, arXiv 2202.04200; MUSE, arXiv 2301.00704).

Pure functions over the tokens of one picture; the generator is passed in, and the order of draws is the reference's
(one multinomial draw for every position, then the Gumbel noise), so that a seed gives the reference's tokens.
Knows no network and no prompt.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

SCHEDULES = ("cosine", "linear")
ROWS_AT_ONCE = 32


def mask_ratios(schedule: str, steps: int, device: torch.device | str) -> Tensor:
    """Share of tokens still masked before each step and after the last: (steps + 1,) float32, from 1 to 0.

    Cosine: equation 1 of MaskGIT. Computed on the sampler's own device, where the reference computes it: a cosine that
    differs in its last bit can mask one token more.
    """
    ratio = torch.arange(steps + 1, device=device) / steps
    if schedule == "cosine":
        return torch.cos(ratio * math.pi / 2)
    if schedule == "linear":
        return 1 - ratio
    raise ValueError(f"schedule is {schedule!r}, must be one of {SCHEDULES}")


def mask_counts(ratios: Tensor, length: int, masked: int, share: Tensor | float = 1.0) -> list[int]:
    """How many of `length` tokens stay masked after each step, when `masked` are at first.

    Args:
        ratios: of `mask_ratios`, without those of the steps that are skipped: (steps + 1,).
        share: the part of the picture to be repainted, which scales the schedule (inpainting).

    Never more than one fewer than before, never fewer than one, none after the last step.
    """
    counts = []
    for wanted in (length * (share * ratios[1:-1])).floor().tolist():
        masked = max(1, min(masked - 1, int(wanted)))
        counts.append(masked)
    return [*counts, 0]


def temperatures(first: float, last: float, steps: int, device: torch.device | str) -> Tensor:
    """Temperature of each step: (steps,) float32, linear from `first` to `last`."""
    return torch.linspace(first, last, steps, device=device)


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) on logits."""
    return unconditional + scale * (conditional - unconditional)


def mask_at_random(tokens: Tensor, ratio: Tensor | float, mask_token_id: int, generator: torch.Generator) -> Tensor:
    """Mask each token of (height, width) with probability `ratio`."""
    draws = torch.rand((1, *tokens.shape), device=generator.device, generator=generator)[0]
    return tokens.masked_fill(draws.to(tokens.device) < ratio, mask_token_id)


def reveal(
    logits: Tensor,
    tokens: Tensor,
    mask_token_id: int,
    stay_masked: int,
    temperature: Tensor | float,
    generator: torch.Generator,
    rows: Tensor | None = None,
) -> Tensor:
    """One step: draw a token for every masked position, then mask the least confident again.

    Args:
        logits: (length, codebook_size), or those of `rows` alone.
        tokens: (length,), `mask_token_id` where masked; the others keep their value.
        stay_masked: how many are masked again; 0 keeps all.
        temperature: of the Gumbel noise on the confidence, 0 or more.
        rows: the masked positions, in order, where the logits are of these alone.

    Returns:
        (length,) tokens.
    """
    masked = tokens == mask_token_id
    probabilities = logits.softmax(dim=-1)
    drawn = draw(probabilities, len(tokens), generator, rows)
    chosen = probabilities.gather(1, drawn[:, None])[:, 0]
    if rows is None:
        drawn = torch.where(masked, drawn, tokens)
    else:
        drawn = tokens.index_copy(0, rows, drawn)
        chosen = chosen.new_zeros(len(tokens)).index_copy(0, rows, chosen)
    if stay_masked == 0:
        return drawn
    chosen = chosen.masked_fill(~masked, torch.finfo(chosen.dtype).max)
    confidence = torch.log(chosen.clamp(1e-20)) + temperature * gumbel_noise(chosen, generator)
    threshold = confidence.sort().values[stay_masked]
    return drawn.masked_fill(confidence < threshold, mask_token_id)


def draw(probabilities: Tensor, length: int, generator: torch.Generator, rows: Tensor | None = None) -> Tensor:
    """What `torch.multinomial(probabilities, 1)` draws for `length` positions, in `rows` (all by default).

    A race of exponential clocks, as there; the generator moves on by all positions, so that a draw does not depend on
    which positions are asked for.
    """
    weights = probabilities.to(generator.device)
    if weights.device.type == "cpu":
        weights = weights.float()  # where the reference draws; half precision has too few values for it
        if clocks_are_logarithms():
            return race(weights, length, generator, rows).to(probabilities.device)
    clocks = torch.empty((length, weights.shape[1]), dtype=weights.dtype, device=weights.device)
    clocks.exponential_(generator=generator)
    return (weights / (clocks if rows is None else clocks[rows])).argmax(dim=-1).to(probabilities.device)


def race(weights: Tensor, length: int, generator: torch.Generator, rows: Tensor | None) -> Tensor:
    """The winners, on a CPU. Most of the time of an exponential clock goes into its logarithm: taken here for the
    positions asked for alone, by all cores, and of few enough at once that they stay in the cache.
    """
    rows = torch.arange(length) if rows is None else rows
    counts = torch.bincount(rows // ROWS_AT_ONCE, minlength=-(-length // ROWS_AT_ONCE)).tolist()
    uniform = torch.empty((min(length, ROWS_AT_ONCE), weights.shape[1]), dtype=torch.float64)
    winners, first = [], 0
    for here, weight in zip(rows.split(counts), weights.split(counts)):
        drawn = uniform[: length - first].uniform_(generator=generator)[here - first]
        winners.append((weight / drawn.neg_().log1p_().neg_().float()).argmax(dim=-1))
        first += ROWS_AT_ONCE
    return torch.cat(winners)


@functools.cache
def clocks_are_logarithms() -> bool:
    """Whether exponential draws on this machine are the logarithms of uniform ones, value for value."""
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    clocks = torch.empty(4096).exponential_(generator=one)
    uniform = torch.empty(4096, dtype=torch.float64).uniform_(generator=other)
    return torch.equal(clocks, -torch.log1p(-uniform).float()) and torch.equal(one.get_state(), other.get_state())


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.zeros_like(like, device=generator.device).uniform_(0, 1, generator=generator).to(like.device)
    return -torch.log((-torch.log(noise.clamp(1e-20))).clamp(1e-20))
