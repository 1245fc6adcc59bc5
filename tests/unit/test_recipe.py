"""One validated request, and its way through links and pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy
import pytest
from helpers.cpu_time import no_longer_than
from PIL import Image

from amused.errors import UserError
from amused.limits import MAX_SEEDS
from amused.recipe.grid import expand
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import from_json, from_png, parse_json, png_info, to_json
from amused.recipe.recipe import Recipe
from amused.recipe.seeds import format_ranges, format_seeds, parse_cells, parse_seeds

PLAIN = Recipe("text_to_image", "a cat", (8,))
RECIPES = [
    PLAIN,
    Recipe(
        "text_to_image",
        "",
        tuple(range(64)),
        steps=1,
        guidance_scale=0.0,
        temperature=(20.0, 0.1),
        width=512,
        height=256,
    ),
    Recipe("text_to_image", "emoji 🦊 & <b>עברית</b> 100% + a=b?\n#x", (2**32 - 1, 0, 5, 6), negative_prompt="-"),
    Recipe("image_to_image", "a", (3,), strength=1 / 3, crop=(0, 17), aesthetic_score=5.5, image="0123456789abcdef"),
    Recipe("inpaint", "a", (3,), composite=False, image="0123456789abcdef", mask="f" * 16, model="amused-256"),
    Recipe("vary", "b", (1, 2), parent=PLAIN, share=0.4),
    Recipe("touch_up", "c", (1,), parent=Recipe("vary", "b", (1,), parent=PLAIN, share=0.4), cells=(9, 3, 4, 5, 16383)),
    replace(
        Recipe("vary", "b", (1,), parent=replace(PLAIN, model_version=3), share=0.4, model_version=3),
        sampler="annealed",
        steps=8,
    ),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.task)
def test_round_trips(recipe: Recipe) -> None:
    shared = from_query(to_query(recipe, "a" * 16))
    assert (shared.recipe, shared.digest, shared.ignored) == (recipe, "a" * 16, ())
    assert from_json(json.loads(json.dumps(to_json(recipe)))).recipe == recipe


def test_a_link_is_short_and_readable() -> None:
    recipe = Recipe("text_to_image", "a red cat", (8, 9, 10, 20))
    assert to_query(recipe) == "v=2&task=text_to_image&prompt=a+red+cat&seeds=8-10%2C20"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.task)
def test_a_png_carries_its_recipe(recipe: Recipe) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=png_info(recipe, "b" * 16))
    shared = from_png(Image.open(file))
    assert (shared.recipe, shared.digest) == (recipe, "b" * 16)
    assert from_png(Image.new("RGB", (4, 4))) is None


NUMBERS = ("steps", "guidance_scale", "aesthetic_score", "width", "height")
BAD = [math.nan, math.inf, -math.inf, -1, 1e308, 2**63, 2**64, "12", True, [], {}, "nan", b"1"]


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("field", NUMBERS)
def test_refuses_numbers_that_are_none(field: str, value: object) -> None:
    with pytest.raises(UserError):
        replace(PLAIN, **{field: value})


@pytest.mark.parametrize("value", [*BAD, None, 0, 1.01], ids=repr)
def test_refuses_bad_strengths(value: object) -> None:
    if value is None:
        assert Recipe("image_to_image", "a", (1,)).strength == 0.5
        return
    with pytest.raises(UserError):
        Recipe("image_to_image", "a", (1,), strength=value)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "paint"},
        {"task": "image_to_image", "share": 0.5},
        {"task": "vary", "share": 0.5},
        {"task": "vary", "parent": PLAIN},
        {"task": "vary", "parent": replace(PLAIN, seeds=(1, 2)), "share": 0.5},
        {"task": "vary", "parent": replace(PLAIN, model="other"), "share": 0.5},
        {"task": "touch_up", "parent": PLAIN, "cells": ()},
        {"task": "touch_up", "parent": PLAIN, "cells": (-1,)},
        {"task": "touch_up", "parent": PLAIN, "cells": (128 * 128,)},
        {"strength": 0.5},
        {"prompt": None},
        {"prompt": "a\0b"},
        {"prompt": "\ud800"},
        {"prompt": "x" * 1_000_000},
        {"seeds": ()},
        {"seeds": (-1,)},
        {"seeds": (2**32,)},
        {"seeds": (1.5,)},
        {"seeds": "12"},
        {"seeds": tuple(range(MAX_SEEDS + 1))},
        {"steps": 0},
        {"steps": 10**6},
        {"steps": 12.5},
        {"temperature": 2.0},
        {"temperature": (2.0, math.nan)},
        {"crop": (0, -1)},
        {"width": 250},
        {"width": 2048, "height": 2048},
        {"composite": "yes"},
        {"image": "../../etc"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_refuses(changes: dict) -> None:
    with pytest.raises(UserError) as caught:
        replace(PLAIN, **changes)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 200


def test_whole_floats_are_whole_numbers() -> None:
    assert replace(PLAIN, steps=12.0, seeds=[8.0]).steps == 12
    assert replace(PLAIN, seeds=range(3)).seeds == replace(PLAIN, seeds=numpy.arange(3)).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("8", (8,)),
        ("8, 15, 100-103", (8, 15, 100, 101, 102, 103)),
        (" 3 4;5 - 6 ", (3, 4, 5, 6)),
        ("4294967295", (2**32 - 1,)),
    ],
)
def test_parses_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "seeds", [(8,), (8, 9, 10), (3, 5), (1, 2, 3, 8, 7), (2**32 - 1, 0), tuple(range(MAX_SEEDS)), (4, 4)], ids=str
)
def test_formatted_ranges_parse_to_the_same_seeds(seeds: tuple[int, ...]) -> None:
    assert parse_seeds(format_ranges(seeds)) == seeds


@pytest.mark.parametrize(
    ("seeds", "text"), [((8,), "8"), ((8, 9, 10), "8"), ((3, 5), "3,5"), ((1, 2, 3, 8), "1-3,8"), ((2, 1), "2,1")]
)
def test_consecutive_seeds_are_shown_by_the_first(seeds: tuple[int, ...], text: str) -> None:
    assert format_seeds(seeds) == text


@pytest.mark.parametrize("text", [" " * 300_000, "1" + " " * 300_000 + "x", "1 - " * 300_000, "," * 300_000 + "x"])
def test_long_seeds_are_refused_at_once(text: str) -> None:
    with no_longer_than(1), pytest.raises(UserError):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "5-3", "4294967296", "0-64", "0-4294967295", "1.5", "1e3", "٣"])
def test_refuses_seeds(text: str) -> None:
    with pytest.raises(UserError):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("extra", "ignored"),
    [
        ("&unknown=1", ("unknown",)),
        ("&steps=nan", ("steps",)),
        ("&steps=1e999", ("steps",)),
        ("&guidance=1e999", ("guidance_scale",)),
        ("&guidance=1&guidance=2", ("guidance",)),
        ("&crop=1,2,3", ("crop",)),
        ("&model=../../etc/passwd%00", ("model",)),
        ("&mask=javascript:alert(1)", ("mask",)),
        ("&__sign=abc", ("__sign",)),
    ],
)
def test_a_link_fills_valid_fields_only(extra: str, ignored: tuple[str, ...]) -> None:
    shared = from_query("v=1&task=text_to_image&prompt=a&seeds=3" + extra)
    assert shared.ignored == ignored
    assert replace(shared.recipe, guidance_scale=10.0) == Recipe("text_to_image", "a", (3,))


@pytest.mark.parametrize(
    "query",
    [
        "v=4&task=text_to_image&prompt=a&seeds=3",
        "v=1&task=text_to_image&seeds=3",
        "v=1&prompt=a",
        "v=1&task=vary&prompt=a&share=0.5",
        "v=1&task=vary&prompt=a&share=0.5&from=" + "from%3D" * 300,
        "v=1&task=text_to_image&prompt=%ff",
        "v=1&task=text_to_image&prompt=a%00",
        "v=1&task=text_to_image&prompt=" + "x" * 100_000,
    ],
    ids=lambda query: query[:50],
)
def test_refuses_broken_links(query: str) -> None:
    with pytest.raises(UserError):
        from_query(query)


@pytest.mark.parametrize("query", ["", "__theme=dark", "view=api&x=%zz"])
def test_an_address_without_a_recipe(query: str) -> None:
    assert from_query(query) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{" * 100_001,
        "[" * 50_000,
        '{"version": 1}',
        '{"version": 99, "task": "inpaint", "prompt": "a"}',
        "1e400",
    ],
    ids=lambda text: text[:30],
)
def test_refuses_broken_metadata(text: str) -> None:
    image = Image.new("RGB", (1, 1))
    image.info["amused"] = text
    with pytest.raises(UserError):
        from_png(image)


def test_sizes_and_shares_are_stored_in_one_type() -> None:
    recipe = Recipe("text_to_image", "a", (1,), width=256.0, height=numpy.int64(512))
    assert (type(recipe.width), type(recipe.height)) == (int, int)
    varied = Recipe("vary", "a", (1,), parent=PLAIN, share=Fraction(1, 2))
    assert type(varied.share) is float
    assert json.dumps(to_json(varied)) and from_query(to_query(recipe)).recipe == recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "vary", "parent": PLAIN, "share": 0.5, "strength": 0.5}, "The task vary has no strength."),
        ({"task": "inpaint", "only_masked": True, "composite": False}, '"Only masked" needs "composite"'),
        ({"task": "inpaint", "only_masked": True, "width": 256}, "leave out width and height"),
    ],
)
def test_a_refusal_names_what_is_wrong(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(PLAIN, **changes)


def test_json_without_a_version_is_not_told_to_update() -> None:
    with pytest.raises(UserError, match="has no version"):
        from_json({"task": "text_to_image", "prompt": "a"})
    with pytest.raises(UserError, match="newer version"):
        from_json({"version": 99, "task": "text_to_image", "prompt": "a"})


def refused(call: Callable[[], object]) -> Callable[[], None]:
    def refuses() -> None:
        with pytest.raises(UserError):
            call()

    return refuses


TEXTS = {
    "escaped quotes": lambda n: refused(lambda: parse_json('{"a": "' + '\\"' * n)),
    "quotes": lambda n: refused(lambda: parse_json('"' * n)),
    "backslashes": lambda n: refused(lambda: parse_json('{"' + "\\" * n)),
    "brackets": lambda n: refused(lambda: parse_json("[" * n)),
    "spaces between seeds": lambda n: refused(lambda: parse_seeds("1" + " " * n + "1;")),
    "dashes": lambda n: refused(lambda: parse_cells("- " * n)),
    "spaces between cells": lambda n: lambda: parse_cells("1" + " " * n + "1"),
    "values of a grid": lambda n: refused(lambda: expand(PLAIN, "steps", "1 " * n, "nothing", "")),
    "words of a grid": lambda n: refused(lambda: expand(PLAIN, "prompt wording", "cat," * n, "nothing", "")),
    "a link": lambda n: refused(lambda: from_query("task=" + "%22" * n)),
    "parents": lambda n: refused(lambda: from_query("task=vary&prompt=&from=" * n)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_sent_is_parsed_in_no_time(name: str) -> None:
    with no_longer_than(1):
        TEXTS[name](50_000)()


@pytest.mark.parametrize("path", ["/home/someone/models/mine", "/mine/", "../mine", "C:\\models\\mine", "a/b/mine"])
def test_a_model_that_an_older_version_named_by_its_path_is_known_by_its_name(path: str) -> None:
    old = Recipe("vary", "a", (1,), model=path, parent=replace(PLAIN, model=path), share=0.5)
    for shared in (from_query(to_query(old, "a" * 16)), from_json({**to_json(old), "digest": "a" * 16})):
        assert shared.recipe == replace(old, model="mine", parent=replace(PLAIN, model="mine"))
        assert shared.digest == "a" * 16 and not shared.ignored
    assert from_query(to_query(replace(PLAIN, model="owner/name"))).recipe.model == "owner/name"
