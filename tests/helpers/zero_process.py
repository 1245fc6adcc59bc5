"""Runs a script under the real `spaces` package on a machine without a GPU.

`python -c "from helpers.zero_process import main; main()" SCRIPT [ARGUMENTS]`

The process that serves is the real thing: emulation of CUDA, packing, forking. Only in its forked workers, which would
have a GPU, CUDA operations are computed by the CPU. Needs the variables of `zero_gpu.environment`.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import Mock

GPU_NAME = "NVIDIA H200 MIG 3g.71gb"


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once it is executed."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self.actions = actions

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        action = self.actions.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def never_in_bad_fork() -> bool:
    return False


def look_like_cuda_build(torch: ModuleType) -> None:
    torch.version.cuda = "13.0"
    torch._C._cuda_init = lambda: None
    torch.cuda._is_in_bad_fork = never_in_bad_fork


def use_cpu_in_workers(patching: ModuleType) -> None:
    patching.init = enter_worker


def enter_worker(nvidia_uuid: str) -> None:
    """In place of CUDA's start in a worker: from here on "cuda" is the CPU, in every thread."""
    import torch
    from spaces.zero.torch.utils import empty_like_raw_alloc
    from torch.overrides import TorchFunctionMode

    def on_cpu(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cuda" else value
        return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value

    class CudaIsCpu(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if function is torch.Tensor.cuda:
                return args[0].clone()
            if function is torch.Tensor.pin_memory:
                return empty_like_raw_alloc(args[0]).copy_(args[0])  # at the start of a page, as pinned memory is
            kwargs = {key: on_cpu(value) for key, value in (kwargs or {}).items()}
            return function(*map(on_cpu, args), **kwargs)

    run = threading.Thread.run

    def run_in_mode(thread: threading.Thread) -> None:
        with CudaIsCpu():
            run(thread)

    generator = torch.Generator
    threading.Thread.run = run_in_mode  # type: ignore[method-assign]
    torch.Generator = lambda device="cpu": generator(on_cpu(device))  # type: ignore[misc,assignment]
    torch.cuda.is_available = lambda: True
    torch.cuda.synchronize = torch.cuda.current_stream = lambda *_: None
    torch.cuda.Event = lambda **_: Mock()  # type: ignore[misc,assignment]  # is done at once
    torch.cuda.get_device_name = lambda *_: GPU_NAME


def main() -> None:
    actions = {"torch": look_like_cuda_build, "spaces.zero.torch.patching": use_cpu_in_workers}
    sys.meta_path.insert(0, AfterImport(actions))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
