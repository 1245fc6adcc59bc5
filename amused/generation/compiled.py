"""How the network is run: eager, as a CUDA graph of the eager kernels, or with layers compiled by inductor.

The three are rungs. A run keeps the rungs that are ready when it starts. Input shapes that it meets for the first time
run eagerly and are noted; `Compiler.compile` then tries the higher rungs for them, in any thread, and switches to one
only if it wins on this device. A CUDA graph must equal eager bit for bit. Inductor changes bits, so an image's
fingerprint names it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import amused
from amused.errors import UserError
from amused.generation.cuda_graph import Captured, Features, flat, same_layout
from amused.generation.lru_cache import LRUCache
from amused.generation.placement import Placement, as_current
from amused.limits import COMPILE_MODES
from amused.model.packed import run_at_every_step
from amused.model.transformer import Conditioning, TransformerLayer, UViT

log = logging.getLogger(__name__)

EAGER, GRAPH, INDUCTOR = "eager", "graph", "inductor"
TIMED_STEPS = 20
MIN_GAIN = 0.1  # of the seconds of a step
MAX_ERROR = 1.2  # times the error of eager
CACHED_NETWORKS = 3  # the model's own, and those with an adapter merged
MAX_SHAPES = 8  # per network: those used last
MAX_GRAPHS = 64  # of the layer that inductor compiles, in this process: for all shapes, networks and models

Turn = Callable[[], AbstractContextManager[bool]]
"""Within it nobody else uses the model; False if another model has taken its place."""


def one_turn() -> AbstractContextManager[bool]:
    return contextlib.nullcontext(True)


class Shape(NamedTuple):
    """What a rung is specialized on. `is_exact`: the result must be eager's, bit for bit."""

    tokens: tuple[int, ...]
    rows: int  # of the conditioning
    layout: tuple[int, ...]  # strides of the conditioning
    is_exact: bool


@dataclass(frozen=True)
class Rung:
    name: str
    features: Features


class Ladder:
    """The rungs of one network, whose weights they may hold by address."""

    def __init__(self, network: UViT, limit: int) -> None:
        self.network = network
        self.chosen: LRUCache[Shape, Rung] = LRUCache(limit)
        self.wanted: LRUCache[Shape, Conditioning] = LRUCache(limit)  # an example of each shape


class RunFeatures:
    """`UViT.features` for one run.

    Attributes:
        names: the rungs that the run has used.
    """

    def __init__(self, ladder: Ladder, is_exact: bool) -> None:
        self._ladder, self._is_exact = ladder, is_exact
        self._chosen = dict(ladder.chosen.items())  # not to be switched during the run
        self.names: set[str] = set()

    def __call__(self, tokens: Tensor, conditioning: Conditioning, is_exact: bool = False) -> Tensor:
        first = conditioning[0][0]
        shape = Shape(tuple(tokens.shape), len(first), first.stride(), is_exact or self._is_exact)
        rung = self._chosen.get(shape)
        is_known = self._ladder.chosen.get(shape) is not None  # and is now the one used last
        if rung is None:
            if not is_known:
                self._ladder.wanted.put(shape, conditioning)
            return self._ladder.network.features(tokens, conditioning)
        self.names.add(rung.name)
        return rung.features(tokens, conditioning)


def eager_features(network: UViT) -> RunFeatures:
    return RunFeatures(Ladder(network, limit=0), is_exact=True)


class Compiler:
    """Chooses the rungs of one model.

    Args:
        mode: one of `COMPILE_MODES`. "auto" tries CUDA graphs; only "inductor" may change bits.
        cache: private folder for what inductor has compiled; by default in the user's home.

    Attributes:
        status: which rung runs at the native size and why, one line.
        builders: make the `Features` of a rung, by its name, for a network and an input.
        prepare: what inductor needs before: it takes long, but with CUDA the model can be used meanwhile.
        stopwatch: seconds that a call takes.

    Raises:
        UserError: no such mode.
    """

    def __init__(self, mode: str, placement: Placement, cache: Path | None = None) -> None:
        if mode not in COMPILE_MODES:
            raise UserError(f"compile must be one of {', '.join(COMPILE_MODES)}.")
        self._placement = placement
        self._cache = cache
        self._names, self.status = rungs_to_try(mode, placement)
        self._ladders: LRUCache[int, Ladder] = LRUCache(CACHED_NETWORKS)
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self.builders: Mapping[str, Callable[..., Features]] = {GRAPH: Captured, INDUCTOR: self._with_compiled_layers}
        self.prepare: Callable[[UViT, Shape, Conditioning], None] = self._compile_layer
        self.stopwatch: Callable[[Callable[[], object]], float] = partial(seconds_of, placement.device)

    def features(self, network: UViT, is_exact: bool) -> RunFeatures:
        """For one run. `is_exact`: only rungs that equal eager bit for bit."""
        return RunFeatures(self._ladder(network), is_exact)

    def _ladder(self, network: UViT) -> Ladder:
        if not self._names:
            return Ladder(network, limit=0)
        with self._lock:
            ladder = self._ladders.get(id(network))  # the ladder keeps the network, so the id stays its own
            if ladder is None:
                ladder = Ladder(network, MAX_SHAPES)
                self._ladders.put(id(network), ladder)
            return ladder

    @property
    def is_needed(self) -> bool:
        """Whether runs have met shapes that no rung has been chosen for."""
        return any(ladder.wanted.items() for ladder in self._ladders.values())

    def forget(self) -> None:
        """Drop all rungs and the memory that they hold; they are found again when their shapes are met."""
        self._ladders.clear()

    @torch.inference_mode()
    def compile(self, turn: Turn) -> None:
        """Choose a rung for each shape that runs have met. Ends early when `turn` gives none."""
        with self._compiling, as_current(self._placement.device):
            for ladder in self._ladders.values():
                for shape, conditioning in ladder.wanted.items():
                    rung = self._climb(ladder.network, shape, conditioning, turn)
                    if rung is None:
                        return
                    ladder.chosen.put(shape, rung)
                    ladder.wanted.pop(shape)

    def _climb(self, network: UViT, shape: Shape, conditioning: Conditioning, turn: Turn) -> Rung | None:
        """The fastest rung that is right, or None if there was no turn."""
        best, notes = Rung(EAGER, network.features), []
        has_cuda = self._placement.device.type == "cuda"
        is_native = shape.tokens[1:] == (network.config.sample_size,) * 2 and not shape.is_exact
        for name in self._names:
            if shape.is_exact and name == INDUCTOR:
                continue
            better = None
            try:
                if name == INDUCTOR and has_cuda:
                    self.prepare(network, shape, conditioning)
                with turn() as is_ours:
                    if not is_ours:
                        return None
                    # Off CUDA runs call what torch has compiled, which fails in any thread while one traces.
                    if name == INDUCTOR and not has_cuda:
                        self.prepare(network, shape, conditioning)
                    try:
                        better, note = self._try(name, best, network, shape, conditioning)
                    finally:
                        torch.cuda.empty_cache()  # a copy of the network is gone; does nothing without CUDA
            except UserError:
                raise  # the queue is full
            except Exception as error:  # whatever it is, eager works
                note = f"{name} failed: {type(error).__name__}"  # visitors see it
                log.warning("%s failed", name, exc_info=error)
            notes.append(note)
            best = better or best
        if notes:
            status = f"The network runs {DESCRIPTIONS[best.name]} ({'; '.join(notes)})"
            log.info("%s, for %s", status, "x".join(map(str, (shape.rows, *shape.tokens[1:]))))
            self.status = status if is_native else self.status
        return best

    def _try(
        self, name: str, best: Rung, network: UViT, shape: Shape, conditioning: Conditioning
    ) -> tuple[Rung | None, str]:
        """The rung of that name, None if it is refused, and the reason or the gain."""
        inputs = example_inputs(network, shape, conditioning)
        candidate = Rung(name, self.builders[name](network, *inputs[0]))
        for one in inputs:
            if candidate.name == GRAPH and not torch.equal(candidate.features(*one), network.features(*one)):
                return None, f"{candidate.name} differs from eager"
        if candidate.name != GRAPH:
            eager_error, error = errors(network, [network.features, candidate.features], inputs[0])
            if not error <= MAX_ERROR * eager_error:
                return None, f"{candidate.name}: error {error:.2g} against float32, {eager_error:.2g} eager"
            if not rows_are_independent(candidate.features, *inputs[0]):
                return None, f"{candidate.name}: an image depends on its place in the batch"
        before, after = self._time(network, [best.features, candidate.features], inputs[0])
        note = f"{candidate.name} {1000 * after:.2f} ms a step, {best.name} {1000 * before:.2f} ms"
        return candidate if after <= (1 - MIN_GAIN) * before else None, note

    def _time(self, network: UViT, rungs: list[Features], inputs: tuple[Tensor, Conditioning]) -> list[float]:
        """Median seconds of a step on each rung; they take turns, so other load affects all."""

        def step(features: Features) -> Tensor:
            return network.mlm_layer(features(*inputs))

        steps = [partial(step, features) for features in rungs]
        for one in steps:
            one()
        rounds = [[self.stopwatch(one) for one in steps] for _ in range(TIMED_STEPS)]
        return [statistics.median(seconds) for seconds in zip(*rounds)]

    # Inductor

    def _with_compiled_layers(self, network: UViT, tokens: Tensor, conditioning: Conditioning) -> Features:
        features = partial(network.features, run_layer=compiled_layer())
        return Captured(network, tokens, conditioning, features) if tokens.is_cuda else features

    def _compile_layer(self, network: UViT, shape: Shape, conditioning: Conditioning) -> None:
        """Compile the layer that repeats; one graph serves all layers, and networks with an adapter."""
        if not all(type(getattr(module, name)) is nn.Linear for module, name in run_at_every_step(network)):
            raise ValueError("its layers are prepacked or quantized")
        sides = [-(-side // 2) if network.config.downsample else side for side in shape.tokens[-2:]]
        device, dtype = self._placement.device, self._placement.dtype
        x = torch.zeros((shape.rows, sides[0] * sides[1], network.config.hidden_size), device=device, dtype=dtype)
        root = self._cache or Path.home() / ".cache" / "amused" / "compiled"
        folder = cache_folder(root, network, shape, self._placement)
        # By default torch refuses to compile a function more than 8 times in a process.
        with inductor_cache(folder), torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            compiled_layer()(network.transformer_layers[0], x, conditioning[network.config.num_res_blocks])


DESCRIPTIONS = {EAGER: "eagerly", GRAPH: "as a CUDA graph", INDUCTOR: "compiled by inductor"}


def rungs_to_try(mode: str, placement: Placement) -> tuple[tuple[str, ...], str]:
    """The rungs above eager, and the status before any was tried."""
    has_cuda = placement.device.type == "cuda"
    if mode == "off":
        return (), "The network runs eagerly: compiling is off"
    if mode == "auto" and not has_cuda:
        gain = "gains nothing on a CPU" if placement.device.type == "cpu" else "is tried with CUDA only"
        return (), f"The network runs eagerly: compiling {gain}"
    if mode == GRAPH and not has_cuda:
        return (), "The network runs eagerly: CUDA graphs need a CUDA device"
    names = (INDUCTOR,) if not has_cuda else (GRAPH, INDUCTOR) if mode == INDUCTOR else (GRAPH,)
    return names, "The network runs eagerly until other ways have been tried"


@functools.cache
def compiled_layer() -> Callable[..., Tensor]:
    return torch.compile(TransformerLayer.forward, fullgraph=True, dynamic=False)


# Comparing rungs


def example_inputs(network: UViT, shape: Shape, conditioning: Conditioning) -> list[tuple[Tensor, Conditioning]]:
    """Two inputs that differ in everything that a rung must not remember."""
    generator = torch.Generator().manual_seed(0)
    device = conditioning[0][0].device
    first, second = (
        torch.randint(network.config.codebook_size, shape.tokens, generator=generator).to(device) for _ in range(2)
    )
    other = same_layout(conditioning)
    torch._foreach_copy_(flat(other), [tensor * 0.5 for tensor in flat(conditioning)])
    return [(first, conditioning), (second, other)]


def rows_are_independent(features: Features, tokens: Tensor, conditioning: Conditioning) -> bool:
    """Whether the features of an image are bit-identical at any position in a batch."""
    if len(tokens) == 1:
        return True
    same = [tuple(tensor[:1].expand_as(tensor).contiguous() for tensor in stage) for stage in conditioning]
    return torch.equal(features(tokens.roll(1, dims=0), same), features(tokens, same).roll(1, dims=0))


def errors(network: UViT, rungs: Iterable[Features], inputs: tuple[Tensor, Conditioning]) -> list[float]:
    """Root mean square error of the logits on each rung, against a network of higher precision."""
    tokens, conditioning = inputs
    dtype = torch.float64 if conditioning[0][0].dtype == torch.float32 else torch.float32
    precise = copy.deepcopy(network).to(dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = precise(tokens, [tuple(tensor.to(dtype) for tensor in stage) for stage in conditioning])
    logits = (network.mlm_layer(features(tokens, conditioning)) for features in rungs)
    return [float((one.to(dtype) - exact).square().mean().sqrt()) for one in logits]


def seconds_of(device: torch.device, step: Callable[[], Any]) -> float:
    if device.type != "cuda":
        wait = torch.mps.synchronize if device.type == "mps" else lambda: None
        wait()
        start = time.perf_counter()
        step()
        wait()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    step()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


# Inductor's cache on disk


def cache_folder(root: Path, network: UViT, shape: Shape, placement: Placement) -> Path:
    """A private folder for one shape on one device, with these versions.

    Raises:
        PermissionError: others can write to it. It holds programs, which are run.
    """
    device = placement.device
    card: tuple[object, ...] = ()
    if device.type == "cuda":
        card = (torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    versions = (amused.__version__, torch.__version__, torch.version.cuda)
    key = (versions, device.type, card, placement.dtype, network.config, shape)
    folder = root / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    root.parent.mkdir(parents=True, exist_ok=True)
    for private in (root, folder):
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{root} must be private to this user (mode 0700)")
    return folder


@contextlib.contextmanager
def inductor_cache(folder: Path) -> Generator[None]:
    """Let inductor and triton keep what they compile in this folder."""
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    before = {name: os.environ.get(name) for name in folders}
    os.environ.update(folders)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
