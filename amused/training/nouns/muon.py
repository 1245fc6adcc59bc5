"""The Muon optimizer (Jordan et al. 2024; updates scaled as in arXiv 2502.16982) in float32.

Matrices of equal shape are updated together. `torch.optim.Muon` updates one matrix at a time in bfloat16: 4 s per step
for this model on a CPU without bfloat16 units, against 0.1 s here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(updates: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices of (n, rows, columns) by five Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    tall = updates.shape[1] > updates.shape[2]
    x: Tensor = updates.mT if tall else updates
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for the matrices between hidden states. Takes the learning rates of AdamW."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        for group in self.param_groups:
            parameters: list[Tensor] = [each for each in group["params"] if each.grad is not None]
            gradients: list[Tensor] = [each.grad for each in parameters if each.grad is not None]
            momenta = [self.state[each].setdefault("momentum", torch.zeros_like(each)) for each in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            shapes: dict[torch.Size, list[int]] = defaultdict(list)
            for index, parameter in enumerate(parameters):
                shapes[parameter.shape].append(index)
            for shape, indices in shapes.items():
                step = orthogonalize(torch.stack([updates[index] for index in indices]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_add_([parameters[index] for index in indices], list(step.unbind()), alpha=-rate)
