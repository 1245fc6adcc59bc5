"""A CUDA graph of the network: one launch instead of one per kernel, which is what a batch of 1 waits for.

Captured by hand: the state of inductor's own CUDA graphs belongs to a thread, and the page resumes a run in any.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from amused.model.transformer import Conditioning, UViT

_capturing = threading.Lock()  # captures share a side stream

Features = Callable[[Tensor, Conditioning], Tensor]
"""Of the arguments and result of `UViT.features`."""


class Captured:
    """A CUDA graph of `features`, by default the network's eager ones. Serves any thread.

    Raises:
        RuntimeError and others: it cannot be captured.
    """

    def __init__(
        self, network: UViT, tokens: Tensor, conditioning: Conditioning, features: Features | None = None
    ) -> None:
        features = features or network.features
        self._lock = threading.Lock()
        self._tokens, self._conditioning = tokens.clone(), same_layout(conditioning)
        self._loaded: Conditioning | None = None
        self._load(tokens, conditioning)
        with _capturing:
            self._capture(features)

    def _capture(self, features: Features) -> None:
        current, stream = torch.cuda.current_stream(), side_stream(self._tokens.device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries allocate in their first calls, which a graph cannot hold
                    features(self._tokens, self._conditioning)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._result = features(self._tokens, self._conditioning)
        finally:
            torch.cuda.set_stream(current)  # torch leaves the side stream on when a capture fails
        current.wait_stream(stream)

    def _load(self, tokens: Tensor, conditioning: Conditioning) -> None:
        self._tokens.copy_(tokens)
        if conditioning is not self._loaded:  # one per run
            torch._foreach_copy_(flat(self._conditioning), flat(conditioning))
            self._loaded = conditioning

    def __call__(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        with self._lock:
            self._load(tokens, conditioning)
            self._graph.replay()
            return self._result.clone()


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device, as cuBLAS keeps a workspace for each stream that it has run on."""
    return torch.cuda.Stream(device)


def flat(conditioning: Conditioning) -> list[Tensor]:
    return [tensor for stage in conditioning for tensor in stage]


def same_layout(conditioning: Conditioning) -> Conditioning:
    """New tensors with the same shapes and strides: kernels are chosen by them."""
    return [
        tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in stage)
        for stage in conditioning
    ]
