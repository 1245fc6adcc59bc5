"""A checkpoint's own settings and versions: what it states applies where a caller says nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.reference import picture
from helpers.tiny import tiny_checkpoint

import amused
from amused.checkpoints.catalog import FORMER, GENERATION_CONFIG
from amused.checkpoints.hub import locate
from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import OF_A_MODEL
from amused.serving.runtime import Runtime

pytestmark = pytest.mark.slow

OWN = {"steps": 3, "guidance_scale": 2.0, "temperature": [8.0, 0.0], "sampler": "annealed", "corrector_rounds": 1}


def checkpoint(folder: Path, seed: int = 2, **stated: Any) -> Path:
    tiny_checkpoint(folder, seed=seed)
    if stated:
        (folder / GENERATION_CONFIG).write_text(json.dumps(stated))
    return folder


def load(folder: Path) -> amused.Amused:
    return amused.load(folder, device="cpu", dtype="float32")


def run(model: amused.Amused, recipe: amused.Recipe, *given: Any) -> list[bytes]:
    return [event.image.tobytes() for event in model.generate(recipe, *given) if isinstance(event, amused.Picture)]


def test_methods_take_the_checkpoints_own_settings(tmp_path) -> None:
    model, image = load(checkpoint(tmp_path / "own", **OWN, mask_by="prompt")), picture(64)
    assert {name: model.defaults[name] for name in OWN} == {**OWN, "temperature": (8.0, 0.0)}
    recipe = amused.Recipe("text_to_image", "a red cat", (5,), model="own", **OWN)
    assert [one.tobytes() for one in model.text_to_image("a red cat", seeds=[5])] == run(model, recipe)
    recipe = amused.Recipe("image_to_image", "a cat", (5,), model="own", mask_by="prompt", **{**OWN, "steps": 5})
    assert [one.tobytes() for one in model.image_to_image("a cat", image, seeds=[5], steps=5)] == run(
        model, recipe, image
    )


def test_a_checkpoint_that_states_nothing_has_the_settings_of_the_published_ones(tmp_path) -> None:
    assert load(checkpoint(tmp_path / "own")).defaults == {name: getattr(amused.Recipe, name) for name in OF_A_MODEL}


@pytest.mark.parametrize(
    "stated, says",
    [
        ({"stepps": 3}, "'stepps' is not one of steps, guidance_scale"),
        ({"steps": 0}, "number of steps must be from 1 to 100"),
        ({"temperature": 1}, "temperature must be two numbers"),
    ],
)
def test_invalid_settings_are_refused_with_the_file_and_the_field(tmp_path, stated, says) -> None:
    with pytest.raises(CheckpointError, match=f"{GENERATION_CONFIG}: .*{says}"):
        load(checkpoint(tmp_path / "own", **stated))


def test_the_page_knows_the_settings_of_the_owners_folder(tmp_path) -> None:
    runtime = Runtime(default=str(checkpoint(tmp_path / "own", **OWN)))
    assert runtime.choice("own").defaults["sampler"] == "annealed"
    assert runtime.choice("nouns").defaults["model_version"] == 7
    assert runtime.choice("amused-256").defaults["steps"] == 12


def test_the_page_knows_the_sizes_of_the_bundled_model_before_it_is_loaded() -> None:
    choice, checkpoint = Runtime(default="nouns").choice("nouns"), locate("nouns")
    assert (choice.size, choice.multiple) == (checkpoint.size, checkpoint.multiple)
    assert choice.pixels_per_token == checkpoint.vqgan.scale_factor


def test_a_recipe_of_a_former_version_is_made_by_it_or_refused(tmp_path) -> None:
    old, other = load(checkpoint(tmp_path / "own")), checkpoint(tmp_path / "other", seed=5)
    recipe = amused.Recipe("text_to_image", "a red cat", (5,), model="own")
    image_recipe = amused.Recipe("image_to_image", "a cat", (5,), model="own")
    variation = amused.Recipe("vary", "a cat", (6,), model="own", parent=recipe, share=0.5)
    given = [(recipe,), (image_recipe, picture(64)), (variation,)]
    made = [run(old, *arguments) for arguments in given]
    step = next(old.generate(recipe))

    (tmp_path / "own").rename(tmp_path / "former")
    shutil.copytree(other, tmp_path / "own")
    (tmp_path / "own" / GENERATION_CONFIG).write_text(json.dumps({"model_version": 3}))
    (tmp_path / "former").rename(tmp_path / "own" / FORMER)
    new = load(tmp_path / "own")
    assert [run(new, *arguments) for arguments in given] == made
    assert (
        new.text_to_image("a red cat", seeds=[5])[0].tobytes()
        == load(other).text_to_image("a red cat", seeds=[5])[0].tobytes()
    )
    previews = [
        model.preview(step.tokens, step.masked, version).tobytes() for model, version in ((new, 1), (old, None))
    ]
    assert previews[0] == previews[1] != new.preview(step.tokens, step.masked).tobytes()

    between = replace(recipe, model_version=2)
    with pytest.raises(
        UserError, match="needs version 2 of the model own, and version 1 and 3 is here: use the release"
    ):
        run(new, between)
    with pytest.raises(UserError, match="can only be varied with version 1 of its model"):
        replace(variation, model_version=3)
    shutil.rmtree(tmp_path / "own" / FORMER)
    with pytest.raises(UserError, match="needs version 1 of the model own, and version 3 is here"):
        run(load(tmp_path / "own"), recipe)


def test_a_former_version_has_the_same_size(tmp_path) -> None:
    folder = checkpoint(tmp_path / "own")
    tiny_checkpoint(folder / FORMER, downsample=True)
    with pytest.raises(CheckpointError, match="former: its images have other sizes"):
        load(folder)
