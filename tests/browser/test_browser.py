"""The page as a visitor meets it, in a real browser: one journey a tab, and what must never be lost.

Runs against the bundled checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import (
    answers_held,
    expect_done,
    open_page,
    open_tab,
    paint_the_middle,
    part,
    pixels,
    result,
    run,
    set_count,
    set_seeds,
    tiles,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from amused.ui import prompts


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with open_page(browser, address, 1280, 900) as page:
        yield page


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Page]:
    with open_page(browser, address, 390, 844) as page:
        yield page


def assert_is_an_image(image: np.ndarray) -> None:
    assert image.std() > 1


# Text to image


def test_one_click_gives_a_first_visitor_images(page: Page) -> None:
    set_count(page, "text_to_image", 1)
    run(page, "text_to_image")
    expect_done(page, 1)
    for image in pixels(page).values():
        assert_is_an_image(image)


def test_text_to_image_gives_an_image_for_each_seed(page: Page) -> None:
    part(page, "text_to_image", "prompt").get_by_role("textbox").fill("a pixel art character on a cool background")
    set_seeds(page, "text_to_image", "8", 3)
    run(page, "text_to_image")
    expect_done(page, 3)
    first = pixels(page)
    assert list(first) == ["seed 8", "seed 9", "seed 10"]
    for image in first.values():
        assert_is_an_image(image)
    assert (first["seed 8"] != first["seed 9"]).any()

    set_seeds(page, "text_to_image", "9", 1)
    run(page, "text_to_image")
    expect_done(page, 1)
    again = pixels(page)
    assert (again["seed 9"] == first["seed 9"]).all()


def test_a_list_of_seeds_is_run_as_it_is_written(page: Page) -> None:
    set_seeds(page, "text_to_image", "4, 20-21", 1)
    run(page, "text_to_image")
    expect_done(page, 3)
    assert list(pixels(page)) == ["seed 4", "seed 20", "seed 21"]


def test_a_prompt_with_alternatives_gives_images_of_each(page: Page) -> None:
    prompt = part(page, "text_to_image", "prompt").get_by_role("textbox")
    set_seeds(page, "text_to_image", "8", 2)
    prompt.fill("a pixel art character with a {fox|cow}-shaped head")
    hint = part(page, "text_to_image", "hint")
    expect(hint).to_contain_text("2 prompts × 2 seeds = 4 images")
    run(page, "text_to_image")
    expect_done(page, 4)
    swept = pixels(page)
    assert list(swept) == ["fox · seed 8", "fox · seed 9", "cow · seed 8", "cow · seed 9"]
    # Each of them is the image that its plain prompt gives.
    prompt.fill("a pixel art character with a cow-shaped head")
    expect(hint).to_be_hidden()
    run(page, "text_to_image")
    expect_done(page, 2)
    alone = pixels(page)
    assert all((alone[f"seed {seed}"] == swept[f"cow · seed {seed}"]).all() for seed in (8, 9))


def test_random_seeds_can_be_run_again(page: Page) -> None:
    set_count(page, "text_to_image", 1)
    run(page, "text_to_image")
    expect_done(page, 1)
    drawn = pixels(page)
    part(page, "text_to_image", "random").get_by_role("checkbox").uncheck()
    expect(part(page, "text_to_image", "seeds").get_by_role("textbox")).to_be_editable()
    run(page, "text_to_image")
    expect(part(page, "text_to_image", "stop")).to_be_visible()
    expect_done(page, 1)
    again = pixels(page)
    assert list(again) == list(drawn)
    assert all((again[caption] == drawn[caption]).all() for caption in drawn)


def test_progress_is_told_and_stop_keeps_what_is_finished(page: Page) -> None:
    set_seeds(page, "text_to_image", "100", 64)
    run(page, "text_to_image")
    status = result(page, "status")
    expect(status).to_contain_text(re.compile(r"Image [3-9] of 64, step \d+ of 12, about \d+ (s|min) left"))
    part(page, "text_to_image", "stop").click()
    expect(status).to_contain_text(re.compile(r"Stopped after \d+ of 64"))
    expect(part(page, "text_to_image", "stop")).to_be_hidden()
    kept = int(re.search(r"Stopped after (\d+)", status.inner_text())[1])
    assert 2 <= kept < 64
    expect(tiles(page)).to_have_count(kept)
    assert list(pixels(page)) == [f"seed {100 + index}" for index in range(kept)]

    set_seeds(page, "text_to_image", "100", 1)
    run(page, "text_to_image")
    expect_done(page, 1)


def test_control_enter_runs_the_tab_that_is_shown(page: Page) -> None:
    set_count(page, "text_to_image", 1)
    part(page, "text_to_image", "prompt").get_by_role("textbox").fill("a pixel art character")
    page.keyboard.press("Control+Enter")
    expect_done(page, 1)


def test_words_and_surprises_write_the_prompt(page: Page) -> None:
    box = part(page, "text_to_image", "prompt").get_by_role("textbox")
    before = box.input_value()
    assert before == "a pixel art character"
    part(page, "text_to_image", "examples").get_by_role("button").last.click()
    expect(box).not_to_have_value(before)
    box.fill("")
    part(page, "text_to_image", "surprise").click()
    expect(box).to_have_value(re.compile("^a pixel art character with"))
    page.get_by_role("button", name="Words this model knows").first.click()
    choose_word(page, "glasses", "red")
    expect(box).to_have_value("a pixel art character with red glasses")


def test_what_is_chosen_while_the_server_is_slow_counts(page: Page) -> None:
    box = part(page, "text_to_image", "prompt").get_by_role("textbox")
    page.get_by_role("button", name="Words this model knows").first.click()
    with answers_held(page):
        choose_word(page, "glasses", "red")
        choose_word(page, "glasses", "blue")
        choose_word(page, "background", "pink")
    expect(box).to_have_value("a pixel art character with blue glasses on a pink background")
    examples = part(page, "text_to_image", "examples").get_by_role("button")
    with answers_held(page):
        examples.first.click()
        examples.last.click()
    expect(box).to_have_value(prompts.examples("text_to_image", "nouns", {})[-1].prompt)


def choose_word(page: Page, trait: str, word: str) -> None:
    part(page, "text_to_image", trait).get_by_role("combobox").click()
    page.get_by_role("option", name=word, exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)


def test_a_refused_setting_is_told_and_costs_nothing(page: Page) -> None:
    set_seeds(page, "text_to_image", "3", 2)
    run(page, "text_to_image")
    expect_done(page, 2)
    set_seeds(page, "text_to_image", "eight", 2)
    run(page, "text_to_image")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Give seeds as whole numbers")
    expect(result(page, "status")).to_contain_text("Give seeds as whole numbers")
    expect(part(page, "text_to_image", "stop")).to_be_hidden()
    assert list(pixels(page)) == ["seed 3", "seed 4"]
    expect(part(page, "text_to_image", "seeds").get_by_role("textbox")).to_have_value("eight")


def test_a_refused_first_run_remembers_no_example(page: Page) -> None:
    set_seeds(page, "text_to_image", "eight", 1)
    run(page, "text_to_image")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Give seeds as whole numbers")
    set_seeds(page, "text_to_image", "8", 1)
    run(page, "text_to_image")
    expect_done(page, 1)
    page.locator("#restore").get_by_role("button", name="Recent recipes").click()
    page.locator("#restore-recent").get_by_role("listbox").or_(
        page.locator("#restore-recent").get_by_role("combobox")
    ).first.click()
    expect(page.get_by_role("option")).to_have_text([re.compile("seed 8")])


# Image to image


def test_image_to_image_redraws_an_image(page: Page, image_file: Path) -> None:
    open_tab(page, "Image to image")
    run(page, "image_to_image")
    expect(result(page, "status")).to_contain_text("Upload an image first")
    part(page, "image_to_image", "picture").locator("input[type=file]").set_input_files(image_file)
    expect(part(page, "image_to_image", "picture").locator("img")).to_be_visible()
    set_seeds(page, "image_to_image", "5", 2)
    run(page, "image_to_image")
    expect_done(page, 2)
    made = pixels(page)
    assert list(made) == ["seed 5", "seed 6"]
    for image in made.values():
        assert_is_an_image(image)
    assert (made["seed 5"] != made["seed 6"]).any()


def test_a_file_that_is_no_image_is_refused_in_a_sentence(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_text("<html><script>alert(1)</script></html>")
    open_tab(page, "Image to image")
    part(page, "image_to_image", "picture").locator("input[type=file]").set_input_files(file)
    expect(part(page, "image_to_image", "picture").locator("img")).to_be_attached()
    expect(result(page, "status")).to_contain_text("This is not an image that can be read")
    run(page, "image_to_image")
    expect(page.get_by_test_id("toast-body")).to_contain_text("This is not an image that can be read")


# Inpaint


def test_inpainting_changes_only_what_is_painted(page: Page, image_file: Path) -> None:
    open_tab(page, "Inpaint")
    editor = part(page, "inpaint", "drawing")
    editor.get_by_text("Drop an image here").wait_for()
    editor.locator("input[type=file]").first.set_input_files(image_file)
    expect(editor.locator("canvas")).to_be_visible()
    set_seeds(page, "inpaint", "1", 2)
    run(page, "inpaint")
    expect(result(page, "status")).to_contain_text("Paint over the part to change, or upload a mask")

    paint_the_middle(page, editor)
    run(page, "inpaint")
    expect_done(page, 2)
    before = np.asarray(Image.open(image_file)).astype(int)
    for image in pixels(page).values():
        assert image.shape == before.shape
        changed = (image != before).any(-1)
        assert changed[120:136, 120:136].mean() > 0.9
        assert not changed[:64].any() and not changed[-64:].any()
        assert not changed[:, :48].any() and not changed[:, -48:].any()


# The page as a whole


def test_a_model_is_chosen_for_every_tab(page: Page) -> None:
    part(page, "text_to_image", "advanced").get_by_role("button").first.click()
    picker = part(page, "text_to_image", "model")
    picker.get_by_role("combobox").click()
    page.get_by_role("option", name=re.compile("^amused-256")).click()
    expect(picker).to_contain_text("Downloads 1.6 GB on first use")
    expect(page.get_by_role("button", name="Words this model knows")).to_have_count(0)
    open_tab(page, "Inpaint")
    part(page, "inpaint", "advanced").get_by_role("button").first.click()
    expect(part(page, "inpaint", "model").get_by_role("combobox")).to_have_value(re.compile("^amused-256"))


def test_a_phone_shows_the_result_first_and_never_scrolls_sideways(phone: Page) -> None:
    for name, task in (
        ("Text to image", "text_to_image"),
        ("Image to image", "image_to_image"),
        ("Inpaint", "inpaint"),
    ):
        open_tab(phone, name)
        gallery = result(phone, "gallery").bounding_box()
        prompt = part(phone, task, "prompt").bounding_box()
        assert gallery["y"] < prompt["y"]
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        expect(part(phone, task, "run")).to_be_in_viewport(ratio=1)


def test_nothing_is_asked_of_other_machines(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    part(page, "text_to_image", "run").wait_for()
    open_tab(page, "Inpaint")
    part(page, "inpaint", "drawing").get_by_text("Drop an image here").wait_for()
    context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
