"""A new person's way through the page, in a real browser on the bundled checkpoint, its clicks counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.browser import (
    assert_accessible,
    expect_done,
    kept,
    new_context,
    paint_the_middle,
    part,
    pixels,
    result,
    set_count,
    tile,
    tiles,
)
from playwright.sync_api import Browser, Locator, Page, expect

TEXT, INPAINT = "text_to_image", "inpaint"
MOST = 18  # clicks and strokes of the whole way; typing is not counted
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    width, height = SIZES[request.param]
    scheme = "light" if request.param == "desk" else "dark"
    context = new_context(browser, width, height, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}?__theme={scheme}")
    part(page, TEXT, "run").wait_for()
    yield page
    context.close()


class Person:
    """Clicks, and counts how often."""

    def __init__(self) -> None:
        self.clicks = 0

    def click(self, place: Locator) -> None:
        place.click()
        self.clicks += 1

    def paint(self, page: Page, editor: Locator) -> None:
        paint_the_middle(page, editor)
        self.clicks += 1


def test_sixteen_seeds_pick_two_vary_touch_up_inpaint_share_and_replay(page: Page) -> None:
    person = Person()
    assert_accessible(page)

    set_count(page, TEXT, 16)
    person.click(part(page, TEXT, "run"))
    expect_done(page, 16)

    for number, index in enumerate((2, 5), start=1):
        caption = tiles(page).nth(index).text_content().strip()
        person.click(tile(page, index))
        expect(result(page, "facts")).to_contain_text(caption.replace("seed", "Seed"))
        person.click(result(page, "keep"))
        expect(kept(page)).to_have_count(number)

    person.click(result(page, "vary"))
    person.click(result(page, "make-variations"))
    expect(tiles(page)).to_have_count(20)
    expect(result(page, "status")).to_contain_text("4 images in")

    person.click(tile(page, 16))
    expect(result(page, "facts")).to_contain_text("From seed")
    person.click(result(page, "touch-up"))
    person.paint(page, result(page, "touch-up-editor"))
    assert_accessible(page)
    person.click(result(page, "repaint"))
    expect(tiles(page)).to_have_count(24)
    expect(result(page, "status")).to_contain_text("4 images in")

    person.click(tile(page, 2))
    person.click(result(page, "to-inpaint"))
    editor = part(page, INPAINT, "drawing")
    expect(editor.locator("canvas")).to_be_visible()
    person.paint(page, editor)
    assert_accessible(page)
    set_count(page, INPAINT, 1)
    person.click(part(page, INPAINT, "run"))
    expect(tiles(page)).to_have_count(25)  # images made of one in the gallery join it
    expect(result(page, "status")).to_contain_text("1 image in")

    person.click(tile(page, 20))  # the image that is shared is the touched-up one
    expect(result(page, "facts")).to_contain_text("cells of the token grid")
    person.click(result(page, "copy-link"))
    expect(result(page, "copy-link")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")

    page.goto("about:blank")
    page.goto(link)
    expect(result(page, "status")).to_contain_text("The same, bit for bit.")
    assert_accessible(page)
    assert np.ptp(next(iter(pixels(page).values()))) > 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert person.clicks <= MOST
