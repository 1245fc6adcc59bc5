"""Linear layers in 8-bit integers: weights by output channel, activations by token as they come (LLM.int8(),
arXiv 2208.07339, without its outliers: the norms before these layers keep activations even).

Twice the arithmetic of bfloat16 on a processor with VNNI units, at some loss of precision: another picture than the
unquantized model's, not a worse one where it was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amused.model.packed import run_at_every_step
from amused.model.transformer import UViT

LARGEST = 127  # of a symmetric signed byte
OFFSET = 128  # what the processor's units multiply is an unsigned byte by a signed one


class Int8Linear(nn.Module):
    """`nn.Linear` of which a product is one of integers; in and out as before."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        integers, scale = to_int8(linear.weight.detach())  # out in, out 1
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(integers, None))
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.register_buffer("zero", torch.zeros(len(integers), dtype=torch.int64))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        integers, scale = to_int8(x.flatten(0, -2))  # tokens in, tokens 1
        product = torch.ops.onednn.qlinear_pointwise(
            qx=integers.view(torch.uint8).bitwise_xor_(OFFSET),
            x_scale=1.0,
            x_zero_point=OFFSET,
            qw=self.weight,
            w_scale=self.scale,
            w_zero_point=self.zero,
            bias=None,
            output_scale=1.0,
            output_zero_point=0,
            output_dtype=x.dtype,
            post_op_name="none",
            post_op_args=[],
            post_op_algorithm="",
        )  # tokens out
        x = product.mul_(scale.to(x.dtype)).unflatten(0, x.shape[:-1])
        return x if self.bias is None else x + self.bias


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers from -127 to 127, and what a row is to be multiplied with: (rows, width), (rows, 1) float32."""
    largest = x.abs()
    if x.dtype == torch.bfloat16:  # numbers without a sign are in the order of their bits, which are quicker to compare
        largest = largest.view(torch.int16).amax(dim=1, keepdim=True).view(torch.bfloat16)
    else:
        largest = largest.amax(dim=1, keepdim=True)
    scale = largest.float().clamp_(min=1e-12) / LARGEST
    return (x / scale).round_().to(torch.int8), scale


@torch.no_grad()
def quantize(network: UViT) -> UViT:
    """Make 8-bit, in place, what runs at every step."""
    for layer in network.transformer_layers:
        layer.attn1.join()  # what comes in is made 8-bit once, not three times
    for module, name in run_at_every_step(network):
        setattr(module, name, Int8Linear(getattr(module, name)))
    return network
