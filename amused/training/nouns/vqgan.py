"""The VQ-GAN of the bundled checkpoint: one token per art pixel, which is 8x8 image pixels of 256x256.

It is constructed, not trained. The codes are the colours of the data. The encoder averages each square of 8x8 pixels
and takes the nearest colour, the decoder fills the square with it: pixel art comes back bit for bit, and a change of
one token changes one art pixel. The result is an ordinary VQGAN of factor 8.

A colour value v in [-1, 1] passes the group norms and activations of the decoder unchanged, since it is four channels:
v, sqrt(1 - v^2), -v and -sqrt(1 - v^2). Their mean is 0 and their variance 1/2 in every image, and
silu(v) - silu(-v) = v.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amused.model.vqgan import VQGAN, Downsample, Upsample, VQGANConfig
from amused.training.nouns.data import SCALE, SIZE

COLOURS = 3
GROUP = 4  # channels of a colour value
WIDTH = COLOURS * GROUP
SMALL = 2.0**-9  # scale of a code's square roots, so small that they do not matter for which code is nearest
ANCHOR = 64.0  # constant channels of the encoder that dominate the variance of its group norm


def config(codes: int) -> VQGANConfig:
    levels = SCALE.bit_length()  # each but the last halves the resolution
    return VQGANConfig(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(WIDTH,) * levels,
        layers_per_block=1,
        latent_channels=2 * COLOURS,
        sample_size=SIZE * SCALE,
        num_vq_embeddings=codes,
        norm_num_groups=COLOURS,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    )


@torch.no_grad()
def construct_vqgan(palette: Tensor) -> VQGAN:
    """The VQ-GAN whose codes are these colours, (codes, 3) in [0, 255]."""
    model = VQGAN(config(len(palette)))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            module.weight.zero_()
            module.bias.zero_()
    values = (palette.double() / 127.5 - 1).half().double()  # as the file holds them
    codes = torch.cat([values, SMALL * (1 - values.square()).sqrt()], dim=1)
    model.quantize.embedding.weight.copy_(codes)
    construct_encoder(model)
    construct_decoder(model)
    return model.eval().requires_grad_(False)


def construct_encoder(model: VQGAN) -> None:
    """Latents are the mean colour of a square, and zeros. A value's channels: v, -v, ANCHOR, -ANCHOR."""
    encoder = model.encoder
    for colour in range(COLOURS):
        value, opposite, anchor, against = range(colour * GROUP, (colour + 1) * GROUP)
        connect(encoder.conv_in, {value: {colour: 2.0}, opposite: {colour: -2.0}})
        set_bias(encoder.conv_in, {value: -1.0, opposite: 1.0, anchor: ANCHOR, against: -ANCHOR})
        connect(encoder.conv_out, {colour: {value: 1.0, opposite: -1.0}})
        connect(model.quant_conv, {colour: {colour: 1.0}})
    for module in encoder.modules():
        if isinstance(module, Downsample):
            for channel in range(WIDTH):
                module.conv.weight[channel, channel, :2, :2] = 0.25
    encoder.conv_norm_out.weight.fill_(ANCHOR / 2**0.5)


def construct_decoder(model: VQGAN) -> None:
    decoder = model.decoder
    for colour in range(COLOURS):
        root, first = COLOURS + colour, colour * GROUP
        connect(model.post_quant_conv, {colour: {colour: 1.0}, root: {root: 1 / SMALL}})
        connect(decoder.conv_in, {first: {colour: 1.0}, first + 1: {root: 1.0}})
        connect(decoder.conv_in, {first + 2: {colour: -1.0}, first + 3: {root: -1.0}})
        connect(decoder.conv_out, {colour: {first: 0.5, first + 2: -0.5}})
        set_bias(decoder.conv_out, {colour: 0.5})
    for module in decoder.modules():
        if isinstance(module, Upsample):
            nn.init.dirac_(module.conv.weight)
    decoder.conv_norm_out.weight.fill_(0.5**0.5)


def connect(conv: nn.Conv2d, weights: Mapping[int, Mapping[int, float]]) -> None:
    """Set weights by output and input channel, of the pixel itself. Those around it keep none."""
    middle = conv.kernel_size[0] // 2
    for out, inputs in weights.items():
        for into, weight in inputs.items():
            conv.weight[out, into, middle, middle] = weight


def set_bias(conv: nn.Conv2d, values: Mapping[int, float]) -> None:
    assert conv.bias is not None
    for channel, value in values.items():
        conv.bias[channel] = value
