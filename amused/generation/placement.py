"""Chooses the device and the precision of a model, and says why."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from amused.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
QUANTIZED = ("int8",)
INT8_UNITS = ("avx512_vnni", "amx_int8")
"""CPU features for int8; without them int8 matmuls are hundreds of times slower than float ones."""


@dataclass(frozen=True)
class Placement:
    device: torch.device
    dtype: torch.dtype
    reason: str
    quantize: str | None = None


def as_current(device: torch.device) -> AbstractContextManager[object]:
    """Make "cuda:1" the device that streams, events and memory statistics are of; "cuda" is already."""
    is_numbered = device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if is_numbered else contextlib.nullcontext()


def place(
    device: str | torch.device | None = None, dtype: str | torch.dtype | None = None, quantize: str | None = None
) -> Placement:
    """Choose the device and the dtype; explicit ones win.

    Raises:
        UserError: no such device, dtype or quantization, or not on this machine.
    """
    placement = place_unquantized(device, dtype)
    if quantize is None:
        return placement
    if quantize not in QUANTIZED:
        raise UserError(f"quantize must be one of {', '.join(QUANTIZED)}.")
    if placement.device.type != "cpu" or not any(torch.cpu.get_capabilities().get(unit) for unit in INT8_UNITS):
        raise UserError("int8 would be slower on this machine: leave quantize out.")
    return replace(placement, quantize=quantize)


def place_unquantized(device: str | torch.device | None, dtype: str | torch.dtype | None) -> Placement:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError('The device must be a name such as "cpu" or "cuda".') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError('This machine has no CUDA device: choose device="cpu".')
    if dtype is not None:
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise UserError(f"The dtype must be one of {', '.join(DTYPES)}.")
        return Placement(device, chosen, "asked for")
    if device.type in ("cuda", "mps"):
        return Placement(device, torch.float16, "the device is a GPU")
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        for feature in ("amx_bf16", "avx512_bf16"):
            if capabilities.get(feature):
                return Placement(device, torch.bfloat16, f"the CPU has {feature}")
        return Placement(device, torch.float32, "the CPU has no bfloat16 units")
    return Placement(device, torch.float32, f"nothing faster is known for {device.type}")
