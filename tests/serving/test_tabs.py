"""Handlers of the tabs with values that a page does not send, and with models of other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from fake import TRAITS, FakeModel, fake_runtime
from helpers.images import png
from helpers.serve import answers, serve
from helpers.tabs import build_tab, values_of
from PIL import Image

import amused
from amused.errors import UserError
from amused.generation.images import digest
from amused.generation.pixel_masks import token_indices
from amused.recipe.metadata import from_png
from amused.recipe.recipe import MAX_SEED, Recipe
from amused.recipe.words import words
from amused.serving.runtime import Choice, Runtime
from amused.ui import examples, prompts
from amused.ui.browser_storage import restore_settings
from amused.ui.derive import continue_request, painted_cells
from amused.ui.drawing import Drawing
from amused.ui.enlarge import FACTORS, write_enlarged
from amused.ui.events import NO_CHANGE
from amused.ui.files import GeneratedImage
from amused.ui.gallery_actions import before_image
from amused.ui.grid import GridSection
from amused.ui.kept_images import KeptImages, Tray, write_bundle, write_sheet, write_single
from amused.ui.live_runs import LiveRun
from amused.ui.page import build_result
from amused.ui.prompt_help import describe_prompt, word_choices
from amused.ui.results import ResultState, image_at
from amused.ui.tabs import image as image_tab
from amused.ui.tabs import inpaint as inpaint_tab
from amused.ui.tabs import text as text_tab
from amused.ui.visits import Visits

TEAL = Image.new("RGB", (256, 256), "teal")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("index", "is_found"),
    [(0, True), (1, False), (-1, False), (True, False), (0.0, False), ("0", False), ([0], False), (None, False)],
)
def test_an_image_is_found_by_its_index_only(index: Any, is_found: bool) -> None:
    image = GeneratedImage("1.png", 1, Recipe("text_to_image", "", (1,)), "0" * 16, (256, 256))
    assert image_at((image,), index) is (image if is_found else None)


@pytest.mark.parametrize("task", ["image_to_image", "inpaint", "text_to_image"])
def test_an_image_is_compared_with_what_the_model_saw_of_its_input(task: str, tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), "teal").save(given := tmp_path / "given.png")
    image = GeneratedImage("1.png", 1, Recipe(task, "", (1,), fit="pad"), "0" * 16, (256, 256), str(given))
    before = before_image(image)
    assert (before is None) == (task == "text_to_image")
    if before is not None:
        assert before.size == (256, 256) and before.getpixel((0, 0)) == (255, 255, 255)
    given.unlink()  # files are kept for a limited time
    assert before_image(image) is None


@pytest.mark.parametrize(("index", "fills"), [(0, True), (99, False), (-1, False), ("0", False), (None, False)])
def test_an_example_that_the_model_does_not_have_changes_nothing(index: Any, fills: bool) -> None:
    """As when it was clicked while the model changed."""
    tab = build_tab(text_tab.build, fake_runtime())
    dataset = tab.controls.prompt_help.examples
    values = {**values_of(tab), dataset: index}
    updates = examples.fill(tab, values)
    assert (updates is not NO_CHANGE and bool(updates[tab.settings.prompt])) == fills


@pytest.mark.parametrize(("pixels_per_token", "cell"), [(16, 16 * 1 + 2), (8, 32 * 2 + 5)])
def test_cells_are_those_of_the_model(pixels_per_token: int, cell: int, tmp_path: Path) -> None:
    model = FakeModel("nouns")
    model.pixels_per_token = pixels_per_token
    runtime = Runtime([Choice("nouns", "")], lambda name, report: model, default="nouns")
    runtime.warm_up().join()
    stroke = Image.new("RGBA", (256, 256))
    stroke.putpixel((41, 20), (255, 0, 0, 255))
    drawing = Drawing(png(TEAL), (png(stroke),))
    image = GeneratedImage("", 1, Recipe("text_to_image", "", (1,)), "0" * 16, (256, 256))
    box, cells = painted_cells(runtime, drawing.mask(image.size), image)
    assert (box, token_indices(cells)) == ((0, 0, 256, 256), (cell,))
    tab = build_tab(inpaint_tab.build, runtime)
    updates = tab.show_cells(values_of(tab, drawing=drawing))
    assert f"Will be repainted: 1 of {(256 // pixels_per_token) ** 2} cells" in updates[tab.cells].value
    row, column = divmod(cell, 256 // pixels_per_token)
    assert f'd="M{column} {row}h1v1h-1z"' in updates[tab.drawing].props["grid"]["svg"]


@pytest.mark.parametrize(("traits", "colors"), [(TRAITS, 2), (None, 10)])
def test_an_enlarged_image_keeps_its_recipe(traits: Any, colors: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    pixels = Image.new("RGB", (8, 8), "teal")
    pixels.putpixel((3, 3), (255, 0, 0))
    pixels.save(tmp_path / "a.png")
    recipe = Recipe("text_to_image", "a fox", (7,))
    image = GeneratedImage(str(tmp_path / "a.png"), 7, recipe, digest(pixels), (8, 8))
    for factor in FACTORS:
        path = write_enlarged(image, factor, Choice("nouns", "", traits=traits), write_metadata=True)
        made = Image.open(path)
        assert Path(path).name == f"amused-seed-7-x{factor}.png" and made.size == (8 * factor, 8 * factor)
        assert (from_png(made).recipe, from_png(made).digest) == (recipe, digest(pixels))
        num_colors = len(made.getcolors())
        assert num_colors == colors if traits else num_colors >= colors
        assert not Image.open(write_enlarged(image, factor, Choice("nouns", ""), write_metadata=False)).info


def kept(number: int, path: Path, size: int = 64) -> GeneratedImage:
    Image.new("RGB", (size, size), "teal").save(path)
    return GeneratedImage(str(path), number, Recipe("text_to_image", "", (number,)), "0" * 16, (size, size))


def test_no_more_than_a_hundred_images_are_kept(tmp_path: Path) -> None:
    """A contact sheet of all of them is made in memory."""
    tray = KeptImages()
    for number in range(100):
        tray = tray.keep(kept(number, tmp_path / "image.png"))
    with pytest.raises(UserError, match="At most 100 images can be kept: discard one first"):
        tray.keep(kept(100, tmp_path / "image.png"))
    assert tray.keep(tray.images[3]).selected_image() == tray.images[3]
    tray = tray.discard()
    assert len(tray.keep(kept(100, tmp_path / "image.png")).images) == 100


def test_images_kept_in_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    """As when a server that was busy gets what was pressed meanwhile."""
    with serve(Runtime(default="nouns"), tmp_path) as address:
        config = httpx.get(f"{address}config").json()
        parts = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        ready = next(one for one in config["components"] if one["props"].get("elem_id") == "result-gallery")
        count = len(ready["props"]["value"])
        keep = next(one for one in config["dependencies"] if one["targets"] == [[parts["result-keep-tile"], "click"]])
        numbers = {one["id"] for one in config["components"] if one["type"] == "number"}
        opened = next(one for one in config["dependencies"] if one["backend_fn"] and parts["visit"] in one["inputs"])
        client = httpx.Client(base_url=address)
        answers(client, opened, [[None] * len(opened["inputs"])], "visitor")

        def num_kept(*indices: int) -> list[int]:
            sent = [[index if place in numbers else None for place in keep["inputs"]] for index in indices]
            tray = keep["outputs"].index(parts["tray-gallery"])
            # Nothing where another one has been kept meanwhile: its answer shows both.
            return [len(one["data"][tray].get("value", ())) for one in answers(client, keep, sent, "visitor")]

        assert num_kept(0) == [1]
        num_kept(*range(1, count))
        assert num_kept(0) == [count] and count > 4


def test_a_visit_whose_kept_files_are_partly_gone_shows_the_others(tmp_path: Path) -> None:
    visit = Visits().open("", False, ResultState(), Tray())
    images = [kept(number, tmp_path / f"{number}.png") for number in range(3)]
    for image in images:
        visit.tray.change(lambda tray, image=image: tray.rate(image, image.seed + 1))
    Path(images[2].path).unlink()
    visit.forget_missing_files()
    assert visit.tray.kept.selected_image() == images[1]
    assert visit.tray.kept.caption(images[1]) == "★★ seed 1"


@pytest.mark.parametrize("is_taken", [False, True])
def test_what_is_kept_before_the_visit_is_found_stays_kept(is_taken: bool, tmp_path: Path) -> None:
    visits, first, second = Visits(), Tray(), Tray()
    images = [kept(number, tmp_path / f"{number}.png") for number in range(3)]
    first.change(lambda tray: tray.keep(images[0]))
    visit = visits.open("", False, ResultState(), first)
    first.change(lambda tray: tray.rate(images[1], 2))
    second.change(lambda tray: tray.rate(images[2], 5))
    again = visits.open(visit.id, is_taken, ResultState(), second)
    assert again.tray.kept.images == tuple(images)
    assert again.tray.kept.stars == {images[1].path: 2, images[2].path: 5}
    assert (again is visit) is not is_taken
    assert visit.tray.kept.images == (tuple(images[:2]) if is_taken else tuple(images))


def test_the_visit_that_was_used_the_longest_ago_is_forgotten() -> None:
    visits = Visits(limit=2)
    first, second = (visits.open("", False, ResultState(), Tray(), session) for session in ("one", "two"))
    assert visits.of_session("one") is first
    third = visits.open("", False, ResultState(), Tray(), "three")
    assert visits.of_session("one") is first and visits.of_session("three") is third
    assert visits.open(second.id, False, ResultState(), Tray()) is not second
    assert visits.of_session("nobody") is visits.of_session(None) is None


def test_a_run_that_began_before_the_visit_was_found_is_the_visit_s() -> None:
    visits = Visits()
    visit = visits.open("", False, ResultState(), Tray())
    begun = ResultState()
    begun.add(LiveRun("a fox"))
    assert visits.open(visit.id, False, begun, Tray()) is visit
    assert visit.state is begun and begun.history is visit.history
    assert visits.open(visit.id, False, ResultState(), Tray()).state is begun


def test_an_image_whose_file_is_gone_is_refused_in_a_sentence(tmp_path: Path) -> None:
    image = kept(1, tmp_path / "1.png")
    Path(image.path).unlink()
    for write in (write_single, write_bundle, write_sheet):
        with pytest.raises(UserError, match="The file of this image is not kept any longer"):
            write(KeptImages((image,)).select(0), True)


def test_kept_images_are_sorted_by_their_stars(tmp_path: Path) -> None:
    images = [kept(number, tmp_path / f"{number}.png") for number in range(4)]
    tray = KeptImages().keep(images[0]).rate(images[1], 2).rate(images[2], 5).keep(images[3]).rate(images[1], 3)
    assert [image.seed for image in tray.images] == [0, 1, 2, 3] and tray.selected_image().seed == 1
    tray = tray.best_first()
    assert [image.seed for image in tray.images] == [2, 1, 0, 3] and tray.selected_image().seed == 1
    assert [tray.caption(image) for image in tray.images] == ["★★★★★ seed 2", "★★★ seed 1", "seed 0", "seed 3"]
    assert tray.discard().undo().caption(images[1]) == "★★★ seed 1"
    for stars in (0, 6, True, 2.0, "3", None):
        with pytest.raises(UserError, match="1 to 5 stars"):
            tray.rate(images[0], stars)


def test_a_contact_sheet_shows_large_images_reduced(tmp_path: Path) -> None:
    """A run at full resolution keeps the size of an upload, up to 40 megapixels."""
    tray = KeptImages().keep(kept(1, tmp_path / "1.png", 3000)).keep(kept(2, tmp_path / "2.png", 100))
    with Image.open(write_sheet(tray, True)) as sheet:
        assert 2 * 512 < sheet.width < 2 * 512 + 100


def test_the_last_seed_is_followed_by_the_first() -> None:
    recipe = Recipe("text_to_image", "a fox", (MAX_SEED - 1,))
    image = GeneratedImage("", MAX_SEED - 1, recipe, "0" * 16, (256, 256))
    (continued,) = continue_request([image]).recipes
    assert continue_request([replace(image, label="fox")]).label(3) == "fox"
    assert continued.seeds == (MAX_SEED, 0, 1, 2)
    images = [image, *(replace(image, seed=seed, recipe=recipe.with_seeds([seed])) for seed in continued.seeds)]
    assert continue_request(images).recipes[0].seeds == (3, 4, 5, 6)
    assert continue_request([*images, image]).recipes[0].seeds == (3, 4, 5, 6)
    improved = Recipe("improve", "a fox", (9,), parent=recipe)
    assert continue_request([image, replace(image, seed=9, recipe=improved)]).recipes[0].task == "text_to_image"
    with pytest.raises(UserError, match="no images"):
        continue_request([])


def test_text_to_image_has_the_selected_shape() -> None:
    tab = build_tab(text_tab.build, fake_runtime())
    (square,) = tab.read(values_of(tab)).recipes
    assert (square.width, square.height) == (None, None)
    (wide,) = tab.read(values_of(tab, shape="Landscape 16:9")).recipes
    assert wide.width == 256 and wide.height == 128
    assert tab.own_from_recipe(wide) == {tab.shape: "Landscape 16:9"}
    assert tab.own_from_recipe(square) == {tab.shape: "Square"}
    with pytest.raises(UserError, match="Choose a shape"):
        tab.read(values_of(tab, shape="round"))


@pytest.mark.slow
def test_the_page_opens_with_images_that_their_recipes_make() -> None:
    model = amused.load("nouns", device="cpu", dtype="float32")
    with gr.Blocks():
        images = build_result(fake_runtime()).ready
    assert len(images) == 8
    for image in images:
        (made,) = (event for event in model.generate(image.recipe) if isinstance(event, amused.Picture))
        assert digest(Image.open(image.path)) == image.digest == digest(made.image)


@pytest.mark.parametrize("prompt", ["a fox", "a Whale wearing glasses", "", "a pixel art character", "red body"])
def test_a_prompt_of_known_words_needs_no_hint(prompt: str) -> None:
    assert prompts.hint({**TRAITS, "heads": ["head-fox", "head-whale"]}, prompt) == ""


def test_a_prompt_far_from_the_models_words_gets_a_hint() -> None:
    assert "heads such as baseball" in prompts.hint(TRAITS, "a castle by the sea")
    assert prompts.hint(None, "a castle by the sea") == ""


def test_words_are_offered_and_written_in_plain_english() -> None:
    traits = Runtime(default="nouns").choice("nouns").traits
    choices = dict(word_choices("head", traits))
    assert choices["burger"] == "burger" and choices["fox"] == "fox"
    for prompt in ("a burger", "dollarmenu", "mint", "saturated"):  # the names of the data are known too
        assert prompts.hint(traits, prompt) == ""
    assert prompts.hint(traits, "a lighthouse").startswith("This model draws pixel-art characters")
    names = [word for _, word in word_choices("accessory", traits)]
    assert names[1:] == sorted(names[1:]) and "heart" in names
    assert prompts.sentence("red", None, None, "blue", accessory="heart") == (
        "a pixel art character with red glasses and a heart accessory on a blue background"
    )


@pytest.mark.parametrize("build", [text_tab.build, image_tab.build, inpaint_tab.build])
def test_a_typed_prompt_may_stand_for_several(build: Any) -> None:
    tab = build_tab(build, fake_runtime())
    stroke = png(Image.new("RGBA", (256, 256), "red"))
    own = {text_tab.build: {}, image_tab.build: {"image": png(TEAL)}}
    inputs = own.get(build, {"drawing": Drawing(png(TEAL), (stroke,))})
    request = tab.read(values_of(tab, prompt="a {fox|cow}\n{head}", seeds="3", count=2, **inputs))
    assert [(recipe.prompt, recipe.seeds) for recipe in request.recipes[:2]] == [("a fox", (3, 4)), ("a cow", (3, 4))]
    heads = words(TRAITS, "head")
    assert [recipe.seeds for recipe in request.recipes[2:]] == [(3,), (4,)]
    assert all(recipe.prompt in heads for recipe in request.recipes[2:])
    drawn = [recipe.prompt for recipe in request.recipes[2:]]
    assert [request.label(index) for index in range(6)] == ["a fox", "a fox", "a cow", "a cow", *drawn]


@pytest.mark.parametrize("prompt", ["a {fox|cow}", "two\nlines", "{head}", r"\{a\}"])
def test_a_recipe_from_elsewhere_keeps_its_prompt(prompt: str) -> None:
    tab = build_tab(text_tab.build, fake_runtime())
    recipe = Recipe("text_to_image", prompt, (8,))
    (made,) = tab.read(values_of(tab, prompt=tab.from_recipe(recipe)[tab.settings.prompt])).recipes
    assert made.prompt == prompt
    # What was typed is remembered as typed.
    remembered = {"text_to_image": {"prompt": prompt}}
    assert restore_settings(tab.runtime, [tab], remembered)[tab.settings.prompt] == prompt


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        (
            "a pixel art {fox|character}\na red character",
            "3 prompts × 4 seeds = 12 images. Each prompt gets the same seeds.",
        ),
        ("{head} character", "Each image draws its words by its seed."),
        ("a {fox", "A { has no } on its line"),
        ("a character", ""),
    ],
)
def test_a_hint_says_what_a_sweep_over_prompts_makes(prompt: str, hint: str) -> None:
    tab = build_tab(text_tab.build, fake_runtime())
    shown = describe_prompt(tab.settings, values_of(tab, prompt=prompt, count=4))
    assert shown.startswith(hint) and bool(shown) == bool(hint)


def test_a_grid_takes_one_prompt() -> None:
    tab = build_tab(text_tab.build, fake_runtime())
    with gr.Blocks():
        section = GridSection(tab)
    axes = {axis: axis.value for axis in section.axes}
    for prompt in ("a {fox|cow}", "{head}", "a fox\na cow"):
        with pytest.raises(UserError, match="A grid takes one prompt"):
            section.read({**values_of(tab, prompt=prompt), **axes})
        assert (
            "A grid takes one prompt"
            in section.describe_estimate({**values_of(tab, prompt=prompt), **axes})[section.estimate]
        )
    request = section.read({**values_of(tab, prompt=r"a \{fox\}"), **axes})
    assert {recipe.prompt for recipe in request.recipes} == {"a {fox}"}
