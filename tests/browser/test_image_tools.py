"""The tools around an image, in a real browser: masks and their cells, shapes, grids, examples.

Runs against the bundled checkpoint.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake import fake_runtime
from helpers.browser import (
    expect_done,
    open_image,
    open_page,
    open_tab,
    paint_the_middle,
    part,
    pixels,
    result,
    run,
    set_seeds,
    tiles,
)
from helpers.images import HOSTILE, odd_images, png
from helpers.tabs import build_tab, values_of
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, Route, expect

from amused.errors import UserError
from amused.generation.images import digest, load_image
from amused.generation.pixel_masks import load_mask
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, Recipe
from amused.serving.runtime import Choice, Runtime
from amused.ui import grid as grid_section
from amused.ui import mask_tools, prompts
from amused.ui.drawing import Drawing, MaskEditor
from amused.ui.shapes import OWN_SHAPE, SHAPES, sides
from amused.ui.tabs import image as image_tab
from amused.ui.tabs import inpaint as inpaint_tab

NO_BOX = (0, 0, 0, 0)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with open_page(browser, address, 1280, 900) as page:
        yield page


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images whose every pixel differs from its neighbours, and of masks."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, size in (("square", (256, 256)), ("wide", (600, 300))):
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{name}.png")
    y, x = np.mgrid[:640, :900]  # no noise: an editor sends all of an image at every stroke
    Image.fromarray(np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], -1).astype(np.uint8)).save(
        folder / "large.png"
    )
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).rectangle((96, 96, 127, 127), fill=255)
    mask.save(folder / "mask.png")
    return folder


def choose(page: Page, task: str, name: str, file: Path) -> None:
    """Put a file into an input, and wait until it is seen there."""
    place = part(page, task, name)
    place.locator("input[type=file]").first.set_input_files(file)
    if name == "drawing":
        expect(place.locator("canvas")).to_be_visible()
    else:
        expect(place.locator("img")).to_be_visible()


def unfold(page: Page, task: str, name: str) -> None:
    part(page, task, name).get_by_role("button").first.click()


def set_slider(page: Page, task: str, name: str, value: int) -> None:
    box = part(page, task, name).get_by_role("spinbutton")
    box.fill(str(value))
    box.press("Tab")


IMAGE_SENT = re.compile("/gradio_api/(upload|component_server)")


def shown(page: Page, place: Locator) -> Image.Image:
    return Image.open(io.BytesIO(page.request.get(place.locator("img").first.get_attribute("src")).body()))


def number_of_cells(page: Page) -> int:
    return int(re.search(r"repainted: (\d+) of", part(page, INPAINT, "cells").inner_text())[1])


def open_inpainting(page: Page, image_file: Path) -> None:
    open_tab(page, "Inpaint")
    part(page, INPAINT, "drawing").get_by_text("Drop an image here").wait_for()
    choose(page, INPAINT, "drawing", image_file)


# Inpaint


def test_the_cells_to_be_repainted_follow_the_drawing(page: Page, image_files: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    cells = part(page, INPAINT, "cells")
    expect(cells).to_be_hidden()
    paint_the_middle(page, part(page, INPAINT, "drawing"))
    expect(cells).to_contain_text(re.compile(r"Will be repainted: \d+ of 1024 cells"))
    first = number_of_cells(page)
    assert 8 <= first <= 96
    part(page, INPAINT, "inverted").get_by_role("checkbox").check()
    expect(cells).not_to_contain_text(f"repainted: {first} of")
    # Cells that the stroke covers in part belong to both.
    assert 1024 - first <= number_of_cells(page) < 1024
    part(page, INPAINT, "drawing").get_by_role("button", name="Undo").click()
    expect(cells).to_be_hidden()


def test_a_mask_from_a_file_and_its_inverse(page: Page, image_files: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    unfold(page, INPAINT, "elsewhere")
    choose(page, INPAINT, "mask", image_files / "mask.png")
    cells = part(page, INPAINT, "cells")
    expect(cells).to_contain_text("Will be repainted: 16 of 1024 cells")
    expect(page.get_by_text("background.png").first).to_be_hidden()  # what is sent stays behind the page
    before = np.asarray(Image.open(image_files / "square.png")).astype(int)
    set_seeds(page, INPAINT, "3", 1)
    inside = np.zeros((256, 256), dtype=bool)
    inside[96:128, 96:128] = True
    for inverted in (False, True):
        part(page, INPAINT, "inverted").get_by_role("checkbox").set_checked(inverted)
        expect(cells).to_contain_text(f"Will be repainted: {1008 if inverted else 16} of 1024 cells")
        sent: list[str] = []
        page.on("request", lambda request, sent=sent: sent.append(request.url) if IMAGE_SENT.search(request.url) else 0)
        run(page, INPAINT)
        expect(part(page, INPAINT, "stop")).to_be_visible()
        expect_done(page, 1)
        assert not sent  # the image is at the server already
        changed = (pixels(page)["seed 3"] != before).any(-1)
        repainted = ~inside if inverted else inside
        assert changed[repainted].mean() > 0.9
        assert not changed[~repainted].any()


def test_a_box_for_those_who_cannot_draw(page: Page, image_files: Path) -> None:
    open_tab(page, "Inpaint")
    part(page, INPAINT, "drawing").get_by_text("Drop an image here").wait_for()
    choose(page, INPAINT, "drawing", image_files / "wide.png")
    # Only now: an accordion that is opened within three frames of its tab stays empty (Gradio 6.31).
    expect(part(page, INPAINT, "drawing").locator(".filled")).to_be_visible()
    unfold(page, INPAINT, "elsewhere")
    choose(page, INPAINT, "drawing", image_files / "square.png")  # takes longer than the sliders, which have just come
    for name, value in (("left", 50), ("top", 25), ("across", 25), ("down", 50)):
        set_slider(page, INPAINT, name, value)
    expect(part(page, INPAINT, "cells")).to_contain_text("Will be repainted: 128 of 1024 cells")


def test_a_large_image_keeps_its_size_where_only_the_masked_part_is_worked_on(page: Page, image_files: Path) -> None:
    with page.expect_response(re.compile("/shown[.]png")):  # a reduced copy is painted on
        open_inpainting(page, image_files / "large.png")
    paint_the_middle(page, part(page, INPAINT, "drawing"))
    part(page, INPAINT, "only-masked").get_by_role("checkbox").check()
    cells = part(page, INPAINT, "cells")
    expect(cells).to_contain_text("of 1024 cells")
    set_slider(page, INPAINT, "feather", 8)
    set_seeds(page, INPAINT, "3", 1)
    run(page, INPAINT)
    expect_done(page, 1)
    before = np.asarray(Image.open(image_files / "large.png")).astype(int)
    made = pixels(page)["seed 3"]
    assert made.shape == before.shape
    changed = (made != before).any(-1)
    assert changed[310:330, 440:460].mean() > 0.9
    assert not changed[:200].any() and not changed[:, :300].any()


def test_an_inpainted_image_goes_on_and_is_replayed_by_the_mask_that_it_hands_out(
    page: Page, image_files: Path, tmp_path: Path
) -> None:
    open_inpainting(page, image_files / "square.png")
    paint_the_middle(page, part(page, INPAINT, "drawing"))
    set_slider(page, INPAINT, "feather", 8)
    expect(part(page, INPAINT, "cells")).to_contain_text("of 1024 cells")
    set_seeds(page, INPAINT, "3", 1)
    run(page, INPAINT)
    expect_done(page, 1)
    before = np.asarray(Image.open(image_files / "square.png"))
    open_image(page, 0)
    with page.expect_download() as download:
        result(page, "mask-file").click()
    download.value.save_as(tmp_path / "mask.png")
    outside = np.asarray(Image.open(tmp_path / "mask.png")) == 0
    assert 0.9 < outside.mean() < 1

    result(page, "vary").click()
    result(page, "make-variations").click()
    expect(tiles(page)).to_have_count(5)
    expect(result(page, "status")).to_contain_text("4 images in")
    for made in pixels(page).values():
        assert np.array_equal(made[outside], before[outside])
    open_image(page, 1)
    expect(result(page, "facts")).to_contain_text("From seed 3")
    result(page, "copy-link").click()
    expect(result(page, "copy-link")).to_have_text("Link copied")

    page.goto(page.evaluate("navigator.clipboard.readText()"))
    page.locator("#shared").wait_for()
    expect(part(page, INPAINT, "feather").get_by_role("spinbutton")).to_have_value("8")
    choose(page, INPAINT, "drawing", image_files / "square.png")
    unfold(page, INPAINT, "elsewhere")
    choose(page, INPAINT, "mask", tmp_path / "mask.png")
    part(page, INPAINT, "replay").click()
    expect(result(page, "status")).to_contain_text("The same, bit for bit.")


def test_a_link_sets_shape_and_fit() -> None:
    tab = build_tab(image_tab.build, Runtime(default="nouns"))
    updates = tab.from_recipe(Recipe(IMAGE_TO_IMAGE, "a fox", (3,), width=256, height=192, fit="pad"))
    assert (updates[tab.shape], updates[tab.fit]) == ("Landscape 4:3", "pad")


def test_inpainting_says_where_its_image_and_mask_came_from(image_files: Path) -> None:
    image_file, file = image_files / "square.png", image_files / "mask.png"
    tab = build_tab(inpaint_tab.build, fake_runtime())
    values = values_of(tab, drawing=Drawing(image_file, ()), mask_file=file, feather=4, only_masked=True)
    request = tab.read(values)
    (recipe,), image, mask = request.recipes, request.image, request.mask
    assert (recipe.image, recipe.mask) == (digest(load_image(image_file)), digest(load_mask(file, (256, 256))))
    assert (recipe.image, recipe.mask) == (digest(image), digest(mask))
    assert (recipe.feather, recipe.only_masked) == (4, True)


@pytest.mark.parametrize("box", [(float("nan"), 0, 5, 5), (0, 0, 101, 5), (0, 0, -1, 5), ("0", 0, 5, 5), (None,) * 4])
def test_a_box_that_is_none_is_refused(box: tuple) -> None:
    with pytest.raises(UserError, match="of the box must be"):
        mask_tools.draw_box((64, 64), box)


def test_masks_of_every_kind() -> None:
    size = (64, 32)
    strokes = Image.new("RGBA", size)
    strokes.putpixel((5, 5), (0, 0, 0, 1))  # black, hardly seen
    other = Image.new("RGBA", size)
    other.putpixel((60, 30), (255, 255, 255, 255))
    nothing = Drawing(b"", ())
    both = Drawing(b"", (png(strokes), png(other)))
    mask = mask_tools.build_mask(size, both, None, NO_BOX, False)
    assert np.argwhere(np.asarray(mask)).tolist() == [[5, 5], [30, 60]]
    assert mask_tools.build_mask(size, nothing, None, (0, 0, 100, 100), False).getextrema() == (255, 255)
    assert np.argwhere(np.asarray(mask_tools.build_mask(size, nothing, None, (100, 100, 1, 1), False))).tolist() == [
        [31, 63]
    ]
    with pytest.raises(UserError, match="Paint over the part to change"):
        mask_tools.build_mask(size, nothing, None, NO_BOX, True)
    with pytest.raises(UserError, match="upload a mask"):
        mask_tools.build_mask(size, nothing, png(Image.new("L", (9, 9))), NO_BOX, False)
    with pytest.raises(UserError, match="whole image is painted"):
        mask_tools.build_mask(size, nothing, png(Image.new("L", (9, 9), 255)), NO_BOX, True)


def test_one_pixel_is_one_cell() -> None:
    runtime = fake_runtime()
    image_file, mask = Image.new("RGB", (256, 256)), Image.new("L", (256, 256))
    mask.putpixel((17, 40), 255)
    recipe = runtime.with_default_size(Recipe(INPAINT, "", (0,)), image_file)
    box, cells = mask_tools.repainted_cells(recipe, mask, image_file.size, 256, 16)
    assert (box, np.argwhere(cells).tolist()) == ((0, 0, 256, 256), [[2, 1]])


@pytest.mark.parametrize(
    ("fit", "box"), [("crop", (150, 0, 450, 300)), ("pad", (0, -150, 600, 450)), ("stretch", (0, 0, 600, 300))]
)
def test_the_grid_lies_on_what_the_model_sees(fit: str, box: tuple) -> None:
    mask = Image.new("L", (600, 300))
    mask.putpixel((300, 150), 255)
    recipe = Recipe(INPAINT, "", (0,), width=256, height=256, fit=fit)
    found, cells = mask_tools.repainted_cells(recipe, mask, mask.size, 256, 16)
    assert found == box and cells[8, 8]


# The editor: touch-up has the same one


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Page]:
    with open_page(browser, address, 390, 844) as page:
        yield page


def act(page: Page, name: str) -> None:
    part(page, INPAINT, "drawing").get_by_role("button", name=name, exact=True).click()


def click_at(page: Page, across: float, down: float) -> None:
    """A click on the image, at a point given as shares of its sides."""
    canvas = part(page, INPAINT, "drawing").locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


def expect_cells(page: Page, count: int) -> None:
    cells = part(page, INPAINT, "cells")
    if count:
        expect(cells).to_contain_text(f"Will be repainted: {count} of 1024 cells")
    else:
        expect(cells).to_be_hidden()


def mask_of(page: Page) -> np.ndarray:
    """What is painted, pixel by pixel."""
    canvas = part(page, INPAINT, "drawing").locator("canvas")
    source = canvas.evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))[..., 3]


def test_keys_undo_redo_and_size_the_brush_and_a_cleared_mask_comes_back(page: Page, image_files: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    size = part(page, INPAINT, "drawing").get_by_role("slider", name="Brush size")
    before = int(size.input_value())
    for _ in range(12):
        page.keyboard.press("[")
    assert int(size.input_value()) == before - 12
    click_at(page, 0.516, 0.516)  # within a cell
    expect_cells(page, 1)
    page.keyboard.press("Control+z")
    expect_cells(page, 0)
    page.keyboard.press("Control+Shift+Z")
    expect_cells(page, 1)
    act(page, "Clear mask")
    expect_cells(page, 0)
    assert not mask_of(page).any()
    act(page, "Undo")
    expect_cells(page, 1)
    for _ in range(12):
        page.keyboard.press("]")
    assert int(size.input_value()) == before
    click_at(page, 0.516, 0.516)
    expect_cells(page, 25)
    part(page, INPAINT, "prompt").get_by_role("textbox").press("]")  # typed
    assert int(size.input_value()) == before


def test_cells_are_shown_and_clicked(page: Page, image_files: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    lines = part(page, INPAINT, "drawing").locator(".lines")
    expect(lines).to_be_hidden()
    act(page, "Cells")
    expect(lines).to_be_visible()
    click_at(page, 0.516, 0.266)
    expect_cells(page, 1)
    assert [tuple(sides) for sides in (np.argwhere(mask_of(page)).min(0), np.argwhere(mask_of(page)).max(0))] == [
        (64, 128),
        (71, 135),
    ]
    click_at(page, 0.9, 0.9)
    expect_cells(page, 2)
    click_at(page, 0.516, 0.266)
    expect_cells(page, 1)
    act(page, "Brush")
    expect(lines).to_be_hidden()
    act(page, "Erase")
    click_at(page, 0.9, 0.9)
    click_at(page, 0.92, 0.92)
    assert mask_of(page).sum() < 8 * 8 * 255 / 2


def test_zoom_moves_no_stroke(page: Page, image_files: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    act(page, "Cells")
    click_at(page, 0.516, 0.516)
    expect_cells(page, 1)
    before = mask_of(page)
    for _ in range(2):
        act(page, "Zoom in")
    canvas = part(page, INPAINT, "drawing").locator("canvas")
    marked, whole = part(page, INPAINT, "drawing").locator(".marked").bounding_box(), canvas.bounding_box()
    assert whole["width"] > 1500
    assert (marked["x"] - whole["x"]) / whole["width"] == pytest.approx(0.5, abs=0.01)
    assert (mask_of(page) == before).all()
    page.mouse.click(marked["x"] + marked["width"] / 2, marked["y"] + marked["height"] / 2)
    expect_cells(page, 0)
    act(page, "Zoom out")
    act(page, "Undo")
    expect_cells(page, 1)
    assert (mask_of(page) == before).all()


def test_an_image_is_replaced_on_its_own_and_by_an_image_only(page: Page, image_files: Path, tmp_path: Path) -> None:
    open_inpainting(page, image_files / "square.png")
    editor = part(page, INPAINT, "drawing")
    paint_the_middle(page, editor)
    picture = editor.get_by_role("img", name="The image to paint on")
    former = picture.get_attribute("src")
    (tmp_path / "page.png").write_text("<html>")
    for file, taken in ((tmp_path / "page.png", False), (image_files / "wide.png", True)):
        with page.expect_file_chooser() as chooser:
            act(page, "Replace image")
        chooser.value.set_files(file)
        if taken:
            expect(picture).not_to_have_attribute("src", former)
            expect_cells(page, 0)
            assert mask_of(page).shape == (300, 600) and not mask_of(page).any()
        else:
            expect(page.get_by_test_id("toast-body")).to_contain_text("This is not an image that can be read")
            assert picture.get_attribute("src") == former and mask_of(page).any()


def test_a_part_of_a_result_is_repainted_in_three_acts(page: Page) -> None:
    open_image(page, 0)
    expect(result(page, "facts")).to_contain_text("Seed")
    before = tiles(page).count()
    page.keyboard.press("e", delay=150)
    editor = result(page, "touch-up-editor")
    expect(editor.locator("canvas")).to_be_visible()
    paint_the_middle(page, editor)
    expect(editor.locator(".marked")).to_have_attribute("d", re.compile("M"))
    result(page, "repaint").click()
    expect(tiles(page)).to_have_count(before + 4)


def test_an_image_is_downloaded_enlarged(page: Page) -> None:
    open_image(page, 0)
    for factor in (2, 4):
        with page.expect_download() as download:
            result(page, f"download-{factor}").click()
        assert Image.open(download.value.path()).size == (256 * factor, 256 * factor)


def test_the_actions_of_an_image_are_in_one_row_on_a_phone(phone: Page) -> None:
    open_image(phone, 0)
    boxes = [result(phone, name).bounding_box() for name in ("keep", "vary", "touch-up")]
    assert {(box["y"], box["height"]) for box in boxes} == {(boxes[0]["y"], 44)}


@pytest.mark.parametrize(
    ("button", "task", "place"), [("to-image", IMAGE_TO_IMAGE, "picture"), ("to-inpaint", INPAINT, "drawing")]
)
def test_an_image_that_is_sent_comes_into_view_on_a_phone(phone: Page, button: str, task: str, place: str) -> None:
    open_image(phone, 0)
    result(phone, button).click()
    expect(part(phone, task, place).locator("img").first).to_be_visible()
    expect(part(phone, task, place)).to_be_in_viewport(ratio=0.5)


def test_the_editor_fits_a_phone(phone: Page, image_files: Path) -> None:
    open_inpainting(phone, image_files / "square.png")
    tools = part(phone, INPAINT, "drawing").get_by_role("toolbar")
    for button in tools.get_by_role("button").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 44
    assert tools.bounding_box()["height"] < 100  # two rows
    paint_the_middle(phone, part(phone, INPAINT, "drawing"))
    expect(part(phone, INPAINT, "cells")).to_contain_text("of 1024 cells")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


# Settings


def shown_values(page: Page, name: str) -> str:
    """What is shown next to a number: two images between their values."""
    info = part(page, TEXT_TO_IMAGE, name).locator(".info-text")
    content = info.evaluate("info => getComputedStyle(info, '::after').content")
    return re.sub(r'url\("data:image/webp;base64,[^"]+"\)', "image", content).partition(" /")[0]


def test_a_number_shows_what_it_does_on_hover_and_on_focus(page: Page) -> None:
    unfold(page, TEXT_TO_IMAGE, "advanced")
    steps, guidance = part(page, TEXT_TO_IMAGE, "steps"), part(page, TEXT_TO_IMAGE, "guidance")
    assert shown_values(page, "steps") == "none"
    steps.get_by_role("slider").focus()
    assert shown_values(page, "steps") == '"1 " image " " image " 12"'
    page.keyboard.press("Tab")
    while guidance.evaluate("block => !block.contains(document.activeElement)"):
        page.keyboard.press("Tab")
    assert (shown_values(page, "steps"), shown_values(page, "guidance")) == ("none", '"0 " image " " image " 6"')
    steps.hover()
    assert shown_values(page, "steps") != "none"


# Image to image


def keep_shape(page: Page) -> None:
    part(page, IMAGE_TO_IMAGE, "shape").get_by_role("combobox").click()
    page.get_by_role("option", name="Original", exact=True).click()


def test_what_the_model_will_see_follows_shape_and_fit(page: Page, image_files: Path) -> None:
    open_tab(page, "Image to image")
    seen = part(page, IMAGE_TO_IMAGE, "seen")
    expect(seen).to_be_hidden()
    choose(page, IMAGE_TO_IMAGE, "picture", image_files / "wide.png")
    expect(seen).to_contain_text("What the model sees: 256 × 256")  # a square crop
    keep_shape(page)
    expect(seen).to_contain_text("What the model sees: 256 × 128")
    part(page, IMAGE_TO_IMAGE, "shape").get_by_role("combobox").click()
    page.get_by_role("option", name="Square", exact=True).click()
    expect(seen).to_contain_text("What the model sees: 256 × 256")
    former = seen.locator("img").get_attribute("src")
    part(page, IMAGE_TO_IMAGE, "fit").get_by_role("radio", name="Pad").check()
    expect(seen.locator("img")).not_to_have_attribute("src", former)
    corner = np.asarray(shown(page, seen).convert("RGB"))[:32]
    assert corner.min() > 250  # white above the image
    set_seeds(page, IMAGE_TO_IMAGE, "3", 1)
    run(page, IMAGE_TO_IMAGE)
    expect_done(page, 1)
    assert pixels(page)["seed 3"].shape == (256, 256, 3)


def test_an_image_keeps_its_shape_and_is_compared_with_the_result(page: Page, image_files: Path) -> None:
    open_tab(page, "Image to image")
    choose(page, IMAGE_TO_IMAGE, "picture", image_files / "wide.png")
    keep_shape(page)
    set_seeds(page, IMAGE_TO_IMAGE, "3", 2)
    run(page, IMAGE_TO_IMAGE)
    expect_done(page, 2)
    made = pixels(page)
    assert made["seed 3"].shape == (128, 256, 3)
    open_image(page, 0)
    page.get_by_role("button", name="Before and after").click()
    sides = result(page, "before-after").locator("img")
    expect(sides).to_have_count(2)
    assert (compared(page) == made["seed 3"]).all()
    open_image(page, 1)
    expect(result(page, "before-after").locator("img[src*=seed-4]")).to_have_count(1)
    assert (compared(page) == made["seed 4"]).all()


def compared(page: Page) -> np.ndarray:
    """The result in the slider: the side that is not the image before it."""
    sources = [img.get_attribute("src") for img in result(page, "before-after").locator("img").all()]
    (after,) = [source for source in sources if "amused-seed" in source]
    return np.asarray(Image.open(io.BytesIO(page.request.get(after).body())).convert("RGB")).astype(int)


@pytest.mark.parametrize("shape", [*SHAPES, OWN_SHAPE])
@pytest.mark.parametrize("choice", [Choice("a", "", size=256, multiple=16), Choice("b", "", size=512, multiple=32)])
def test_every_shape_fits_the_model(shape: str, choice: Choice) -> None:
    width, height = sides(shape, choice.size, choice.multiple)
    if shape != OWN_SHAPE:
        assert max(width, height) == choice.size
        assert width % choice.multiple == height % choice.multiple == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (511, 513), (3000, 2000)])
def test_any_size_of_image_is_accepted(size: tuple[int, int]) -> None:
    runtime = fake_runtime()
    image_file = png(Image.new("RGB", size, "teal"))
    tab = build_tab(image_tab.build, runtime)
    request = tab.read(values_of(tab, image=image_file))
    (recipe,), image = request.recipes, request.image
    assert image.size == size and recipe.image == digest(image)
    sized = runtime.with_default_size(recipe, image)
    assert max(sized.width, sized.height) == 256 and sized.width % 32 == sized.height % 32 == 0


# Grid


def open_grid(page: Page, task: str, across: str) -> Locator:
    """Unfold it and choose an axis; gives the axis's values, once those that it offers are there.

    Before, fields that have just come may still put their first value back over what is typed (Gradio 6.31).
    """
    unfold(page, task, "grid")
    part(page, task, "across").get_by_role("combobox").click()
    page.get_by_role("option", name=across, exact=True).click()
    values = part(page, task, "across-values").get_by_role("textbox")
    expect(values).to_have_value(grid_section.PLACEHOLDERS[across])
    return values


def test_a_grid_says_its_number_shows_its_sheet_and_keeps_single_images(page: Page) -> None:
    estimate = part(page, TEXT_TO_IMAGE, "grid-estimate")
    values = open_grid(page, TEXT_TO_IMAGE, "guidance")
    expect(estimate).to_contain_text("9 images")
    values.fill("2, 4, 6")
    part(page, TEXT_TO_IMAGE, "down-values").get_by_role("textbox").fill("5, 7")
    expect(estimate).to_contain_text("6 images")
    part(page, TEXT_TO_IMAGE, "grid-make").click()
    expect_done(page, 6)
    assert [tile.inner_text().strip() for tile in tiles(page).all()] == ["seed 5"] * 3 + ["seed 7"] * 3
    sheet = result(page, "sheet")
    expect(sheet.locator("img")).to_be_visible()
    image = shown(page, sheet)
    assert image.format == "PNG" and image.width > 3 * 256 and image.height > 2 * 256
    # A run has been timed, so the estimate includes the time.
    expect(estimate).to_contain_text(re.compile(r"6 images, about \d+ s"))


def test_a_grid_is_extended_by_a_value(page: Page) -> None:
    values = open_grid(page, TEXT_TO_IMAGE, "guidance")
    values.fill("2, 4")
    part(page, TEXT_TO_IMAGE, "down-values").get_by_role("textbox").fill("5")
    part(page, TEXT_TO_IMAGE, "grid-make").click()
    expect_done(page, 2)
    sheet = result(page, "sheet")
    expect(sheet.locator("img")).to_be_visible()
    width = shown(page, sheet).width
    before = sheet.locator("img").get_attribute("src")
    values.fill("2, 4, 6")
    part(page, TEXT_TO_IMAGE, "grid-make").click()
    expect(result(page, "status")).to_contain_text(re.compile(r"1 image in \d+ s; 2 made before"))
    expect(tiles(page)).to_have_count(3)
    expect(sheet.locator("img")).not_to_have_attribute("src", before)
    assert shown(page, sheet).width == width + 256 + 12
    run(page, TEXT_TO_IMAGE)
    expect(sheet).to_be_hidden()  # it would be that of other images


def test_typed_values_of_a_grid_stay_when_tab_leaves_the_axis(page: Page) -> None:
    values = open_grid(page, TEXT_TO_IMAGE, "guidance")
    values.fill("3")
    axis = part(page, TEXT_TO_IMAGE, "across").get_by_role("combobox")
    axis.focus()
    axis.press("Tab")
    expect(values).to_be_focused()
    axis.focus()
    page.keyboard.type("ste")
    page.keyboard.press("Tab")
    expect(axis).to_have_value("guidance")
    values.press("End")
    page.keyboard.type(", 4")
    expect_grid_of_two(page, values, "3, 4")


def test_values_typed_before_the_server_answers_stay(page: Page) -> None:
    values = open_grid(page, TEXT_TO_IMAGE, "temperature")
    held: list[Route] = []
    page.route("**/gradio_api/run/**", lambda request: held.append(request))
    part(page, TEXT_TO_IMAGE, "across").get_by_role("combobox").fill("guid")
    page.keyboard.press("Enter")
    values.fill("3, 4")
    for request in held:
        request.continue_()
    page.unroute("**/gradio_api/run/**")
    expect_grid_of_two(page, values, "3, 4")


def expect_grid_of_two(page: Page, values: Locator, typed: str) -> None:
    """Make it, and see that the values are those that were typed, before and after."""
    part(page, TEXT_TO_IMAGE, "down-values").get_by_role("textbox").fill("5")
    expect(part(page, TEXT_TO_IMAGE, "grid-estimate")).to_contain_text("2 images")
    part(page, TEXT_TO_IMAGE, "grid-make").click()
    expect_done(page, 2)
    expect(values).to_have_value(typed)


def test_a_grid_that_makes_no_sense_says_why(page: Page) -> None:
    values = open_grid(page, TEXT_TO_IMAGE, "guidance")
    values.fill("four")
    expect(part(page, TEXT_TO_IMAGE, "grid-estimate")).to_contain_text("Give the values of guidance as numbers")
    part(page, TEXT_TO_IMAGE, "grid-make").click()
    expect(result(page, "status")).to_contain_text("Give the values of guidance as numbers")
    expect(part(page, TEXT_TO_IMAGE, "stop")).to_be_hidden()
    expect(values).to_have_value("four")


def test_a_stopped_grid_keeps_what_is_finished(page: Page) -> None:
    values, make = open_grid(page, TEXT_TO_IMAGE, "guidance"), part(page, TEXT_TO_IMAGE, "grid-make")
    place = make.bounding_box()
    values.fill("8, 9, 10, 11")
    part(page, TEXT_TO_IMAGE, "down-values").get_by_role("textbox").fill("0-15")
    expect(part(page, TEXT_TO_IMAGE, "grid-estimate")).to_contain_text("64 images")
    assert make.bounding_box() == place  # else a press may miss it
    make.click()
    status = result(page, "status")
    expect(status).to_contain_text(re.compile(r"Image [3-9] of 64, step \d+ of \d+"))
    part(page, TEXT_TO_IMAGE, "stop").click()
    expect(status).to_contain_text(re.compile(r"Stopped after \d+ of 64"))
    kept = int(re.search(r"Stopped after (\d+)", status.inner_text())[1])
    assert 2 <= kept < 64
    expect(tiles(page)).to_have_count(kept)
    expect(result(page, "sheet").locator("img")).to_be_visible()


def test_a_grid_of_strengths_in_image_to_image(page: Page, image_files: Path) -> None:
    open_tab(page, "Image to image")
    choose(page, IMAGE_TO_IMAGE, "picture", image_files / "wide.png")
    open_grid(page, IMAGE_TO_IMAGE, "strength").fill("0.3, 0.9")
    part(page, IMAGE_TO_IMAGE, "down-values").get_by_role("textbox").fill("1")
    expect(part(page, IMAGE_TO_IMAGE, "grid-estimate")).to_contain_text("2 images")
    part(page, IMAGE_TO_IMAGE, "grid-make").click()
    expect_done(page, 2)
    expect(result(page, "sheet").locator("img")).to_be_visible()


# Examples


def test_one_click_on_an_example_fills_the_tab_and_it_runs(page: Page) -> None:
    for name, task in (("Text to image", TEXT_TO_IMAGE), ("Image to image", IMAGE_TO_IMAGE), ("Inpaint", INPAINT)):
        open_tab(page, name)
        if task == INPAINT:
            part(page, task, "drawing").get_by_text("Drop an image here").wait_for()
        example = prompts.examples(task, "nouns", {})[1]
        part(page, task, "examples").get_by_role("button", name=example.label).click()
        expect(part(page, task, "prompt").get_by_role("textbox")).to_have_value(example.prompt)
        expect(part(page, task, "seeds").get_by_role("textbox")).to_have_value(example.seeds)
        if task == IMAGE_TO_IMAGE:
            expect(part(page, task, "seen")).to_contain_text("256 × 256")
        if task == INPAINT:
            expect(part(page, task, "cells")).to_contain_text("of 1024 cells")
        run(page, task)
        expect_done(page, 1)
        assert list(pixels(page)) == [f"seed {example.seeds}"]


def test_each_tab_has_examples_that_the_bundled_model_knows() -> None:
    files: set[str] = set()
    for task in (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT):
        examples = prompts.examples(task, "nouns", {})
        assert len(examples) >= 2
        for example in examples:
            if task != TEXT_TO_IMAGE:
                image_file = load_image(prompts.FOLDER / example.image)
                assert image_file.size == (256, 256)
                files.add(example.image)
            if task == INPAINT:
                assert load_mask(prompts.FOLDER / example.mask, (256, 256)).getbbox()
                files.add(example.mask)
    assert sum((prompts.FOLDER / name).stat().st_size for name in files) < 300_000


def test_the_published_models_bring_their_own_examples() -> None:
    def first(task: str, model: str) -> tuple[str, str]:
        example = prompts.examples(task, model, None)[0]
        return example.prompt, example.seeds

    assert first(TEXT_TO_IMAGE, "amused-256") == ("cowboy", "8")
    assert first(TEXT_TO_IMAGE, "amused-512") == ("summer in the mountains", "2")
    assert first(IMAGE_TO_IMAGE, "amused-256") == ("apple watercolor", "3")
    assert first(IMAGE_TO_IMAGE, "amused-512") == ("winter mountains", "15")
    assert first(INPAINT, "amused-256") == ("a man with glasses", "0-19")
    assert first(INPAINT, "amused-512") == ("fall mountains", "0")


# What is sent by people who mean it badly, or well with odd files


def sent_mask(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def test_what_an_editor_sends_is_a_drawing(tmp_path: Path) -> None:
    file, stroke = tmp_path / "teal.png", Image.new("RGBA", (8, 8))
    Image.new("RGB", (8, 8), "teal").save(file)
    stroke.putpixel((3, 2), (255, 0, 0, 255))
    drawing = MaskEditor().preprocess({"source": {"path": str(file)}, "mask": sent_mask(stroke)})
    assert drawing.image().getpixel((0, 0)) == (0, 128, 128)
    assert drawing.mask((8, 8)).getbbox() == (3, 2, 4, 3)


@pytest.mark.parametrize("value", [None, "a", [], {}, {"source": "a"}, {"source": {"path": 3}, "mask": 3}])
def test_what_no_editor_sends_is_no_drawing(value: object) -> None:
    drawing = MaskEditor().preprocess(value)
    with pytest.raises(UserError, match="Upload an image first"):
        drawing.image()
    with pytest.raises(UserError, match="First paint over the part"):
        drawing.mask((8, 8))


@pytest.mark.parametrize("mask", ["x", "data:image/png;base64,x", "data:image/png;base64,AAAA", "http://a/b.png"])
def test_a_mask_that_is_none_is_refused_in_a_sentence(mask: str) -> None:
    with pytest.raises(UserError, match="image"):
        MaskEditor().preprocess({"mask": mask}).mask((8, 8))


@pytest.fixture(scope="module")
def image() -> image_tab.ImageTab:
    return build_tab(image_tab.build, fake_runtime())


@pytest.fixture(scope="module")
def inpaint() -> inpaint_tab.InpaintTab:
    return build_tab(inpaint_tab.build, fake_runtime())


@pytest.mark.parametrize("name", list(odd_images()))
def test_odd_images_are_accepted_by_both_tabs(
    image: image_tab.ImageTab, inpaint: inpaint_tab.InpaintTab, name: str
) -> None:
    content = odd_images()[name]
    given = image.read(values_of(image, image=content, fit="pad")).image
    everything = {"left": 0, "top": 0, "width": 100, "height": 100}
    request = inpaint.read(values_of(inpaint, drawing=Drawing(content, ()), **everything))
    assert given.mode == request.image.mode == "RGB" and given.size == request.image.size == request.mask.size
    assert given.size == ((4, 8) if name == "turned" else (8, 8))


@pytest.mark.parametrize("name", list(HOSTILE))
def test_files_that_are_no_image_are_refused_in_a_sentence(
    image: image_tab.ImageTab, inpaint: inpaint_tab.InpaintTab, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as refused:
        image.read(values_of(image, image=file))
    assert str(tmp_path) not in str(refused.value)
    good = Drawing(png(Image.new("RGB", (64, 64))), ())
    with pytest.raises(UserError):
        inpaint.read(values_of(inpaint, drawing=Drawing(file, ())))
    with pytest.raises(UserError):
        inpaint.read(values_of(inpaint, drawing=good, mask_file=file))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e308, "12", None, [], 65])
def test_a_feather_that_is_none_is_refused(inpaint: inpaint_tab.InpaintTab, value: object) -> None:
    good = Drawing(png(Image.new("RGB", (64, 64))), ())
    with pytest.raises(UserError, match="feather"):
        inpaint.read(values_of(inpaint, drawing=good, width=50, height=50, feather=value))


def test_without_an_image_and_without_a_mask_a_sentence_says_what_is_missing(
    image: image_tab.ImageTab, inpaint: inpaint_tab.InpaintTab
) -> None:
    with pytest.raises(UserError, match="Upload an image first"):
        image.read(values_of(image))
    with pytest.raises(UserError, match="Upload an image first"):
        inpaint.read(values_of(inpaint))
