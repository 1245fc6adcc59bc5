"""How many images a GPU samples together.

A GPU takes hardly longer for several images than for one. The network always sees batches of the same shape, since
another shape can mean another kernel and other roundings: a short batch, and a single image, are filled up.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from amused.errors import UserError
from amused.model.transformer import Conditioning, UViT

RESERVE = 0.2  # of the free memory, for the decoder and for what other programs take
NO_MEMORY = "The GPU is out of memory: ask for a smaller image, or try again later."


def batch_for(free: int, per_image: int, cap: int) -> int:
    """The largest power of two of images, from 1 to `cap`, that fit into the free memory.

    Args:
        free: bytes.
        per_image: bytes that each image adds to a batch.
    """
    size = 1
    while 2 * size <= cap and 2 * size * per_image <= (1 - RESERVE) * free:
        size *= 2
    return size


def batch_size_on_gpu(network: UViT, conditioning: Conditioning, side: int, cap: int) -> int:
    """The number of images to sample together, measured on the network's GPU.

    1 where an image would depend on its place in the batch.

    Args:
        conditioning: `UViT.condition` of one prompt. With guidance the network sees each image twice: that is measured,
            whether the first recipe has guidance or not.
        side: tokens, height and width of an image.
    """
    if cap == 1:
        return 1
    guided = repeat(conditioning, 2)
    peaks = []
    try:
        for size in (1, 2):
            torch.cuda.reset_peak_memory_stats()
            logits_of(network, guided, random_tokens(network, size, side))
            peaks.append(torch.cuda.max_memory_allocated())
        free, _ = torch.cuda.mem_get_info()
        size = batch_for(free, max(1, peaks[1] - peaks[0]), cap)
        alike = all(rows_are_independent(network, prompts, size, side) for prompts in (conditioning, guided))
        return size if alike else 1
    except torch.OutOfMemoryError:
        return 1


@torch.inference_mode()
def rows_are_independent(network: UViT, conditioning: Conditioning, size: int, side: int) -> bool:
    """Whether an image's logits are bit-identical at any position in a batch, whatever the other images are."""
    tokens = random_tokens(network, size, side)
    logits = logits_of(network, conditioning, tokens)
    turned = logits_of(network, conditioning, tokens.roll(1, dims=0))
    alone = logits_of(network, conditioning, tokens[:1].expand(size, -1, -1))
    return torch.equal(turned, logits.roll(1, dims=1)) and torch.equal(alone, logits[:, :1].expand_as(alone))


@torch.inference_mode()
def logits_of(network: UViT, conditioning: Conditioning, tokens: Tensor) -> Tensor:
    """Of each image for each prompt: (p, b, n, codebook)."""
    prompts = conditioning[0][0].shape[0]
    logits = network(tokens.repeat(prompts, 1, 1), repeat(conditioning, len(tokens)))
    return logits.view(prompts, len(tokens), *logits.shape[1:])


def repeat(conditioning: Conditioning, times: int) -> Conditioning:
    """Each row `times` times, next to one another."""
    if times == 1:
        return conditioning
    return [tuple(tensor.repeat_interleave(times, dim=0) for tensor in stage) for stage in conditioning]


def random_tokens(network: UViT, size: int, side: int) -> Tensor:
    device = network.mlm_layer.conv1.weight.device
    generator = torch.Generator().manual_seed(0)
    return torch.randint(network.config.codebook_size, (size, side, side), generator=generator).to(device)


@contextmanager
def out_of_memory_refused() -> Generator[None]:
    """Say it in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise UserError(NO_MEMORY) from error
