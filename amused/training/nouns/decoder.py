"""A decoder that is constructed, not trained: it draws the 2x2 art pixels of every code, whatever surrounds it.

Upsampling repeats a token for its four art pixels, and a convolution cannot tell these apart: away from the border it
treats all positions alike. So positions are counted from the border, where convolutions see zeros:

1. At token resolution, four resnets shift a constant away from each border, two cells at a time. Sums of the shifted
   constants are ramps, which rise by 1 per cell over a grid of up to 16 cells. Larger images are decoded in tiles.
2. After the first upsampling, a ramp's difference from the left (upper) neighbour is 1 in the first column (row) of a
   token's pixels and 0 in the second. A resnet clamps it to exactly 0 or 1.
3. The next resnet has a gate for each of the 12 values of a code: open where column and row are those of the value.
4. All else only upsamples.

Every quantity q is a pair of channels, q and -q, since silu(q) - silu(-q) = q. Channels without one hold constants,
"anchors", far larger than any quantity. They dominate the statistics of the group norms, so these are the same in every
image and their gain and offset can undo them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amused.model.vqgan import VQGAN, Level, ResnetBlock, Upsample

GROUPS = 4  # of the group norms
GRID = 16  # cells a side of a tile
PATCH = 12  # the values of a code: 2 rows, 2 columns, 3 colours

ANCHOR = 64.0
LARGE_ANCHOR = 512.0  # where quantities are scaled by STEEP
STEEP = 20.0  # SiLU of a quantity scaled by it is nearly a ramp with a sharp corner
CLOSED = 12.0  # subtracted from a value by a closed gate: SiLU of the rest is nearly 0

Pair = tuple[int, int]
"""The channels of q and -q."""


def pairs(group: int, width: int, count: int) -> list[Pair]:
    """The first `count` pairs of channels of a group."""
    first = group * width // GROUPS
    return [(channel, channel + 1) for channel in range(first, first + 2 * count, 2)]


def channels(used: Iterable[Pair]) -> set[int]:
    return {channel for pair in used for channel in pair}


def set_anchors(bias: Tensor | None, used: Collection[int], size: float = ANCHOR) -> None:
    """Anchors in all channels that are not used, of alternating sign, so that the mean of a group stays zero."""
    assert bias is not None
    for channel in range(len(bias)):
        if channel not in used:
            bias[channel] = -size if channel % 2 else size


def add(conv: nn.Conv2d, target: Pair, source: Pair, weight: float, offset: tuple[int, int] = (0, 0)) -> None:
    """target += weight * source, which is activated and read at an offset (row, column)."""
    row, column = 1 + offset[0], 1 + offset[1]
    for channel, sign in zip(target, (1, -1)):
        conv.weight[channel, source[0], row, column] += sign * weight
        conv.weight[channel, source[1], row, column] -= sign * weight


def copy(conv: nn.Conv2d, target: Pair, source: Pair, weight: float = 1.0, offset: tuple[int, int] = (0, 0)) -> None:
    """target += weight * source, which is not activated."""
    middle = conv.kernel_size[0] // 2
    for out, into in zip(target, source):
        conv.weight[out, into, middle + offset[0], middle + offset[1]] += weight


def clear(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.zero_()
            assert conv.bias is not None
            conv.bias.zero_()


# The quantities of each resolution. The ramps have a group of their own: their statistics depend on the image's size.

VALUES = [pairs(i % 3, 96, 4)[i // 3] for i in range(PATCH)]  # by row, column, colour
LEFT, RIGHT, TOP, BOTTOM, X, Y = pairs(3, 96, 6)

UPSAMPLED_VALUES = [*pairs(1, 64, 6), *pairs(2, 64, 6)]
PARITIES = pairs(3, 64, 2)  # of x and y
COLOURS = [(0, 1), (4, 5), (8, 9)]  # each in a group of its own at the last resolution, of 16 channels

SHIFTS = {LEFT: (0, -1), RIGHT: (0, 1), TOP: (-1, 0), BOTTOM: (1, 0)}


@torch.no_grad()
def construct_decoder(model: VQGAN) -> None:
    """Set `post_quant_conv` and the decoder, for codes that are the twelve values of a patch in [-1, 1].

    The levels are those of `nouns.vqgan.CONFIG`. Shared norms are fitted to images of random codes.
    """
    decoder = model.decoder
    first, second, *others = decoder.up_blocks
    assert isinstance(first, Level) and isinstance(second, Level)
    clear(decoder)
    clear(model.post_quant_conv)
    model.post_quant_conv.weight.copy_(torch.eye(PATCH)[..., None, None])

    build_start(decoder.conv_in)
    shifting = [*resnets(decoder.mid_block), *resnets(first)]
    for index, resnet in enumerate(shifting):
        build_shift(resnet, is_last=index == len(shifting) - 1)
    upsample = upsampling(first)
    build_parity(upsample)
    clamping, gating = resnets(second)
    build_clamp(clamping)
    build_gates(gating)
    for level in (second, *others):
        if level is not others[-1]:
            set_identity(upsampling(level))
    for level in others:
        for resnet in resnets(level):
            if resnet.conv_shortcut is not None:
                set_identity(resnet.conv_shortcut)
    build_end(decoder.conv_out)

    tokens = torch.randint(model.config.num_vq_embeddings, (16, GRID, GRID), generator=torch.Generator().manual_seed(0))
    x = decoder.conv_in(model.quantize.embedding(tokens).permute(0, 3, 1, 2))
    for resnet in shifting:
        x = fit_norms(resnet, x)
    x = upsample(F.interpolate(x, scale_factor=2.0))
    x = fit_norms(gating, fit_norms(clamping, x))
    fit_norm(decoder.conv_norm_out, x[:, : decoder.conv_norm_out.num_channels])


def resnets(level: nn.Module) -> list[ResnetBlock]:
    return [module for module in level.modules() if isinstance(module, ResnetBlock)]


def upsampling(level: nn.Module) -> nn.Conv2d:
    (upsample,) = [module for module in level.modules() if isinstance(module, Upsample)]
    assert isinstance(upsample.conv, nn.Conv2d)
    return upsample.conv


def set_identity(conv: nn.Conv2d) -> None:
    middle = conv.kernel_size[0] // 2
    conv.weight[:, :, middle, middle] = torch.eye(conv.out_channels, conv.in_channels)


def build_start(conv: nn.Conv2d) -> None:
    """The values of the code, a constant to shift from each border, and ramps that are still flat."""
    assert conv.bias is not None
    for index, pair in enumerate(VALUES):
        for channel, sign in zip(pair, (1, -1)):
            conv.weight[channel, index, 1, 1] = sign
    # After eight shifts from one side and seven from the other, the ramp is 1 in the first cell.
    for pair, constant in {LEFT: 1, RIGHT: 1, TOP: 1, BOTTOM: 1, X: GRID // 2, Y: GRID // 2}.items():
        for channel, sign in zip(pair, (1, -1)):
            conv.bias[channel] = sign * constant
    set_anchors(conv.bias, channels([*VALUES, LEFT, RIGHT, TOP, BOTTOM, X, Y]))


def build_shift(resnet: ResnetBlock, is_last: bool) -> None:
    """Shift each constant by two cells and add both shifts to its ramp; of two opposite ones, one is shifted less."""
    conv1, conv2 = resnet.conv1, resnet.conv2
    hidden = [(channel, channel + 1) for channel in range(0, 16, 2)]
    for index, (constant, offset) in enumerate(SHIFTS.items()):
        shifted, here = hidden[2 * index : 2 * index + 2]
        add(conv1, shifted, constant, 1, offset)
        add(conv1, here, constant, 1)
        ramp = X if constant in (LEFT, RIGHT) else Y
        sign = 1 if constant in (LEFT, TOP) else -1
        add(conv2, ramp, shifted, sign)
        if sign == 1 or not is_last:
            add(conv2, ramp, shifted, sign, offset)
        add(conv2, constant, shifted, 1, offset)
        add(conv2, constant, here, -1)
    set_anchors(conv1.bias, channels(hidden))


def build_parity(conv: nn.Conv2d) -> None:
    """1 or more in the first column (row) of a token's pixels, 0 in the second."""
    for pair in VALUES:
        copy(conv, pair, pair)
    for ramp, offset in ((X, (0, -1)), (Y, (-1, 0))):
        copy(conv, ramp, ramp)
        copy(conv, ramp, ramp, -1, offset)
    set_anchors(conv.bias, channels([*VALUES, X, Y]))


def build_clamp(resnet: ResnetBlock) -> None:
    """clamp(2 q - 0.5, 0, 1), as the difference of two ramps; the values pass."""
    conv1, conv2, shortcut = resnet.conv1, resnet.conv2, resnet.conv_shortcut
    assert conv1.bias is not None and shortcut is not None
    hidden = [(channel, channel + 1) for channel in range(0, 8, 2)]
    for index, (ramp, parity) in enumerate(zip((X, Y), PARITIES)):
        for corner, sign, pair in zip((0.5, 1.5), (1, -1), hidden[2 * index : 2 * index + 2]):
            add(conv1, pair, ramp, 2 * STEEP)
            for channel, side in zip(pair, (1, -1)):
                conv1.bias[channel] = -side * corner * STEEP
            for channel, side in zip(parity, (1, -1)):
                conv2.weight[channel, pair[0], 1, 1] = side * sign / STEEP
    set_anchors(conv1.bias, channels(hidden), LARGE_ANCHOR)
    for target, source in zip(UPSAMPLED_VALUES, VALUES):
        copy(shortcut, target, source)
    set_anchors(shortcut.bias, channels([*UPSAMPLED_VALUES, *PARITIES, *COLOURS]))


def build_gates(resnet: ResnetBlock) -> None:
    """Add the value of this row and column to each colour."""
    conv1, conv2 = resnet.conv1, resnet.conv2
    assert conv1.bias is not None
    gates = [pairs(index % GROUPS, 64, 3)[index // GROUPS] for index in range(PATCH)]
    for index, gate in enumerate(gates):
        row, column, colour = index // 6, index // 3 % 2, index % 3
        add(conv1, gate, UPSAMPLED_VALUES[index], 1)
        for parity, place in zip(PARITIES, (column, row)):
            for channel in gate:  # both are lowered where the parity is another one than 1 - place
                towards = -CLOSED if place else CLOSED
                conv1.weight[channel, parity[0], 1, 1] += towards
                conv1.weight[channel, parity[1], 1, 1] -= towards
                conv1.bias[channel] -= 0 if place else CLOSED
        add(conv2, COLOURS[colour], gate, 1)
    set_anchors(conv1.bias, channels(gates))


def build_end(conv: nn.Conv2d) -> None:
    """Colours in [-1, 1] to [0, 1]."""
    assert conv.bias is not None
    for index, (plus, minus) in enumerate(COLOURS):
        conv.weight[index, plus, 1, 1], conv.weight[index, minus, 1, 1] = 0.5, -0.5
        conv.bias[index] = 0.5


def fit_norms(resnet: ResnetBlock, x: Tensor) -> Tensor:
    """Make both norms of a resnet give what they are given, here and in similar images. Returns its output."""
    h = resnet.conv1(F.silu(fit_norm(resnet.norm1, x)))
    h = resnet.conv2(F.silu(fit_norm(resnet.norm2, h)))
    return h + (x if resnet.conv_shortcut is None else resnet.conv_shortcut(x))


def fit_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    grouped = x.unflatten(1, (norm.num_groups, -1))
    mean = grouped.mean(dim=(2, 3, 4)).mean(dim=0)
    std = (grouped.var(dim=(2, 3, 4), correction=0) + norm.eps).sqrt().mean(dim=0)
    size = norm.num_channels // norm.num_groups
    norm.weight.copy_(std.repeat_interleave(size))
    norm.bias.copy_(mean.repeat_interleave(size))
    return norm(x)
