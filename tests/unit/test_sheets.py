"""Grids of recipes, and several pictures as one."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from amused.errors import UserError
from amused.generation import lettering
from amused.generation.contact_sheet import bundle, grid, sheet
from amused.generation.lettering import Lettering
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
    ("text", "values"),
    [
        ("0,3; 0,5", [0.3, 0.5]),
        ("0.3;0.5;", [0.3, 0.5]),
        ("0,3；0,5", [0.3, 0.5]),
        ("2,5,10", [2, 5, 10]),
        ("2, 5, 10", [2, 5, 10]),
        ("2，5、10", [2, 5, 10]),
        ("2 5\t10", [2, 5, 10]),
        ("2.5,", [2.5]),
    ],
)
def test_numbers_are_read_in_every_notation(text: str, values: list[float]) -> None:
    made = expand(RECIPE, "guidance", text, NONE, "")
    assert [recipe.guidance_scale for recipe in made.recipes] == values
    assert made.across == tuple(f"guidance {value:g}" for value in values)


@pytest.mark.parametrize("text", ["0,3 0,5", "0,3, 0,5", "1,2; 3,4,5", "2; 5 10", "five", "1,000.5; 2", "x" * 20_000])
def test_numbers_of_two_readings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"as numbers, for example|too long"):
        expand(RECIPE, "guidance", text, NONE, "")


@pytest.mark.parametrize(
    ("prompt", "words", "other"),
    [
        ("a foxboy and a fox, Fox", "fox, cat", "a foxboy and a cat, Fox"),
        ("a fox-like fox_y fox.", "fox, cat", "a cat-like fox_y cat."),
        ("a red fox", "red fox, \\1 cat", "a \\1 cat"),
        ("лисица и лиса", "лиса, кот", "лисица и кот"),
        ("红狐狸在雪中", "狐狸, 猫", "红猫在雪中"),
        ("(fox)", "(fox), [cat]", "[cat]"),
        ("a C++ logo", "C++， Rust", "a Rust logo"),
    ],
)
def test_a_wording_replaces_whole_words(prompt: str, words: str, other: str) -> None:
    made = expand(Recipe("text_to_image", prompt, (7,)), "prompt wording", words, NONE, "")
    assert [recipe.prompt for recipe in made.recipes] == [prompt, other]


def test_a_wording_within_a_word_is_refused() -> None:
    with pytest.raises(UserError, match='does not contain "fox"'):
        expand(Recipe("text_to_image", "a foxboy", (7,)), "prompt wording", "fox, cat", NONE, "")


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


# Labels

SQUARE = [Image.new("RGB", (256, 256), "teal")]


def drawn(label: str) -> bytes:
    return sheet(SQUARE, [label], 1).tobytes()


def no_fonts() -> tuple[Path, ...]:
    return ()


def one_font() -> tuple[Path, ...]:
    fonts = [file for file in lettering.font_files() if file.stem == "DejaVuSans"]
    if not fonts:
        pytest.skip("DejaVu Sans is not installed")
    return tuple(fonts[:1])


@pytest.mark.parametrize("fonts", [no_fonts, one_font])
@pytest.mark.parametrize("first, second", ["éè", "αβ", "жш", "شس", "狐犬", "🦊🐶", "ŁŃ", "\x07\x08", "กข"])
def test_a_label_is_never_of_boxes(
    first: str, second: str, fonts: Callable[[], tuple[Path, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes of two characters would look the same; without fonts, letters may differ in their accents only."""
    found = fonts()
    monkeypatch.setattr(lettering, "font_files", lambda: found)
    if first not in "éè" or found:
        assert drawn(first) != drawn(second)


def test_what_no_font_has_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "font_files", no_fonts)
    spelled = Lettering().spell("café Łódź, лис 狐 🦊 e\u0301 \u202eabc \U0010ffff")
    assert spelled == r"cafe Lodz, \u043b\u0438\u0441 \u72d0 [fox face] e abc \U0010ffff"


def test_fonts_complete_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = one_font()
    monkeypatch.setattr(lettering, "font_files", lambda: found)
    assert Lettering().spell("café Łódź, лис ثعلب 狐") == r"café Łódź, лис ثعلب \u72d0"


@pytest.mark.parametrize("text", ["x" * 1000, "xyz " * 250, "x" * 100_000, "é" * 1000, "狐" * 1000, "e\u0301" * 5000])
def test_lines_fit_and_long_labels_are_quick(text: str) -> None:
    """A word of 500 letters took six seconds: every letter measured all those before it, for each place to break."""
    letters, began = Lettering(), time.monotonic()
    lines = [letters.wrap(text, 256) for _ in range(64)][-1]
    assert time.monotonic() - began < 5
    assert sum(len(line) for line in lines) <= 7000 and all(letters.width(line) <= 256 for line in lines)


def test_wrapping_takes_time_in_proportion_to_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "MAX_LENGTH", 10**6)
    seconds = {}
    for length in (20_000, 40_000):
        times = []
        for _ in range(3):
            letters, began = Lettering(), time.process_time()
            letters.wrap("x" * length, 256)
            times.append(time.process_time() - began)
        seconds[length] = min(times)
    assert seconds[40_000] < 3 * seconds[20_000]


def test_words_are_wrapped_at_spaces() -> None:
    letters = Lettering()
    assert letters.wrap("one two", 10_000) == ["one two"] and letters.wrap("  ", 10) == []
    assert letters.wrap("one two", letters.width("one t")) == ["one", "two"]
    assert letters.wrap("b" * 8, letters.width("bbb")) == ["bbb", "bbb", "bb"]
