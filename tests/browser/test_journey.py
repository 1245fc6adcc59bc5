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
    open_tab,
    paint_the_middle,
    part,
    pixels,
    set_count,
    tile,
    tiles,
)
from playwright.sync_api import Browser, Locator, Page, expect

TEXT, INPAINT = "text_to_image", "inpaint"
MOST = 19  # clicks and strokes of the whole way; typing is not counted
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
    expect_done(page, TEXT, 16)

    for number, index in enumerate((2, 5), start=1):
        caption = tiles(page, TEXT).nth(index).text_content().strip()
        person.click(tile(page, TEXT, index))
        expect(part(page, TEXT, "facts")).to_contain_text(caption.replace("seed", "Seed"))
        person.click(part(page, TEXT, "keep"))
        expect(kept(page)).to_have_count(number)

    person.click(part(page, TEXT, "more"))
    person.click(part(page, TEXT, "vary"))
    expect(tiles(page, TEXT)).to_have_count(20)
    expect(part(page, TEXT, "status")).to_contain_text("4 images in")

    person.click(tile(page, TEXT, 16))
    expect(part(page, TEXT, "facts")).to_contain_text("From seed")
    person.click(part(page, TEXT, "touch"))
    person.paint(page, part(page, TEXT, "strokes"))
    assert_accessible(page)
    person.click(part(page, TEXT, "retouch"))
    expect(tiles(page, TEXT)).to_have_count(24)
    expect(part(page, TEXT, "status")).to_contain_text("4 images in")

    person.click(tile(page, TEXT, 2))
    person.click(part(page, TEXT, "to-inpaint"))
    editor = part(page, INPAINT, "drawing")
    expect(editor.locator("canvas")).to_be_visible()
    person.paint(page, editor)
    assert_accessible(page)
    set_count(page, INPAINT, 1)
    person.click(part(page, INPAINT, "run"))
    expect_done(page, INPAINT, 1)

    open_tab(page, "Text to image")  # the image that is shared is the touched-up one
    person.clicks += 1
    person.click(tile(page, TEXT, 20))
    expect(part(page, TEXT, "facts")).to_contain_text("cells of the token grid")
    person.click(part(page, TEXT, "copy-link"))
    expect(part(page, TEXT, "copy-link")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")

    page.goto("about:blank")
    page.goto(link)
    expect(part(page, TEXT, "status")).to_contain_text("The same, bit for bit.")
    assert_accessible(page)
    assert np.ptp(next(iter(pixels(page, TEXT).values()))) > 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert person.clicks <= MOST
