"""From an image to the one that is kept, in a real browser: select, vary, touch up, keep, compare, download.

And that what an image says of itself makes the same image again.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake import Turnstile, sampled
from helpers.browser import (
    answers_held,
    expect_begun,
    expect_done,
    kept,
    new_context,
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
from helpers.serve import serve
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from amused.generation.images import digest
from amused.recipe.links import Shared, from_query, to_query
from amused.recipe.metadata import from_json, from_png
from amused.recipe.recipe import TOUCH_UP, VARY, Recipe
from amused.serving import jobs
from amused.serving.jobs import Result
from amused.serving.runtime import Runtime
from amused.ui.derive import derive_recipe
from amused.ui.page import build_page

TEXT = "text_to_image"


@pytest.fixture(scope="module")
def address(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with open_page(browser, address, 1280, 900) as page:
        yield page


# What a visitor does and sees


def make(page: Page, task: str, seeds: str, count: int) -> None:
    set_seeds(page, task, seeds, count)
    run(page, task)
    expect_done(page, count)


def select(page: Page, index: int) -> str:
    """Click an image; gives its caption."""
    tile = tiles(page).nth(index)
    caption = tile.inner_text().strip()
    open_image(page, index)
    expect(result(page, "facts")).to_contain_text(caption.replace("seed", "Seed"))
    return caption


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key, delay=150)


def vary(page: Page, share: float, count: int) -> None:
    result(page, "vary").click()
    result(page, "mask-ratio").get_by_role("spinbutton").fill(str(share))
    result(page, "vary-count").get_by_role("spinbutton").fill(str(count))
    result(page, "make-variations").click()


def touch_up(page: Page, count: int, prompt: str | None = None, by_key: bool = False) -> None:
    result(page, "touch-up").click()
    expect(result(page, "touch-up-prompt").get_by_role("textbox")).not_to_have_value("")
    paint_the_middle(page, result(page, "touch-up-editor"))
    if prompt is not None:
        result(page, "touch-up-prompt").get_by_role("textbox").fill(prompt)
    result(page, "touch-up-count").get_by_role("spinbutton").fill(str(count))
    if by_key:
        result(page, "touch-up-prompt").get_by_role("textbox").press("Control+Enter")
    else:
        result(page, "repaint").click()


def keep(page: Page, count: int) -> None:
    result(page, "keep").click()
    expect(kept(page)).to_have_count(count)


def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def files(page: Page) -> list[Image.Image]:
    sources = [tile.locator("img").get_attribute("src") for tile in tiles(page).all()]
    return [Image.open(io.BytesIO(page.request.get(source).body())) for source in sources]


def replay(runtime: Runtime, shared: Shared, *given: Image.Image) -> str:
    (event,) = (event for event in sampled(runtime, shared.recipe, *given) if isinstance(event, Result))
    return digest(event.image.convert("RGB"))


def fresh(runtime: Runtime) -> Runtime:
    """One that remembers nothing of what was made."""
    return Runtime(runtime.models, runtime._load, default=runtime.default)


# The journey


def test_improve_appends_an_image_that_the_corrector_made_of_the_selected_one(page: Page) -> None:
    make(page, TEXT, "8", 1)
    select(page, 0)
    result(page, "improve").click()
    expect(tiles(page)).to_have_count(2)
    expect(result(page, "status")).to_contain_text("1 image in")
    select(page, 1)
    expect(result(page, "facts")).to_contain_text("Improvement")
    expect(result(page, "facts")).to_contain_text("From seed 8, Text to image")


def test_select_vary_touch_up_keep_compare_and_download(page: Page, runtime: Runtime) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    expect(result(page, "facts")).to_contain_text("Guidance")
    keep(page, 1)

    vary(page, 0.3, 2)
    expect(tiles(page)).to_have_count(4)
    expect(result(page, "status")).to_contain_text("2 images in")
    select(page, 3)
    expect(result(page, "facts")).to_contain_text("From seed 8, Text to image")
    first, _, varied, _ = (np.asarray(file) for file in files(page))
    assert (varied != first).any()

    touch_up(page, 1)
    expect(tiles(page)).to_have_count(5)
    expect(result(page, "status")).to_contain_text("1 image in")
    select(page, 4)
    expect(result(page, "facts")).to_contain_text("cells of the token grid")
    keep(page, 2)

    page.locator("#tray-compare").click()
    expect(page.locator("#tray-slider img").first).to_be_visible()

    name, content = downloaded(page, "#tray-zip")
    assert name.endswith(".zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rows = json.loads(archive.read("manifest.json"))
        assert [row["task"] for row in rows] == ["text_to_image", "touch_up"]
        for row in rows:
            image = Image.open(io.BytesIO(archive.read(row["file"])))
            assert digest(image) == row["digest"] == from_png(image).digest
            assert from_png(image).recipe == from_json({k: v for k, v in row.items() if k != "file"}).recipe

    name, content = downloaded(page, "#tray-sheet")
    labelled = Image.open(io.BytesIO(content))
    assert name.endswith(".png") and labelled.width > 2 * image.width and labelled.height > image.height


def test_every_image_is_made_again_by_what_it_says_of_itself(page: Page, runtime: Runtime) -> None:
    make(page, TEXT, "8", 1)
    select(page, 0)
    vary(page, 0.5, 1)
    expect(tiles(page)).to_have_count(2)
    expect(result(page, "status")).to_contain_text("1 image in")
    select(page, 1)
    touch_up(page, 1, prompt="a pixel art character with square red glasses")
    expect(tiles(page)).to_have_count(3)
    expect(result(page, "status")).to_contain_text("1 image in")
    images = files(page)
    assert [from_png(image).recipe.task for image in images] == ["text_to_image", "vary", "touch_up"]
    again = fresh(runtime)
    for image in images:
        said = from_png(image)
        assert said.digest == digest(image)
        by_link = from_query(to_query(said.recipe, said.digest))
        assert by_link.recipe == said.recipe and by_link.digest == said.digest
        assert replay(again, by_link) == said.digest


def test_an_open_image_takes_keys_and_the_page_does_not_jump(page: Page) -> None:
    make(page, TEXT, "8", 4)
    facts, gallery = result(page, "facts"), result(page, "gallery")
    before = gallery.bounding_box()
    select(page, 1)
    assert page.evaluate("scrollY") == 0 and gallery.bounding_box()["y"] == before["y"]
    for key, seed in (("ArrowRight", 10), ("ArrowRight", 11), ("ArrowRight", 11), ("ArrowLeft", 10)):
        page.keyboard.press(key, delay=150)  # as a person does: Gradio loses an update that follows within some 30 ms
        expect(facts).to_contain_text(f"Seed {seed}")
    page.keyboard.press("k")
    expect(kept(page)).to_have_count(1)
    page.keyboard.press("v")
    expect(result(page, "vary-form")).to_be_visible()
    page.keyboard.press("e")
    expect(result(page, "touch-up-form")).to_be_visible()
    expect(result(page, "vary-form")).to_be_hidden()
    page.keyboard.press("i")
    expect(facts.get_by_text("Guidance")).to_be_visible()
    prompt = part(page, TEXT, "prompt").get_by_role("textbox")
    prompt.press("End")
    prompt.press("k")  # a letter, not a command
    expect(prompt).to_have_value(re.compile("k$"))
    expect(result(page, "note")).not_to_contain_text("Kept images (2)")
    gallery.locator(".preview").get_by_label("Close").click()
    expect(facts).to_be_hidden()
    expect(tiles(page).first).to_be_visible()


def test_a_tile_is_kept_and_downloaded_without_opening_it(page: Page) -> None:
    make(page, TEXT, "8", 3)
    keep_first = page.get_by_role("button", name="Keep seed 8")
    expect(keep_first).to_have_count(0)
    tiles(page).nth(0).hover()
    keep_first.click()
    expect(kept(page)).to_have_count(1)
    tools = page.locator(".gallery-item:has(.tile-tools)")
    expect(tools).to_have_class(re.compile("is-kept"))
    expect(keep_first).to_be_hidden()

    tiles(page).nth(1).focus()  # from here by keyboard alone
    for name in ("Keep seed 9", "Download seed 9"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.ariaLabel") == name
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "amused-seed-9.png"
    assert from_png(Image.open(download.value.path())).recipe.seeds == (9,)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(kept(page)).to_have_count(2)
    expect(page.locator(".is-kept")).to_have_count(2)
    for index, is_kept in enumerate((True, True, False)):
        assert tiles(page).nth(index).get_attribute("aria-description") == ("Kept" if is_kept else None)
    expect(result(page, "gallery").locator(".preview")).to_have_count(0)
    page.locator("#tray-discard").click()
    expect(page.locator(".is-kept")).to_have_count(1)
    make(page, TEXT, "20", 3)
    expect(page.locator(".is-kept")).to_have_count(0)


@contextmanager
def second_image_seen_only(page: Page) -> Iterator[None]:
    """The visitor moves from the first image to the second one, of which the server hears only at the end."""
    select(page, 0)
    expect(result(page, "gallery").locator(".preview caption")).to_have_text("seed 8")
    held: list[Route] = []

    def is_of_the_arrow(request: Request) -> bool:
        given = request.post_data_json if request.url.endswith("/run/predict") else {}
        return 1 in given.get("data", ())

    page.route(
        "**/run/predict", lambda route: held.append(route) if is_of_the_arrow(route.request) else route.continue_()
    )
    with page.expect_request(is_of_the_arrow):
        page.keyboard.press("ArrowRight")
    expect(result(page, "gallery").locator(".preview caption")).to_have_text("seed 9")
    yield
    for route in held:
        route.continue_()
    page.unroute("**/run/predict")


def test_keep_keeps_the_image_that_is_seen_though_the_server_lags(page: Page) -> None:
    make(page, TEXT, "8", 3)
    with second_image_seen_only(page):
        page.keyboard.press("k")
        expect(kept(page)).to_have_text(["seed 9"])
        page.keyboard.press("4", delay=150)
        expect(kept(page)).to_have_text(["★★★★ seed 9"])
    expect(result(page, "facts")).to_contain_text("Seed 9")
    expect(result(page, "stars").get_by_role("radio").nth(3)).to_be_checked()


def test_actions_are_about_the_image_that_is_seen_though_the_server_lags(page: Page) -> None:
    make(page, TEXT, "8", 3)
    with second_image_seen_only(page):
        result(page, "use-seed").click()
        expect(part(page, TEXT, "seeds").get_by_role("textbox")).to_have_value("9")
        name, _ = downloaded(page, "#result-download-2")
        assert "seed-9" in name
        result(page, "to-image").click()
        expect(part(page, "image_to_image", "picture").locator("img")).to_have_attribute("src", re.compile("seed-9"))
        result(page, "improve").click()
        expect(result(page, "groups")).to_contain_text("Improvement of seed 9")


def test_back_closes_what_is_open(page: Page) -> None:
    make(page, TEXT, "8", 3)
    details, comparing = result(page, "details"), page.get_by_role("dialog", name="Compare images")
    for _ in range(2):
        select(page, 1)
        page.go_back()
        expect(details).to_be_hidden()
    select(page, 1)
    press(page, "Escape")
    expect(details).to_be_hidden()
    select(page, 2)
    press(page, "c")
    expect(comparing).to_be_visible()
    page.go_back()
    expect(comparing).to_be_hidden()
    expect(details).to_be_visible()
    keep(page, 1)
    page.go_back()
    expect(details).to_be_hidden()
    page.locator("#tray-open").click()
    expect(result(page, "kept-image")).to_be_visible()
    page.go_back()
    expect(details).to_be_hidden()
    expect(tiles(page)).to_have_count(3)


def test_arrow_keys_quicker_than_the_server_end_at_the_image_that_is_seen(page: Page) -> None:
    make(page, TEXT, "8", 4)
    with answers_held(page):
        open_image(page, 0)
        press(page, "ArrowRight", "ArrowRight")
        expect(result(page, "gallery").locator(".preview caption")).to_have_text("seed 10")
    expect(result(page, "facts")).to_contain_text("Seed 10")
    with answers_held(page):
        press(page, "ArrowRight", "ArrowLeft", "ArrowLeft")
        expect(result(page, "gallery").locator(".preview caption")).to_have_text("seed 9")
    expect(result(page, "facts")).to_contain_text("Seed 9")
    with answers_held(page):
        press(page, "ArrowLeft", "Escape")
    expect(result(page, "details")).to_be_hidden()


def test_kept_images_selected_quicker_than_the_server_answers(page: Page) -> None:
    make(page, TEXT, "8", 3)
    for index in range(3):
        select(page, index)
        result(page, "keep").click()
        expect(kept(page)).to_have_count(index + 1)
    with answers_held(page):
        for index in (1, 0):
            kept(page).nth(index).click()
            expect(kept(page).nth(index)).to_have_class(re.compile("selected"))
    expect(page.locator("#tray-note")).to_contain_text("Selected: seed 8")
    page.locator("#tray-discard").click()
    expect(kept(page)).to_have_text(["seed 9", "seed 10"])


def test_a_swipe_shows_the_next_image(browser: Browser, address: str) -> None:
    context = new_context(browser, 390, 844, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("window.amusedRestored")
    tiles(page).nth(3).tap()
    image = result(page, "gallery").locator(".preview .media-button")
    caption = result(page, "gallery").locator(".preview caption")
    first = caption.inner_text()
    touch = context.new_cdp_session(page)

    def swipe(by: int) -> None:
        box = image.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + by, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    captions = [text.strip() for text in tiles(page).all_text_contents()]
    assert captions.index(first) == 3
    for by, index in ((-120, 4), (120, 3), (120, 2), (-20, 2)):
        swipe(by)
        expect(caption).to_have_text(captions[index])
    context.close()


def test_new_variations_are_opened_and_a_new_sweep_closes_them(page: Page) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    vary(page, 0.4, 2)
    facts, opened = result(page, "facts"), result(page, "gallery").locator(".preview")
    expect(facts).to_contain_text("Variation")
    caption = opened.locator("caption").inner_text()
    expect(facts).to_contain_text(caption.replace("seed", "Seed"))
    assert caption == tiles(page).nth(2).text_content().strip()
    make(page, TEXT, "20", 3)
    expect(opened).to_have_count(0)
    expect(facts).to_be_hidden()


def test_a_form_stays_though_the_open_image_is_clicked_before_it_and_answered_after_it(page: Page) -> None:
    make(page, TEXT, "8", 1)
    select(page, 0)
    gallery = page.evaluate(
        "id => window.gradio_config.components.find((one) => one.props.elem_id === id).id", "result-gallery"
    )
    held: list[Route] = []

    def is_selection(request: Request) -> bool:
        return request.url.endswith("/run/predict") and request.post_data_json["trigger_id"] == gallery

    page.route("**/run/predict", lambda route: held.append(route) if is_selection(route.request) else route.continue_())
    with page.expect_request(is_selection):
        result(page, "gallery").locator(".preview .thumbnail-item").click()
    result(page, "touch-up").click()
    form = result(page, "touch-up-form")
    expect(form).to_be_visible()
    with page.expect_response(lambda response: is_selection(response.request)):
        held[0].continue_()
    result(page, "keep").click()  # answered after it
    expect(kept(page)).to_have_count(1)
    expect(form).to_be_visible()


def test_two_or_four_images_are_compared_side_by_side_by_keys(page: Page) -> None:
    make(page, TEXT, "8", 5)
    select(page, 1)
    dialog = page.get_by_role("dialog", name="Compare images")
    shown = dialog.locator(".side-by-side button")
    page.keyboard.press("c")
    expect(shown).to_have_text(["seed 9", "seed 10"])
    for key, seeds in (
        ("ArrowRight", (9, 11)),
        ("ArrowRight", (9, 12)),
        ("ArrowRight", (9, 8)),
        ("ArrowLeft", (9, 12)),
        ("c", (9, 12, 8, 10)),
        ("ArrowRight", (9, 11, 12, 8)),
        ("ArrowLeft", (9, 12, 8, 10)),
    ):
        page.keyboard.press(key)
        expect(shown).to_have_text([f"seed {seed}" for seed in seeds])
    expect(dialog).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 390, "height": 844})
    expect(dialog).to_be_in_viewport(ratio=1)
    page.keyboard.press("3")
    expect(dialog).to_be_hidden()
    expect(result(page, "facts")).to_contain_text("Seed 8")
    result(page, "compare-open").click()
    expect(shown).to_have_text(["seed 8", "seed 9"])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(result(page, "gallery").locator(".preview")).to_be_visible()  # Esc closed the dialog alone
    page.keyboard.press("Escape")
    expect(result(page, "gallery").locator(".preview")).to_have_count(0)


def test_kept_images_of_several_rounds_are_compared(page: Page) -> None:
    for seed in ("8", "20", "30"):
        make(page, TEXT, seed, 1)
        tiles(page).first.hover()
        page.get_by_role("button", name=f"Keep seed {seed}").click()
        expect(kept(page).filter(has_text=f"seed {seed}")).to_have_count(1)
    page.get_by_role("button", name="Side by side").click()
    dialog = page.get_by_role("dialog", name="Compare images")
    expect(dialog.locator(".side-by-side button")).to_have_text(["seed 30", "seed 8"])
    expect(dialog.get_by_role("button", name="Show four")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(dialog.locator(".side-by-side button")).to_have_text(["seed 30", "seed 20"])
    page.keyboard.press("ArrowLeft")
    expect(dialog.locator(".side-by-side button")).to_have_text(["seed 30", "seed 8"])
    dialog.get_by_role("button", name="Next").click()
    second = dialog.locator(".side-by-side button").nth(1)
    expect(second).to_have_text("seed 20")
    second.focus()
    page.keyboard.press("ArrowRight")
    expect(second).to_have_text("seed 8")
    expect(second).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(second).to_have_text("seed 20")
    second.click()
    expect(page.locator("#tray-note")).to_contain_text("Selected: seed 20")


def test_the_best_of_several_rounds_are_rated_and_sorted(page: Page) -> None:
    stars = result(page, "stars").get_by_role("radio")
    for seed, key in (("8", "2"), ("20", "5"), ("30", "3")):
        make(page, TEXT, seed, 1)
        select(page, 0)
        for index in range(5):
            expect(stars.nth(index)).not_to_be_checked()
        page.keyboard.press(key)
        expect(kept(page).filter(has_text=f"seed {seed}")).to_contain_text("★" * int(key))
    page.locator("#tray-sort").click()
    expect(kept(page)).to_have_text(["★★★★★ seed 20", "★★★ seed 30", "★★ seed 8"])
    page.reload()
    expect(kept(page)).to_have_text(["★★★★★ seed 20", "★★★ seed 30", "★★ seed 8"])
    select(page, 0)
    expect(stars.nth(2)).to_be_checked()
    stars.nth(3).check()
    expect(kept(page).nth(1)).to_have_text("★★★★ seed 30")


def test_progress_is_at_the_button_and_a_named_group_comes_into_view(page: Page, turnstile: Turnstile) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    page.set_viewport_size({"width": 390, "height": 500})
    gallery, progress = result(page, "gallery"), result(page, "vary-progress")
    expect(progress).to_be_hidden()
    turnstile.open.clear()
    try:
        vary(page, 0.4, 2)
        turnstile.passes.release(3)
        expect(progress).to_contain_text("Image 1 of 2")
        expect(progress).to_be_in_viewport()
        expect(part(page, TEXT, "progress")).to_be_hidden()
        # Screen readers announce how a run ends, not each step of it.
        unsaid = result(page, "status").locator("[aria-live='polite'] [aria-live='off']")
        expect(unsaid).to_contain_text("Image 1 of 2")
    finally:
        turnstile.open.set()
    expect(gallery.locator(".preview")).to_have_attribute("data-group", "2 variations of seed 8")
    expect(gallery.locator(".preview .media-button")).to_be_in_viewport(ratio=0.9)
    expect(result(page, "status")).to_contain_text("2 variations of seed 8: 2 images in")
    expect(progress).to_be_hidden()
    page.keyboard.press("ArrowLeft", delay=150)
    expect(gallery.locator(".preview")).not_to_have_attribute("data-group", re.compile("."))
    page.keyboard.press("Escape")
    named = page.locator(".gallery-item[data-group]")
    expect(named).to_have_count(1)
    assert named.get_attribute("data-group") == "2 variations of seed 8"
    assert named.inner_text().strip() == tiles(page).nth(2).inner_text().strip()
    make(page, TEXT, "20", 3)
    expect(named).to_have_count(0)


def test_all_images_of_a_sweep_fit_every_width(page: Page, turnstile: Turnstile) -> None:
    turnstile.open.clear()
    set_seeds(page, TEXT, "8-40", 33)
    run(page, TEXT)
    turnstile.passes.release(20)
    expect(tiles(page).first).to_contain_text("seed 8")
    columns: dict[int, int] = {}
    for width in (320, 390, 768, 1000, 1280, 1920):  # from the first image on as at the end
        page.set_viewport_size({"width": width, "height": 900})
        columns[width] = num_columns(page)
    assert columns == {320: 2, 390: 3, 768: 3, 1000: 3, 1280: 6, 1920: 6}
    turnstile.open.set()
    expect_done(page, 33)
    for width, count in columns.items():
        page.set_viewport_size({"width": width, "height": 900})
        assert num_columns(page) == count
        block = result(page, "gallery").bounding_box()
        for tile in tiles(page).all():
            box = tile.bounding_box()
            assert box["width"] >= 80
            assert block["x"] <= box["x"] and box["x"] + box["width"] <= block["x"] + block["width"]


def num_columns(page: Page) -> int:
    grid = result(page, "gallery").locator(".grid-container")
    return grid.evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length")


def test_a_closed_image_leaves_its_place_in_the_gallery_on_a_phone(browser: Browser, address: str) -> None:
    with open_page(browser, address, 390, 844) as page:
        make(page, TEXT, "0-29", 30)
        for close in ("button", "key", "back"):
            select(page, 25)
            if close == "button":
                result(page, "gallery").get_by_role("button", name="Close").click()
            elif close == "key":
                press(page, "Escape")
            else:
                page.go_back()
            expect(result(page, "details")).to_be_hidden()
            expect(tiles(page).nth(25)).to_be_in_viewport(ratio=0.9)


def test_forms_and_kept_images_come_into_view_above_the_bar_of_a_phone(
    browser: Browser, address: str, turnstile: Turnstile
) -> None:
    with open_page(browser, address, 390, 844) as page:
        make(page, TEXT, "8", 2)
        select(page, 0)
        result(page, "vary").click()
        expect_uncovered(result(page, "make-variations"))
        result(page, "touch-up").click()
        paint_the_middle(page, result(page, "touch-up-editor"))
        page.evaluate("document.querySelector('#result-repaint').scrollIntoView({ block: 'end' })")
        expect_uncovered(result(page, "repaint"))
        turnstile.open.clear()
        result(page, "repaint").click()
        expect_uncovered(part(page, TEXT, "stop"))
        part(page, TEXT, "stop").click()
        turnstile.open.set()
        expect(part(page, TEXT, "stop")).to_be_hidden()
        result(page, "vary").click()
        expect(result(page, "touch-up-form")).to_be_hidden()
        expect(part(page, TEXT, "run")).to_be_in_viewport(ratio=1)
        keep(page, 1)
        page.locator("#tray-open").click()
        expect(result(page, "kept-image").locator("img")).to_be_in_viewport(ratio=0.9)


def expect_uncovered(button: Locator) -> None:
    """It comes to where a finger can press it."""
    expect(button).to_be_in_viewport(ratio=0.9)
    button.page.wait_for_function(
        """button => {
            const { x, y, width, height } = button.getBoundingClientRect();
            return button.contains(document.elementFromPoint(x + width / 2, y + height / 2));
        }""",
        arg=button.element_handle(),
    )


def test_an_open_image_of_a_group_has_its_own_colours(page: Page) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    vary(page, 0.4, 1)
    shown = result(page, "gallery").locator(".preview[data-group] .media-button img")
    expect(shown).to_be_visible()
    expect(result(page, "status")).to_contain_text("1 image in")
    shown.evaluate("image => image.decode()")
    seen = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    middle, side = seen.width // 2, seen.height // 2  # in the middle, with space at its sides
    seen = seen.crop((middle - side, 0, middle + side, seen.height))
    made = files(page)[2].convert("RGB").resize(seen.size)
    assert np.abs(np.asarray(seen).mean((0, 1)) - np.asarray(made).mean((0, 1))).max() < 4


def test_a_finished_variation_leaves_what_was_opened_meanwhile(page: Page, turnstile: Turnstile) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    turnstile.open.clear()
    vary(page, 0.4, 1)
    expect(result(page, "vary-progress")).to_contain_text(re.compile("Starting|Loading"))
    select(page, 1)
    result(page, "touch-up").click()
    paint_the_middle(page, result(page, "touch-up-editor"))
    turnstile.open.set()
    expect(result(page, "status")).to_contain_text("1 variation of seed 8: 1 image in")
    expect(tiles(page)).to_have_count(3)
    expect(result(page, "facts")).to_contain_text("Seed 9")
    expect(result(page, "touch-up-form")).to_be_visible()
    expect(result(page, "touch-up-editor").get_by_role("button", name="Undo")).to_be_enabled()


def test_keys_and_back_do_not_take_a_painted_mask_away(page: Page) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    result(page, "touch-up").click()
    editor = result(page, "touch-up-editor")
    label = editor.get_by_role("status")
    expect(label).to_have_text("Paint over what should be repainted")
    paint_the_middle(page, editor)
    page.locator(".block.heading").click()
    press(page, "ArrowRight", "Escape", "ArrowLeft")
    expect(label).to_have_text("To leave this image, clear the mask or press ×.")
    paint_the_middle(page, editor)
    expect(label).to_have_text("Paint over what should be repainted")
    page.set_viewport_size({"width": 1280, "height": 400})
    for _ in range(2):
        page.evaluate("scrollTo(0, 0)")
        page.go_back()
        expect(label).to_be_in_viewport()
        expect(label).to_have_text("To leave this image, clear the mask or press ×.")
    expect(result(page, "facts")).to_contain_text("Seed 8")
    expect(editor.get_by_role("button", name="Undo")).to_be_enabled()
    editor.get_by_role("button", name="Clear mask").click()
    page.go_back()
    expect(result(page, "details")).to_be_hidden()
    select(page, 0)
    expect(result(page, "details")).to_be_visible()
    press(page, "ArrowRight")
    expect(result(page, "facts")).to_contain_text("Seed 9")


def test_an_open_kept_image_answers_to_keys_and_can_be_closed(page: Page) -> None:
    make(page, TEXT, "8", 1)
    select(page, 0)
    press(page, "k")
    expect(result(page, "keep")).to_have_text("Kept ♥")
    make(page, TEXT, "20", 2)
    opened = result(page, "kept-image")
    for close in ("key", "button"):
        kept(page).first.click()
        page.locator("#tray-open").click()
        expect(opened).to_be_visible()
        expect(result(page, "keep")).to_have_text("Kept ♥")
        expect(result(page, "compare-open")).to_be_hidden()  # it is not in the gallery
        press(page, "v")
        expect(result(page, "vary-form")).to_be_visible()
        if close == "key":
            press(page, "Escape")
        else:
            result(page, "close").click()
        expect(opened).to_be_hidden()
    select(page, 1)
    expect(result(page, "keep")).to_have_text("Keep")
    expect(result(page, "close")).to_be_hidden()
    expect(result(page, "compare-open")).to_be_visible()


def test_arrow_keys_turn_the_image_after_a_star_was_clicked(page: Page) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    result(page, "stars").get_by_role("radio").nth(2).check()
    expect(kept(page)).to_have_text(["★★★ seed 8"])
    press(page, "ArrowRight")
    expect(result(page, "facts")).to_contain_text("Seed 9")
    expect(kept(page)).to_have_text(["★★★ seed 8"])


def test_keys_leave_no_list_open_and_a_run_by_key_keeps_the_focus(page: Page) -> None:
    for name in ("model", "shape"):
        part(page, TEXT, name).get_by_role("combobox").focus()
        expect(page.get_by_role("listbox")).to_have_count(1)
        page.keyboard.press("Tab")
    set_seeds(page, TEXT, "8", 1)
    prompt = part(page, TEXT, "prompt").get_by_role("textbox")
    prompt.press("Control+Enter")
    expect_done(page, 1)
    expect(prompt).to_be_focused()


def test_a_double_click_is_one(page: Page, turnstile: Turnstile) -> None:
    """Its second half would turn the image that the first has opened, or generate where Stop was."""
    make(page, TEXT, "8", 4)
    tiles(page).first.dblclick(delay=100)
    expect(result(page, "facts")).to_contain_text("Seed 8")
    page.keyboard.press("Escape")
    turnstile.open.clear()
    set_seeds(page, TEXT, "20", 8)
    box = part(page, TEXT, "run").bounding_box()
    page.mouse.dblclick(box["x"] + 20, box["y"] + 20, delay=100)
    expect_begun(page)
    turnstile.passes.release(14)
    expect(result(page, "status")).to_contain_text("Image 2 of 8")
    stop = part(page, TEXT, "stop").bounding_box()
    page.mouse.dblclick(stop["x"] + 20, stop["y"] + 20, delay=100)
    turnstile.open.set()
    expect(result(page, "status")).to_contain_text("Stopped after 1 of 8")
    expect(part(page, TEXT, "stop")).to_be_hidden()
    expect(tiles(page)).to_have_text(["seed 20"])


def test_images_of_a_grid_come_into_view_on_a_phone(browser: Browser, address: str, turnstile: Turnstile) -> None:
    with open_page(browser, address, 390, 600) as page:
        page.locator(f"#{TEXT}-grid").get_by_role("button", name="Grid").click()
        turnstile.open.clear()
        try:
            part(page, TEXT, "grid-make").click()
            turnstile.passes.release(6)
            expect(part(page, TEXT, "grid-progress")).to_contain_text("Image")
            expect(tiles(page).first).to_contain_text("seed 0")
            expect(tiles(page).first).to_be_in_viewport(ratio=0.9)
        finally:
            turnstile.open.set()
        expect(result(page, "status")).to_contain_text("9 images in")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_image_that_is_opened_while_it_is_made_gets_its_actions(
    page: Page, turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PREVIEW_SECONDS", 0)  # the first step has one
    make(page, TEXT, "8", 1)
    select(page, 0)
    facts = result(page, "facts")
    turnstile.open.clear()
    set_seeds(page, TEXT, "30", 2)
    run(page, TEXT)
    turnstile.passes.release(2)
    expect(tiles(page)).to_contain_text(["seed 30"])
    expect(facts).to_be_hidden()  # those of the run before
    open_image(page, 0)
    turnstile.open.set()
    expect_done(page, 2)
    expect(facts).to_contain_text("Seed 30")
    keep(page, 1)


def test_a_sweep_goes_on_with_the_next_seeds(page: Page, runtime: Runtime) -> None:
    make(page, TEXT, "8", 2)
    for count in (6, 10):
        result(page, "more").click()
        expect(tiles(page)).to_have_count(count)
        expect(result(page, "status")).to_contain_text("4 images in")
    recipes = [from_png(file).recipe for file in files(page)]
    assert recipes == [recipes[0].with_seeds([seed]) for seed in range(8, 18)]
    assert replay(fresh(runtime), Shared(recipes[-1])) == digest(files(page)[-1])


def test_control_enter_runs_the_form_that_has_the_focus(page: Page) -> None:
    make(page, TEXT, "8", 1)
    select(page, 0)
    touch_up(page, 1, by_key=True)
    expect(tiles(page)).to_have_count(2)
    expect(result(page, "status")).to_contain_text("1 image in")
    assert [from_png(file).recipe.task for file in files(page)] == [TEXT, TOUCH_UP]


def test_touching_up_changes_the_painted_cells_alone(page: Page, runtime: Runtime) -> None:
    make(page, TEXT, "20", 1)
    select(page, 0)
    touch_up(page, 2, prompt="a pixel art character on a warm background")
    expect(tiles(page)).to_have_count(3)
    recipe = from_png(files(page)[1]).recipe
    assert set(recipe.cells) >= {7 * 16 + 8, 8 * 16 + 7} and len(recipe.cells) < 64
    assert recipe.prompt == "a pixel art character on a warm background"
    *_, before = sampled(runtime, recipe.parent)
    *_, after = sampled(runtime, recipe)
    changed = np.flatnonzero((np.asarray(before.tokens) != np.asarray(after.tokens)).ravel())
    assert set(changed.tolist()) <= set(recipe.cells)


def test_an_image_of_an_image_goes_on(page: Page, runtime: Runtime, image_file: Path) -> None:
    task = "image_to_image"
    open_tab(page, "Image to image")
    part(page, task, "picture").locator("input[type=file]").set_input_files(image_file)
    expect(part(page, task, "picture").locator("img")).to_be_visible()
    make(page, task, "5", 1)
    select(page, 0)
    vary(page, 0.3, 1)
    expect(tiles(page)).to_have_count(2)
    expect(result(page, "status")).to_contain_text("1 image in")
    given = Image.open(image_file)
    for image in files(page):
        said = from_png(image)
        assert replay(fresh(runtime), said, given) == said.digest == digest(image)


@pytest.mark.parametrize("composite", [True, False])
def test_a_variation_is_composited_as_its_parent_was(composite: bool) -> None:
    parent = Recipe("inpaint", "a", (1,), composite=composite, adapter="dusk", adapter_strength=0.5, crop=(1, 2))
    for recipe in (derive_recipe(parent, VARY, 2, share=0.5), derive_recipe(parent, TOUCH_UP, 2, cells=(1,))):
        assert (recipe.composite, recipe.adapter, recipe.adapter_strength) == (composite, "dusk", 0.5)
        assert (recipe.crop, recipe.prompt, recipe.parent, len(recipe.seeds)) == ((1, 2), "a", parent, 2)


# Links


def copied_link(page: Page) -> str:
    expect(result(page, "copy-link")).to_have_text("Copy link")
    result(page, "copy-link").click()
    expect(result(page, "copy-link")).to_have_text("Link copied")
    return page.evaluate("navigator.clipboard.readText()")


def shared_by(link: str) -> Shared:
    return from_query(urlsplit(link).query)


@pytest.mark.parametrize(
    ("task", "tab"), [(TEXT, "Text to image"), ("image_to_image", "Image to image"), ("inpaint", "Inpaint")]
)
def test_every_selected_image_has_a_link_of_its_own(page: Page, image_file: Path, task: str, tab: str) -> None:
    open_tab(page, tab)
    if task == "image_to_image":
        part(page, task, "picture").locator("input[type=file]").set_input_files(image_file)
        expect(part(page, task, "picture").locator("img")).to_be_visible()
    elif task == "inpaint":
        part(page, task, "drawing").get_by_text("Drop an image here").wait_for()
        part(page, task, "drawing").locator("input[type=file]").first.set_input_files(image_file)
        expect(part(page, task, "drawing").locator("canvas")).to_be_visible()
        paint_the_middle(page, part(page, task, "drawing"))
    make(page, task, "40", 3)
    made = [digest(image) for image in files(page)]
    for index in range(3):
        select(page, index)
        shared = shared_by(copied_link(page))
        assert shared.recipe.seeds == (40 + index,) and shared.digest == made[index]
    make(page, task, "50", 2)
    select(page, 1)
    assert shared_by(copied_link(page)).recipe.seeds == (51,)


def test_a_kept_image_that_is_opened_has_a_link_of_its_own(page: Page) -> None:
    make(page, TEXT, "40", 2)
    select(page, 0)
    keep(page, 1)
    select(page, 1)
    assert shared_by(copied_link(page)).recipe.seeds == (41,)
    page.locator("#tray-open").click()
    expect(result(page, "facts")).to_contain_text("Seed 40")
    assert shared_by(copied_link(page)).recipe.seeds == (40,)


def test_a_link_that_the_browser_does_not_copy_is_shown_until_the_next_selection(page: Page) -> None:
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    make(page, TEXT, "40", 2)
    shown = result(page, "link").locator("input, textarea")
    for index in range(2):
        select(page, index)
        expect(result(page, "copy-link")).to_have_text("Copy link")
        expect(shown).to_be_hidden()
        result(page, "copy-link").click()
        expect(result(page, "copy-link")).to_have_text("Copy the link below")
        expect(shown).to_be_visible()
        assert shared_by(shown.input_value()).recipe.seeds == (40 + index,)


def test_nothing_waits_for_the_change_of_a_state(runtime: Runtime) -> None:
    """Gradio's browser code does not hear of it when the event that changed the state is one with `queue=False`."""
    page = build_page(runtime)
    changed = [target for event in page.fns.values() for target, name in event.targets if name == "change"]
    assert changed and not [target for target in changed if page.blocks[target].stateful]


# The seed, and the other tabs


def test_the_seed_is_used_for_the_next_runs(page: Page) -> None:
    make(page, TEXT, "30-31", 2)
    select(page, 1)
    part(page, TEXT, "random").get_by_role("checkbox").check()
    page.get_by_role("button", name="Use this seed", exact=True).click()
    expect(result(page, "note")).to_have_text("The next runs start from seed 31")
    expect(part(page, TEXT, "seeds").get_by_role("textbox")).to_have_value("31")
    expect(part(page, TEXT, "seeds").get_by_role("textbox")).to_be_editable()
    expect(part(page, TEXT, "random").get_by_role("checkbox")).not_to_be_checked()
    open_tab(page, "Inpaint")  # whose next runs they are too
    expect(part(page, "inpaint", "seeds").get_by_role("textbox")).to_have_value("31")
    expect(part(page, "inpaint", "random").get_by_role("checkbox")).not_to_be_checked()


def test_an_image_is_sent_to_image_to_image(page: Page) -> None:
    part(page, TEXT, "prompt").get_by_role("textbox").fill("a pixel art character on a sky background")
    make(page, TEXT, "8", 1)
    select(page, 0)
    result(page, "to-image").click()
    expect(part(page, "image_to_image", "picture").locator("img")).to_be_visible()
    box = part(page, "image_to_image", "prompt").get_by_role("textbox")
    expect(box).to_have_value("a pixel art character on a sky background")
    set_seeds(page, "image_to_image", "2", 1)
    run(page, "image_to_image")
    expect(tiles(page)).to_have_text(["seed 8", "seed 2"])
    expect(result(page, "groups").locator("i")).to_have_text(["a pixel art character on a sky background"])


def test_an_image_is_sent_to_inpaint_and_painted_on(page: Page) -> None:
    make(page, TEXT, "8", 1)
    before = pixels(page)["seed 8"]
    select(page, 0)
    result(page, "to-inpaint").click()
    editor = part(page, "inpaint", "drawing")
    expect(editor.locator("canvas")).to_be_visible()
    paint_the_middle(page, editor)
    set_seeds(page, "inpaint", "3", 1)
    run(page, "inpaint")
    expect(result(page, "status")).to_contain_text(": 1 image in")  # added to what it was made of
    changed = (pixels(page)["seed 3"] != before).any(-1)
    assert changed[120:136, 120:136].any()
    assert not changed[:64].any() and not changed[-64:].any()


# The tray


def test_the_tray_discards_and_brings_back(page: Page) -> None:
    expect(page.locator("#tray")).to_be_hidden()
    make(page, TEXT, "40", 3)
    for index in range(3):
        select(page, index)
        keep(page, index + 1)
    with page.expect_response("**/queue/join*"):
        result(page, "keep").click()
    expect(result(page, "note")).to_contain_text("Added to Kept images")
    expect(kept(page)).to_have_count(3)

    kept(page).nth(1).click()
    expect(page.locator("#tray-note")).to_contain_text("Selected: seed 41")
    page.locator("#tray-discard").click()
    expect(kept(page)).to_have_count(2)
    assert [tile.inner_text().strip() for tile in kept(page).all()] == ["seed 40", "seed 42"]
    page.locator("#tray-undo").click()
    expect(kept(page)).to_have_count(3)
    assert [tile.inner_text().strip() for tile in kept(page).all()] == ["seed 40", "seed 41", "seed 42"]
    expect(page.locator("#tray-undo")).to_be_hidden()


def test_a_kept_image_that_is_opened_stays_though_a_run_ends(page: Page) -> None:
    make(page, TEXT, "40", 2)
    select(page, 0)
    keep(page, 1)
    select(page, 1)
    page.locator("#tray-open").click()
    expect(result(page, "facts")).to_contain_text("Seed 40")
    result(page, "more").click()
    expect(tiles(page)).to_have_count(6)
    expect(result(page, "status")).to_contain_text("4 images in")
    expect(page.locator("#history-gallery .thumbnail-item")).to_have_count(2)  # all events of the end are on their way
    expect(result(page, "facts")).to_contain_text("Seed 40")


def test_all_can_be_discarded_and_brought_back(page: Page) -> None:
    make(page, TEXT, "40", 1)
    select(page, 0)
    keep(page, 1)
    page.locator("#tray-discard").click()
    expect(page.locator("#tray-note")).to_contain_text("No images kept")
    for name in ("open", "compare", "discard", "single", "zip", "sheet"):
        expect(page.locator(f"#tray-{name}")).to_be_hidden()
    page.locator("#tray-undo").click()
    expect(kept(page)).to_have_count(1)
    page.locator("#tray-open").click()
    expect(result(page, "facts")).to_contain_text("Seed 40")


def test_kept_images_outlast_runs_and_open_again(page: Page) -> None:
    make(page, TEXT, "40", 1)
    select(page, 0)
    keep(page, 1)
    make(page, TEXT, "50", 1)
    select(page, 0)
    open_tab(page, "Inpaint")
    expect(kept(page)).to_have_count(1)
    page.locator("#tray-open").click()
    expect(result(page, "facts")).to_contain_text("Seed 40")


def test_the_recipe_can_be_left_out_of_the_files(page: Page) -> None:
    make(page, TEXT, "40", 1)
    select(page, 0)
    keep(page, 1)
    name, content = downloaded(page, "#tray-single")
    assert name == "amused-seed-40.png"
    assert from_png(Image.open(io.BytesIO(content))).recipe.seeds == (40,)
    page.locator("#tray-tagged").get_by_role("checkbox").uncheck()
    _, content = downloaded(page, "#tray-single")
    assert Image.open(io.BytesIO(content)).info == {}
    make(page, TEXT, "41", 1)
    assert all(image.info == {} for image in files(page))


# Runs


def test_a_run_that_waited_keeps_the_images_of_the_one_before(page: Page, turnstile: Turnstile) -> None:
    turnstile.open.clear()
    try:
        set_seeds(page, TEXT, "60", 2)
        run(page, TEXT)
        expect_begun(page)
        set_seeds(page, TEXT, "70", 1)
        run(page, TEXT)
        expect(part(page, TEXT, "waiting")).to_contain_text("Drop")
    finally:
        turnstile.open.set()
    expect(tiles(page)).to_have_count(3)
    expect(result(page, "status")).to_contain_text("1 image in")
    assert list(pixels(page)) == ["seed 60", "seed 61", "seed 70"]
    set_seeds(page, TEXT, "80", 1)
    run(page, TEXT)
    expect(tiles(page)).to_have_count(1)


def test_stop_ends_all_runs_of_the_page(page: Page, turnstile: Turnstile) -> None:
    status = result(page, "status")
    turnstile.open.clear()
    try:
        set_seeds(page, TEXT, "60", 2)
        run(page, TEXT)
        expect_begun(page)
        set_seeds(page, TEXT, "70", 1)
        run(page, TEXT)
        expect(part(page, TEXT, "waiting")).to_contain_text("Drop")
        part(page, TEXT, "stop").click()
        expect(status).to_contain_text("Stopping")
    finally:
        turnstile.open.set()
    expect(status).to_contain_text("Stopped. Cancelled 1 queued run")
    expect(part(page, TEXT, "stop")).to_be_hidden()
    expect(tiles(page)).to_have_count(8)  # those that the page opened with
    make(page, TEXT, "80", 1)
    assert list(pixels(page)) == ["seed 80"]


def test_strokes_belong_to_the_image_they_were_painted_on(page: Page) -> None:
    make(page, TEXT, "8", 2)
    select(page, 0)
    touch_up(page, 1)
    expect(tiles(page)).to_have_count(3)
    expect(result(page, "status")).to_contain_text("1 image in")
    select(page, 1)
    expect(result(page, "touch-up-form")).to_be_hidden()
    result(page, "touch-up").click()
    expect(result(page, "touch-up-editor").get_by_role("button", name="Undo")).to_be_disabled()
    result(page, "repaint").click()
    expect(result(page, "status")).to_contain_text("First paint over the part to change")
    expect(tiles(page)).to_have_count(3)
    expect(part(page, TEXT, "stop")).to_be_hidden()


@pytest.mark.parametrize("keys", ["Control+Enter", "Shift+Enter", "Enter"])
def test_a_held_key_is_one_run(page: Page, keys: str) -> None:
    """Pressed on the prompt, or on the button for Enter alone. A key that is already down repeats."""
    runs: list[str] = []
    page.on("request", lambda request: runs.append(request.url) if "/queue/join" in request.url else None)
    set_seeds(page, TEXT, "90", 1)
    (part(page, TEXT, "run") if keys == "Enter" else part(page, TEXT, "prompt").get_by_role("textbox")).focus()
    *modifiers, key = keys.split("+")
    for one in (*modifiers, *[key] * 6):
        page.keyboard.down(one)
    for one in (key, *modifiers):
        page.keyboard.up(one)
    expect_done(page, 1)
    set_seeds(page, TEXT, "91", 1)
    run(page, TEXT)
    expect(tiles(page)).to_contain_text(["seed 91"])
    assert len(runs) == 2
