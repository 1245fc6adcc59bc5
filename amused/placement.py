"""Where a model runs and in which precision: decided here, once, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amused.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    device: torch.device
    dtype: torch.dtype
    reason: str


def place(device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
    """Choose device and dtype; what is given explicitly wins.

    Raises:
        UserError: no such device or dtype.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError('The device must be a name such as "cpu" or "cuda".') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError('There is no CUDA device here: choose device="cpu".')
    if dtype is not None:
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen not in DTYPES.values():
            raise UserError(f"The dtype must be one of {', '.join(DTYPES)}.")
        return Placement(device, chosen, "asked for")
    if device.type == "cuda":
        return Placement(device, torch.float16, "the device is a GPU")
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        for feature in ("amx_bf16", "avx512_bf16"):
            if capabilities.get(feature):
                return Placement(device, torch.bfloat16, f"the processor has {feature}")
        return Placement(device, torch.float32, "the processor has no bfloat16 units")
    return Placement(device, torch.float32, f"nothing faster is known for {device.type}")
