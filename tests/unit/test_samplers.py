"""What the reference does not have, against plain formulas: annealed sampling, the corrector, masking by the prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.reference import grid_mask, picture
from helpers.tiny import tiny_checkpoint
from torch import Tensor

import amused
from amused.errors import UserError
from amused.generation.pipeline import prompts_of
from amused.generation.sampling import StepPlan, mask_schedule, sample_inverse, sample_temperatures, unmask_step
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import from_json, to_json

pytestmark = pytest.mark.slow

TEXT = amused.Recipe("text_to_image", "a red cat", (8, 9), model="tiny", steps=4, guidance_scale=3.0)
IMAGE = amused.Recipe("image_to_image", "a cat", (3, 4), model="tiny", sampler="annealed", guidance_scale=3.0)
INPAINT = amused.Recipe("inpaint", "a cat", (5,), model="tiny", corrector_rounds=2)
PARENT = replace(TEXT, seeds=(8,))
IMPROVE = amused.Recipe("improve", "a hat", (1, 2), model="tiny", parent=PARENT, corrector_rounds=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> amused.Amused:
    return amused.load(tiny_checkpoint(tmp_path_factory.mktemp("samplers") / "tiny"), device="cpu", dtype="float32")


def run(model: amused.Amused, recipe: amused.Recipe, *given) -> list[amused.Picture]:
    return [event for event in model.generate(recipe, *given) if isinstance(event, amused.Picture)]


@torch.inference_mode()
def guided(model: amused.Amused, recipe: amused.Recipe, tokens: Tensor) -> Tensor:
    """Logits of tokens (h, w) at all positions, (n, codes)."""
    networks = model.components.networks(recipe)
    height, width = (side * model.pixels_per_token for side in tokens.shape)
    conditions = (width, height, *recipe.crop, recipe.aesthetic_score)
    unconditional, conditional = (
        networks.transformer(tokens[None], model._encode_prompt(networks, text, conditions).conditioning)[0]
        for text in prompts_of(recipe).values()
    )
    return unconditional + recipe.guidance_scale * (conditional - unconditional)


def least_likely(logits: Tensor, tokens: Tensor, count: int) -> list[int]:
    """The positions of the tokens with the lowest probabilities."""
    probabilities = logits.softmax(dim=-1)
    found = [float(probabilities[i, token]) for i, token in enumerate(tokens.flatten().tolist())]
    return sorted(range(len(found)), key=found.__getitem__)[:count]


def redrawn(model: amused.Amused, recipe: amused.Recipe, tokens: Tensor, positions: list[int]) -> Tensor:
    """The tokens with the likeliest code at these positions, given the others."""
    tokens = tokens.clone()
    tokens.view(-1)[positions] = model.checkpoint.mask_token_id
    likeliest = guided(model, recipe, tokens).argmax(dim=-1)
    tokens.view(-1)[positions] = likeliest[positions]
    return tokens


def test_the_corrector_draws_the_least_likely_tenth_again(model) -> None:
    recipe = replace(TEXT, width=128, sampler="annealed")
    plain, corrected = run(model, recipe), run(model, replace(recipe, corrector_rounds=2))
    for before, after in zip(plain, corrected, strict=True):
        tokens = before.tokens  # 4 x 8: 3 of them a round
        for _ in range(2):
            tokens = redrawn(model, recipe, tokens, least_likely(guided(model, recipe, tokens), tokens, 3))
        assert torch.equal(after.tokens, tokens)


def test_improving_is_the_corrector_on_a_finished_image(model) -> None:
    (parent,) = run(model, PARENT)
    recipe = replace(IMPROVE, corrector_rounds=1, sampler="annealed")
    logits = guided(model, recipe, parent.tokens)
    expected = redrawn(model, recipe, parent.tokens, least_likely(logits, parent.tokens, 1))
    assert [result.tokens.tolist() for result in run(model, recipe)] == [expected.tolist()] * 2
    drawn = run(model, replace(IMPROVE, seeds=range(6)))
    assert len({tuple(result.tokens.flatten().tolist()) for result in drawn}) > 1  # multinomial: seeds differ
    assert all((result.tokens != parent.tokens).sum() <= 2 for result in drawn)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_image_to_image_masks_what_the_prompt_makes_least_likely(model, strength) -> None:
    image = picture(128)
    recipe = replace(IMAGE, strength=strength, mask_by="prompt")
    given = model.encode(image)
    count = max(1, int(mask_schedule("cosine", recipe.steps, "cpu")[recipe.start] * 64))
    masked = least_likely(guided(model, recipe, given), given, count)
    kept = [position for position in range(64) if position not in masked]
    results = run(model, recipe, image)
    for result in results:
        assert torch.equal(result.tokens.flatten()[kept], given.flatten()[kept])
    if strength == 0.1:  # one step, in which each is the likeliest token
        expected = redrawn(model, recipe, given, masked)
        assert [result.tokens.tolist() for result in results] == [expected.tolist()] * 2
    else:
        assert run(model, replace(recipe, mask_by="random"), image)[0].tokens.tolist() != results[0].tokens.tolist()


def test_the_annealed_sampler_lowers_the_temperature_over_the_first_half() -> None:
    assert sample_temperatures("annealed", 8) == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert sample_temperatures("annealed", 3) == pytest.approx([1, 1 / 3, 0])
    assert sample_temperatures("annealed", 1) == [1]
    assert sample_temperatures("multinomial", 2) == [None, None]


def test_the_annealed_sampler_draws_one_number_a_token() -> None:
    logits, tokens = torch.randn(1, 20, 16), torch.full((1, 20), 99)
    drawn = unmask_step(logits, tokens, 99, StepPlan(1, None, torch.tensor(0.0), 0.5), [seeded(4)])
    numbers = torch.rand(20, dtype=torch.float64, generator=seeded(4)).tolist()
    rows = (logits[0] / 0.5).softmax(dim=-1).tolist()
    assert drawn[0].tolist() == [inverse(row, number) for row, number in zip(rows, numbers, strict=True)]
    some = torch.tensor([[3, 7, 19]])
    tokens = torch.zeros(1, 20, dtype=torch.int64).scatter(1, some, 99)
    few = unmask_step(logits[:, some[0]], tokens, 99, StepPlan(1, None, torch.tensor(0.0), 0.5), [seeded(4)], some)
    assert torch.equal(few[0, some[0]], drawn[0, some[0]]) and few.sum() == drawn[0, some[0]].sum()
    likeliest = unmask_step(logits, torch.full((1, 20), 99), 99, StepPlan(1, None, torch.tensor(0.0), 0.0), [seeded(4)])
    assert torch.equal(likeliest, logits.argmax(dim=-1))


def inverse(probabilities: list[float], number: float) -> int:
    """The first code at which the sum of the probabilities exceeds a share of all of them."""
    wanted = number * sum(probabilities)
    return next(code for code in range(len(probabilities)) if sum(probabilities[: code + 1]) > wanted)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).expand(2, 20_000, 6)
    drawn = sample_inverse(probabilities, 20_000, [seeded(1), seeded(2)])
    shares = torch.stack([row.bincount(minlength=6) for row in drawn]) / 20_000
    assert torch.allclose(shares, probabilities[:, 0], atol=0.015) and not shares[:, [0, 2, 5]].any()
    assert not torch.equal(drawn[0], drawn[1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_corrector_leaves_alone_what_the_task_must_keep(model) -> None:
    image, mask = picture(64), grid_mask(64, (0, 0, 32, 32))
    (before,), (after,) = (run(model, replace(INPAINT, corrector_rounds=n), image, mask) for n in (0, 4))
    changed = before.tokens != after.tokens
    assert changed.any() and not changed[2:].any() and not changed[:, 2:].any()
    improved = replace(IMPROVE, parent=INPAINT, seeds=(1, 2, 3, 4))
    (inpainted,) = run(model, INPAINT, image, mask)
    for result in run(model, improved, image, mask):
        changed = result.tokens != inpainted.tokens
        assert not changed[2:].any() and not changed[:, 2:].any()


@pytest.mark.parametrize("task", ["text", "image", "image by prompt", "inpaint", "improve"])
def test_an_image_is_the_same_alone_and_in_a_sweep_and_every_pass_is_a_step(model, task) -> None:
    recipe, *given = {
        "text": (replace(TEXT, sampler="annealed", corrector_rounds=1),),
        "image": (replace(IMAGE, corrector_rounds=1), picture(64)),
        "image by prompt": (replace(IMAGE, mask_by="prompt"), picture(64)),
        "inpaint": (INPAINT, picture(64), grid_mask(64, (0, 0, 32, 32))),
        "improve": (IMPROVE,),
    }[task]
    together = list(model.generate(recipe.with_seeds((5, 6, 7)), *given))
    steps = [(event.index, event.step, event.steps) for event in together if isinstance(event, amused.Step)]
    assert steps == [(index, step + 1, recipe.passes) for index in range(3) for step in range(recipe.passes)]
    images = [event for event in together if isinstance(event, amused.Picture)]
    for image in images:
        (alone,) = run(model, recipe.with_seeds((image.seed,)), *given)
        assert alone.image.tobytes() == image.image.tobytes()
        shared = from_query(to_query(recipe.with_seeds((image.seed,))))
        (again,) = run(model, shared.recipe, *given)
        assert torch.equal(again.tokens, image.tokens)


def test_a_recipe_is_of_the_oldest_version_that_can_hold_it() -> None:
    """An older program refuses what it cannot make, and reads the rest."""
    old = replace(PARENT, seeds=(1,))
    varied = amused.Recipe("vary", "a", (1,), model="tiny", parent=replace(old, corrector_rounds=1), share=0.5)
    newer = [replace(old, sampler="annealed"), replace(old, corrector_rounds=1), IMPROVE, varied]
    newer.append(replace(IMAGE, sampler="multinomial", mask_by="prompt"))
    for recipe, version in [(old, 2), *((recipe, 3) for recipe in newer)]:
        assert to_query(recipe).startswith(f"v={version}&") and to_json(recipe)["version"] == version
        assert from_query(to_query(recipe)).recipe == recipe == from_json(to_json(recipe)).recipe


def test_what_makes_no_sense_is_refused_or_dropped() -> None:
    for change, says in (
        ({"sampler": "greedy"}, "sampler must be multinomial or annealed"),
        ({"corrector_rounds": 11}, "corrector rounds must be from 0 to 10"),
        ({"mask_by": "hand"}, "mask_by must be random or prompt"),
    ):
        with pytest.raises(UserError, match=says):
            replace(TEXT, **change)
    assert replace(TEXT, mask_by="prompt") == TEXT
    assert replace(IMPROVE, corrector_rounds=0).corrector_rounds == 1
