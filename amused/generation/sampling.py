"""Masked-token sampling: the mask schedule and the unmasking step (MaskGIT, arXiv 2202.04200; MUSE, arXiv 2301.00704).

Pure functions over a batch of token sequences. Every row has its own generator and takes its draws in the reference's
order (one multinomial draw per position, then the Gumbel noise), so a seed gives the reference's tokens in any batch.
Not in the reference: the annealed sampler, and the corrector, which masks the least likely tokens and draws them again.
Nothing here waits for a GPU except `sampling_steps`, which runs once before the loop.

Shapes: b images, n positions of an image, k positions with logits, c codes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 32
CORRECTED = 0.1
"""The share of the tokens that a corrector round draws again."""


@dataclass(frozen=True)
class StepPlan:
    """What a step does.

    Attributes:
        number: counts the steps that run, from 1.
        num_masked: (b,) tokens per image that are still masked after this step; None after the last one: none are.
        temperature: 0-dimensional, of the Gumbel noise on the confidence, 0 or more.
        sample_temperature: of the logits that the annealed sampler draws from; at 0 each token is the likeliest. None
            for the reference's sampler.
        num_to_mask: for the first half of a corrector round: tokens per image to mask, instead of unmasking any.
    """

    number: int
    num_masked: Tensor | None
    temperature: Tensor
    sample_temperature: float | None = None
    num_to_mask: int | None = None


def sampling_steps(
    schedule: str,
    steps: int,
    temperature: tuple[float, float],
    masked: Tensor,
    *,
    start: int = 0,
    scale_by_mask: bool = False,
    sampler: str = "multinomial",
) -> list[StepPlan]:
    """The steps from `start` on.

    Args:
        schedule: "cosine" or "linear".
        temperature: at the first and the last step; linear in between.
        masked: (b, n) bool, the masked tokens before the first step that runs.
        start: the number of steps to skip.
        scale_by_mask: scale the schedule by the masked share of each image (inpainting, tasks on tokens).
        sampler: "multinomial" or "annealed".
    """
    ratios = mask_schedule(schedule, steps, masked.device)[start:]
    initial = masked.sum(dim=1)
    mask_ratio = initial / masked.shape[1] if scale_by_mask else torch.ones(len(masked), device=masked.device)
    counts = num_masked(ratios, masked.shape[1], initial, mask_ratio)
    temperatures = torch.linspace(*temperature, steps, device=masked.device)[start:]
    plans = zip((*counts, None), temperatures, sample_temperatures(sampler, steps)[start:], strict=True)
    return [StepPlan(i, *plan) for i, plan in enumerate(plans, start=1)]


def sample_temperatures(sampler: str, steps: int) -> list[float | None]:
    """At each step: none ("multinomial"), or from 1 down to 0 over the first half of the steps ("annealed")."""
    if sampler == "multinomial":
        return [None] * steps
    return [max(0.0, 1 - 2 * step / steps) for step in range(steps)]


def corrector_plans(first: int, rounds: int, num_tokens: int, sampler: str, device: torch.device) -> list[StepPlan]:
    """Two passes a round: mask the least likely tokens, then draw them again.

    Args:
        first: the number of the first pass.
        num_tokens: that may change; a share of `CORRECTED` of them does.
    """
    count, no_noise = max(1, int(CORRECTED * num_tokens)), torch.zeros((), device=device)
    sample_temperature = None if sampler == "multinomial" else 0.0
    plans: list[StepPlan] = []
    for number in range(first, first + 2 * rounds, 2):
        plans.append(StepPlan(number, None, no_noise, num_to_mask=count))
        plans.append(StepPlan(number + 1, None, no_noise, sample_temperature))
    return plans


def mask_schedule(schedule: str, steps: int, device: torch.device | str) -> Tensor:
    """Share of tokens masked before each step and after the last: (steps + 1,) float32, from 1 to 0.

    Cosine: equation 1 of MaskGIT. Computed on the sampler's device, like the reference: a cosine that differs in its
    last bit can mask one more token.

    Raises:
        ValueError: no such schedule.
    """
    ratio = torch.arange(steps + 1, device=device) / steps
    if schedule == "cosine":
        return torch.cos(ratio * math.pi / 2)
    if schedule == "linear":
        return 1 - ratio
    raise ValueError(f'schedule is {schedule!r}, must be "cosine" or "linear"')


def num_masked(ratios: Tensor, length: int, initial: Tensor, mask_ratio: Tensor) -> Tensor:
    """How many tokens stay masked after each step but the last: (steps - 1, b) int64, on the device of `ratios`.

    Each step unmasks at least one token and leaves at least one masked.

    Args:
        ratios: (steps + 1,), the part of `mask_schedule` that runs.
        length: tokens per image.
        initial: (b,) tokens that are masked before the first step.
        mask_ratio: (b,) float32, scales the schedule.
    """
    wanted = (length * (mask_ratio * ratios[1:-1, None])).floor().tolist()
    counts, left = [], initial.tolist()
    for row in wanted:
        left = [max(1, min(before - 1, int(count))) for before, count in zip(left, row)]
        counts.append(left)
    return torch.tensor(counts, dtype=torch.int64).view(len(wanted), len(left)).to(ratios.device)


def apply_cfg(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (arXiv 2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


def mask_at_random(
    tokens: Tensor, mask_ratio: Tensor | float, mask_token_id: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Mask each token of one image (h, w) with probability `mask_ratio`, once per generator: (b, h, w)."""
    draws = torch.stack([torch.rand(tokens.shape, device=one.device, generator=one) for one in generators])
    return torch.where(draws.to(tokens.device) < mask_ratio, mask_token_id, tokens)


def mask_least_likely(
    logits: Tensor, tokens: Tensor, mask_token_id: int, count: int, may_change: Tensor | None = None
) -> Tensor:
    """Mask the `count` tokens per image that have the lowest probability.

    Args:
        logits: (b, n, c), given all tokens.
        tokens: (b, h, w), none of them masked.
        may_change: (h, w) bool, the positions to choose from; None for all.
    """
    flat = tokens.flatten(1)
    scores = logits.float().log_softmax(dim=-1).gather(2, flat[..., None])[..., 0]
    if may_change is not None:
        scores = scores.masked_fill(~may_change.flatten(), torch.inf)
    least = scores.topk(count, dim=1, largest=False).indices
    return flat.scatter(1, least, mask_token_id).view(tokens.shape)


def unmask_step(
    logits: Tensor,
    tokens: Tensor,
    mask_token_id: int,
    step: StepPlan,
    generators: Sequence[torch.Generator],
    masked_idx: Tensor | None = None,
) -> Tensor:
    """Sample a token for every masked position, then mask the least confident again (MaskGIT, section 3.2).

    Args:
        logits: (b, n, c), or (b, k, c) at the positions `masked_idx`.
        tokens: (b, n) or (b, h, w), `mask_token_id` where masked; the others keep their value.
        generators: one per image, advanced as if all n positions were sampled.
        masked_idx: (b, k) ascending positions that include all masked ones.

    Returns:
        Tokens in the shape that they were given.
    """
    shape, tokens = tokens.shape, tokens.flatten(1)
    masked = tokens == mask_token_id
    probabilities = logits.softmax(dim=-1)
    if step.sample_temperature is None:
        sampled = sample_multinomial(probabilities, tokens.shape[1], generators, masked_idx)
    elif step.sample_temperature == 0:
        sampled = probabilities.argmax(dim=-1)
    else:
        tempered = probabilities if step.sample_temperature == 1 else (logits / step.sample_temperature).softmax(dim=-1)
        sampled = sample_inverse(tempered, tokens.shape[1], generators, masked_idx)
    chosen = probabilities.gather(2, sampled[..., None])[..., 0]  # b k
    if masked_idx is not None:
        sampled = tokens.scatter(1, masked_idx, sampled)
        chosen = chosen.new_zeros(tokens.shape).scatter(1, masked_idx, chosen)
    sampled = torch.where(masked, sampled, tokens)
    if step.num_masked is None:
        return sampled.view(shape)
    chosen = chosen.masked_fill(~masked, torch.finfo(chosen.dtype).max)
    temperature = step.temperature
    if temperature.device.type != "cpu":
        # Of one dimension or more it promotes to float32, as in the reference. On a CPU, images are kept as they were.
        temperature = temperature.view(1, 1)
    confidence = torch.log(chosen.clamp(1e-20)) + temperature * gumbel_noise(chosen, generators)
    threshold = confidence.sort(dim=1).values.gather(1, step.num_masked[:, None])
    return sampled.masked_fill(confidence < threshold, mask_token_id).view(shape)


def sample_multinomial(
    probabilities: Tensor, length: int, generators: Sequence[torch.Generator], masked_idx: Tensor | None = None
) -> Tensor:
    """The draws of `torch.multinomial(probabilities[i], 1, generator=generators[i])` for each image i: (b, k).

    Like torch's, a race of exponential clocks: the code with the largest weight / clock wins. Generators advance by
    all positions, so a draw does not depend on which positions are wanted.

    Args:
        probabilities: (b, k, c).
        length: n, the positions of an image.
        masked_idx: (b, k) ascending, the positions that the probabilities belong to; all n if None.
    """
    device = generators[0].device
    weights = probabilities.to(device)
    if device.type == "cpu":
        weights = weights.float()  # the reference samples in float32: half precision has too few values
        if clocks_are_logarithms():
            winners = [
                race(weights[i], length, generator, None if masked_idx is None else masked_idx[i])
                for i, generator in enumerate(generators)
            ]
            return torch.stack(winners).to(probabilities.device)
    clocks = weights.new_empty((len(weights), length, weights.shape[2]))
    for one, generator in zip(clocks, generators):
        one.exponential_(generator=generator)
    # On MPS a clock can be -0.0 (about 3 in 10^8): a weight of 0 over it is NaN, which argmax takes.
    clocks.masked_fill_(clocks <= 0, torch.finfo(clocks.dtype).tiny)
    if masked_idx is not None:
        clocks = clocks.gather(1, masked_idx[..., None].expand_as(weights))
    return (weights / clocks).argmax(dim=-1).to(probabilities.device)


def race(weights: Tensor, length: int, generator: torch.Generator, masked_idx: Tensor | None) -> Tensor:
    """The race for one image on a CPU: weights (k, c) to winners (k,).

    Most of the cost of an exponential clock is its logarithm. It is taken only at the wanted positions, multithreaded,
    in blocks of rows that stay in the cache.
    """
    masked_idx = torch.arange(length) if masked_idx is None else masked_idx
    counts = torch.bincount(masked_idx // ROWS_AT_ONCE, minlength=-(-length // ROWS_AT_ONCE)).tolist()
    uniform = torch.empty((min(length, ROWS_AT_ONCE), weights.shape[1]), dtype=torch.float64)
    winners, first = [], 0
    for here, weight in zip(torch.split(masked_idx, counts), torch.split(weights, counts)):
        drawn = uniform[: length - first].uniform_(generator=generator)[here - first]
        winners.append((weight / drawn.neg_().log1p_().neg_().float()).argmax(dim=-1))
        first += ROWS_AT_ONCE
    return torch.cat(winners)


@functools.cache
def clocks_are_logarithms() -> bool:
    """Whether this torch build draws exponentials as -log(1 - uniform), value for value."""
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    clocks = torch.empty(4096).exponential_(generator=one)
    uniform = torch.empty(4096, dtype=torch.float64).uniform_(generator=other)
    return torch.equal(clocks, -torch.log1p(-uniform).float()) and torch.equal(one.get_state(), other.get_state())


def sample_inverse(
    probabilities: Tensor, length: int, generators: Sequence[torch.Generator], masked_idx: Tensor | None = None
) -> Tensor:
    """Inverse transform sampling, with one random number per position instead of one per code: (b, k).

    In double precision: on a GPU the order of summation may depend on the batch, and rounding must not change a token.

    Args:
        probabilities: (b, k, c).
        length: n, the positions of an image; generators advance by all of them.
        masked_idx: (b, k), the positions that the probabilities belong to; all n if None.
    """
    device = generators[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    uniform = torch.stack([torch.rand(length, dtype=dtype, device=device, generator=one) for one in generators])
    if masked_idx is not None:
        uniform = uniform.gather(1, masked_idx.to(device))
    cumulative = probabilities.to(device, dtype).cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True)[..., 0]
    return drawn.clamp(max=probabilities.shape[2] - 1).to(probabilities.device)


def gumbel_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gumbel noise in the shape (b, n), dtype and device of `like`."""
    noise = torch.zeros_like(like, device=generators[0].device)
    for row, generator in zip(noise, generators):
        row.uniform_(0, 1, generator=generator)
    noise = noise.to(like.device)
    return -torch.log((-torch.log(noise.clamp(1e-20))).clamp(1e-20))
