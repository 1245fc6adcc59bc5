"""A GPU without values: the real code on the device "cuda", on a machine that has none.

Tensors have a shape, a dtype and a device but no memory (`torch._subclasses.fake_tensor`). Tensors of two devices in
one operation and shapes that depend on data raise; waits of the host for the device are recorded. Wrong values, memory
and speed are not seen.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

PACKAGE = Path(__file__).parents[2] / "amused"
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
CUDA, DEVICE_TYPES = 1, 16  # c10/core/DeviceType.h
READS = {
    Tensor.item: lambda values: values.item(),
    Tensor.numpy: lambda values: values.numpy(),
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__index__: int,
    Tensor.__float__: float,
}
"""Methods that need values: they get zeros."""
CALLS = {
    "_lazy_init": None,
    "current_stream": None,
    "empty_cache": None,
    "get_device_name": "fake",
    "is_available": True,
    "max_memory_allocated": 0,
    "mem_get_info": (3, 3),  # bytes: enough for two images, which take one each where no memory is measured
    "reset_peak_memory_stats": None,
}
"""What functions of `torch.cuda` give."""
COPIES = (torch.tensor, torch.as_tensor, Tensor.to, Tensor.cuda, Tensor.cpu)


@dataclass(frozen=True)
class Wait:
    """The host waited for the device: it read a value, or copied between the two.

    Attributes:
        function: of the package, that did.
        line: for people, such as "sampling.py:111 tolist".
    """

    function: str
    line: str


class FakeCuda:
    """A GPU that this thread has, and no other, within `here`. Its tensors belong to it: other fake GPUs refuse them.

    Attributes:
        waits: of the host for the device; waits for an event are not among them.
        num_events: how many events were recorded.
        awaited: the numbers of the events that the host waited for, from 1.
    """

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.forget()
        self._tensors = FakeTensorMode(allow_non_fake_inputs=True)

    def forget(self) -> None:
        """What was recorded so far."""
        self.waits.clear()
        self.num_events = 0
        self.awaited: list[int] = []

    @contextmanager
    def here(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, no_op_guard():
            patch.setattr(FakeTensorMode, "avoid_device_init", True)
            patch.setattr(torch, "Generator", Generator)
            patch.setattr(nn.Module, "_apply", convert)
            patch.setattr(safetensors, "safe_open", WeightsFile)
            for name, value in CALLS.items():
                patch.setattr(torch.cuda, name, lambda *_, value=value: value)
            patch.setattr(torch.cuda, "Event", lambda **_: Event(self))
            with self._tensors, Recorder(self.waits):
                yield


class Recorder(TorchFunctionMode):
    def __init__(self, waits: list[Wait]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        generator = kwargs.pop("generator", None)
        given = tensors_in((args, kwargs))
        if (function in READS or function is torch.equal) and isinstance(given[0], FakeTensor):
            if "cuda" in devices_of(given):
                self._record(function)
            if function is torch.equal:
                return given[0].shape == given[1].shape
            with _disable_current_modes():
                return READS[function](torch.zeros(given[0].shape, dtype=given[0].dtype))
        result = function(*args, **kwargs)
        made = tensors_in(result)
        if generator is not None:
            assert devices_of(made) == {generator.device.type}, "tensor and generator are on two devices"
        # Scalars on the CPU are passed by value.
        copied = given if function in COPIES else [tensor for tensor in given if tensor.dim()]
        if len(devices_of([*copied, *made])) > 1 or (function is torch.tensor and "cuda" in devices_of(made)):
            self._record(function)
        return result

    def _record(self, function: Callable[..., Any]) -> None:
        frame = sys._getframe(2)
        while not (file := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE) and frame.f_back is not None:
            frame = frame.f_back
        self.waits.append(Wait(frame.f_code.co_name, f"{file.name}:{frame.f_lineno} {function.__name__}"))


def tensors_in(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def devices_of(tensors: Sequence[Tensor]) -> set[str]:
    return {tensor.device.type for tensor in tensors} - {"meta"}


class Generator(torch.Generator):
    """One of any device: a build without CUDA has them for the CPU only."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        generator = super().__new__(cls)
        generator._device = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self._device


class Event:
    """In place of `torch.cuda.Event`."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def record(self, stream: object) -> None:
        self._cuda.num_events += 1
        self._number = self._cuda.num_events

    def synchronize(self) -> None:
        self._cuda.awaited.append(self._number)


class WeightsFile:
    """In place of `safetensors.safe_open`, which makes tensors in ways that those without values do not know."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._file = safe_open(*args, **kwargs)

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> Tensor:
        with _disable_current_modes():
            return self._file.get_tensor(name)


def convert(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """`Module._apply`, which swaps contents, as tensors without values cannot."""
    for child in module.children():
        convert(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextmanager
def no_op_guard() -> Iterator[None]:
    """Let torch "switch" to CUDA devices by doing nothing, as it does itself where CUDA finds no device.

    A build without CUDA has no guard to replace: it gets one that answers 0 to everything, so to how many devices it
    has.
    """
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(ctypes.CDLL(torch._C.__file__), GUARDS)
    before = guards[CUDA]
    answer = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 0)
    methods = (ctypes.c_void_p * 64)(*[ctypes.cast(answer, ctypes.c_void_p).value] * 64)
    no_devices = ctypes.c_void_p(ctypes.addressof(methods))
    guards[CUDA] = ctypes.addressof(no_devices)
    try:
        torch._C._ensureCUDADeviceGuardSet()
        assert guards[CUDA] != ctypes.addressof(no_devices), "torch did not replace the guard"
        yield
    finally:
        guards[CUDA] = before
