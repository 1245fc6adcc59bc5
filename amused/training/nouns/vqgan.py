"""The VQ-GAN of the bundled checkpoint: one token for 2x2 art pixels (16x16 picture pixels of 256x256).

Three parts, each made in the way that is exact for pixel art:

- The encoder is constructed, not learnt: box-downsample to art pixels, then the twelve values of a 2x2 patch. A patch
  is the same token wherever it stands and whatever surrounds it, so tokens are a clean target for the U-ViT and
  an inpainted picture keeps its other tokens.
- The codebook is a weighted k-means over patches (a learnt encoder of equal size lost 1 % of the traits).
- The decoder is trained on mean squared error at art resolution, where a picture is 32x32. The three higher
  levels only resample: their residual branches are zero and their upsampling is nearest. The result is an ordinary
  VQGAN of factor 16.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amused.model.vqgan import VQGAN, Downsample, ResnetBlock, Upsample, VQGANConfig
from amused.training.nouns.data import Nouns, Vocabulary

PATCH = 12  # values of 2x2 pixels of 3 colours
ANCHOR = 16.0  # constant channels that dominate the group norms' statistics, so that these do not follow the picture
LINEAR = 8.0  # offset at which SiLU is the identity to 0.3 %

CONFIG = VQGANConfig(
    down_block_types=("DownEncoderBlock2D",) * 5,
    up_block_types=("UpDecoderBlock2D",) * 5,
    block_out_channels=(16, 16, 32, 64, 96),
    layers_per_block=1,
    latent_channels=PATCH,
    sample_size=256,
    num_vq_embeddings=4096,
    norm_num_groups=8,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
)


def patches(art: Tensor) -> Tensor:
    """Art pixels (batch, 3, 32, 32) to patches (batch, 16, 16, 12), ordered row, column, colour."""
    return art.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3)


@torch.no_grad()
def centre(conv: nn.Conv2d, matrix: Tensor, bias: Tensor | float = 0.0) -> None:
    """Make a convolution of any odd size act on each pixel alone, by `matrix` (out, in) as far as it reaches."""
    middle = conv.kernel_size[0] // 2
    conv.weight.zero_()
    conv.weight[: matrix.shape[0], : matrix.shape[1], middle, middle] = matrix
    conv.bias.copy_(torch.zeros_like(conv.bias) + bias)


@torch.no_grad()
def silence(resnet: ResnetBlock) -> None:
    """Make a resnet its shortcut alone."""
    resnet.conv2.weight.zero_()
    resnet.conv2.bias.zero_()
    if resnet.conv_shortcut is not None:
        centre(resnet.conv_shortcut, torch.eye(resnet.conv_shortcut.out_channels, resnet.conv_shortcut.in_channels))


@torch.no_grad()
def box(downsample: Downsample) -> None:
    downsample.conv.bias.zero_()
    downsample.conv.weight.zero_()
    for channel in range(downsample.conv.out_channels):
        downsample.conv.weight[channel, channel, :2, :2] = 0.25


@torch.no_grad()
def construct_encoder(model: VQGAN) -> None:
    """Set the encoder and `quant_conv` so that latents are the twelve values of a patch, in [-1, 1].

    The last group norm would mix the picture's statistics into every token. Each of its groups is therefore given
    constant channels of +-ANCHOR, beside which the picture's own variance vanishes; its gain then undoes the division,
    and an offset of LINEAR puts the values where SiLU is straight.
    """
    encoder, config = model.encoder, model.config
    width, groups = config.block_out_channels[-1], config.norm_num_groups
    centre(encoder.conv_in, torch.eye(3) * 2, torch.tensor([-1.0] * 3 + [0.0] * (config.block_out_channels[0] - 3)))
    for module in encoder.modules():
        if isinstance(module, ResnetBlock):
            silence(module)
        elif isinstance(module, Downsample):
            box(module)
    gather = encoder.down_blocks[-2].downsamplers[0].conv  # to one pixel a patch: each of the four keeps its channels
    gather.weight.zero_()
    for row in range(2):
        for column in range(2):
            for colour in range(3):
                gather.weight[(row * 2 + column) * 3 + colour, colour, row, column] = 1.0
    size = width // groups
    home = torch.tensor([(i % groups) * size + 2 * (i // groups) for i in range(PATCH)])  # spread over the groups
    spread = torch.zeros(width, gather.out_channels)
    spread[home, range(PATCH)] = 1.0
    spread[home + 1, range(PATCH)] = -1.0  # so that the group's mean stays zero
    anchors = torch.tensor([ANCHOR if channel % 2 else -ANCHOR for channel in range(width)])
    anchors[home] = anchors[home + 1] = 0.0
    centre(encoder.down_blocks[-1].resnets[0].conv_shortcut, spread, anchors)
    grouped = anchors.view(groups, size)
    std, mean = grouped.std(dim=1, correction=0).repeat_interleave(size), grouped.mean(dim=1).repeat_interleave(size)
    encoder.conv_norm_out.weight.copy_(std)
    encoder.conv_norm_out.bias.copy_(LINEAR + mean)
    pick = torch.zeros(PATCH, width)
    pick[range(PATCH), home] = 1.0
    centre(encoder.conv_out, pick, -LINEAR)
    centre(model.quant_conv, torch.eye(PATCH))
    model.post_quant_conv.weight.copy_(torch.eye(PATCH)[:, :, None, None])
    model.post_quant_conv.bias.zero_()


def resample_only(model: VQGAN) -> None:
    """Make the decoder's levels above art resolution plain nearest upsampling."""
    for level in model.decoder.up_blocks[2:]:
        for resnet in level.resnets:
            silence(resnet)
    for level in model.decoder.up_blocks[1:]:
        if level.upsamplers is not None:
            upsample: Upsample = level.upsamplers[0]
            centre(upsample.conv, torch.eye(upsample.conv.out_channels))
    centre(
        model.decoder.conv_out,
        model.decoder.conv_out.weight.detach()[:, :, 1, 1].clone(),
        model.decoder.conv_out.bias.detach().clone(),
    )


def decode_art(model: VQGAN, tokens: Tensor) -> Tensor:
    """`VQGAN.decode` at art resolution: what it gives for 256x256, sampled at every eighth pixel."""
    decoder = model.decoder
    x = model.quantize.embedding(tokens).permute(0, 3, 1, 2)
    x = decoder.mid_block(decoder.conv_in(model.post_quant_conv(x)))
    x = decoder.up_blocks[0](x)
    for resnet in decoder.up_blocks[1].resnets:
        x = resnet(x)
    for level in decoder.up_blocks[2:]:
        if level.resnets[0].conv_shortcut is not None:
            x = level.resnets[0].conv_shortcut(x)
    x = F.silu(decoder.conv_norm_out(x))
    return F.conv2d(x, decoder.conv_out.weight[:, :, 1:2, 1:2], decoder.conv_out.bias)


@torch.no_grad()
def nearest_code(model: VQGAN, art: Tensor) -> Tensor:
    """`VQGAN.encode` at art resolution: the codes of the patches, (batch, 16, 16)."""
    flat = patches(art * 2 - 1)
    return torch.cdist(flat.flatten(0, 2), model.quantize.embedding.weight).argmin(dim=1).view(flat.shape[:3])


def weighted_kmeans(points: np.ndarray, weights: np.ndarray, count: int, rounds: int, seed: int) -> np.ndarray:
    """Centres (count, dim) of points (n, dim), started from the heaviest; empty clusters move to the worst point."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.from_numpy(points).float(), torch.from_numpy(weights).float()
    centres = x[torch.topk(w, count // 2).indices]
    while len(centres) < count:  # the other half where the error is, by k-means++ in batches
        distance = torch.cdist(x, centres).amin(dim=1).square() * w
        extra = torch.multinomial(distance, min(count - len(centres), count // 16), generator=generator)
        centres = torch.cat([centres, x[extra]])
    for _ in range(rounds):
        distance, nearest = torch.cdist(x, centres).min(dim=1)
        mass = torch.zeros(count).index_add_(0, nearest, w)
        total = torch.zeros_like(centres).index_add_(0, nearest, x * w[:, None])
        worst = torch.topk(distance * w, count).indices
        centres = torch.where(mass[:, None] > 0, total / mass.clamp(min=1e-9)[:, None], x[worst])
    return centres.numpy()


def sample_art(nouns: Nouns, vocabulary: Vocabulary, rng: random.Random, count: int, accessories: float) -> Tensor:
    """Random characters as (count, 3, 32, 32) in [0, 1]."""
    art = np.stack([nouns.render(vocabulary.sample(rng, accessories)) for _ in range(count)])
    return torch.from_numpy(art).permute(0, 3, 1, 2).float() / 255


def fit_codebook(nouns: Nouns, known: Vocabulary, everything: Vocabulary, codes: int) -> np.ndarray:
    """Codes fitted to the known traits, with a quarter of the weight on all traits there are."""
    rng = random.Random(0)
    art = torch.cat(
        [
            sample_art(nouns, known, rng, 9000, accessories=0.2),
            sample_art(nouns, everything, rng, 3000, accessories=0.8),
        ]
    )
    flat = patches(art * 2 - 1).reshape(-1, PATCH).numpy()
    unique, counts = np.unique(flat, axis=0, return_counts=True)
    return weighted_kmeans(unique, counts**0.75, codes, rounds=12, seed=0)


def new_vqgan(nouns: Nouns, known: Vocabulary, everything: Vocabulary) -> VQGAN:
    """A VQ-GAN that is finished but for its decoder."""
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    construct_encoder(model)
    codebook = fit_codebook(nouns, known, everything, CONFIG.num_vq_embeddings)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.from_numpy(codebook))
    for module in model.decoder.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
    resample_only(model)
    return model


def train_decoder(
    model: VQGAN,
    nouns: Nouns,
    known: Vocabulary,
    everything: Vocabulary,
    seconds: float,
    report: Callable[[str], None],
    seed: int = 1,
) -> None:
    """Train the decoder for so long; the rate falls to zero at the end. Tokens stay what they are."""
    rng = random.Random(seed)
    model.requires_grad_(True)
    trained = [p for name, p in model.decoder.named_parameters() if not name.startswith(("up_blocks.3", "up_blocks.4"))]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    test = sample_art(nouns, known, random.Random(2), 64, accessories=0.2)
    start, step = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < seconds:
        art = sample_art(nouns, known if step % 4 else everything, rng, 16, accessories=0.3)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 2 * (1 - elapsed / seconds) + 0.01)
        loss = F.mse_loss(decode_art(model, nearest_code(model, art)), art)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            with torch.no_grad():
                error = F.mse_loss(decode_art(model, nearest_code(model, test)).clamp(0, 1), test)
            report(f"vqgan step {step}, {elapsed:.0f} s: {-10 * error.log10().item():.2f} dB on new pictures")
    resample_only(model)
    model.eval().requires_grad_(False)
