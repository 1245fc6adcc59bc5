"""Sampling in batches: the same tokens and images as one seed at a time, and no waiting for a GPU within the loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.fake_cuda import FakeCuda
from helpers.reference import grid_mask, picture
from helpers.tiny import tiny_checkpoint, tiny_transformer
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

import amused
from amused.generation import sampling
from amused.generation.batches import batch_for, batch_size_on_gpu, rows_are_independent
from amused.generation.predictor import Predictor
from amused.generation.sampling import (
    StepPlan,
    mask_at_random,
    num_masked,
    sampling_steps,
    unmask_step,
)
from amused.model.vqgan import VQGAN
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Request, Result, sample
from amused.serving.runtime import Runtime

pytestmark = pytest.mark.slow

SEEDS = (8, 9, 2**32 - 1, 9, 4)
PARENT = Recipe("text_to_image", "a red cat", (8,), model="tiny", steps=4)
TASKS = {
    "text_to_image": (Recipe("text_to_image", "a red cat", SEEDS, model="tiny"),),
    "unguided": (Recipe("text_to_image", "a red cat", SEEDS, model="tiny", guidance_scale=1.0, width=128, height=64),),
    "image_to_image": (Recipe("image_to_image", "a cat", SEEDS, model="tiny", strength=0.7), picture(64)),
    "inpaint": (Recipe("inpaint", "a cat", SEEDS, model="tiny"), picture(64), grid_mask(64, (5, 9, 40, 30))),
    "vary": (Recipe("vary", "a hat", SEEDS, model="tiny", parent=PARENT, share=0.4),),
    # So few that some images have no masked token at all.
    "vary hardly": (Recipe("vary", "a hat", SEEDS, model="tiny", parent=PARENT, share=0.05),),
    "touch_up": (Recipe("touch_up", "a hat", SEEDS, model="tiny", parent=PARENT, cells=(0, 3, 7)),),
    "annealed": (replace(PARENT, seeds=SEEDS, sampler="annealed", corrector_rounds=2),),
    "by the prompt": (Recipe("image_to_image", "a cat", SEEDS, model="tiny", mask_by="prompt"), picture(64)),
    "improve": (Recipe("improve", "a hat", SEEDS, model="tiny", parent=PARENT, corrector_rounds=2),),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: more threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("batches") / "tiny")


def load(folder, batch_size: int, device: str = "cpu") -> amused.Amused:
    model = amused.load(folder, device=device, dtype="float32")
    model.batch_size = batch_size
    return model


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_gives_the_images_of_single_seeds(folder, task) -> None:
    recipe, *given = TASKS[task]
    alone = [*load(folder, 1).generate(recipe, *given)]
    for batch_size in (2, 5, 8):  # the last batch is short, full, or the only one and short
        events = [*load(folder, batch_size).generate(recipe, *given)]
        assert len(events) == len(alone)
        for kind in (amused.Step, amused.Picture):
            expected = [event for event in alone if isinstance(event, kind)]
            found = sorted((event for event in events if isinstance(event, kind)), key=lambda event: event.index)
            for one, other in zip(found, expected, strict=True):
                assert (one.index, one.seed) == (other.index, other.seed)
                assert torch.equal(one.tokens, other.tokens)
                if kind is amused.Step:
                    assert (one.step, one.steps) == (other.step, other.steps)
                    assert torch.equal(one.masked, other.masked)
                else:
                    assert one.image.tobytes() == other.image.tobytes()


def images(model: amused.Amused, recipe: Recipe, *given) -> dict[int, bytes]:
    """By seed."""
    found = (event for event in model.generate(recipe, *given) if isinstance(event, amused.Picture))
    return {event.seed: event.image.tobytes() for event in found}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["text_to_image", "image_to_image", "inpaint"])
def test_an_image_is_the_same_at_every_place_of_a_batch_and_alone(folder, task, dtype) -> None:
    """In half precision as well, as every batch has the same shape."""
    recipe, *given = TASKS[task]
    model = amused.load(folder, device="cpu", dtype=dtype)
    model.batch_size = 4
    together = images(model, recipe.with_seeds(range(6)), *given)
    assert images(model, recipe.with_seeds((5, 3, 1, 0, 4, 2)), *given) == together
    for seed in (0, 5):
        assert images(model, recipe.with_seeds([seed]), *given) == {seed: together[seed]}


@pytest.mark.parametrize("place", ["step", "decode"])
def test_images_are_not_lost_when_memory_runs_out(folder, place, monkeypatch) -> None:
    recipe = replace(PARENT, seeds=range(6))
    expected = images(load(folder, 1), recipe)
    model, calls = load(folder, 4), []
    method = {"step": (Predictor, "__call__"), "decode": (type(model), "decode")}[place]
    works = getattr(*method)

    def fails_at_times(*arguments):
        calls.append(1)
        if len(calls) in (3, 5):  # once in a batch of four, once in one of two
            raise torch.OutOfMemoryError
        return works(*arguments)

    monkeypatch.setattr(*method, fails_at_times)
    events = [event for event in model.generate(recipe) if isinstance(event, amused.Picture)]
    assert [event.index for event in events] == list(range(6))
    assert {event.seed: event.image.tobytes() for event in events} == expected
    assert model.batch_size == 1


def test_a_batch_that_ran_out_of_memory_ends_with_its_last_image_all_the_same(folder, monkeypatch) -> None:
    model, calls, works = load(folder, 4), [], Predictor.__call__

    def fails_once(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return works(*arguments)

    monkeypatch.setattr(Predictor, "__call__", fails_once)
    events = sample(model, [replace(PARENT, seeds=range(4))], None, None)
    assert [event.ends_batch for event in events if isinstance(event, Result)] == [False, True, False, True]


@pytest.mark.parametrize("place", ["load", "step"])
def test_a_single_image_without_memory_is_refused_in_a_sentence(folder, place, monkeypatch) -> None:
    def fails(*_):
        raise torch.OutOfMemoryError

    model = load(folder, 1)
    method = {"load": (type(model.checkpoint), "load_transformer"), "step": (Predictor, "__call__")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(*method, fails)
        with pytest.raises(amused.UserError, match="out of memory"):
            images(model, PARENT)
        if place == "load":
            with pytest.raises(amused.UserError, match="out of memory"):
                model.read_weights()
    assert images(model, PARENT)  # it can be tried again


def test_a_batch_is_as_large_as_the_free_memory_allows() -> None:
    assert [batch_for(free, 100, cap=8) for free in (0, 100, 249, 250, 499, 500, 999, 1000, 10**9)] == [
        *(1, 1, 1, 2, 2, 4, 4, 8, 8)
    ]
    assert [batch_for(10**9, 1, cap) for cap in (1, 2, 3, 4, 5)] == [1, 2, 2, 4, 4]


def test_the_measured_memory_is_that_of_images_with_guidance(monkeypatch) -> None:
    """An image then takes two rows of a batch."""
    network, rows = tiny_transformer(), []
    network.mlm_layer.register_forward_hook(lambda _, __, logits: rows.append(len(logits)))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", rows.clear)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100 * max(rows))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 1000))
    conditioning = network.condition(torch.rand(1, 7, 32), torch.rand(1, 32), torch.rand(1, 5))
    assert batch_size_on_gpu(network, conditioning, 4, cap=8) == 4


def test_a_network_whose_rows_depend_on_their_place_is_found_out() -> None:
    network = tiny_transformer()
    conditioning = network.condition(torch.rand(1, 7, 32), torch.rand(1, 32), torch.rand(1, 5))
    assert rows_are_independent(network, conditioning, 4, 4)
    network.mlm_layer.register_forward_hook(lambda _, __, logits: logits + torch.arange(len(logits))[:, None, None])
    assert not rows_are_independent(network, conditioning, 4, 4)
    network = tiny_transformer()
    network.mlm_layer.register_forward_hook(lambda _, __, logits: logits + logits.sum())
    assert not rows_are_independent(network, conditioning, 4, 4)


def test_a_run_lets_others_have_their_turn_after_a_batch(folder) -> None:
    model = load(folder, 2)
    runtime = Runtime(load=lambda name, report: model, default="nouns")
    recipe = replace(PARENT, model="nouns", seeds=(5, 3, 4))
    events = list(runtime.run(lambda: Request((recipe,))))
    results = [event for event in events if isinstance(event, Result)]
    assert [(event.index, event.ends_batch) for event in results] == [(0, False), (1, True), (2, True)]
    steps = [(event.index, event.step) for event in events if isinstance(event, Progress)]
    assert steps == [(index, step) for batch in ((0, 1), (2,)) for step in range(1, 5) for index in batch]


def test_steps_of_a_batch_come_together_and_then_its_images_in_order(folder) -> None:
    recipe = replace(PARENT, seeds=(5, 3, 4), steps=2)
    events = [(type(event).__name__, event.seed) for event in load(folder, 2).generate(recipe)]
    steps = [("Step", 5), ("Step", 3)]
    assert events == [*steps, *steps, ("Picture", 5), ("Picture", 3), ("Step", 4), ("Step", 4), ("Picture", 4)]


def test_confidence_is_in_float32_on_a_gpu(gpu, monkeypatch) -> None:
    """As in the reference: half precision has too few values to tell tokens apart."""
    dtypes, sort = [], torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda self, **options: dtypes.append(self.dtype) or sort(self, **options)
    )
    cuda, model = gpu
    assert model.dtype == torch.float16
    with cuda.here():
        [*model.generate(replace(PARENT, seeds=(1,), steps=2))]
    assert {*dtypes} == {torch.float32}


def test_images_are_encoded_without_tf32(folder, monkeypatch) -> None:
    allowed, encode = [], VQGAN.encode
    monkeypatch.setattr(
        VQGAN, "encode", lambda *given: allowed.append(torch.backends.cudnn.allow_tf32) or encode(*given)
    )
    load(folder, 1).encode(picture(64))
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("clock", [-0.0, 0.0])
def test_a_clock_of_zero_wins_for_no_code_without_weight(clock, monkeypatch) -> None:
    """MPS draws some."""
    monkeypatch.setattr(sampling, "clocks_are_logarithms", lambda: False)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda clocks, generator: clocks.fill_(1.0).fill_diagonal_(clock))
    weights = torch.tensor([[0.0, 0.4, 0.6], [0.6, 0.0, 0.4], [0.4, 0.6, 0.0]])
    drawn = sampling.sample_multinomial(weights[None], 3, generators(1))
    assert drawn.tolist() == [[2, 0, 1]]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_step_on_all_positions_and_on_the_masked_ones_is_the_same() -> None:
    """A GPU computes all positions, a CPU those of `masked_idx`, which may hold a few more than are masked."""
    logits = torch.randn(3, 40, 16)
    tokens = torch.where(torch.rand(3, 40) < 0.3, torch.randint(16, (3, 40)), 99)
    masked_idx = (tokens != 99).byte().argsort(dim=1, stable=True)[:, :38].sort(dim=1).values
    some = logits.gather(1, masked_idx[..., None].expand(-1, -1, 16))
    for left in (torch.tensor([1, 7, 20]), None):
        step = StepPlan(1, left, torch.tensor(2.0))
        everywhere = unmask_step(logits, tokens, 99, step, generators(1, 2, 3))
        assert torch.equal(everywhere, unmask_step(some, tokens, 99, step, generators(1, 2, 3), masked_idx))
        assert (everywhere == 99).sum(dim=1).tolist() == ([0, 0, 0] if left is None else left.tolist())
        assert torch.equal(everywhere[tokens != 99], tokens[tokens != 99])


def test_images_with_different_numbers_of_masked_tokens_keep_their_own_schedules() -> None:
    masked = torch.arange(64)[None] < torch.tensor([[64], [16], [1], [0]])
    together = sampling_steps("cosine", 12, (2.0, 0.0), masked, start=3, scale_by_mask=True)
    for row in range(4):
        alone = sampling_steps("cosine", 12, (2.0, 0.0), masked[row : row + 1], start=3, scale_by_mask=True)
        assert len(alone) == len(together) == 9
        for one, step in zip(alone, together):
            assert (one.number, one.temperature) == (step.number, step.temperature)
            assert (one.num_masked is None) == (step.num_masked is None) == (one.number == 9)
            assert one.num_masked is None or one.num_masked[0] == step.num_masked[row]


def test_every_step_unmasks_a_token_and_leaves_one() -> None:
    counts = num_masked(torch.tensor([1.0, 1.0, 0.9, 0.001, 0.0]), 10, torch.tensor([10, 2]), torch.tensor([1.0, 0.2]))
    assert counts.tolist() == [[9, 1], [8, 1], [1, 1]]


def test_random_masks_are_those_of_each_seed_alone() -> None:
    tokens = torch.randint(16, (4, 8))
    together = mask_at_random(tokens, 0.5, 99, generators(1, 2))
    for row, seed in enumerate((1, 2)):
        assert torch.equal(together[row], mask_at_random(tokens, 0.5, 99, generators(seed))[0])
    assert not torch.equal(together[0], together[1])


@pytest.fixture(scope="module")
def gpu(folder) -> tuple[FakeCuda, amused.Amused]:
    """A fake GPU, and a model on it that samples two images together."""
    cuda = FakeCuda()
    with cuda.here():
        model = amused.load(folder, device="cuda")
        model.read_weights(everything=True)
        [*model.generate(PARENT)]
    assert model.batch_size == 2
    return cuda, model


@pytest.mark.parametrize("task", TASKS)
def test_generation_works_on_a_gpu_and_waits_for_it_only_between_images(gpu, task) -> None:
    recipe, *given = TASKS[task]
    changes = {} if recipe.strength is None else {"strength": 1.0}
    cuda, model = gpu
    with cuda.here():
        cuda.forget()
        for event in model.generate(replace(recipe, seeds=SEEDS[:3], steps=3, **changes), *given):
            waits = {wait.function for wait in cuda.waits}
            if isinstance(event, amused.Picture):
                assert waits == {"to_image", "_sample"}, cuda.waits  # the image and its tokens
            elif event.step == 1 and event.index != 1:  # 0 and 1 are a batch
                once = {"_encode_prompt", "encode", "_parent_tokens", "_sample"} if event.index == 0 else set()
                assert waits <= {"num_masked", "_initial_tokens", *once}, cuda.waits
            else:
                assert not cuda.waits
            if isinstance(event, amused.Step):
                steps = event.steps
                if event.index != 1:
                    assert cuda.awaited == [*range(1, cuda.num_events)]  # the host is one step ahead
            if isinstance(event, amused.Step) and event.step == 2:
                model.preview(event.tokens, event.masked)
            cuda.waits.clear()
        assert cuda.num_events == 2 * steps


def test_a_fingerprint_names_the_batch_that_the_image_was_made_in(gpu, monkeypatch) -> None:
    cuda, model = gpu
    with cuda.here():
        [*model.generate(replace(PARENT, steps=1))]
        monkeypatch.setattr(model, "batch_size", 1)  # as another run does that finds no memory
        assert " batch-2 " in model.fingerprint


def test_the_fake_gpu_finds_what_it_is_for(gpu) -> None:
    cuda, _ = gpu
    with cuda.here():
        cuda.forget()
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        with pytest.raises(FakeTensorDeviceMismatchError):
            here + there
        with pytest.raises(DynamicOutputShapeException):
            there.nonzero()
        with pytest.raises(DataDependentOutputException):
            here[: there.long()[0]]
        with pytest.raises(AssertionError, match="two devices"):
            there.exponential_(generator=torch.Generator())
        assert not cuda.waits
        for wait in (
            lambda: bool(there[0]),
            lambda: int(there[0]),
            lambda: float(there[0]),
            there[0].item,
            there.tolist,
            there.cpu,
            lambda: there.to("cpu"),
            lambda: here.to("cuda"),
            lambda: there.copy_(here),
            lambda: there[torch.tensor([1, 2])],
            lambda: torch.tensor([1], device="cuda"),
            lambda: torch.equal(there, there),
        ):
            wait()
            assert cuda.waits
            cuda.waits.clear()
        there.to("cuda", torch.float16), there + 1, there * torch.tensor(2), torch.full((3,), 7, device="cuda")
        assert not cuda.waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", TASKS)
def test_the_loop_does_not_wait_for_a_gpu(folder, task) -> None:
    recipe, *given = TASKS[task]
    model = load(folder, 2, "cuda")
    [*model.generate(recipe, *given)]
    events = model.generate(recipe, *given)
    first = next(events)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(min(model.batch_size, len(recipe.seeds)) * first.steps - 1):
            assert isinstance(next(events), amused.Step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(next(events), amused.Picture)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32"))
def test_a_gpu_makes_images_in_each_precision(folder, dtype) -> None:
    """cuBLAS refuses settings only once it multiplies."""
    model = amused.load(folder, device="cuda", dtype=dtype)
    alone = model.text_to_image("a red cat", seeds=[SEEDS[0]])
    assert alone[0].tobytes() == model.text_to_image("a red cat", seeds=SEEDS)[0].tobytes()
