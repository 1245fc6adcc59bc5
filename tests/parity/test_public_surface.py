"""What 0.4.0 promised to programs is there and the same: HTTP API, Python, command lines. More may be added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client, handle_file
from helpers.surface import (
    ATTRIBUTES,
    COMMANDS,
    EXAMPLES,
    FIXTURES,
    describe_api,
    describe_commands,
    describe_python,
    digest_of_pixels,
    fixture,
    launched_page,
    without_result,
)
from PIL import Image

import amused

pytestmark = pytest.mark.slow

THROUGH_THE_PAGE = ["link-image", "link-v1-touch-up", "link-adapter"]


@pytest.fixture(scope="module")
def commands() -> dict:
    return describe_commands()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with launched_page() as address:
        yield Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def test_the_http_api_is_unchanged(client: Client) -> None:
    assert describe_api(client) == fixture("api.json")


def test_the_api_replays_old_links_and_files(client: Client) -> None:
    """As a link in full, and as the JSON in a PNG file; the answer names the recipe of the image."""
    links, recipes = fixture("links.json"), fixture("recipes.json")["recipes"]
    texts = {name: f"https://example.org/?{links[name]}&__theme=dark" for name in THROUGH_THE_PAGE}
    for name in ("touch-up.png", "v1-vary-inpaint.png"):
        texts[name] = Image.open(FIXTURES / name).info["amused"]
    for name, text in texts.items():
        saved = recipes[name]
        files = [handle_file(EXAMPLES / file) for file in saved["inputs"]]
        tiles, results = client.predict(text, *files, api_name="/recipe")
        assert [without_result(result["query"]) for result in results] == [saved["query"]], name
        assert digest_of_pixels(Image.open(tiles[0]["image"])) == results[0]["digest"]
        assert results[0]["same"] == (results[0]["digest"] == saved["digest"])
        made = Image.open(tiles[0]["image"]).info["amused"]
        assert f'"digest": "{results[0]["digest"]}"' in made


@pytest.mark.parametrize("name", fixture("python.json"))
def test_the_python_interface_is_unchanged(name: str) -> None:
    assert beginning(describe_python()[name], fixture("python.json")[name]) == fixture("python.json")[name]


def beginning(now: Any, before: Any) -> Any:
    """What is there now without what was added: names anywhere, parameters and fields at the end."""
    if isinstance(before, dict):
        return {key: beginning(now[key], value) for key, value in before.items() if key in now}
    is_signature = isinstance(before, list) and any(isinstance(one, list) for one in before)
    return now[: len(before)] if is_signature else now


def test_a_model_has_its_documented_attributes() -> None:
    model = amused.load("nouns", device="cpu", dtype="float32")
    assert [name for name in ATTRIBUTES if not hasattr(model, name)] == []
    assert (model.name, model.size, str(model.device), str(model.dtype)) == ("nouns", 256, "cpu", "torch.float32")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_still_takes_its_options(commands: dict, command: str) -> None:
    for option, before in fixture("commands.json")[command].items():
        now = commands[command].get(option)
        assert now is not None, f"{command} has no {option}"
        assert now["values"] == before["values"], f"{command} {option} takes another number of values"
        assert set(before["choices"] or ()) <= set(now["choices"] or before["choices"] or ()), f"{command} {option}"
