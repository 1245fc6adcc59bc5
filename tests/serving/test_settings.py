"""A new field of Recipe must reach the page, links, files, the API and variations, or be listed here as absent."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fake import fake_runtime
from helpers.tabs import build_tab, values_of

from amused.recipe.links import NAMES, from_query, to_query
from amused.recipe.metadata import from_json, to_json
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TOUCH_UP, VARY, Recipe
from amused.serving.runtime import Runtime
from amused.ui import api
from amused.ui.derive import OF_AN_INPUT, derive_recipe
from amused.ui.describe import LABELS, describe_recipe
from amused.ui.grid import GridSection
from amused.ui.settings import Settings
from amused.ui.tabs import text as text_tab
from amused.ui.tabs.image import ImageTab
from amused.ui.tabs.inpaint import InpaintTab

FIELDS = [field.name for field in fields(Recipe)]
PARENT = Recipe("text_to_image", "a cow", (7,))
OTHER_VALUES: dict[str, Any] = {
    "prompt": "a fox", "seeds": (8, 9), "model": "amused-256", "negative_prompt": "snow", "steps": 7,
    "guidance_scale": 3.5, "temperature": (1.0, 0.5), "strength": 0.3, "aesthetic_score": 5.0, "crop": (3, 4),
    "width": 128, "height": 192, "fit": "pad", "composite": False, "feather": 4, "only_masked": True, "image": "0" * 16,
    "mask": "1" * 16, "parent": PARENT, "share": 0.25, "cells": (2, 3), "adapter": "dusk", "adapter_digest": "2" * 16,
    "adapter_strength": 0.5, "sampler": "annealed", "corrector_rounds": 2, "mask_by": "prompt", "model_version": 2,
}  # fmt: skip
"""A value other than the default for each field; the task is the one that takes it."""

NOT_DESCRIBED = {"task": "in the heading", "width": "the size is", "height": "the size is", "parent": "folded below"}
NOT_ON_THE_PAGE = {
    "task": "the tab", "temperature": "two sliders", "aesthetic_score": "for recipes only", "crop": "for recipes only",
    "width": "by shape", "height": "by shape", "composite": "for recipes only", "image": "uploaded",
    "mask": "painted or uploaded", "parent": "the selected image", "share": "of the vary form",
    "cells": "of the touch-up form", "adapter_digest": "of the adapter's files", "model_version": "the model's own",
}  # fmt: skip
NOT_IN_THE_API = {
    **{name: NOT_ON_THE_PAGE[name] for name in ("task", "temperature", "aesthetic_score", "crop", "composite")},
    **{name: "of a shared recipe" for name in ("parent", "share", "cells", "adapter_digest")},
    "model_version": "the model's own",
    **{name: "as for the defaults" for name in ("width", "height", "fit", "feather", "only_masked")},
}
DERIVED = {"task", "seeds", "parent", "share", "cells"}


def with_other_value(name: str) -> Recipe:
    values: dict[str, Any] = {"task": "text_to_image", "prompt": "a cow", "seeds": (7,), name: OTHER_VALUES[name]}
    if name in ("composite", "feather", "only_masked", "strength", "image", "mask", "fit"):
        values["task"] = INPAINT
    if name == "mask_by":
        values["task"] = IMAGE_TO_IMAGE
    if name in ("parent", "share", "cells"):
        values |= {"task": TOUCH_UP if name == "cells" else VARY, "parent": PARENT}
        values.setdefault("cells" if name == "cells" else "share", 0.5)
    if name.startswith("adapter"):
        values.setdefault("adapter", "dusk")
    return Recipe(**values)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "task"])
def test_a_setting_survives_link_and_file(name: str) -> None:
    recipe = with_other_value(name)
    assert getattr(recipe, name) == OTHER_VALUES[name] != getattr(Recipe, name, None) and name in NAMES
    shared = from_query(to_query(recipe))
    assert shared is not None and shared.recipe == recipe
    assert from_json(to_json(recipe)).recipe == recipe


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_described(name: str) -> None:
    assert (name in LABELS) != (name in NOT_DESCRIBED)
    if name in LABELS:
        assert f"<dt>{LABELS[name]}</dt>" in describe_recipe(with_other_value(name))


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in DERIVED])
def test_a_variation_inherits_a_setting(name: str) -> None:
    parent = PARENT if name == "task" else with_other_value(name).with_seeds((7,))
    varied = derive_recipe(parent, VARY, 1, share=0.5)
    default = Recipe.__dataclass_fields__[name].default
    assert getattr(varied, name) == (default if name in OF_AN_INPUT else getattr(parent, name))


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_on_the_page_and_in_the_api(name: str) -> None:
    parts = [*fields(Settings), *fields(ImageTab), *fields(InpaintTab)]
    if name not in ("task", "image", "width", "height", "cells"):  # names that other components have too
        assert (name in {part.name for part in parts}) != (name in NOT_ON_THE_PAGE)
    assert (name in api.PARAMETERS) != (name in NOT_IN_THE_API)


@pytest.fixture
def runtime() -> Runtime:
    """Its first model has settings of its own."""
    runtime = fake_runtime()
    nouns, *others = runtime.models
    own = {"steps": 8, "guidance_scale": 2.0, "temperature": (8.0, 1.0), "sampler": "annealed", "corrector_rounds": 2}
    nouns = replace(nouns, defaults={**nouns.defaults, **own, "mask_by": "prompt", "model_version": 2})
    runtime.models = [nouns, *others]
    return runtime


def with_defaults_of(runtime: Runtime, model: str, **settings: Any) -> Recipe:
    return Recipe(prompt="a fox", seeds=(0,), model=model, **{**runtime.choice(model).defaults, **settings})


@pytest.mark.parametrize("model", ["nouns", "amused-256"])
@pytest.mark.parametrize("task", ["text_to_image", "image_to_image"])
def test_the_api_takes_the_models_own_settings_where_a_request_says_nothing(runtime, task, model) -> None:
    said = {
        "prompt": "a fox",
        "seeds": "0",
        "model": model,
        "negative_prompt": "",
        "adapter": "",
        "adapter_strength": 1,
    }
    said |= {"steps": None, "mask_by": None}
    if task == "image_to_image":
        said |= {"image": Path(__file__).parents[2] / "examples" / "fox.png"}
    (recipe,) = api.read_task(runtime, task, said).recipes
    assert recipe == with_defaults_of(runtime, model, task=task)
    changed = {"steps": 3, "first_temperature": 4, "sampler": "multinomial", "corrector_rounds": 0, "mask_by": "random"}
    (recipe,) = api.read_task(runtime, task, {**said, **changed}).recipes
    last = runtime.choice(model).defaults["temperature"][1]
    assert recipe == with_defaults_of(
        runtime, model, task=task, steps=3, temperature=(4, last), sampler="multinomial", corrector_rounds=0,
        mask_by="random",
    )  # fmt: skip


def test_the_page_begins_with_the_models_own_settings_and_those_nobody_changed_follow_the_model(runtime) -> None:
    tab = build_tab(text_tab.build, runtime)
    (recipe,) = tab.read(values_of(tab)).recipes
    assert recipe == with_defaults_of(runtime, "nouns", task="text_to_image")
    values = values_of(tab, steps=20, model="amused-256")
    values |= tab.settings.follow_model("amused-256", values)
    (recipe,) = tab.read(values).recipes
    assert recipe == with_defaults_of(runtime, "amused-256", task="text_to_image", steps=20)
    values |= {tab.settings.model: "nouns"}
    (recipe,) = tab.read(values | tab.settings.follow_model("nouns", values)).recipes
    assert recipe == with_defaults_of(runtime, "nouns", task="text_to_image", steps=20)


def test_a_grid_says_before_the_run_what_it_will_make() -> None:
    tab = build_tab(text_tab.build, fake_runtime())
    with gr.Blocks():
        section = GridSection(tab)
    values = values_of(tab, prompt="a foxboy and a fox")
    across, down = section.across, section.down
    values = values | {across.name: "guidance", across.values: "0,3; 0,5", down.name: "prompt wording"}
    estimate = section.describe_estimate(values | {down.values: "fox, <cat>"})[section.estimate]
    for sentence in (
        "4 images",
        "Across: guidance 0.3, guidance 0.5",
        "Prompts: a foxboy and a fox | a foxboy and a &lt;cat&gt;",
    ):
        assert f"<p>{sentence}</p>" in estimate
