"""Grids of recipes, and several pictures as one."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from PIL import Image

from amused.errors import UserError
from amused.generation.contact_sheet import bundle, grid, sheet
from amused.recipe.grid import NONE, expand
from amused.recipe.recipe import Recipe

RECIPE = Recipe("text_to_image", "a cow on a red field", (7, 8))


def test_expands_two_axes_row_by_row() -> None:
    made = expand(RECIPE, "steps", "4, 12", "prompt wording", "cow, fox")
    assert made.across == ("steps 4", "steps 12") and made.down == ("cow", "fox")
    assert [(r.steps, r.prompt[2:5], r.seeds) for r in made.recipes] == [
        (4, "cow", (7,)),
        (12, "cow", (7,)),
        (4, "fox", (7,)),
        (12, "fox", (7,)),
    ]


def test_expands_one_axis() -> None:
    made = expand(RECIPE, "seed", "3-5", NONE, "")
    assert [r.seeds for r in made.recipes] == [(3,), (4,), (5,)]
    made = expand(RECIPE, "guidance", "1 2.5", "temperature", "0;4")
    assert [(r.guidance_scale, r.temperature) for r in made.recipes[:3]] == [
        (1.0, (0.0, 0.0)),
        (2.5, (0.0, 0.0)),
        (1.0, (4.0, 0.0)),
    ]


@pytest.mark.parametrize(
    "axes",
    [
        ("strength", "0.5", NONE, ""),
        ("steps", "1,2", "steps", "3"),
        ("steps", "", NONE, ""),
        ("steps", "x", NONE, ""),
        ("steps", "nan", NONE, ""),
        ("steps", "1e9", NONE, ""),
        ("seed", "0-63", "steps", "1,2"),
        ("prompt wording", "dog,cat", NONE, ""),
        ("height", "1", NONE, ""),
    ],
    ids=str,
)
def test_refuses_grids(axes: tuple[str, str, str, str]) -> None:
    with pytest.raises(UserError):
        expand(RECIPE, *axes)


COLOURS = ["red", "green", "blue", "black", "white"]
PICTURES = [Image.new("RGB", (96, 64), colour) for colour in COLOURS]


def test_a_sheet_shows_every_picture_over_its_label() -> None:
    page = sheet(PICTURES, [f"seed {i} " * 4 for i in range(5)], columns=2, header="a prompt " * 30)
    for picture in PICTURES:
        assert page.tobytes().count(picture.crop((0, 0, 96, 1)).tobytes()) >= 64 or picture is PICTURES[4]
    bare = sheet(PICTURES, [""] * 5, columns=2)
    assert page.height > bare.height


def test_a_grid_has_a_place_for_each_picture() -> None:
    page = grid(PICTURES[:4], ["steps 4", "steps 12"], ["", "x" * 80], header="prompt")
    for picture in PICTURES[:4]:
        assert picture.crop((0, 0, 96, 1)).tobytes() in page.tobytes()


def test_a_bundle_names_its_files_and_its_manifest() -> None:
    content = bundle([("1.png", b"one"), ("2.png", b"two")], [{"prompt": "ü"}, {"prompt": "b"}])
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.namelist() == ["1.png", "2.png", "manifest.json"] and archive.read("2.png") == b"two"
    assert json.loads(archive.read("manifest.json")) == [{"prompt": "ü"}, {"prompt": "b"}]
