"""Linear layers prepacked for oneDNN bf16 kernels. Results are bit-identical.

Packing happens while the first image is generated, so it does not delay its start.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amused.model.transformer import UViT

USES = 4  # calls after which a layer is packed


class PackedLinear(nn.Linear):
    """`nn.Linear` that packs its weight after a few calls; `unpacked` gives the plain weight."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.uses = linear.weight, linear.bias, 0

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # read once: another thread may replace it
        if weight.is_mkldnn:
            return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        self.uses += 1
        if self.uses >= USES:
            self.pack()
        return F.linear(x, weight, self.bias)

    def pack(self) -> None:
        weight = self.weight
        if not weight.is_mkldnn:
            self.weight = packed(weight)


def packed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), requires_grad=False)


def unpacked(weight: Tensor) -> Tensor:
    """A plain weight (out, in), from a packed or a plain one."""
    return weight.to_dense() if weight.is_mkldnn else weight


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has bf16 kernels for this device and type."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def pack(network: UViT) -> UViT:
    """Make the layers that run at every step `PackedLinear`, in place."""
    for module, name in run_at_every_step(network):
        setattr(module, name, PackedLinear(getattr(module, name)))
    return network


def pack_now(network: UViT) -> None:
    """Pack every layer now. Call it before copies share the weights, or each would pack its own."""
    for module in network.modules():
        if isinstance(module, PackedLinear):
            module.pack()


def run_at_every_step(network: UViT) -> Iterator[tuple[nn.Module, str]]:
    """The large linear layers of a sampling step, as (module, attribute). Not those that run once per prompt."""
    for res_block in (*network.down_block.res_blocks, *network.up_block.res_blocks):
        yield res_block, "channelwise_linear_1"
        yield res_block, "channelwise_linear_2"
    for attention_block in (*network.down_block.attention_blocks, *network.up_block.attention_blocks):
        for attention in (attention_block.attn1, attention_block.attn2):
            yield attention, "to_q"
            yield attention.to_out, "0"
    for layer in network.transformer_layers:
        for name in ("to_q", "to_k", "to_v") if layer.attn1.to_qkv is None else ("to_qkv",):
            yield layer.attn1, name
        yield layer.attn2, "to_q"
        for attention in (layer.attn1, layer.attn2):
            yield attention.to_out, "0"
        yield layer.ff.net[0], "proj"
        yield layer.ff.net, "2"
