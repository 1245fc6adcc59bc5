"""The U-ViT that predicts masked tokens (aMUSEd, arXiv 2401.01808, section 3; U-ViT of arXiv 2301.11093).

Module and parameter names match the published checkpoints, so a state dict loads strictly.

Nothing depends on the sampling step. Prompt-only work (modulations, keys and values of the cross-attention) is done
once, by `UViT.condition`, and passed to every `UViT.forward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conditioning = list[tuple[Tensor, ...]]
"""Prompt-only tensors: one tuple per block, batch first."""

LANES = 32  # bfloat16 values per vector register: softmax is slow on a row that does not fill its last one


@dataclass(frozen=True)
class UViTConfig:
    """`transformer/config.json`. Widths in channels, `sample_size` in tokens per side."""

    hidden_size: int = 1024
    use_bias: bool = False
    hidden_dropout: float = 0.0
    cond_embed_dim: int = 768
    micro_cond_encode_dim: int = 256
    micro_cond_embed_dim: int = 1280
    encoder_hidden_size: int = 768
    vocab_size: int = 8256
    codebook_size: int = 8192
    in_channels: int = 768
    block_out_channels: int = 768
    num_res_blocks: int = 3
    downsample: bool = False
    upsample: bool = False
    block_num_heads: int = 12
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    attention_dropout: float = 0.0
    intermediate_size: int = 2816
    layer_norm_eps: float = 1e-6
    ln_elementwise_affine: bool = True
    sample_size: int = 64

    def __post_init__(self) -> None:
        if not self.ln_elementwise_affine:
            raise ValueError("ln_elementwise_affine=false is not supported")
        if self.downsample != self.upsample:
            raise ValueError("downsample and upsample must both be true or both false")
        if self.hidden_size % self.num_attention_heads or self.block_out_channels % self.block_num_heads:
            raise ValueError("num_attention_heads must divide hidden_size, block_num_heads block_out_channels")
        if self.micro_cond_embed_dim != 5 * self.micro_cond_encode_dim:
            raise ValueError("micro_cond_embed_dim must be 5 times micro_cond_encode_dim")
        if self.vocab_size <= self.codebook_size:
            raise ValueError("vocab_size must leave room for the mask token above codebook_size")


Layer = TypeVar("Layer", bound=nn.Module)


class Layers(nn.ModuleList, Generic[Layer]):
    """`nn.ModuleList` whose layers are of one type."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Layer]: ...


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Concatenate along the batch."""
    return [tuple(torch.cat(tensors) for tensors in zip(*stages)) for stages in zip(*conditionings)]


def sinusoids(values: Tensor, dim: int) -> Tensor:
    """Embed numbers (..., ) as (..., dim): cosines, then sines, of frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention. Queries, keys and values have separate projections until `fuse_qkv` is called."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv: nn.Module | None = None
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(dim, dim, bias)
        self.to_v = nn.Linear(dim, dim, bias)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)  # b h l d

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def fuse_qkv(self) -> None:
        """Merge the three projections into one matmul. Only `self_attention` works afterwards, and saving does not."""
        parts = (self.to_q, self.to_k, self.to_v)
        width, out = self.to_q.in_features, sum(part.out_features for part in parts)
        fused = nn.Linear(width, out, self.to_q.bias is not None, device="meta")
        for name, _ in list(fused.named_parameters()):
            whole = torch.cat([getattr(part, name).detach() for part in parts])
            setattr(fused, name, nn.Parameter(whole, requires_grad=False))
        self.to_qkv = fused
        del self.to_q, self.to_k, self.to_v

    def self_attention(self, x: Tensor) -> Tensor:
        parts = (self.to_q(x), self.to_k(x), self.to_v(x)) if self.to_qkv is None else self.to_qkv(x).chunk(3, dim=-1)
        return self.merge(attend(*map(self.split, parts)))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.merge(attend(self.split(self.to_q(x)), keys, values))

    def merge(self, x: Tensor) -> Tensor:
        return self.to_out(x.transpose(1, 2).flatten(-2))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention on b h l d."""
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        return attend_by_matrices(queries, keys, values)
    return F.scaled_dot_product_attention(queries, keys, values)


def attend_by_matrices(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attend` by two batched matmuls: up to twice as fast as torch's own on CPUs with bfloat16 matrix units."""
    length, padding = keys.shape[-2], -keys.shape[-2] % LANES
    scale, shape = queries.shape[-1] ** -0.5, queries.shape
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))  # bh l d
    bias = queries.new_zeros(length + padding)
    if padding:
        keys, values = (F.pad(x, (0, 0, 0, padding)) for x in (keys, values))
        bias[length:] = -torch.inf
    scores = torch.baddbmm(bias[None, None], queries, keys.mT, beta=1 if padding else 0, alpha=scale)  # bh l l
    return torch.bmm(scores.softmax(dim=-1), values).view(shape)


class ConvNextBlock(nn.Module):
    """ConvNeXt V2 block (arXiv 2301.00808), its output modulated by the prompt. Works on b h w c."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        dim, bias = config.block_out_channels, config.use_bias
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=bias)
        self.norm = nn.RMSNorm(dim, config.layer_norm_eps)
        self.channelwise_linear_1 = nn.Linear(dim, 4 * dim, bias)
        self.channelwise_norm = GlobalResponseNorm(4 * dim)
        self.channelwise_linear_2 = nn.Linear(4 * dim, dim, bias)
        self.cond_embeds_mapper = nn.Linear(config.hidden_size, 2 * dim, bias)

    def condition(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.cond_embeds_mapper(F.silu(cond))[:, None, None].chunk(2, dim=-1)  # b 1 1 c
        return 1 + scale, shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        residual = x
        x = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # b h w c
        x = F.gelu(self.channelwise_linear_1(self.norm(x)))  # b h w 4c
        x = self.channelwise_linear_2(self.channelwise_norm(x))  # b h w c
        return torch.addcmul(shift, x.add_(residual), scale)


class GlobalResponseNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype == torch.float16 else x  # a square may overflow float16
        energy = wide.square().sum(dim=(1, 2), keepdim=True).sqrt().to(x.dtype)  # b 1 1 c
        return torch.addcmul(self.beta, x, 1 + self.gamma * (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)))


class CrossAttentionBlock(nn.Module):
    """Two cross-attentions to the prompt, no feed-forward. Works on b l c."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        dim, bias = config.block_out_channels, config.use_bias
        self.kv_mapper = nn.Linear(config.hidden_size, dim, bias) if config.hidden_size != dim else None
        self.norm1 = nn.RMSNorm(dim, 1e-6)
        self.attn1 = Attention(dim, config.block_num_heads, bias)
        self.norm2 = nn.RMSNorm(dim, 1e-6)
        self.attn2 = Attention(dim, config.block_num_heads, bias)

    def condition(self, text: Tensor) -> tuple[Tensor, ...]:
        if self.kv_mapper is not None:
            text = self.kv_mapper(F.silu(text))
        return *self.attn1.keys_values(text), *self.attn2.keys_values(text)

    def forward(self, x: Tensor, keys1: Tensor, values1: Tensor, keys2: Tensor, values2: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x), keys1, values1) + x
        x = self.attn2(self.norm2(x), keys2, values2) + x
        return x


class Resample(nn.Module):
    """Halve or double the token grid by a 2x2 convolution of stride 2. Works on b h w c."""

    def __init__(self, config: UViTConfig, conv: type[nn.Conv2d] | type[nn.ConvTranspose2d]) -> None:
        super().__init__()
        dim = config.block_out_channels
        self.norm = nn.RMSNorm(dim, config.layer_norm_eps)
        self.conv = conv(dim, dim, kernel_size=2, stride=2, bias=config.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)
        if isinstance(self.conv, nn.Conv2d):
            x = F.pad(x, (0, 1, 0, 1))  # odd grids keep their last row and column
        x = self.conv(x)
        return x.permute(0, 2, 3, 1)


class UViTBlock(nn.Module):
    """The convolutional blocks at either end of the U-ViT. Works on b h w c."""

    def __init__(self, config: UViTConfig, downsample: bool, upsample: bool) -> None:
        super().__init__()
        self.downsample = Resample(config, nn.Conv2d) if downsample else None
        self.res_blocks: Layers[ConvNextBlock] = Layers(ConvNextBlock(config) for _ in range(config.num_res_blocks))
        self.attention_blocks: Layers[CrossAttentionBlock] = Layers(
            CrossAttentionBlock(config) for _ in range(config.num_res_blocks)
        )
        self.upsample = Resample(config, nn.ConvTranspose2d) if upsample else None

    def condition(self, text: Tensor, cond: Tensor) -> Conditioning:
        return [
            (*res_block.condition(cond), *attention_block.condition(text))
            for res_block, attention_block in zip(self.res_blocks, self.attention_blocks)
        ]

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for res_block, attention_block, stage in zip(self.res_blocks, self.attention_blocks, conditioning):
            x = res_block(x, *stage[:2])
            x = attention_block(x.flatten(1, 2), *stage[2:]).view_as(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class AdaptiveNorm(nn.Module):
    """A norm modulated by the prompt. Works on b l c."""

    def __init__(self, config: UViTConfig, norm: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, 2 * config.hidden_size, config.use_bias)
        self.norm = norm

    def condition(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(F.silu(cond))[:, None].chunk(2, dim=-1)  # b 1 c
        return 1 + scale, shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, self.norm(x), scale)


class GEGLU(nn.Module):
    """Gated linear unit (arXiv 2002.05202)."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner, bias)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(x)


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, inner, bias), nn.Identity(), nn.Linear(inner, dim, bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each norm is modulated. Works on b l c."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        dim, heads, eps, bias = config.hidden_size, config.num_attention_heads, config.layer_norm_eps, config.use_bias
        self.norm1 = AdaptiveNorm(config, nn.RMSNorm(dim, eps))
        self.attn1 = Attention(dim, heads, bias)
        self.norm2 = AdaptiveNorm(config, nn.RMSNorm(dim, eps))
        self.attn2 = Attention(dim, heads, bias)
        self.norm3 = AdaptiveNorm(config, nn.LayerNorm(dim, eps, bias=bias))
        self.ff = FeedForward(dim, config.intermediate_size, bias)

    def condition(self, text: Tensor, cond: Tensor) -> tuple[Tensor, ...]:
        norms = (self.norm1, self.norm2, self.norm3)
        return *(t for norm in norms for t in norm.condition(cond)), *self.attn2.keys_values(text)

    def forward(self, x: Tensor, stage: tuple[Tensor, ...]) -> Tensor:
        scale1, shift1, scale2, shift2, scale3, shift3, keys, values = stage
        x = self.attn1.self_attention(self.norm1(x, scale1, shift1)) + x
        x = self.attn2(self.norm2(x, scale2, shift2), keys, values) + x
        x = self.ff(self.norm3(x, scale3, shift3)) + x
        return x


RunLayer = Callable[[TransformerLayer, Tensor, tuple[Tensor, ...]], Tensor]


class TokenEmbedding(nn.Module):
    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.in_channels)
        self.layer_norm = nn.RMSNorm(config.in_channels, config.layer_norm_eps)
        self.conv = nn.Conv2d(config.in_channels, config.block_out_channels, kernel_size=1, bias=config.use_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layer_norm(self.embeddings(tokens))  # b h w e
        return pointwise(self.conv, x)  # b h w c


class MlmLayer(nn.Module):
    """Logits over the codebook."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        width, embed, bias = config.block_out_channels, config.in_channels, config.use_bias
        self.conv1 = nn.Conv2d(width, embed, kernel_size=1, bias=bias)
        self.layer_norm = nn.RMSNorm(embed, config.layer_norm_eps)
        self.conv2 = nn.Conv2d(embed, config.codebook_size, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self.conv2, self.layer_norm(pointwise(self.conv1, x)))


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution on channels-last x (..., c) as one matmul, without permuting."""
    return F.linear(x, conv.weight[:, :, 0, 0], conv.bias)


class ConditionEmbedding(nn.Module):
    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(
            config.micro_cond_embed_dim + config.cond_embed_dim, config.hidden_size, config.use_bias
        )
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size, config.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class UViT(nn.Module):
    """Tokens and a prompt in, logits over the codebook out."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, eps, bias = config.block_out_channels, config.hidden_size, config.layer_norm_eps, config.use_bias
        self.encoder_proj = nn.Linear(config.encoder_hidden_size, hidden, bias)
        self.encoder_proj_layer_norm = nn.RMSNorm(hidden, eps)
        self.embed = TokenEmbedding(config)
        self.cond_embed = ConditionEmbedding(config)
        self.down_block = UViTBlock(config, config.downsample, False)
        self.project_to_hidden_norm = nn.RMSNorm(width, eps)
        self.project_to_hidden = nn.Linear(width, hidden, bias)
        self.transformer_layers: Layers[TransformerLayer] = Layers(
            TransformerLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.project_from_hidden_norm = nn.RMSNorm(hidden, eps)
        self.project_from_hidden = nn.Linear(hidden, width, bias)
        self.up_block = UViTBlock(config, False, config.upsample)
        self.mlm_layer = MlmLayer(config)

    def condition(self, text: Tensor, pooled: Tensor, micro_conditions: Tensor) -> Conditioning:
        """Everything that depends on the prompt alone.

        Args:
            text: hidden states of the text encoder, (batch, text length, encoder_hidden_size).
            pooled: pooled and projected text, (batch, cond_embed_dim).
            micro_conditions: width, height (pixels), crop y, crop x (pixels), aesthetic score (0 to 10), (batch, 5).
        """
        text = self.encoder_proj_layer_norm(self.encoder_proj(text))
        micro = sinusoids(micro_conditions, self.config.micro_cond_encode_dim).flatten(1)  # b 5*encode_dim
        cond = self.cond_embed(torch.cat([pooled, micro.to(pooled.dtype)], dim=1))  # b hidden
        return [
            *self.down_block.condition(text, cond),
            *(layer.condition(text, cond) for layer in self.transformer_layers),
            *self.up_block.condition(text, cond),
        ]

    def features(
        self, tokens: Tensor, conditioning: Conditioning, run_layer: RunLayer = TransformerLayer.__call__
    ) -> Tensor:
        """The last hidden states, (batch, height * width, block_out_channels), which `mlm_layer` turns into logits.

        `tokens` may have a batch of one for a larger batch of `conditioning`; work before the first modulation is
        then shared. `run_layer` may be a compiled `TransformerLayer.forward`.
        """
        ends = self.config.num_res_blocks
        x = self.embed(tokens)  # b h w c
        x = self.down_block(x, conditioning[:ends])  # b h' w' c
        h = self.project_to_hidden(self.project_to_hidden_norm(x.flatten(1, 2)))  # b l hidden
        for layer, stage in zip(self.transformer_layers, conditioning[ends:-ends], strict=True):
            h = run_layer(layer, h, stage)
        x = self.project_from_hidden(self.project_from_hidden_norm(h)).view_as(x)  # b h' w' c
        x = self.up_block(x, conditioning[-ends:])  # b h w c
        return x.flatten(1, 2)  # b l c

    def forward(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        """Logits of every position.

        Args:
            tokens: (batch or 1, height, width), integers in [0, codebook_size) or the id of the mask token.
            conditioning: from `condition`, for the batch.

        Returns:
            (batch, height * width, codebook_size)
        """
        return self.mlm_layer(self.features(tokens, conditioning))
