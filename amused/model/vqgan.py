"""The VQ-GAN that converts images to tokens and back (arXiv 2012.09841; MUSE, arXiv 2301.00704, section 2.2).

Module and parameter names match the published checkpoints, so a state dict loads strictly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True)
class VQGANConfig:
    """`vqvae/config.json`.

    `block_out_channels` go from the highest resolution to the lowest, halving it each time. `tile_size`: side in pixels
    of the squares that the decoder decodes; None if it decodes images of any size. It is `_tile_size` in the file, as
    other libraries ignore underscored keys in silence.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 3
    sample_size: int = 32
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    scaling_factor: float = 0.18215
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False
    tile_size: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        required = {
            "in_channels": 3,
            "out_channels": 3,
            "act_fn": "silu",
            "norm_type": "group",
            "mid_block_add_attention": False,
            "lookup_from_codebook": True,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
        for key, value in required.items():
            found = getattr(self, key)
            if (tuple(found) if isinstance(found, list) else found) != value:
                raise ValueError(f"{key} is {found!r}, only {value!r} is supported")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("norm_num_groups must divide every block_out_channels")
        if self.tile_size is not None and self.tile_size % self.scale_factor:
            raise ValueError(f"_tile_size must be a multiple of {self.scale_factor}")

    @property
    def scale_factor(self) -> int:
        """Pixels per side of one token."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def codebook_dim(self) -> int:
        return self.vq_embed_dim or self.latent_channels


def activate(x: Tensor) -> Tensor:
    """SiLU in place: at full resolution, allocating the result takes longer than computing it."""
    return F.silu(x, inplace=True)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(activate(self.norm1(x)))
        h = self.conv2(activate(self.norm2(h)))
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fused: nn.Module | None = None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def fuse(self) -> None:
        """Replace upsampling and convolution by one transposed 4x4 convolution, with 4/9 of the multiplications."""
        state, channels = self.conv.state_dict(), self.conv.in_channels
        weight: Tensor = state["weight"]
        flipped = weight.float().flip(2, 3)
        shifted = (F.pad(flipped, (column, 1 - column, row, 1 - row)) for row in (0, 1) for column in (0, 1))
        kernel = sum(shifted, start=torch.zeros(()))
        fused = nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1, device="meta")
        fused.load_state_dict({**state, "weight": kernel.transpose(0, 1).to(weight.dtype)}, assign=True)
        self.fused = fused.requires_grad_(self.conv.weight.requires_grad)
        del self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.fused is None else self.fused(x)


class Level(nn.Module):
    """The resnets of one resolution; subclasses add the step to the next one."""

    def __init__(self, in_channels: int, out_channels: int, resnets: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, groups) for i in range(resnets)
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class DownLevel(Level):
    def __init__(self, in_channels: int, out_channels: int, resnets: int, groups: int, last: bool) -> None:
        super().__init__(in_channels, out_channels, resnets, groups)
        self.downsamplers = None if last else nn.Sequential(Downsample(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsamplers is None else self.downsamplers(x)


class UpLevel(Level):
    def __init__(self, in_channels: int, out_channels: int, resnets: int, groups: int, last: bool) -> None:
        super().__init__(in_channels, out_channels, resnets, groups)
        self.upsamplers = None if last else nn.Sequential(Upsample(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsamplers is None else self.upsamplers(x)


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(before, width, config.layers_per_block, groups, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths))
        )
        self.mid_block = Level(widths[-1], widths[-1], 2, groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        return self.conv_out(activate(self.conv_norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Level(widths[0], widths[0], 2, groups)
        self.up_blocks = nn.ModuleList(
            UpLevel(before, width, config.layers_per_block + 1, groups, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(activate(self.conv_norm_out(x)))


class VectorQuantizer(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_vq_embeddings, config.codebook_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """The nearest code of each latent: (batch, dim, height, width) to (batch, height, width)."""
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        nearest = torch.cdist(flat, self.embedding.weight).argmin(dim=1)
        return nearest.view(latents.shape[0], *latents.shape[2:])


HALVES = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv")}
"""The modules that only one direction uses; both use the codebook."""


class VQGAN(nn.Module):
    """Images to tokens and back."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.quantize = VectorQuantizer(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def keep(self, half: str) -> None:
        """Delete the modules that only the other half uses."""
        for other, modules in HALVES.items():
            for module in modules if other != half else ():
                delattr(self, module)

    def fuse_upsampling(self) -> None:
        """Fuse every upsampling with its convolution, faster on a CPU. The network can no longer be saved."""
        for module in self.modules():
            if isinstance(module, Upsample):
                module.fuse()

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], (batch, 3, height, width), to tokens (batch, height / f, width / f), f = scale_factor."""
        return self.quantize(self.quant_conv(self.encoder(pixels)))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, height, width) to pixels, (batch, 3, f * height, f * width), about in [0, 1], not clipped."""
        if self.config.tile_size is None:
            return self._decode(tokens)
        side, scale = self.config.tile_size // self.config.scale_factor, self.config.scale_factor
        height, width = tokens.shape[1:]
        rows, columns = -(-height // side), -(-width // side)
        padded = F.pad(tokens, (0, columns * side - width, 0, rows * side - height))
        tiles = padded.unflatten(1, (rows, side)).unflatten(3, (columns, side)).transpose(2, 3)  # b rows columns h w
        pixels = self._decode(tiles.flatten(0, 2)).unflatten(0, (len(tokens), rows, columns))
        whole = pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return whole[..., : height * scale, : width * scale]

    def _decode(self, tokens: Tensor) -> Tensor:
        latents = self.quantize.embedding(tokens).permute(0, 3, 1, 2).contiguous()
        return self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype)))
