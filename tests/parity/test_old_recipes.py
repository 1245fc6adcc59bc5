"""Links and PNG files made by versions 0.3.0 and 0.4.0 open to the same recipe, and the recipe makes the same image."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.surface import (
    ADAPTERS,
    FIXTURES,
    digest_of_pixels,
    events_of,
    fixture,
    kind_of_machine,
    tokens_in,
)
from PIL import Image

import amused

# The only names in this module that are not public: where a link's query and a PNG file's bytes are read and written.
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import from_png_file

pytestmark = pytest.mark.slow

LINKS: dict[str, str] = fixture("links.json")
SAVED: dict[str, Any] = fixture("recipes.json")
RECIPES: dict[str, dict[str, Any]] = SAVED["recipes"]
PNG_FILES = [name for name in RECIPES if name.endswith(".png")]
REPLAYED = [name for name, saved in RECIPES.items() if "images" in saved]


def shared(name: str) -> Any:
    """What a link or a PNG file holds."""
    return from_query(LINKS[name]) if name in LINKS else from_png_file((FIXTURES / name).read_bytes())


ADDED = {"sampler": "multinomial", "corrector_rounds": 0, "mask_by": "random", "model_version": 1}
"""Fields that came later, and what they are where a recipe says nothing: what 0.4.0 did."""


def as_json(value: Any) -> Any:
    """A value as 0.4.0 had it."""
    if isinstance(value, amused.Recipe):
        fields = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        assert {name: fields.pop(name) for name in ADDED} == ADDED
        return fields
    return [as_json(one) for one in value] if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def model() -> amused.Amused:
    return amused.load("nouns", device="cpu", dtype="float32", adapters=ADAPTERS)


def test_the_fixtures_are_complete() -> None:
    assert {path.name for path in FIXTURES.glob("*.png")} == set(PNG_FILES)
    assert set(LINKS) | set(PNG_FILES) == set(RECIPES)
    assert {saved["recipe"]["task"] for saved in RECIPES.values()} == {
        "text_to_image", "image_to_image", "inpaint", "vary", "touch_up"
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_an_old_recipe_opens_to_the_same_fields(name: str) -> None:
    saved, read = RECIPES[name], shared(name)
    assert as_json(read.recipe) == saved["recipe"]
    assert (list(read.ignored), read.digest, read.fingerprint) == (saved["ignored"], saved["digest"], saved["made"])
    assert to_query(read.recipe) == saved["query"]


@pytest.mark.parametrize("name", PNG_FILES)
def test_the_digest_in_an_old_file_is_that_of_its_pixels(name: str) -> None:
    assert digest_of_pixels(Image.open(FIXTURES / name)) == RECIPES[name]["digest"]


@pytest.mark.parametrize("name", REPLAYED)
def test_an_old_recipe_makes_the_same_image(model: amused.Amused, name: str) -> None:
    """Token for token on any machine; bit for bit where rounding is the same."""
    saved = RECIPES[name]
    made = events_of(model, shared(name).recipe, saved["inputs"])
    assert [tokens_in(one) for one in made] == [tokens_in(one) for one in saved["images"]]
    if kind_of_machine() != SAVED["machine"]:
        pytest.skip("tokens are equal; pixels are only compared with the CPU units and torch they were made with")
    assert made == saved["images"]
