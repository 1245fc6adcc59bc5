"""Nothing is lost: a visit survives a reload and a closed tab, its runs go on, and its sweeps can be brought back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from fake import Turnstile
from helpers.browser import (
    answers_awaited,
    answers_held,
    assert_accessible,
    expect_begun,
    expect_done,
    kept,
    new_context,
    open_image,
    open_tab,
    paint_the_middle,
    part,
    result,
    run,
    set_seeds,
    tiles,
)
from helpers.serve import PAGES, forget_sessions, serve
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from amused.errors import UserError
from amused.serving.runtime import Runtime
from amused.ui.drawing import Drawing, MaskEditor
from amused.ui.reopen import give_inputs_again
from amused.ui.results import ResultState
from amused.ui.tab import returnable
from amused.ui.visits import Visits

TEXT, INPAINT = "text_to_image", "inpaint"


@pytest.fixture(scope="module")
def address(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = new_context(browser, 1280, 900)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    return visit(context, address)


@pytest.fixture
def held(turnstile: Turnstile) -> Turnstile:
    """Steps are made only as the test releases them."""
    turnstile.open.clear()
    return turnstile


def visit(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    opened(page)
    return page


def opened(page: Page) -> None:
    page.wait_for_function("window.amusedRestored === true")


def start(page: Page, seeds: str, count: int) -> None:
    set_seeds(page, TEXT, seeds, count)
    run(page, TEXT)


def make(page: Page, seeds: str, count: int) -> None:
    start(page, seeds, count)
    expect_done(page, count)


def captions(page: Page) -> list[str]:
    return [text.strip() for text in tiles(page).all_inner_texts()]


def sweeps(page: Page):
    return page.locator("#history-gallery .thumbnail-item")


def test_images_kept_ones_settings_and_the_open_tab_are_there_after_a_reload(page: Page) -> None:
    make(page, "8", 2)
    open_image(page, 1)
    result(page, "keep").click()
    expect(kept(page)).to_have_count(1)
    part(page, TEXT, "prompt").get_by_role("textbox").fill("about to try")
    shape = part(page, TEXT, "shape").get_by_role("combobox")
    with answers_awaited(page):
        shape.click()
        page.get_by_role("option", name="Landscape 16:9", exact=True).click()
        expect(shape).to_have_value("Landscape 16:9")
        open_tab(page, "Image to image")
    expect(part(page, "image_to_image", "run")).to_be_visible()
    page.reload()
    expect(part(page, "image_to_image", "run")).to_be_visible()
    expect(kept(page)).to_have_count(1)
    open_tab(page, "Text to image")
    expect(tiles(page)).to_have_count(2)
    assert captions(page) == ["seed 8", "seed 9"]
    expect(part(page, TEXT, "prompt").get_by_role("textbox")).to_have_value("about to try")
    expect(shape).to_have_value("Landscape 16:9")
    expect(result(page, "status")).to_contain_text("2 images in")
    open_image(page, 0)
    expect(result(page, "facts")).to_contain_text("Seed 8")


def test_an_image_its_mask_and_the_tab_are_there_after_a_reload(page: Page) -> None:
    make(page, "8", 2)
    open_image(page, 1)
    result(page, "to-inpaint").click()
    editor, cells = part(page, INPAINT, "drawing"), part(page, INPAINT, "cells")
    page.get_by_role("button", name="Mask from a file, or a box").click()
    with answers_awaited(page):
        paint_the_middle(page, editor)
        expect(cells).to_contain_text("Will be repainted")
        of_strokes = cells.inner_text()
        part(page, INPAINT, "across").get_by_role("spinbutton").fill("10")
        part(page, INPAINT, "down").get_by_role("spinbutton").fill("20")
        expect(cells).not_to_have_text(of_strokes)
    painted = cells.inner_text()
    for _ in range(2):
        page.reload()
        expect(part(page, INPAINT, "run")).to_be_visible()
        expect(cells).to_have_text(painted)
    with answers_awaited(page):
        editor.get_by_role("button", name="Clear mask").click()
        expect(cells).not_to_have_text(painted)
    of_the_box = cells.inner_text()
    page.reload()
    expect(cells).to_have_text(of_the_box)


def test_what_was_typed_while_the_server_was_away_is_there_when_it_is_back(page: Page) -> None:
    box = part(page, TEXT, "prompt").get_by_role("textbox")
    for typed in ("typed while away", ""):
        page.context.set_offline(True)
        run(page, TEXT)
        expect(page.get_by_test_id("toast-body").first).to_contain_text("Connection")
        box.fill(typed)
        with page.expect_event("load"):  # Gradio reloads the page
            page.context.set_offline(False)
        opened(page)
        expect(box).to_have_value(typed)


def test_a_reload_of_a_page_that_is_not_restored_yet_keeps_what_was_typed(page: Page) -> None:
    box = part(page, TEXT, "prompt").get_by_role("textbox")
    box.fill("typed before")
    with answers_held(page):
        page.reload()
        expect(box).not_to_have_value("typed before")
        page.reload()
        expect(box).not_to_have_value("typed before")
    opened(page)
    expect(box).to_have_value("typed before")


def test_inputs_given_before_the_visit_is_there_win_over_its_own() -> None:
    image, shape = gr.Image(), gr.Dropdown(["a", "b"], value="a")
    state, own = ResultState(inputs={image: Path("old.png"), shape: "b"}), ResultState(inputs={image: None, shape: "a"})
    assert give_inputs_again(state, own) == {image: Path("old.png"), shape: "b"}
    own.inputs[image] = Path("new.png")
    assert give_inputs_again(state, own) == {shape: "b"}
    assert state.inputs == {image: Path("new.png"), shape: "b"}


def test_only_what_an_input_gives_is_held(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(file)
    for value in (file, True, 3, 0.5, "Square", Drawing(file, (b"a mask",))):
        assert returnable(value) == value
    for value in (
        None,
        b"bytes",
        "x" * 1000,
        ["x"] * 1000,
        {"x": 1},
        tmp_path / "gone.png",
        Drawing(None, (b"a mask",)),
    ):
        assert returnable(value) is None
    assert returnable(Drawing(file, (bytes(1_000_000),))) == Drawing(file, ())


def test_an_image_that_cannot_be_read_any_longer_lets_the_page_open(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"overwritten")
    assert MaskEditor().postprocess(Drawing(file, (b"a mask",))) is None
    with pytest.raises(UserError):
        MaskEditor().postprocess(str(file))


def test_an_image_opened_before_the_visit_is_restored_stays_open(page: Page) -> None:
    page.reload()
    tiles(page).nth(2).click()
    opened(page)
    expect(result(page, "gallery").locator(".preview")).to_be_visible()
    expect(result(page, "facts")).to_contain_text(captions(page)[2].replace("seed", "Seed"))


def test_a_page_that_gradio_has_forgotten_goes_on(page: Page, address: str) -> None:
    """As after the sleep of a computer, or where many others came."""
    make(page, "8", 2)
    make(page, "20", 3)
    open_image(page, 0)
    result(page, "keep").click()
    expect(kept(page)).to_have_count(1)
    page.keyboard.press("Escape")
    forget_sessions(address)
    open_image(page, 1)
    expect(result(page, "facts")).to_contain_text("Seed 21")
    result(page, "keep").click()
    expect(kept(page)).to_have_count(2)
    forget_sessions(address)
    sweeps(page).nth(1).click()
    expect(tiles(page)).to_have_count(2)
    assert captions(page) == ["seed 8", "seed 9"]
    forget_sessions(address)
    make(page, "30", 1)
    expect(sweeps(page)).to_have_count(3)
    page.reload()
    opened(page)
    expect(kept(page)).to_have_count(2)


def test_a_page_of_a_server_that_was_restarted_says_so(
    page: Page, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(page, "8", 2)
    served = PAGES[address]
    monkeypatch.setattr(served, "reopening", replace(served.reopening, visits=Visits()))
    forget_sessions(address)
    tiles(page).nth(1).click()
    expect(result(page, "status")).to_contain_text("The server was restarted")
    expect(result(page, "details")).to_be_hidden()


def test_a_history_click_during_a_run_is_refused_in_a_sentence(page: Page, held: Turnstile) -> None:
    held.open.set()
    make(page, "8", 2)
    held.open.clear()
    start(page, "20", 2)
    expect_begun(page)
    sweeps(page).first.click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("A run is going on: let it end, or stop it first.")
    held.open.set()
    expect_done(page, 2)


def test_a_running_sweep_goes_on_and_is_joined_after_a_reload(page: Page, held: Turnstile, runtime: Runtime) -> None:
    start(page, "20", 3)
    expect_begun(page)
    held.passes.release(12)
    expect(tiles(page).first).to_contain_text("seed 20")
    page.reload()
    expect(part(page, TEXT, "stop")).to_be_visible()
    expect(tiles(page).first).to_contain_text("seed 20")
    held.open.set()
    expect_done(page, 3)
    assert captions(page) == ["seed 20", "seed 21", "seed 22"]
    expect(part(page, TEXT, "stop")).to_be_hidden()
    expect(sweeps(page)).to_have_count(1)


def test_stop_ends_a_run_that_was_joined(page: Page, held: Turnstile) -> None:
    start(page, "20", 3)
    expect_begun(page)
    page.reload()
    part(page, TEXT, "stop").click()
    expect(result(page, "status")).to_contain_text("Stopping")
    held.open.set()
    expect(result(page, "status")).to_contain_text("Stopped")
    expect(part(page, TEXT, "stop")).to_be_hidden()


def test_a_run_is_shown_and_stopped_in_every_tab(page: Page, held: Turnstile) -> None:
    start(page, "20", 3)
    expect_begun(page)
    held.passes.release(12)
    expect(tiles(page).first).to_contain_text("seed 20")
    open_tab(page, "Inpaint")
    expect(part(page, "inpaint", "progress")).to_contain_text("Image 1 of 3")
    expect(tiles(page).first).to_contain_text("seed 20")
    part(page, "inpaint", "stop").click()
    held.open.set()
    expect(result(page, "status")).to_contain_text("Stopped after")
    for task in ("inpaint", TEXT):
        open_tab(page, "Inpaint" if task == "inpaint" else "Text to image")
        expect(part(page, task, "run")).to_be_visible()
        expect(part(page, task, "stop")).to_be_hidden()
        expect(part(page, task, "progress")).to_be_hidden()


def test_an_action_that_was_joined_leaves_no_progress_behind(page: Page, held: Turnstile) -> None:
    open_image(page, 0)
    result(page, "improve").click()
    expect(result(page, "improve-progress")).to_contain_text(re.compile("Starting|Loading"))
    page.reload()
    expect_begun(page)
    held.open.set()
    expect(result(page, "status")).to_contain_text("1 image in")
    open_image(page, 0)
    expect(result(page, "improve")).to_be_visible()
    expect(result(page, "improve-progress")).to_be_hidden()


def test_a_closed_tab_is_there_again(context: BrowserContext, address: str, held: Turnstile) -> None:
    first = visit(context, address)
    start(first, "30", 2)
    expect_begun(first)
    first.close()
    held.open.set()
    again = visit(context, address)
    expect_done(again, 2)
    assert captions(again) == ["seed 30", "seed 31"]


def test_two_tabs_of_a_browser_do_not_overwrite_each_other(context: BrowserContext, address: str) -> None:
    one = visit(context, address)
    make(one, "1", 1)
    other = visit(context, address)
    expect(tiles(other)).to_have_count(8)  # those that the page opens with
    expect(sweeps(other)).to_have_count(1)  # what was made until then
    for page, seed in ((other, "50"), (one, "2"), (other, "51")):
        page.bring_to_front()
        make(page, seed, 1)
    expect(sweeps(one)).to_have_count(2)
    expect(sweeps(other)).to_have_count(3)
    for page, seed in ((one, "2"), (other, "51")):
        page.bring_to_front()
        page.reload()
        opened(page)
        assert captions(page) == [f"seed {seed}"]
    third = visit(context, address)
    third.locator("#restore").get_by_role("button", name="Recent recipes").click()
    third.locator("#restore-recent").get_by_role("listbox").or_(
        third.locator("#restore-recent").get_by_role("combobox")
    ).first.click()
    expect(third.get_by_role("option").filter(has_text=re.compile("seed 51"))).to_have_count(1)


def test_a_sweep_of_the_history_is_back_with_one_click_until_it_is_cleared(page: Page) -> None:
    make(page, "8", 2)
    make(page, "20", 1)
    expect(sweeps(page)).to_have_count(2)
    set_seeds(page, TEXT, "99", 4)
    open_tab(page, "Inpaint")
    sweeps(page).nth(1).click()
    expect(tiles(page)).to_have_count(2)
    expect(tiles(page).first).to_be_in_viewport(ratio=0.9)
    assert captions(page) == ["seed 8", "seed 9"]
    expect(part(page, TEXT, "seeds").get_by_role("textbox")).to_have_value("8")
    open_image(page, 1)
    expect(result(page, "facts")).to_contain_text("Seed 9")
    page.get_by_role("button", name="Clear history").click()
    expect(page.locator("#history")).to_be_hidden()
    page.reload()
    opened(page)
    expect(tiles(page)).to_have_count(2)
    expect(page.locator("#history")).to_be_hidden()


def test_another_run_is_queued_listed_and_dropped(page: Page, held: Turnstile) -> None:
    waiting, another = part(page, TEXT, "waiting"), page.get_by_role("button", name="Queue another")
    expect(another).to_be_hidden()
    start(page, "60", 1)
    expect_begun(page)
    for seeds in ("70", "80"):
        set_seeds(page, TEXT, seeds, 1)
        part(page, TEXT, "prompt").get_by_role("textbox").fill(f"fox {seeds}")
        another.click()
        expect(waiting).to_contain_text(f"fox {seeds}")
    waiting.get_by_role("button", name="Drop fox 70").click()
    expect(waiting).not_to_contain_text("fox 70")
    page.reload()
    expect(waiting).to_contain_text("fox 80")
    held.open.set()
    expect(tiles(page)).to_have_count(2)
    assert captions(page) == ["seed 60", "seed 80"]
    expect(another).to_be_hidden()
    expect(waiting).to_have_text("")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_state_is_accessible_and_fits_the_screen(
    browser: Browser, address: str, held: Turnstile, width: int, scheme: str
) -> None:
    context = new_context(browser, width, 844, color_scheme=scheme)
    page = visit(context, f"{address}?__theme={scheme}")

    def check() -> None:
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    tiles(page).nth(1).focus()  # with its tools
    expect(page.get_by_role("button", name="Keep seed")).to_be_visible()
    check()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(kept(page)).to_have_count(1)
    start(page, "8", 2)
    expect_begun(page)
    page.get_by_role("button", name="Queue another").click()
    expect(part(page, TEXT, "waiting")).to_contain_text("Drop")
    check()  # one run goes on and one waits
    held.open.set()
    expect(tiles(page)).to_have_count(4)
    expect(page.locator(".gallery-item[data-group]")).to_have_count(1)
    expect(sweeps(page)).to_have_count(2)
    check()  # a named group, the history, a kept image
    open_image(page, 1)
    expect(result(page, "stars")).to_be_visible()
    check()
    result(page, "compare-open").click()
    expect(page.get_by_role("dialog", name="Compare images")).to_be_visible()
    check()
    context.close()
