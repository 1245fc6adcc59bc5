"""What a visitor does on the page and sees there, through Playwright."""

from __future__ import annotations

import functools
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, expect

# The shell draws the same pages without a window around them: the tests take a fifth less time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-gpu-compositing",
    "--disable-gpu-rasterization",
    "--disable-background-networking",
    "--disable-component-update",
]
# Drawn by a CPU, Gradio's pulsing borders take as much of it as the model does.
WITHOUT_ANIMATIONS = """addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = "*, ::before, ::after { animation: none !important; transition: none !important; }";
  document.head.append(style);
})"""
# Without a GPU, each frame of the editor's canvas takes a tenth of a second of a core, and it asks for sixty a second.
TEN_FRAMES_A_SECOND = """window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 100);
window.cancelAnimationFrame = clearTimeout;"""
PATIENCE = 60_000  # milliseconds: a busy machine with two cores
PATIENCE_PER_IMAGE = 5_000


def new_context(browser: Browser, width: int, height: int, **options: Any) -> BrowserContext:
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.add_init_script(WITHOUT_ANIMATIONS)
    context.add_init_script(TEN_FRAMES_A_SECOND)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return context


@functools.cache
def shared_context(browser: Browser) -> BrowserContext:
    """For pages that share what servers let them cache, and which load sooner for it."""
    context = new_context(browser, 1280, 900)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context


@contextmanager
def new_page(browser: Browser, width: int, height: int) -> Iterator[Page]:
    """A page of a browser that remembers nothing."""
    context, visited = shared_context(browser), set[str]()
    page = context.new_page()
    page.on("framenavigated", lambda frame: visited.add(frame.url))
    page.set_viewport_size({"width": width, "height": height})
    try:
        yield page
    finally:
        context.set_offline(False)
        fresh = context.new_page()
        for one in context.pages:
            if one is not fresh:
                one.close()
        session = context.new_cdp_session(fresh)
        for origin in {"/".join(url.split("/")[:3]) for url in visited if url.startswith("http")}:
            session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        context.clear_cookies()
        fresh.close()


@contextmanager
def open_page(browser: Browser, address: str, width: int, height: int) -> Iterator[Page]:
    with new_page(browser, width, height) as page:
        page.goto(address)
        part(page, "text_to_image", "run").wait_for()
        page.wait_for_function("window.amusedRestored")
        yield page


def part(page: Page, task: str, name: str) -> Locator:
    return page.locator(f"#{task}-{name}")


def result(page: Page, name: str) -> Locator:
    """A part of the results, which all tabs share."""
    return page.locator(f"#result-{name}")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def set_count(page: Page, task: str, count: int) -> None:
    part(page, task, "count").get_by_role("spinbutton").fill(str(count))


def set_seeds(page: Page, task: str, seeds: str, count: int) -> None:
    set_count(page, task, count)
    part(page, task, "random").get_by_role("checkbox").uncheck()
    box = part(page, task, "seeds").get_by_role("textbox")
    expect(box).to_be_editable()
    box.fill(seeds)


def run(page: Page, task: str) -> None:
    part(page, task, "run").click()


def expect_begun(page: Page) -> None:
    expect(result(page, "status")).to_contain_text(re.compile("Starting|Loading|Image 1 of"))


def expect_done(page: Page, count: int) -> None:
    noun = "image" if count == 1 else "images"
    expect(result(page, "status")).to_contain_text(f"{count} {noun} in", timeout=PATIENCE + count * PATIENCE_PER_IMAGE)
    expect(tiles(page)).to_have_count(count)


def tiles(page: Page) -> Locator:
    return result(page, "gallery").locator(".grid-container .thumbnail-item")


def tile(page: Page, index: int) -> Locator:
    """An image of the gallery, or its thumbnail where another one is open."""
    gallery = result(page, "gallery")
    place = gallery.locator(".preview") if gallery.locator(".preview").count() else gallery.locator(".grid-container")
    return place.locator(".thumbnail-item").nth(index)


def open_image(page: Page, index: int) -> None:
    tile(page, index).click()


def pixels(page: Page) -> dict[str, np.ndarray]:
    """Every finished image by its caption, as it is downloaded."""
    found = {}
    for tile in tiles(page).all():
        source = tile.locator("img").get_attribute("src")
        image = Image.open(io.BytesIO(page.request.get(source).body()))
        assert image.format == "PNG"
        found[tile.inner_text().strip()] = np.asarray(image.convert("RGB")).astype(int)
    return found


def kept(page: Page) -> Locator:
    return page.locator("#tray-gallery .thumbnail-item")


@contextmanager
def answers_held(page: Page) -> Iterator[None]:
    """Within, the server gets no event, of which one at least must be sent."""
    held: list[Route] = []
    is_over = False
    page.route("**/run/predict", lambda route: route.continue_() if is_over else held.append(route))
    with page.expect_request("**/run/predict"):
        yield
    is_over = True
    for route in held:
        route.continue_()


@contextmanager
def answers_awaited(page: Page) -> Iterator[None]:
    """Behind it, the server has answered all events that were sent within."""
    sent: list[Request] = []

    def add(request: Request) -> None:
        if request.url.endswith("/run/predict"):
            sent.append(request)

    page.on("request", add)
    yield
    page.remove_listener("request", add)
    for request in sent:
        request.response()


def paint_the_middle(page: Page, editor: Locator) -> None:
    expect(editor.get_by_role("button", name="Undo")).to_be_attached()
    canvas = editor.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(middle[0] - 30, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1], steps=2)
    page.mouse.up()
    expect(editor.get_by_role("button", name="Undo")).to_be_enabled()


def assert_accessible(page: Page) -> None:
    """axe finds nothing serious on the page as it is."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
