"""The VQ-GAN of the bundled checkpoint: one token per 2x2 art pixels, which are 16x16 image pixels of 256x256.

Each part is made in a way that is exact for pixel art:

- The encoder is constructed, not trained: it averages to art pixels and gathers the twelve values of a 2x2 patch. A
  patch is the same token everywhere, whatever surrounds it. Tokens are thus a clean target for the transformer, and
  inpainting keeps all other tokens.
- The codes are the commonest patches and means of the others (a trained encoder of equal size lost 1 % of the traits).
- The decoder is constructed, too (`nouns/decoder.py`): it draws a code's four art pixels wherever the token is. The
  result is an ordinary VQGAN of factor 16, but for sizes other than its own: these are decoded in tiles.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amused.model.vqgan import VQGAN, Downsample, ResnetBlock, VQGANConfig
from amused.training.nouns.data import HELD_OUT, Nouns, Vocabulary
from amused.training.nouns.decoder import construct_decoder

Module = TypeVar("Module", bound=nn.Module)

PATCH = 12  # values of 2x2 pixels of 3 colours
ANCHOR = 16.0  # constant channels that dominate the statistics of group norms, so these do not depend on the image
LINEAR = 8.0  # offset at which SiLU is the identity within 0.3 %

CONFIG = VQGANConfig(
    down_block_types=("DownEncoderBlock2D",) * 5,
    up_block_types=("UpDecoderBlock2D",) * 5,
    block_out_channels=(16, 16, 32, 64, 96),
    layers_per_block=1,
    latent_channels=PATCH,
    sample_size=256,
    num_vq_embeddings=8192,
    norm_num_groups=4,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
    tile_size=256,
)


def of_type(modules: Iterable[nn.Module], kind: type[Module]) -> list[Module]:
    return [module for module in modules if isinstance(module, kind)]


def patches(art: Tensor) -> Tensor:
    """Art pixels (batch, 3, 32, 32) to patches (batch, 16, 16, 12), ordered row, column, colour."""
    batch, colours, height, width = art.shape
    split = art.reshape(batch, colours, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3)


@torch.no_grad()
def set_pointwise(conv: nn.Conv2d, matrix: Tensor, bias: Tensor | float = 0.0) -> None:
    """Make a convolution of any odd size multiply each pixel by `matrix` (out, in), which may cover part of it."""
    middle = conv.kernel_size[0] // 2
    conv.weight.zero_()
    conv.weight[: matrix.shape[0], : matrix.shape[1], middle, middle] = matrix
    assert conv.bias is not None
    conv.bias.copy_(torch.zeros_like(conv.bias) + bias)


@torch.no_grad()
def clear(conv: nn.Conv2d) -> None:
    conv.weight.zero_()
    assert conv.bias is not None
    conv.bias.zero_()


@torch.no_grad()
def set_identity(resnet: ResnetBlock) -> None:
    """Reduce a resnet to its shortcut."""
    clear(resnet.conv2)
    if resnet.conv_shortcut is not None:
        shortcut = resnet.conv_shortcut
        set_pointwise(shortcut, torch.eye(shortcut.out_channels, shortcut.in_channels))


@torch.no_grad()
def set_box_filter(downsample: Downsample) -> None:
    """Make a downsampling average 2x2 pixels."""
    clear(downsample.conv)
    for channel in range(downsample.conv.out_channels):
        downsample.conv.weight[channel, channel, :2, :2] = 0.25


@torch.no_grad()
def construct_encoder(model: VQGAN) -> None:
    """Set the encoder and `quant_conv` so that latents are the twelve values of a patch, in [-1, 1].

    The last group norm would mix the image's statistics into every token. So each of its groups gets constant channels
    of +-ANCHOR, which dominate the variance. The gain undoes the division, and an offset of LINEAR moves the values to
    where SiLU is linear.
    """
    encoder, config = model.encoder, model.config
    width, groups = config.block_out_channels[-1], config.norm_num_groups
    set_pointwise(
        encoder.conv_in, torch.eye(3) * 2, torch.tensor([-1.0] * 3 + [0.0] * (config.block_out_channels[0] - 3))
    )
    resnets, downsamples = of_type(encoder.modules(), ResnetBlock), of_type(encoder.modules(), Downsample)
    for resnet in resnets:
        set_identity(resnet)
    for downsample in downsamples:
        set_box_filter(downsample)
    gather = downsamples[-1].conv  # to one pixel per patch: each of its four pixels goes to channels of its own
    gather.weight.zero_()
    for row in range(2):
        for column in range(2):
            for colour in range(3):
                gather.weight[(row * 2 + column) * 3 + colour, colour, row, column] = 1.0
    size = width // groups
    home = torch.tensor([(i % groups) * size + 2 * (i // groups) for i in range(PATCH)])  # spread over the groups
    values = torch.arange(PATCH)
    spread = torch.zeros(width, gather.out_channels)
    spread[home, values] = 1.0
    spread[home + 1, values] = -1.0  # keeps the mean of the group at zero
    anchors = torch.tensor([ANCHOR if channel % 2 else -ANCHOR for channel in range(width)])
    anchors[home] = anchors[home + 1] = 0.0
    shortcut = of_type(encoder.down_blocks[-1].modules(), ResnetBlock)[0].conv_shortcut
    assert shortcut is not None
    set_pointwise(shortcut, spread, anchors)
    grouped = anchors.view(groups, size)
    std, mean = grouped.std(dim=1, correction=0).repeat_interleave(size), grouped.mean(dim=1).repeat_interleave(size)
    encoder.conv_norm_out.weight.copy_(std)
    encoder.conv_norm_out.bias.copy_(LINEAR + mean)
    pick = torch.zeros(PATCH, width)
    pick[values, home] = 1.0
    set_pointwise(encoder.conv_out, pick, -LINEAR)
    set_pointwise(model.quant_conv, torch.eye(PATCH))
    set_pointwise(model.post_quant_conv, torch.eye(PATCH))


def sample_art(nouns: Nouns, vocabulary: Vocabulary, rng: random.Random, count: int, accessories: float) -> Tensor:
    """Random characters, all pairs of head and glasses among them, (count, 3, 32, 32) in [0, 1].

    `accessories` is the share that wears one.
    """
    art = np.stack([nouns.render(vocabulary.sample(rng, accessories, HELD_OUT)) for _ in range(count)])
    return torch.from_numpy(art).permute(0, 3, 1, 2).float() / 255


def fit_codebook(
    nouns: Nouns, known: Vocabulary, everything: Vocabulary, codes: int, characters: int = 40_000
) -> NDArray[np.float32]:
    """The codes (codes, 12) for characters with known traits and a few with any traits.

    Three quarters are the commonest patches themselves, which are most of an image: these come back exactly. The others
    are means of rarer ones. With real patches alone, rare ones would come back with a pixel of another colour: glasses
    on a head that they were never seen with would look wrong.
    """
    rng = random.Random(0)
    art = torch.cat(
        [
            sample_art(nouns, known, rng, characters, accessories=0.03),
            sample_art(nouns, everything, rng, characters // 13, accessories=0.3),
        ]
    )
    flat = patches(art * 2 - 1).reshape(-1, PATCH).numpy()
    unique, counts = np.unique(flat, axis=0, return_counts=True)
    points, weights = torch.from_numpy(unique), torch.from_numpy(counts).float()
    order = weights.argsort(descending=True)
    common, rare = order.tensor_split([codes * 3 // 4])
    means = weighted_kmeans(points[rare], weights[rare] ** 0.75, points[common], codes - len(common), rounds=8, seed=0)
    return torch.cat([points[common], means]).numpy()


def weighted_kmeans(points: Tensor, weights: Tensor, fixed: Tensor, count: int, rounds: int, seed: int) -> Tensor:
    """Cluster points (n, dim) by weight (n,) around `count` centres, next to the `fixed` ones: (count, dim)."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[weights.topk(count // 2).indices]
    while len(centres) < count:  # the other half by k-means++ in batches
        distance = torch.cdist(points, torch.cat([fixed, centres])).amin(dim=1).square() * weights
        extra = torch.multinomial(distance, min(count - len(centres), max(1, count // 8)), generator=generator)
        centres = torch.cat([centres, points[extra]])
    for _ in range(rounds):
        codes = torch.cat([fixed, centres])
        nearest = torch.cat([torch.cdist(part, codes).argmin(dim=1) for part in points.split(4000)]) - len(fixed)
        free = nearest >= 0
        mass = torch.zeros(count).index_add_(0, nearest[free], weights[free])
        total = torch.zeros_like(centres).index_add_(0, nearest[free], points[free] * weights[free, None])
        centres = torch.where(mass[:, None] > 0, total / mass.clamp(min=1e-9)[:, None], centres)
    return centres


def new_vqgan(nouns: Nouns, known: Vocabulary, everything: Vocabulary) -> VQGAN:
    codebook = fit_codebook(nouns, known, everything, CONFIG.num_vq_embeddings)
    return construct_vqgan(torch.from_numpy(codebook))


@torch.no_grad()
def construct_vqgan(codebook: Tensor) -> VQGAN:
    """The VQ-GAN of a codebook, (codes, 12)."""
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    model.quantize.embedding.weight.copy_(codebook)
    construct_encoder(model)
    construct_decoder(model)
    return model.eval().requires_grad_(False)
