"""Batches of tokens to train on. Images are encoded once and the tokens cached on disk.

All images are checked before the first step, so an unreadable one stops the run at once, not hours later. A batch is a
function of seed, step and position alone: a run that is resumed or distributed sees the same data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from amused.atomic import atomic_dir
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.images import load_image, to_tensor
from amused.model.vqgan import VQGAN
from amused.training.finetune.examples import Example, refuse

CROPS = 4  # per image that is not square; the published script draws a new one at every step
AESTHETIC_SCORE = 6.0
CACHE_FORMAT = 2


# Images to tokens


@dataclass(frozen=True)
class EncodedImages:
    """Tokens of all crops of all images. The cache file has one tensor for each attribute.

    Attributes:
        tokens: (crops, height, width) int32.
        micro: (crops, 5) micro-conditions, as `UViT.condition` takes them.
        first: (images,) the first crop of each image.
        count: (images,) the number of its crops.
    """

    tokens: Tensor
    micro: Tensor
    first: Tensor
    count: Tensor


def encode_images(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    resolution: int,
    cache: Path,
    device: torch.device,
    batch_size: int,
) -> EncodedImages:
    """Tokens of all images, from the cache if they are there.

    Args:
        resolution: side of a crop in pixels.
        cache: folder.
        batch_size: crops encoded at once. It does not change the tokens.
    """
    key = [CACHE_FORMAT, component_id(checkpoint, "vqvae"), resolution, [example.digest for example in examples]]
    folder = cache / f"tokens-{short_digest(key)}"
    if not folder.is_dir():
        check_images(examples)
        images = compute_tokens(checkpoint, examples, resolution, device, batch_size)
        with atomic_dir(folder) as part:
            save_file(vars(images), part / "tokens.safetensors")
    return EncodedImages(**load_file(folder / "tokens.safetensors"))


def compute_tokens(
    checkpoint: Checkpoint, examples: Sequence[Example], resolution: int, device: torch.device, batch_size: int
) -> EncodedImages:
    vqgan = checkpoint.load_vqgan(device, torch.float32)  # rounding in half precision changes tokens
    tokens: list[Tensor] = []
    micro: list[tuple[float, ...]] = []
    counts: list[int] = []
    pending: list[Image.Image] = []
    for example in tqdm(examples, desc="Encoding images", unit="image", disable=len(examples) < 2):
        image = load_image(example.open())
        crops = list(crops_of(image, resolution, example.digest))
        counts.append(len(crops))
        micro += [(image.width, image.height, top, left, AESTHETIC_SCORE) for _, left, top in crops]
        pending += [crop for crop, _, _ in crops]
        while len(pending) >= batch_size:
            tokens.append(encode_batch(vqgan, pending[:batch_size], device))
            del pending[:batch_size]
    if pending:
        tokens.append(encode_batch(vqgan, pending, device))
    count = torch.tensor(counts)
    return EncodedImages(torch.cat(tokens), torch.tensor(micro), count.cumsum(0) - count, count)


@torch.inference_mode()
def encode_batch(vqgan: VQGAN, images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Images of equal size to tokens, (batch, height, width) int32 on the CPU."""
    pixels = torch.cat([to_tensor(image) for image in images]).to(device)
    return vqgan.encode(pixels).to("cpu", torch.int32)


def check_images(examples: Sequence[Example]) -> None:
    """Decode every image once, and refuse those that cannot be used."""
    broken = []
    for example in examples:
        try:
            load_image(example.open())
        except UserError as error:
            broken.append(f"{example.name}: {error}")
        except Exception:  # `datasets` decodes images itself and raises all kinds
            broken.append(f"{example.name}: it cannot be read.")
    refuse(broken, len(examples), "images")


def crops_of(image: Image.Image, resolution: int, digest: str) -> Iterator[tuple[Image.Image, int, int]]:
    """Random square crops of an image whose shorter side is scaled to the resolution, without duplicates.

    Yields:
        The crop, and its distance from the left and from the top, in pixels of the scaled image.
    """
    shorter, longer = sorted(image.size)
    max_offset = longer * resolution // shorter - resolution
    generator = generator_for("crop", digest)
    for offset in {int(torch.randint(max_offset + 1, (), generator=generator)): None for _ in range(CROPS)}:
        left, top = (offset, 0) if image.width > image.height else (0, offset)
        # Scale only the crop: a whole image of 1x5000 pixels would not fit in memory.
        x, y = left * shorter / resolution, top * shorter / resolution
        box = (x, y, x + shorter, y + shorter)
        yield image.resize((resolution, resolution), Image.Resampling.BILINEAR, box), left, top


# Batches


@dataclass(frozen=True)
class Sample:
    """One element of a batch.

    Attributes:
        crop: index into `EncodedImages.tokens`.
        caption: "" if it is dropped.
        masked: (height, width) bool.
        mask_ratio: share of masked tokens that was drawn.
    """

    crop: int
    caption: str
    masked: Tensor
    mask_ratio: float


class Batches:
    """An endless sequence of batches. Each epoch shows every image once, in a new order."""

    def __init__(self, images: EncodedImages, captions: Sequence[str], options: argparse.Namespace, seed: int) -> None:
        self.images, self.captions, self.seed = images, captions, seed
        self.cond_dropout: float = options.cond_dropout_prob
        self.min_mask_ratio: float = options.min_masking_rate
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        generator = generator_for(self.seed, "order", epoch)
        order: list[int] = torch.randperm(len(self.captions), generator=generator).tolist()
        return order

    def draw(self, step: int, batch_size: int) -> list[Sample]:
        """The batch of a step, over all devices and passes."""
        return [self._draw(step, position, batch_size) for position in range(batch_size)]

    def _draw(self, step: int, position: int, batch_size: int) -> Sample:
        epoch, index = divmod(step * batch_size + position, len(self.captions))
        image = self.order(epoch)[index]
        generator = generator_for(self.seed, step, position)
        height, width = self.images.tokens.shape[1:]
        ratio = math.cos(torch.rand((), generator=generator).item() * math.pi / 2)  # MUSE, section 2.4
        ratio = max(ratio, self.min_mask_ratio)
        num_masked = max(1, round(height * width * ratio))
        masked = torch.rand(height * width, generator=generator).argsort() < num_masked
        crop = int(self.images.first[image] + torch.randint(int(self.images.count[image]), (), generator=generator))
        dropped = torch.rand((), generator=generator).item() < self.cond_dropout
        return Sample(crop, "" if dropped else self.captions[image], masked.view(height, width), ratio)

    def tensors(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (batch, height, width) int64, their mask (batch, height, width) bool, micro-conditions (batch, 5)."""
        crops = [sample.crop for sample in samples]
        masked = torch.stack([sample.masked for sample in samples])
        return self.images.tokens[crops].long(), masked, self.images.micro[crops]


# Keys of caches and random numbers


def component_id(checkpoint: Checkpoint, component: str) -> list[object]:
    """Identifies a component's weights without reading them: by commit for the Hub, else by size and time of files."""
    folder = checkpoint.folder.resolve()
    if checkpoint.fetch is not None:
        return [str(folder)]  # its name holds the commit
    files = sorted((folder / component).glob("*.safetensors"))
    return [[file.name, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]


def short_digest(value: object) -> str:
    """16 hex digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def generator_for(*parts: object) -> torch.Generator:
    """A generator seeded by these parts alone."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
