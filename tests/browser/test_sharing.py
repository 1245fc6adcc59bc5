"""Recipes in links and images, as a visitor and as a program meet them, and what survives a reload.

Runs against a fast stand-in, and against the bundled checkpoint where it is there.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from fake import fake_runtime
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers.browser import expect_begun, expect_done, new_page, open_tab, part, result, run, set_seeds, tiles
from helpers.serve import serve
from helpers.tabs import build_tab, values_of
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Locator, Page, expect

from amused.checkpoints.adapters import CONFIG, WEIGHTS
from amused.errors import UserError
from amused.generation.images import digest, load_image
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import MAX_METADATA, PNG_KEY, from_png_file, parse_json, png_info
from amused.recipe.recipe import Recipe
from amused.serving.runtime import Runtime
from amused.ui.browser_storage import restore_settings
from amused.ui.sharing import from_text
from amused.ui.tabs import text as text_tab

README = Path(__file__).parents[2] / "README.md"

PLAIN = Recipe("text_to_image", "a pixel art character", (8,), steps=4)
HOSTILE = "<img src=x onerror='document.title=1'><script>document.title=1</script> [a](javascript:alert(1))"
BAD_VALUES = ["nan", "inf", "-1", "1e308", "1e999", str(2**63), str(2**64), "true", "null", "[]", "", "0", "1000000"]


class Gate:
    """Lets steps pass freely until a test holds it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> None:
        if not self.open.wait(60):
            raise TimeoutError


GATE = Gate()


# Texts from outside


@pytest.mark.parametrize(
    "name", ["steps", "guidance", "temperature", "seeds", "crop", "width", "aesthetic", "strength"]
)
@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_link_gives_a_valid_recipe_or_is_refused(name: str, value: str) -> None:
    try:
        shared = from_query(f"task=text_to_image&prompt=a&{name}={value}")
    except UserError:
        return
    assert shared.recipe == Recipe("text_to_image", "a", (0,)) or not shared.ignored


@pytest.mark.parametrize(
    "query",
    [
        "task=text_to_image&prompt=" + "a" * 100_000,
        "task=text_to_image&prompt=%ff%fe",
        "task=text_to_image&prompt=a%00b",
        "task=../../etc/passwd&prompt=a",
        "v=4&task=text_to_image&prompt=a",
        "task=vary&prompt=a&share=0.5&from=" + quote("task=vary&prompt=a"),
        "task=touch_up&prompt=a&from=task%3Dtext_to_image%26prompt%3Da&cells=0-99999999",
        "&".join(f"prompt={number}" for number in range(1000)),
    ],
)
def test_a_hostile_link_is_refused_in_a_sentence(query: str) -> None:
    with pytest.raises(UserError) as refusal:
        from_text("https://example.org/?" + query)
    assert str(refusal.value).endswith(".") and len(str(refusal.value)) < 200


QUERY = "v=2&task=text_to_image&prompt=a+fox&seeds=8&steps=7"


@pytest.mark.parametrize(
    "text",
    [
        "{query}",
        "https://example.org/?{query}",
        "\ufeffhttps://example.org/?{query}\u00a0",
        "<https://example.org/?{query}>",
        "[https://example.org/?{query}](https://example.org/?{query})",
        '"https://example.org/?{query}"',
        "Look at this:\n(https://example.org/a/b?{query}), it is a fox.",
        "Is this (http://127.0.0.1:7860/?{query}) yours?",
        "https://example.org/?{html}&amp;__theme=dark",
        "https://example.org/?task=text_to_image&prompt=a fox&seeds=8&steps=7",
        '\ufeff{{"version": 2, "task": "text_to_image", "prompt": "a fox", "seeds": [8], "steps": 7}}\n',
    ],
)
def test_a_recipe_is_found_in_what_a_message_makes_of_it(text: str) -> None:
    shared = from_text(text.format(query=QUERY, html=QUERY.replace("&", "&amp;")))
    assert shared.recipe == Recipe("text_to_image", "a fox", (8,), steps=7) and not shared.ignored


@pytest.mark.parametrize("text", [None, 5, [], "", "\ufeff", "a fox", "Is it? https://example.org/"])
def test_what_has_no_recipe_is_refused_in_a_sentence(text: Any) -> None:
    with pytest.raises(UserError, match="There is no recipe in this text"):
        from_text(text)


def test_a_long_message_is_searched_in_linear_time() -> None:
    began = time.monotonic()
    for text in (
        "(x " * 500_000,
        " http://" * 200_000,
        "http://?" * 200_000,
        "a?" * 500_000,
        "x http://?" + "?" * 10**6,
        " " * 10**6 + "?",
    ):
        with pytest.raises(UserError):
            from_text(text)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "task": "text_to_image", "prompt": "a", "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"version": 1, "task": "vary", "share": 1' + "0" * 400 + ', "prompt": "a", "parent": {}}',
        '{"version": 1, "task": "touch_up", "cells": 5, "prompt": "a"}',
        '{"version": 1, "task": "text_to_image", "prompt": "' + "a" * MAX_METADATA + '"}',
        '{"version": 1, "task": ["text_to_image"], "prompt": {}}',
        '{"version": 1',
        "1" + "0" * 5000,
        "[]",
    ],
)
def test_hostile_json_is_refused_in_a_sentence(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as refusal:
        parse_json(text)
    assert time.monotonic() - started < 1
    assert str(refusal.value).endswith(".") and len(str(refusal.value)) < 200


def test_an_image_gives_its_recipe_without_being_decoded() -> None:
    data = png(png_info(PLAIN, "a" * 16, "cuda float16 amused-0.1.0 torch-2.13.0"))
    shared = from_png_file(data)
    assert (shared.recipe, shared.digest) == (PLAIN, "a" * 16)
    assert shared.fingerprint == "cuda float16 amused-0.1.0 torch-2.13.0"
    assert from_png_file(png(None)) is None


def test_other_texts_in_an_image_are_not_read() -> None:
    bomb = b"Comment\0\0" + zlib.compress(b"\0" * 64_000_000)
    assert from_png_file(with_chunks([(b"zTXt", bomb)], png(None))) is None
    assert from_png_file(png(other_tool("a tower"))) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(100),
        lambda: with_chunks([(b"tEXt", b"a\0b")] * 10_000, png(None)),
        lambda: with_chunks([(b"iTXt", PNG_KEY.encode() + b"\0\0\0\0\0" + b"[" * 1_000_000)], png(None)),
        lambda: with_chunks([(b"iTXt", PNG_KEY.encode() + b"\0\0\0\0\0\xff\xfe")], png(None)),
    ],
)
def test_a_hostile_image_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(UserError) as refusal:
        from_png_file(data() if callable(data) else data)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    "base", ["https://owner-name.hf.space/?__theme=dark&__sign=secret&", "http://127.0.0.1:7860/?", "?", ""]
)
def test_a_pasted_link_is_read_without_what_is_not_ours(base: str) -> None:
    query = to_query(PLAIN, "a" * 16)
    shared = from_text(f"  {base}{query}&__theme=light#top\n")
    assert (shared.recipe, shared.digest, shared.ignored) == (PLAIN, "a" * 16, ())


def other_tool(prompt: str) -> PngInfo:
    info = PngInfo()
    settings = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x768, Model: mine"
    info.add_text("parameters", f"{prompt}\nNegative prompt: fog\n{settings}")
    return info


def png(info: PngInfo | None, color: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_chunks(chunks: list[tuple[bytes, bytes]], data: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    added = b"".join(len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks)
    return data[:33] + added + data[33:]


# What the browser remembers

REMEMBERED = {"prompt": "an owl", "seeds": "3, 5", "random_seeds": False, "count": 2, "steps": 4, "strength": 0.5}


def restored(remembered: Any) -> dict[str, Any]:
    """The settings of a new page, by name, once what is remembered is back; {} if all stay as they are."""
    runtime = fake_runtime()
    tab = build_tab(text_tab.build, runtime)
    updates = restore_settings(runtime, [tab], remembered)
    named = {name: updates[part] for name, part in tab.settings.components().items() if part in updates}
    return {name: getattr(value, "value", value) for name, value in named.items()}


def test_settings_are_remembered_by_task_and_name() -> None:
    runtime = fake_runtime()
    tab = build_tab(text_tab.build, runtime)
    values = values_of(tab, prompt="an owl", seeds="3, 5", steps=4)
    named = {name: values[component] for name, component in tab.settings.components().items()}
    assert restored({"text_to_image": named}) == restored({"text_to_image": {**REMEMBERED, "count": 1}})
    assert restored({"text_to_image": REMEMBERED}).items() >= {"prompt": "an owl", "seeds": "3, 5", "steps": 4}.items()
    assert restored({"text_to_image": {**REMEMBERED, "seeds": "half ty"}})["seeds"] == "0"
    assert restored({"text_to_image": {**REMEMBERED, "adapter": "gone"}})["adapter"] == ""
    assert restored({"text_to_image": {**REMEMBERED, "a later field": 1}}) == restored({"text_to_image": REMEMBERED})


@pytest.mark.parametrize(
    "remembered",
    [
        None,
        "damaged",
        ["a fox", "", "0", 4, True, 12, 10, 2, 0, 0.5, "nouns", "", 1.0],  # as 0.4.0 remembered them
        {"text_to_image": []},
        {"text_to_image": {**REMEMBERED, "steps": "many"}},
        {"text_to_image": {**REMEMBERED, "seeds": 5}},
        {"text_to_image": {**REMEMBERED, "random_seeds": "yes"}},
        {"text_to_image": {**REMEMBERED, "model": ["nouns"]}},
        {"text_to_image": {**REMEMBERED, "prompt": None}},
        {"inpaint": REMEMBERED},
    ],
    ids=str,
)
def test_damaged_settings_are_left_alone(remembered: Any) -> None:
    assert restored(remembered) == {}


# The page


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("adapters")
    for name, base in (("dusk", "nouns"), ("any", None)):
        (folder / name).mkdir()
        (folder / name / CONFIG).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
        (folder / name / WEIGHTS).write_bytes(b"never read here")
    return fake_runtime(step_seconds=0.01, before_step=GATE, adapters=folder)


@pytest.fixture(scope="module")
def address(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with new_page(browser, 1280, 900) as page:
        yield page


def card(page: Page) -> Locator:
    return page.locator("#shared")


def prompt(page: Page, task: str = "text_to_image") -> Locator:
    return part(page, task, "prompt").get_by_role("textbox")


def open_link(page: Page, address: str, query: str) -> None:
    page.goto(f"{address}?{query}")
    card(page).wait_for()


def visit(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("window.amusedRestored === true")


def replay(page: Page, task: str = "text_to_image") -> Locator:
    part(page, task, "replay").click()
    return result(page, "status")


def status(page: Page) -> Locator:
    """Of a link that is replayed as the page opens."""
    return result(page, "status")


def open_restore(page: Page) -> None:
    page.locator("#restore").get_by_role("button", name="Recent recipes").click()
    page.locator("#restore-link").wait_for()


def remembered(page: Page) -> list[str]:
    page.locator("#restore-recent").get_by_role("listbox").or_(
        page.locator("#restore-recent").get_by_role("combobox")
    ).first.click()
    page.get_by_role("option").first.wait_for()
    return page.get_by_role("option").all_inner_texts()


def test_a_copied_link_replays_the_same_image_bit_for_bit(page: Page, address: str) -> None:
    open_link(page, address, to_query(PLAIN))
    expect(status(page)).to_contain_text("1 image in")
    copied = copied_link(page)
    assert copied.startswith(address + "?v=2&task=text_to_image&prompt=a+pixel+art+character&seeds=8&steps=4&digest=")
    assert set(parse_qs(urlsplit(copied).query)) == {"v", "task", "prompt", "seeds", "steps", "digest", "made"}

    page.goto("about:blank")
    page.goto(copied + "&__theme=dark&__sign=abc&utm_source=friend")
    expect(card(page)).to_contain_text("From a link: Text to image with nouns, 1 image.")
    expect(card(page)).to_contain_text("Ignored (unknown or invalid): utm_source.")
    expect(prompt(page)).to_have_value(PLAIN.prompt)
    expect(part(page, "text_to_image", "seeds").get_by_role("textbox")).to_have_value("8")
    expect(status(page)).to_contain_text("✓ The same, bit for bit.")
    expect(status(page).locator("[aria-live='polite']")).to_contain_text("The same, bit for bit.")
    assert copied_link(page) == copied  # with nothing else of the page's address

    page.goto(re.sub(r"digest=\w+", "digest=" + "0" * 16, copied))
    expect(status(page)).to_contain_text("Not identical. The original was made on another CPU or GPU")
    page.goto(re.sub(r"digest=\w+&made=\w+", "digest=" + "0" * 16 + "&made=mps", copied))
    expect(status(page)).to_contain_text("made with another device or version: see Info")
    expect(card(page)).not_to_contain_text("mps", use_inner_text=True)
    card(page).get_by_text("Info").click()
    expect(card(page)).to_contain_text("mps", use_inner_text=True)


def copied_link(page: Page) -> str:
    """Pick the first image and copy its link."""
    result(page, "gallery").locator(".thumbnail-item").first.click()
    result(page, "copy-link").click()
    expect(result(page, "copy-link")).to_have_text("Link copied")
    return page.evaluate("navigator.clipboard.readText()")


def test_a_varied_image_is_replayed_from_its_link(page: Page, address: str) -> None:
    recipe = Recipe("vary", "a pixel art character", (3,), steps=4, parent=PLAIN, share=0.5)
    query = to_query(recipe)
    _, results = Client(address, verbose=False).predict(query, api_name="/recipe")
    open_link(page, address, results[0]["query"])
    expect(card(page)).to_contain_text("varied or touched up")
    expect(status(page)).to_contain_text("The same, bit for bit.")


def test_what_is_wrong_in_a_link_is_told_as_text(page: Page, address: str) -> None:
    open_link(page, address, f"task=text_to_image&prompt={quote(HOSTILE)}&steps=nan&{quote(HOSTILE[:30])}=1&seeds=5")
    expect(card(page)).to_contain_text("Ignored (unknown or invalid): steps, " + HOSTILE[:30])
    expect(prompt(page)).to_have_value(HOSTILE)
    assert page.title() == "aMUSEd"
    assert card(page).locator("img, script, a").count() == 0
    open_link(page, address, "v=7&task=text_to_image&prompt=a")
    expect(card(page)).to_contain_text("This recipe cannot be opened. This recipe needs a newer version")
    expect(part(page, "text_to_image", "replay")).to_be_hidden()


@pytest.mark.parametrize("model", ["../../etc/passwd", "https://example.org/model", "owner/name", "<b>x</b>"])
def test_a_model_that_is_not_listed_is_refused(page: Page, address: str, runtime: Runtime, model: str) -> None:
    loaded = [runtime.is_loaded(choice.name) for choice in runtime.models]
    open_link(page, address, f"task=text_to_image&prompt=a&model={quote(model)}")
    expect(card(page)).to_contain_text("This recipe cannot be opened. There is no model of that name here")
    expect(part(page, "text_to_image", "replay")).to_be_hidden()
    assert prompt(page).input_value() != "a"
    assert [runtime.is_loaded(choice.name) for choice in runtime.models] == loaded


def test_a_listed_model_is_chosen_but_not_loaded(page: Page, address: str, runtime: Runtime) -> None:
    open_link(page, address, "task=text_to_image&prompt=a&model=amused-256")
    expect(card(page)).to_contain_text("Replay downloads amused-256 first (1.6 GB)")
    part(page, "text_to_image", "advanced").get_by_role("button").first.click()
    expect(part(page, "text_to_image", "model").get_by_role("combobox")).to_have_value(re.compile("^amused-256"))
    expect(part(page, "text_to_image", "model")).to_contain_text("Downloads 1.6 GB")
    assert not runtime.is_loaded("amused-256")


@pytest.mark.parametrize("query", [to_query(replace(PLAIN, seeds=(8, 9))), "task=image_to_image&prompt=a&strength=0.5"])
def test_a_link_that_costs_more_than_one_image_waits_for_a_click(page: Page, address: str, query: str) -> None:
    open_link(page, address, query)
    expect(card(page)).to_contain_text("press Replay")
    page.wait_for_function("window.amusedRestored === true")
    assert not page.locator(".status progress").count()


@pytest.mark.parametrize("way", ["pasted", "opened"])
def test_a_link_with_an_adapter_gives_the_other_tabs_its_model_alone(page: Page, address: str, way: str) -> None:
    visit(page, address)
    choose_adapter(page, "Image to image", "dusk", 0.5)
    choose_adapter(page, "Inpaint", "any", 0.3)
    query = to_query(Recipe("text_to_image", "a", (1,), model="amused-256", adapter="any", adapter_strength=0.7))
    if way == "pasted":
        open_restore(page)
        page.locator("#restore-link").get_by_role("textbox").fill(f"{address}?{query}")
        page.locator("#restore-open").click()
        card(page).wait_for()
    else:
        open_link(page, address, query)
    expect_adapter(page, "Text to image", "any", 0.7)
    expect_adapter(page, "Image to image", "none", 0.5)  # the one for nouns alone is dropped
    expect_adapter(page, "Inpaint", "any", 0.3)


def test_a_model_chosen_in_one_tab_drops_the_adapters_of_all_that_do_not_fit(page: Page, address: str) -> None:
    visit(page, address)
    choose_adapter(page, "Image to image", "dusk", 0.5)
    choose_adapter(page, "Inpaint", "any", 0.3)
    open_advanced(page, "Text to image")
    part(page, "text_to_image", "model").get_by_role("combobox").click()
    page.get_by_role("option", name=re.compile("^amused-256")).click()
    expect_adapter(page, "Image to image", "none", 0.5)
    expect_adapter(page, "Inpaint", "any", 0.3)


def open_advanced(page: Page, tab: str) -> str:
    """Show a tab's model and adapter; gives its task."""
    task = tab.lower().replace(" ", "_")
    page.get_by_role("tab", name=tab, exact=True).click()
    part(page, task, "advanced").wait_for()
    if not part(page, task, "model").is_visible():
        part(page, task, "advanced").get_by_role("button").first.click()
    part(page, task, "model").wait_for()
    return task


def choose_adapter(page: Page, tab: str, name: str, strength: float) -> None:
    """And wait until the browser remembers it."""
    task = open_advanced(page, tab)
    part(page, task, "adapter").get_by_role("combobox").click()
    page.get_by_role("option", name=name, exact=True).click()
    before = page.evaluate("localStorage['amused-settings']")
    part(page, task, "adapter-strength").get_by_role("spinbutton").fill(str(strength))
    page.wait_for_function("before => localStorage['amused-settings'] !== before", arg=before)


def expect_adapter(page: Page, tab: str, name: str, strength: float) -> None:
    task = open_advanced(page, tab)
    expect(part(page, task, "model").get_by_role("combobox")).to_have_value(re.compile("^amused-256"))
    expect(part(page, task, "adapter").get_by_role("combobox")).to_have_value(name)
    expect(part(page, task, "adapter-strength").get_by_role("spinbutton")).to_have_value(str(strength))


def test_an_image_link_asks_for_its_image(page: Page, address: str, tmp_path: Path) -> None:
    colours = {"own": "teal", "other": "red"}
    for name, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    named = digest(load_image(tmp_path / "own.png"))
    recipe = Recipe("image_to_image", "a cat", (4,), steps=4, width=256, height=256, image=named, strength=0.5)
    open_link(page, address, to_query(recipe))
    expect(card(page)).to_contain_text("It needs the original image: upload below")
    card(page).get_by_text("Info").click()
    expect(card(page).get_by_text(named)).to_be_visible()
    expect(prompt(page, "image_to_image")).to_be_visible()
    upload = part(page, "image_to_image", "picture").locator("input[type=file]")
    upload.set_input_files(tmp_path / "other.png")
    expect(part(page, "image_to_image", "picture").locator("img").first).to_be_visible()
    expect(replay(page, "image_to_image")).to_contain_text("The recipe was made with another image")
    part(page, "image_to_image", "picture").get_by_role("button", name=re.compile("clear|remove", re.I)).first.click()
    part(page, "image_to_image", "picture").locator("input[type=file]").set_input_files(tmp_path / "own.png")
    expect(part(page, "image_to_image", "picture").locator("img").first).to_be_visible()
    expect(replay(page, "image_to_image")).to_contain_text("1 image in")


def test_an_image_made_here_restores_its_settings(page: Page, address: str, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=document.title=1>.png"
    recipe = Recipe("text_to_image", HOSTILE, (3, 5), steps=9, temperature=(9.0, 1.0), negative_prompt="blue")
    file.write_bytes(png(png_info(recipe, "a" * 16)))
    visit(page, address)
    open_restore(page)
    page.locator("#restore-file input[type=file]").set_input_files(file)
    expect(prompt(page)).to_have_value(HOSTILE)
    expect(card(page)).to_contain_text("with nouns, 2 images")
    expect(part(page, "text_to_image", "seeds").get_by_role("textbox")).to_have_value("3,5")
    part(page, "text_to_image", "advanced").get_by_role("button").first.click()
    expect(part(page, "text_to_image", "steps").get_by_role("spinbutton")).to_have_value("9")
    expect(part(page, "text_to_image", "first-temperature").get_by_role("spinbutton")).to_have_value("9")
    assert page.title() == "aMUSEd"
    prompt(page).fill("")
    page.locator("#restore-open").click()  # of the file, as there is no text
    expect(prompt(page)).to_have_value(HOSTILE)
    page.locator("#restore-link").get_by_role("textbox").fill(f"{address}?{to_query(PLAIN)}")
    page.locator("#restore-open").click()
    expect(prompt(page)).to_have_value(PLAIN.prompt)
    page.locator("#restore-link").get_by_role("textbox").fill("https://example.org/")
    page.locator("#restore-open").click()
    expect(card(page)).to_contain_text("There is no recipe in this")
    expect(prompt(page)).to_have_value(PLAIN.prompt)


# Makes a file in the page, and drags and drops it on an element, as far as a page can tell.
DROP_JS = """(target, [name, base64]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.fromBase64(base64)], name, { type: "image/png" }));
    return ["dragover", "drop"].map((kind) => {
        const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
        const isLeft = target.dispatchEvent(event); // to the browser, which leaves the page
        return [isLeft, getComputedStyle(document.body, "::after").visibility === "visible"];
    });
}"""


def drop(target: Locator, data: bytes) -> bool:
    """Whether the page says, while the file is above it, that it can be dropped."""
    (drag_is_left, shown), (drop_is_left, shown_after) = target.evaluate(
        DROP_JS, ["dropped.png", base64.b64encode(data).decode()]
    )
    assert not (drag_is_left or drop_is_left or shown_after)
    return shown


def test_an_image_dropped_anywhere_restores_its_settings(page: Page, address: str) -> None:
    visit(page, address)
    recipe = Recipe("text_to_image", "a dropped cow", (5,), steps=9)
    assert drop(page.locator(".block.heading"), png(png_info(recipe, "a" * 16)))
    expect(prompt(page)).to_have_value("a dropped cow")
    expect(card(page)).to_contain_text("Text to image with nouns, 1 image.")

    drop(prompt(page), png(png_info(replace(recipe, prompt="a second one"), "a" * 16)))
    expect(prompt(page)).to_have_value("a second one")
    drop(prompt(page), png(other_tool("a tower")))
    expect(prompt(page)).to_have_value("a tower")
    expect(card(page)).to_contain_text("Ignored (unknown or invalid): Sampler, Size, Model.")


def test_a_reload_of_a_link_keeps_what_was_done_since(page: Page, address: str) -> None:
    open_link(page, address, to_query(PLAIN))
    expect(status(page)).to_contain_text("1 image in")
    prompt(page).fill("something else")
    set_seeds(page, "text_to_image", "70", 2)
    run(page, "text_to_image")
    expect_done(page, 2)
    page.reload()
    page.wait_for_function("window.amusedRestored")
    expect(prompt(page)).to_have_value("something else")
    expect(tiles(page)).to_have_count(2)
    expect(card(page)).to_contain_text("From a link: Text to image with nouns, 1 image.")
    expect(replay(page)).to_contain_text("1 image in")
    tiles(page).first.click()
    expect(result(page, "details")).to_be_visible()
    page.locator("#shared-close").click()
    expect(card(page)).to_be_hidden()
    page.go_back()
    expect(result(page, "details")).to_be_hidden()
    for _ in range(2):
        page.reload()
        page.wait_for_function("window.amusedRestored")
        expect(tiles(page)).to_have_count(1)
        expect(card(page)).to_be_hidden()
    page.goto("about:blank")
    open_link(page, address, to_query(PLAIN))  # again, which is no reload
    expect(prompt(page)).to_have_value(PLAIN.prompt)


def test_what_cannot_be_restored_is_said_where_it_is_seen(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    visit(page, address)
    damaged = PngInfo()
    damaged.add_itxt(PNG_KEY, "{")
    for data, says in (
        (png(None), "There is no recipe in this file: choose a PNG downloaded from this page."),
        (png(damaged), "This recipe cannot be opened. The recipe is damaged."),
        (b"\xff\xd8\xff", "Only PNG files carry recipes"),
    ):
        page.evaluate("scrollTo(0, 5000)")
        page.wait_for_function("scrollY > 300")
        drop(page.locator("#restore"), data)
        expect(card(page)).to_contain_text(says)
        expect(card(page)).to_be_in_viewport(ratio=0.95)
    expect(prompt(page)).to_have_value(re.compile("^a pixel art character"))


def test_an_image_dropped_on_an_input_is_that_input_s(page: Page, address: str) -> None:
    visit(page, address)
    taken = page.get_by_test_id("Dropped file-upload-button")
    data = png(png_info(replace(PLAIN, prompt="not restored"), "a" * 16))
    open_tab(page, "Image to image")
    picture = part(page, "image_to_image", "picture")
    assert not drop(picture.locator("[aria-dropeffect]").first, data)
    expect(picture.locator("img").first).to_be_visible()
    former = picture.locator("img").get_attribute("src")
    picture.locator("img").evaluate(DROP_JS.replace("image/png", "text/plain"), ["text.txt", "AAAA"])
    drop(picture.get_by_test_id("block-label"), png(None, "navy"))  # next to the image, which the other drop left
    expect(picture.locator("img")).not_to_have_attribute("src", former)
    open_tab(page, "Inpaint")
    assert not drop(part(page, "inpaint", "drawing").get_by_text("Drop an image here"), data)
    editor = part(page, "inpaint", "drawing")
    expect(editor.locator("canvas")).to_be_visible()
    for start, color in ("dragover", "navy"), ("dragstart", "teal"):  # from elsewhere, and from this page
        former = editor.locator(".picture").get_attribute("src")
        page.locator(".block.heading").dispatch_event(start)
        assert not drop(editor.locator("canvas").first, png(None, color))
        expect(editor.locator(".picture")).not_to_have_attribute("src", former)
    page.locator(".block.heading").dispatch_event("dragend")
    former = editor.locator(".picture").get_attribute("src")
    editor.locator("canvas").first.evaluate(DROP_JS.replace("image/png", "text/plain"), ["text.txt", "AAAA"])
    expect(page.get_by_test_id("toast-body")).to_contain_text("This is not an image that can be read")
    expect(editor.locator(".picture")).to_have_attribute("src", former)
    assert taken.evaluate("input => input.files.length") == 0

    drop(page.locator(".block.heading"), png(png_info(PLAIN, "a" * 16)))
    assert taken.evaluate("input => input.files.length") == 1
    expect(prompt(page)).to_have_value(PLAIN.prompt)


def test_settings_recipes_and_picks_survive_a_reload(page: Page, address: str) -> None:
    open_link(page, address, to_query(PLAIN))
    expect(status(page)).to_contain_text("1 image in")
    result(page, "gallery").locator(".thumbnail-item").first.click()
    before = page.evaluate("localStorage['amused-kept']")
    result(page, "keep").click()
    page.wait_for_function("before => localStorage['amused-kept'] !== before", arg=before)
    prompt(page).fill("what I was about to try")
    page.get_by_role("tab", name="Inpaint").click()
    part(page, "inpaint", "drawing").get_by_text("Drop an image here").wait_for()  # the tab is there as a whole
    prompt(page, "inpaint").fill("a hat")
    open_restore(page)
    assert [text.strip(" ✓\n") for text in remembered(page)] == [
        "kept: a pixel art character · seed 8",
        "a pixel art character · seed 8",
    ]

    visit(page, address)
    expect(prompt(page, "inpaint")).to_have_value("a hat")  # in the tab that was open
    page.get_by_role("tab", name="Text to image").click()
    expect(prompt(page)).to_have_value("what I was about to try")
    open_restore(page)
    assert len(remembered(page)) == 2
    page.get_by_role("option").first.click()
    expect(prompt(page)).to_have_value(PLAIN.prompt)
    expect(replay(page)).to_contain_text("The same, bit for bit.")
    page.get_by_role("tab", name="Inpaint").click()
    expect(prompt(page, "inpaint")).to_have_value("a hat")

    open_link(page, address, to_query(Recipe("text_to_image", "from a link", (1,))))
    expect(prompt(page)).to_have_value("from a link")


def test_a_run_that_ends_behind_another_tab_is_remembered(page: Page, address: str) -> None:
    open_link(page, address, to_query(replace(PLAIN, seeds=(8, 9))))
    before = page.evaluate("localStorage['amused-recent']")
    GATE.open.clear()
    try:
        replay(page)
        expect_begun(page)
        page.get_by_role("tab", name="Inpaint").click()
        part(page, "inpaint", "drawing").get_by_text("Drop an image here").wait_for()
    finally:
        GATE.open.set()
    page.wait_for_function("before => localStorage['amused-recent'] !== before", arg=before)
    open_restore(page)
    assert [text.strip(" ✓\n") for text in remembered(page)] == ["a pixel art character · 2 seeds"]


def test_what_the_browser_remembers_is_not_trusted(page: Page, address: str) -> None:
    for key in ("amused-settings", "amused-recent", "amused-kept"):
        page.add_init_script(f"localStorage.setItem('{key}', 'damaged')")
    visit(page, address)
    expect(prompt(page)).to_have_value(re.compile("^a pixel art character"))


def test_a_lost_connection_clears_nothing(page: Page, address: str, runtime: Runtime) -> None:
    open_link(page, address, to_query(PLAIN))
    expect(status(page)).to_contain_text("1 image in")
    prompt(page).fill("typed while away")
    page.context.set_offline(True)
    part(page, "text_to_image", "run").click()
    expect(page.get_by_test_id("toast-body").first).to_be_visible()
    expect(result(page, "gallery").locator(".thumbnail-item")).to_have_count(1)
    expect(prompt(page)).to_have_value("typed while away")
    page.context.set_offline(False)


def test_a_prompt_that_is_cut_is_told(page: Page, address: str) -> None:
    long = "a pixel art character with " + "very " * 90 + "red glasses"
    open_link(page, address, to_query(Recipe("text_to_image", long, (1,), steps=2)))
    expect(status(page)).to_contain_text("The prompt is longer than the model can read: its end was ignored")


def test_a_phone_shows_a_link_without_scrolling_sideways(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_link(page, address, to_query(Recipe("text_to_image", "a" * 300, (1,), steps=2), "a" * 16) + "&" + "x" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("text_to_image-replay", "shared-close"):
        assert page.locator(f"#{name}").bounding_box()["height"] >= 44


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page: Page, address: str) -> None:
    open_link(page, address, to_query(replace(PLAIN, seeds=(8, 9))))
    part(page, "text_to_image", "replay").focus()
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("2 images in")
    open_restore(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, img')]
            .filter((one) => one.offsetParent !== null && one.type !== 'file')
            .filter((one) => !(one.ariaLabel || one.alt || one.title || one.innerText || one.labels?.length
                || one.getAttribute('aria-labelledby') || one.closest('label')))
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


# Scripts


@pytest.mark.slow
def test_the_readmes_script_runs(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    section = README.read_text("utf-8").partition("## From a script")[2]
    script = re.search(r"```python\n(.*?)```", section, re.S)[1].replace("http://127.0.0.1:7860", address)
    Image.new("L", (64, 64), "white").save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README", "exec"), {})
    assert "True" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("", "no recipe"),
        ("task=text_to_image&prompt=a&model=../../secret", "no model of that name"),
        ("task=text_to_image&prompt=a&steps=1e9", "steps"),
        (json.dumps({"version": 1, "task": "text_to_image"}), "damaged"),
        ("{" * 50_000, "damaged"),
        (to_query(Recipe("image_to_image", "a", (1,), image="a" * 16)), "needs the image"),
    ],
)
@pytest.mark.slow
def test_the_recipe_endpoint_refuses_in_a_sentence(address: str, recipe: str, words: str) -> None:
    with pytest.raises(AppError) as refusal:
        Client(address, verbose=False).predict(recipe, api_name="/recipe")
    assert words in str(refusal.value)
    assert "Traceback" not in str(refusal.value)
