"""The rungs that the network runs on: which is chosen, that weights are never wrong, and how much is compiled."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.reference import grid_mask, picture
from helpers.tiny import tiny_checkpoint, tiny_transformer
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import amused
from amused.errors import UserError
from amused.generation import compiled
from amused.generation.batches import repeat
from amused.generation.compiled import EAGER, GRAPH, INDUCTOR, TIMED_STEPS, Compiler, one_turn
from amused.generation.cuda_graph import Captured
from amused.generation.placement import Placement
from amused.model.packed import pack
from amused.model.transformer import Conditioning, TransformerLayer, UViT
from amused.recipe.links import from_query, is_fingerprint, to_query
from amused.recipe.recipe import Recipe

CPU, CUDA = (Placement(torch.device(name), torch.float32, "") for name in ("cpu", "cuda"))
TOKENS = torch.arange(32).view(2, 4, 4)


def conditioning(network: UViT, seed: int = 0, rows: int = 2) -> Conditioning:
    random = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 7, 32, generator=random), torch.randn(1, 32, generator=random)
    with torch.inference_mode():
        return repeat(network.condition(text, pooled, torch.zeros(1, 5)), rows)


class Laboratory:
    """A compiler with plain functions as rungs and scripted timings."""

    def __init__(self, mode: str = "inductor", placement: Placement = CUDA, **seconds: float) -> None:
        torch.manual_seed(0)
        self.network = tiny_transformer().requires_grad_(False)
        self.seconds = {EAGER: 1.0, **seconds}
        self.timed: list[str] = []
        self.running = EAGER
        self.changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.compiler = Compiler(mode, placement)
        self.compiler.builders = {name: lambda *_, name=name: self.features(name) for name in (GRAPH, INDUCTOR)}
        self.compiler.prepare = lambda *_: None
        self.compiler.stopwatch = self.stopwatch
        self.conditioning = conditioning(self.network)

    def features(self, name: str) -> compiled.Features:
        change = self.changes.get(name, lambda x: x)

        def run(tokens: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
            self.running = name
            return change(self.network.features(tokens, conditioning))

        return run

    def stopwatch(self, step: Callable[[], object]) -> float:
        self.running = EAGER
        step()
        self.timed.append(self.running)
        return self.seconds[self.running]

    @torch.inference_mode()
    def run(self, is_exact: bool = False) -> str:
        """The rung that a new run uses."""
        features = self.compiler.features(self.network, is_exact)
        features(TOKENS, self.conditioning)
        return next(iter(features.names), "none")

    def choose(self) -> str:
        assert self.run() == "none"
        self.compiler.compile(one_turn)
        return self.run()


@pytest.mark.parametrize(
    ("graph", "inductor", "expected"),
    [
        (0.5, 0.48, GRAPH),  # inductor is compared with the graph, not with eager
        (0.5, 0.44, INDUCTOR),
        (0.91, 0.95, EAGER),
        (0.9, 2.0, GRAPH),
        (1.5, 0.8, INDUCTOR),
    ],
)
def test_a_rung_has_to_win_by_a_tenth(graph: float, inductor: float, expected: str) -> None:
    laboratory = Laboratory(graph=graph, inductor=inductor)
    assert laboratory.choose() == expected
    assert min(laboratory.timed.count(name) for name in (EAGER, GRAPH, INDUCTOR)) >= TIMED_STEPS >= 20
    status = laboratory.compiler.status
    assert compiled.DESCRIPTIONS[expected] in status and f"graph {1000 * graph:.2f} ms" in status


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.nextafter(torch.tensor(torch.inf)),  # one bit
        lambda x, first=[]: (first or first.append(x) or first)[0],  # what it was captured with
    ],
)
def test_a_graph_must_be_bit_identical(change: Callable) -> None:
    laboratory = Laboratory("graph", graph=0.1)
    laboratory.changes[GRAPH] = change
    assert laboratory.choose() == EAGER
    assert "graph differs from eager" in laboratory.compiler.status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x + 0.01, "error .* against float32"),
        (lambda x: x * torch.nan, "error nan against float32"),
        (lambda x: torch.cat([x[:1], x[1:].nextafter(torch.tensor(torch.inf))]), "depends on its place in the batch"),
    ],
)
def test_inductor_may_round_but_not_err(change: Callable, reason: str) -> None:
    laboratory = Laboratory(graph=2.0, inductor=0.1)
    laboratory.changes[INDUCTOR] = change
    assert laboratory.choose() == EAGER
    assert re.search(reason, laboratory.compiler.status)


@pytest.mark.parametrize("mode", ["auto", "graph"])
def test_what_may_change_bits_is_tried_only_where_it_is_asked_for(mode: str) -> None:
    laboratory = Laboratory(mode, graph=0.5, inductor=0.1)
    assert laboratory.choose() == GRAPH
    assert INDUCTOR not in laboratory.timed and INDUCTOR not in laboratory.compiler.status


def test_what_outlives_a_run_is_never_made_by_inductor() -> None:
    laboratory = Laboratory(graph=0.5, inductor=0.1)
    assert laboratory.run(is_exact=True) == "none"
    assert laboratory.choose() == INDUCTOR
    assert laboratory.run(is_exact=True) == GRAPH
    laboratory = Laboratory(graph=2.0, inductor=0.1)
    laboratory.run(is_exact=True)
    assert laboratory.choose() == INDUCTOR and laboratory.run(is_exact=True) == EAGER


def test_a_run_keeps_its_rung_to_the_end() -> None:
    laboratory = Laboratory(graph=0.5, inductor=1.0)
    first = laboratory.compiler.features(laboratory.network, is_exact=False)
    assert laboratory.choose() == GRAPH
    with torch.inference_mode():
        first(TOKENS, laboratory.conditioning)
    assert first.names == set() and not laboratory.compiler.is_needed


def test_without_a_turn_nothing_is_tried_and_all_is_kept_for_later() -> None:
    laboratory = Laboratory(graph=0.5, inductor=1.0)
    laboratory.run()
    laboratory.compiler.compile(lambda: contextlib.nullcontext(False))
    assert laboratory.timed == [] and laboratory.compiler.is_needed and laboratory.run() == "none"
    laboratory.compiler.compile(one_turn)
    assert laboratory.run() == GRAPH and not laboratory.compiler.is_needed


def test_other_networks_and_shapes_have_rungs_of_their_own() -> None:
    """A graph holds the addresses of weights: with an adapter merged they are others."""
    laboratory = Laboratory("graph", graph=0.5)
    assert laboratory.choose() == GRAPH
    other = tiny_transformer()
    for network, rows in ((other, 2), (laboratory.network, 1)):
        features = laboratory.compiler.features(network, is_exact=False)
        with torch.inference_mode():
            features(TOKENS[:rows], conditioning(network, rows=rows))
        assert features.names == set()


def test_the_shapes_used_last_keep_their_rungs() -> None:
    laboratory = Laboratory("graph", graph=0.5)

    @torch.inference_mode()
    def run(width: int) -> bool:
        """Whether a new run uses a graph."""
        features = laboratory.compiler.features(laboratory.network, is_exact=False)
        features(torch.zeros(2, 1, width, dtype=torch.int64), laboratory.conditioning)
        laboratory.compiler.compile(one_turn)
        return features.names == {GRAPH}

    widths = range(1, compiled.MAX_SHAPES + 1)
    assert not any(run(width) for width in widths) and all(run(width) for width in widths)
    assert run(1) and not run(compiled.MAX_SHAPES + 1)  # takes the place of width 2
    assert run(1) and run(compiled.MAX_SHAPES + 1) and not run(2)


def test_the_status_is_that_of_the_native_size() -> None:
    laboratory = Laboratory("graph", graph=0.5)
    assert laboratory.choose() == GRAPH
    status, laboratory.seconds[GRAPH] = laboratory.compiler.status, 2.0
    with torch.inference_mode():
        laboratory.compiler.features(laboratory.network, False)(TOKENS.view(2, 2, 8), laboratory.conditioning)
    laboratory.compiler.compile(one_turn)
    assert "as a CUDA graph" in status == laboratory.compiler.status


def test_a_compiler_that_forgets_finds_the_rungs_again() -> None:
    laboratory = Laboratory("graph", graph=0.5)
    assert laboratory.choose() == GRAPH
    laboratory.compiler.forget()
    assert laboratory.choose() == GRAPH


@pytest.mark.parametrize(("placement", "expected"), [(CPU, ["turn", "prepare"]), (CUDA, ["turn", "prepare", "turn"])])
def test_visitors_wait_for_inductor_only_where_they_run_what_it_traces(
    placement: Placement, expected: list[str]
) -> None:
    laboratory, done = Laboratory("inductor", placement, graph=2.0, inductor=0.5), []
    laboratory.compiler.prepare = lambda *_: done.append("prepare")
    laboratory.run()
    laboratory.compiler.compile(lambda: done.append("turn") or one_turn())
    assert done == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there a capture succeeds")
def test_a_capture_that_raises_leaves_eager() -> None:
    compiler, network = Compiler("inductor", CUDA), tiny_transformer()
    inputs = TOKENS, conditioning(network)
    with torch.inference_mode():
        expected = compiler.features(network, False)(*inputs)
        compiler.compile(one_turn)  # the real one, on a machine that cannot
        features = compiler.features(network, False)
        assert torch.equal(features(*inputs), expected)
    assert features.names == {EAGER}
    assert re.fullmatch(r"The network runs eagerly \(graph failed: .+; inductor failed: .+\)", compiler.status)


class Recorder:
    """CUDA graphs as `torch.cuda.graph` and `CUDAGraph.replay` document them: fixed inputs, one result overwritten."""

    def __init__(self, network: UViT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network, self.calls, self.is_capturing, self.stream = network, [], False, "main"
        stream = type("Stream", (), {"__init__": lambda *_: None, "wait_stream": lambda *_: None})
        for name, value in {
            "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "Stream": stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: self,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        self.stream = stream()

    @contextlib.contextmanager
    def graph(self, graph: Recorder, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert graph is self and capture_error_mode == "thread_local"  # or visitors' work would end the capture
        self.stream, before, self.is_capturing = stream, self.stream, True
        yield
        self.stream, self.is_capturing = before, False  # as in torch, not reached if the capture fails

    def features(self, tokens: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        result = self.network.features(tokens, conditioning)
        if self.is_capturing:
            self.calls.append((result, tokens, conditioning))
        return result

    def replay(self) -> None:
        ((result, tokens, conditioning),) = self.calls
        result.copy_(self.network.features(tokens, conditioning))


@torch.inference_mode()
def test_a_graph_is_given_its_inputs_and_keeps_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_transformer()
    one, other = conditioning(network), conditioning(network, seed=1)
    recorder = Recorder(network, monkeypatch)
    captured = Captured(network, TOKENS, one, recorder.features)
    inputs = [(TOKENS, one), (TOKENS.flip(0), one), (TOKENS, other), (TOKENS, one)]
    results = [captured(*each) for each in inputs]  # all are there at the end
    for result, each in zip(results, inputs):
        assert torch.equal(result, network.features(*each))


@torch.inference_mode()
def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_transformer()
    recorder = Recorder(network, monkeypatch)
    before = recorder.stream

    def features(*inputs: object) -> torch.Tensor:
        if recorder.is_capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return network.features(*inputs)

    with pytest.raises(RuntimeError, match="not permitted"):
        Captured(network, TOKENS, conditioning(network), features)
    assert recorder.stream is before


@pytest.mark.parametrize(
    ("mode", "placement", "words"),
    [
        ("auto", CPU, "gains nothing on a CPU"),
        ("graph", CPU, "need a CUDA device"),
        ("off", CUDA, "compiling is off"),
    ],
)
@torch.inference_mode()
def test_what_stays_eager_says_why(mode: str, placement: Placement, words: str) -> None:
    compiler, network = Compiler(mode, placement), tiny_transformer()
    compiler.features(network, False)(TOKENS, conditioning(network))
    assert words in compiler.status and not compiler.is_needed


def test_prepacked_and_quantized_layers_stay_eager(caplog: pytest.LogCaptureFixture) -> None:
    compiler, network = Compiler("inductor", CPU), pack(tiny_transformer())
    with torch.inference_mode():
        compiler.features(network, False)(TOKENS, conditioning(network))
        compiler.compile(one_turn)
        features = compiler.features(network, False)
        features(TOKENS, conditioning(network))
    assert features.names == {EAGER} and "prepacked or quantized" in caplog.text


def test_a_user_without_a_home_can_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: 1 / 0)
    assert "compiling is off" in amused.load("nouns", compile="off").compile_status


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="compile must be one of"):
        amused.load("nouns", compile="fast")


@pytest.mark.parametrize(
    "fingerprint",
    [
        "cpu bfloat16 int8 amused-0.4.0 torch-2.13.0",
        "cuda float16 amused-0.5.0 torch-2.13.0 cuda-13.0 batch-4 NVIDIA L4",
        "cuda float16 amused-0.5.0 torch-2.13.0 inductor cuda-13.0 batch-4 NVIDIA L4",
    ],
)
def test_links_keep_fingerprints_old_and_new(fingerprint: str) -> None:
    recipe = Recipe("text_to_image", "a red cat", (1,))
    assert from_query(to_query(recipe, "0" * 16, fingerprint)).fingerprint == fingerprint


# The whole model


def write_adapter(folder: Path) -> None:
    random = torch.Generator().manual_seed(1)
    layer = "base_model.model.transformer_layers.0.attn1.to_q"
    sides = {"A": torch.randn(4, 32, generator=random), "B": torch.randn(32, 4, generator=random)}
    folder.mkdir(parents=True)
    save_file(
        {f"{layer}.lora_{side}.weight": weight for side, weight in sides.items()}, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "base_model_name_or_path": "me/tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs of layers that are compiled without a compiler; all else is as with inductor."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    layer = torch.compile(TransformerLayer.forward, fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(compiled, "compiled_layer", lambda: layer)
    yield backend
    torch._dynamo.reset()


@pytest.mark.slow
def test_one_graph_serves_all_layers_tasks_seeds_and_adapters(graphs, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    write_adapter(tmp_path / "adapters" / "dusk")
    plain = Recipe("text_to_image", "a red cat", (8,), model="tiny", steps=2)
    image, mask = picture(64), grid_mask(64, (5, 9, 40, 30))
    vary = replace(plain, task="vary", parent=plain, share=0.5)
    runs = [  # with the number of graphs after each
        (1, plain),
        (1, replace(plain, prompt="a blue hat", seeds=(3, 4), steps=3)),
        (1, replace(plain, task="image_to_image", strength=0.7), image),
        (1, replace(plain, task="inpaint", strength=1.0), image, mask),
        (1, replace(plain, adapter="dusk")),
        (1, vary),
        (2, replace(plain, guidance_scale=1.0)),
        (3, replace(plain, width=128, height=64)),
        (3, plain),
    ]
    options = {"device": "cpu", "dtype": "float32", "adapters": tmp_path / "adapters"}
    model, eager = amused.load(folder, compile="inductor", **options), amused.load(folder, **options)
    seconds = itertools.cycle([1.0, 0.5])  # of eager and of the candidate, in turns
    model._compiler.stopwatch = lambda step: next(seconds)
    model._compiler._cache = tmp_path / "cache"
    for expected, recipe, *given in runs:
        for _ in range(2):  # before and after it is compiled
            events = [
                [e for e in one.generate(recipe, *given) if isinstance(e, amused.Picture)] for one in (model, eager)
            ]
            for made, right in zip(*events, strict=True):
                assert torch.equal(made.tokens, right.tokens)
            fingerprint = model.fingerprint
            model.compile()
            assert graphs.frame_count == expected
        # What starts from the tokens of a parent is exact, but its parent was made by inductor.
        assert "inductor" in fingerprint and is_fingerprint(fingerprint)
    assert not model.needs_compiling and "inductor" not in eager.fingerprint


@pytest.mark.slow
def test_a_graph_captures_what_was_compiled_before(graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture holds the model, so visitors would wait for a layer that is compiled then."""
    options = {"device": "cpu", "dtype": "float32"}
    model = amused.load(tiny_checkpoint(tmp_path / "tiny"), compile="inductor", **options)
    compiler, frames = model._compiler, []
    compiler._cache = tmp_path / "cache"

    def captured(network: UViT, tokens: torch.Tensor, conditioning: Conditioning) -> compiled.Features:
        frames.append(graphs.frame_count)
        recorder = Recorder(network, monkeypatch)
        features = partial(network.features, run_layer=compiled.compiled_layer())
        Captured(network, tokens, conditioning, features)
        frames.append(graphs.frame_count)
        return recorder.features

    compiler.builders = {INDUCTOR: captured}
    plain = Recipe("text_to_image", "a red cat", (8, 9), model="tiny", steps=2)
    for guidance_scale in (10.0, 1.0):
        list(model.generate(replace(plain, guidance_scale=guidance_scale)))
        model.compile()
    assert frames == [1, 1, 2, 2]


@pytest.mark.slow
@torch.inference_mode()
def test_more_shapes_are_compiled_than_torch_allows_by_default(graphs, tmp_path: Path) -> None:
    compiler, network = Compiler("inductor", CPU, tmp_path / "cache"), tiny_transformer()
    inputs = conditioning(network, rows=1)
    for width in range(1, 11):
        compiler.features(network, False)(torch.zeros(1, 1, width, dtype=torch.int64), inputs)
        compiler.compile(one_turn)
        assert graphs.frame_count == width


@pytest.mark.slow
def test_a_fingerprint_names_the_rung_of_the_parent(graphs, tmp_path: Path) -> None:
    model = amused.load(tiny_checkpoint(tmp_path / "tiny"), device="cpu", dtype="float32", compile="inductor")
    seconds = itertools.cycle([1.0, 0.5])
    model._compiler.stopwatch = lambda step: next(seconds)
    model._compiler._cache = tmp_path / "cache"
    first, second = (Recipe("text_to_image", text, (8,), model="tiny", steps=3) for text in ("a cat", "a hat"))

    def fingerprint_of(recipe: Recipe) -> str:
        list(model.generate(recipe))
        return model.fingerprint

    assert "inductor" not in fingerprint_of(first)
    model.compile()
    assert "inductor" in fingerprint_of(second)
    for parent, expected in ((first, False), (second, True)):
        child = Recipe("vary", "a dog", (1,), model="tiny", parent=parent, share=0.5, steps=3)
        for recipe in (child, replace(child, parent=child)):
            assert ("inductor" in fingerprint_of(recipe)) == expected


COMPILE = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from unit.test_compiled import compile_a_layer
print(compile_a_layer(Path(sys.argv[1])))
"""


@torch.inference_mode()
def compile_a_layer(cache: Path) -> dict[str, int]:
    """What inductor's cache counts while one tiny layer is compiled."""
    torch.manual_seed(0)
    network, compiler = tiny_transformer().requires_grad_(False), Compiler("inductor", CPU, cache)
    compiler.features(network, False)(TOKENS, conditioning(network))
    with torch._inductor.config.patch({"cpp.simdlen": 1}):  # takes half the time to compile
        compiler.compile(one_turn)
    assert "failed" not in compiler.status, compiler.status
    return {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """Both are fresh: the keys of torch's cache depend a little on what a process compiled before."""
    cache, printed = tmp_path / "cache", []
    for _ in range(2):
        command = [sys.executable, "-c", COMPILE, cache]
        run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        printed.append(run.stdout.strip())
    assert printed == ["{'hit': 0, 'miss': 1}", "{'hit': 1, 'miss': 0}"]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It holds programs, which are run. Visitors see the status: it names no folder."""
    tmp_path.chmod(0o755)
    compiler, network = Compiler("inductor", CPU, tmp_path), tiny_transformer()
    with torch.inference_mode():
        compiler.features(network, False)(TOKENS, conditioning(network))
        compiler.compile(one_turn)
    assert "must be private" in caplog.text and [*tmp_path.iterdir()] == []
    assert "inductor failed: PermissionError" in compiler.status and str(tmp_path) not in compiler.status


def test_the_cache_is_keyed_by_all_that_a_program_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_transformer()
    shape = compiled.Shape((2, 4, 4), 2, (16, 16, 16, 1), False)

    def folder(placement: Placement = CPU, shape: compiled.Shape = shape) -> Path:
        return compiled.cache_folder(tmp_path / "cache", network, shape, placement)

    found = [folder(), folder(shape=shape._replace(rows=4)), folder(replace(CPU, dtype=torch.bfloat16))]
    for card, capability in (("L4", (8, 9)), ("T4", (7, 5)), ("T4", (8, 9))):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, card=card: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        found.append(folder(CUDA))
    for module, name in ((torch, "__version__"), (torch.version, "cuda"), (amused, "__version__")):
        monkeypatch.setattr(module, name, "other")
        found.append(folder())
    assert len(set(found)) == len(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_on_a_gpu_a_graph_is_chosen_and_equals_eager() -> None:
    torch.manual_seed(0)
    network = tiny_transformer().requires_grad_(False).cuda()
    inputs = TOKENS.cuda(), [tuple(t.cuda() for t in stage) for stage in conditioning(network.cpu())]
    network.cuda()
    compiler = Compiler("graph", CUDA)
    expected = compiler.features(network, False)(*inputs)
    compiler.compile(one_turn)
    features = compiler.features(network, False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = features(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert features.names == {GRAPH}, compiler.status
    assert torch.equal(found, expected)
