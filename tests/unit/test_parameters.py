"""Settings in the form of A1111's web UI: read as far as they map, and written for image viewers."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.cpu_time import no_longer_than
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from amused.errors import UserError
from amused.recipe.links import Shared
from amused.recipe.metadata import MAX_METADATA, from_png_file, parameters_from_png_file, png_info
from amused.recipe.parameters import Parameters, format_parameters, parse_parameters
from amused.recipe.recipe import Recipe
from amused.serving.runtime import Runtime
from amused.ui.sharing import NoRecipe, from_file

PLAIN = Recipe("text_to_image", "a fox", (8,))
A1111 = """a (red:1.2) fox, 4k
Steps: 3 in the snow <lora:snow:0.8>
Negative prompt: blurry,
low quality
Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 123, Seed: 9, Size: 512x768, Model hash: 0a1b, Model: "mine, v2", \
Lora hashes: "snow: 12ab, Seed: 9", Hashes: {"model": "0a1b", "vae": "Steps: 3"}, Version: v1.9.0
Template: {a|b} fox"""


def png(*texts: tuple[str, str], zip: bool = False) -> bytes:
    info = PngInfo()
    for key, text in texts:
        info.add_text(key, text, zip=zip)
    return saved(info)


def saved(info: PngInfo) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_chunk(kind: bytes, content: bytes) -> bytes:
    data = saved(PngInfo())
    chunk = kind + content
    return data[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def fill(text: str) -> Shared:
    return parse_parameters(text).fill(PLAIN, lambda recipe: recipe.model == "nouns")


def test_what_maps_is_taken_and_the_rest_is_named() -> None:
    shared = fill(A1111)
    assert shared.recipe == Recipe(
        "text_to_image",
        "a (red:1.2) fox, 4k\nSteps: 3 in the snow <lora:snow:0.8>",
        (123,),
        negative_prompt="blurry,\nlow quality",
        steps=20,
        guidance_scale=7.5,
        width=512,
        height=768,
    )
    assert shared.ignored == (
        "Sampler", "Model hash", "Model", "Lora hashes", "Hashes", "Version", "Template",
    )  # fmt: skip
    assert parse_parameters(A1111).settings["Model"] == "mine, v2"


@pytest.mark.parametrize(
    "setting",
    [
        "Seed: -1", "Seed: 99999999999", "Seed: x", "Steps: 0", "Steps: 5000", "CFG scale: nan", "CFG scale: 1e999",
        "CFG scale: 7,5", "Size: 500x500", "Size: 2048x2048", "Size: 512", "Size: 1x2x3", "Sampler: ", "Model: other",
        "Seed: " + "1" * 5000,
    ],
)  # fmt: skip
def test_a_value_that_is_not_possible_is_ignored(setting: str) -> None:
    shared = fill(f"a cow\nSteps: 9\n{setting}" if not setting.startswith("Steps") else f"a cow\n{setting}")
    name = setting.partition(":")[0]
    if setting == "CFG scale: 7,5":  # the comma ends the value
        assert shared.recipe.guidance_scale == 7 and not shared.ignored
    else:
        assert shared.ignored == (name,)
        assert replace(shared.recipe, steps=12) == replace(PLAIN, prompt="a cow")


@pytest.mark.parametrize("text", ["", "a fox", "a fox\nNegative prompt: b", '{"prompt": "a"}', "Steps: many"])
def test_text_without_a_line_of_settings_is_not_read(text: str) -> None:
    assert parse_parameters(text) is None


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        Recipe("text_to_image", "ein Fuß, 狐", (2**32 - 1,), negative_prompt="雨, fog", steps=30, guidance_scale=2.5),
        Recipe("text_to_image", "", (0,), width=256, height=320, sampler="annealed"),
        Recipe("text_to_image", 'a "red" fox: 5, b\\', (1,), model='mine, "v2": 5'),
    ],
)
def test_what_is_written_reads_the_same(recipe: Recipe) -> None:
    data = saved(png_info(recipe, "a" * 16))
    assert from_png_file(data).recipe == recipe
    read = parameters_from_png_file(data).fill(PLAIN, lambda changed: True)
    assert (read.recipe, read.ignored) == (recipe, ())


def test_viewers_are_shown_prompt_seed_steps_and_scale() -> None:
    recipe = Recipe("image_to_image", "a fox\nSteps: 3", (8, 9), negative_prompt="b", strength=0.5, guidance_scale=10)
    text = Image.open(io.BytesIO(saved(png_info(recipe, "a" * 16)))).info["parameters"]
    assert text == format_parameters(recipe)
    assert text == (
        "a fox Steps: 3\nNegative prompt: b\n"
        "Steps: 12, Sampler: multinomial, CFG scale: 10, Seed: 8, Model: nouns, Denoising strength: 0.5"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Steps: 1, " + '"' * 30_001,
        "Steps: 1, " + 'a: "\\' * 15_000,
        "Steps: 1, " + '\\"' * 40_000,
        "Steps: 1" + " " * 90_000 + "x",
        "Steps: 1, " + "a" * 90_000,
        "Steps: 1, " + "a " * 45_000,
        "Steps: 1," * 10_000,
        "Steps: 1\n" * 10_000,
        "Steps: " * 14_000 + "\nSteps: 1",
        "Negative prompt:\n" * 5_000 + "Steps: 1",
        "Steps: 1" + ",\n" * 45_000,
        "Steps: 1, " + "a:b," * 22_000,
        "Steps: 1" + "".join(f", a{number}: b" for number in range(9_000)),
        "Steps: 1, " + "[" * 90_000,
        'Steps: 1, a: "' + "[" * 80_000 + '"',
        "\r\n" * 45_000 + "Steps: 1",
    ],
    ids=lambda text: text[:20],
)
def test_hostile_text_is_read_in_no_time(text: str) -> None:
    with no_longer_than(0.5):
        found = parameters_from_png_file(png(("parameters", text)))
    assert isinstance(found, Parameters) and len(found.settings) <= 100


def test_text_is_read_in_linear_time() -> None:
    """Longer than a file may have: so it does not depend on that limit."""
    for part in ('a: "\\', '\\"', '"', "a ", "a:b,", "Steps: ", "Steps: 1\n", "Negative prompt:\n", " "):
        with no_longer_than(1):
            parse_parameters("Steps: 1, " + part * (400_000 // len(part)))
            parse_parameters(part * (400_000 // len(part)) + "\nSteps: 1")


@pytest.mark.parametrize("zip", [False, True])
@pytest.mark.parametrize("prompt", ["a fox", "ein Fuß", "狐"])  # tEXt or zTXt, and iTXt where Latin-1 does not do
def test_all_kinds_of_text_chunks_are_read(prompt: str, zip: bool) -> None:
    found = parameters_from_png_file(png(("Comment", "x"), ("parameters", f"{prompt}\nSteps: 5"), zip=zip))
    assert (found.prompt, found.settings) == (prompt, {"Steps": "5"})


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"tEXt", b"parameters\0" + b"a" * (MAX_METADATA + 1)),
        with_chunk(b"tEXt", b"parameters\0" + b"a" * 5 * MAX_METADATA),
        with_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (MAX_METADATA + 1))),
        with_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"\0" * 64_000_000)),
        with_chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"\0" * 64_000_000)),
        with_chunk(b"zTXt", b"parameters\0\5" + b"a"),
        with_chunk(b"tEXt", b"parameters\0Steps: 1")[:50],
    ],
    ids=["long", "too long", "long zip", "bomb", "bomb in iTXt", "unknown method", "cut off"],
)
def test_hostile_chunks_are_refused_in_a_sentence(data: bytes) -> None:
    with no_longer_than(0.5), pytest.raises(UserError) as refusal:
        parameters_from_png_file(data)
    assert str(refusal.value).endswith(".") and len(str(refusal.value)) < 100


# On the page


def from_bytes(data: bytes, folder: Path, model: str = "nouns") -> Shared:
    (folder / "file.png").write_bytes(data)
    return from_file(str(folder / "file.png"), Runtime(default="nouns"), model)


def test_what_a_file_does_not_say_is_the_model_s_own(tmp_path: Path) -> None:
    runtime = Runtime(default="nouns")
    for model in ("nouns", "amused-512"):
        recipe = from_bytes(png(("parameters", "a cow\nSteps: 7")), tmp_path, model).recipe
        own = runtime.choice(model).defaults
        assert recipe == Recipe("text_to_image", "a cow", (0,), model, **{**own, "steps": 7})


@pytest.mark.parametrize(
    ("size", "model", "taken"),
    [("256x256", "nouns", True), ("512x512", "nouns", False), ("512x512", "amused-512", True)],
)
def test_a_size_is_taken_if_the_model_has_it(tmp_path: Path, size: str, model: str, taken: bool) -> None:
    shared = from_bytes(png(("parameters", f"a cow\nSteps: 7, Size: {size}")), tmp_path, model)
    assert shared.ignored == (() if taken else ("Size",)) and (shared.recipe.width is not None) == taken


def test_a_model_of_the_page_is_taken(tmp_path: Path) -> None:
    shared = from_bytes(png(("parameters", "a cow\nSteps: 7, Size: 512x512, Model: amused-512")), tmp_path)
    assert (shared.recipe.model, shared.recipe.width, shared.ignored) == ("amused-512", 512, ())


def test_our_own_recipe_comes_first(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a cow\nSteps: 7")
    info.chunks += png_info(PLAIN, "a" * 16).chunks[:1]
    assert from_bytes(saved(info), tmp_path) == Shared(PLAIN, "a" * 16)


@pytest.mark.parametrize("texts", [(), (("workflow", "{}"), ("prompt", "{}")), (("parameters", "a cow"),)])
def test_a_file_of_another_tool_has_no_recipe(tmp_path: Path, texts: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(NoRecipe, match="There is no recipe in this file"):
        from_bytes(png(*texts), tmp_path)
