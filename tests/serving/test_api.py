"""The named endpoints as a program meets them, through gradio_client, and what raw requests cannot get away with."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake import Turnstile, fake_runtime
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.serve import serve
from PIL import Image

pytestmark = pytest.mark.slow

PROMPT = "a pixel art character on a cool background"


@pytest.fixture(scope="module")
def turnstile() -> Turnstile:
    return Turnstile()


@pytest.fixture(scope="module")
def address(turnstile: Turnstile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(fake_runtime(before_step=turnstile), tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    image = Image.new("L", (256, 256))
    image.paste(255, (64, 64, 128, 128))
    image.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def opened(tiles: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    images = {tile["caption"]: Image.open(tile["image"]) for tile in tiles}
    assert {image.format for image in images.values()} == {"PNG"}
    return {caption: np.asarray(image).astype(int) for caption, image in images.items()}


def test_the_tasks_and_the_recipe_are_documented_and_nothing_else(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/text_to_image", "/image_to_image", "/inpaint", "/recipe"}
    assert all(endpoint["description"] for endpoint in endpoints.values())
    names = [parameter["parameter_name"] for parameter in endpoints["/text_to_image"]["parameters"]]
    assert names[:4] == ["prompt", "seeds", "negative_prompt", "steps"]


def test_text_to_image_is_the_same_for_the_same_seed(client: Client) -> None:
    several = opened(client.predict(PROMPT, seeds="8, 15, 100-101", api_name="/text_to_image"))
    assert list(several) == ["seed 8", "seed 15", "seed 100", "seed 101"]
    alone = opened(client.predict(PROMPT, seeds="15", api_name="/text_to_image"))
    assert (alone["seed 15"] == several["seed 15"]).all()
    assert (several["seed 8"] != several["seed 15"]).any()


def test_image_to_image_takes_an_image(client: Client, image_file: Path) -> None:
    made = opened(
        client.predict(PROMPT, handle_file(image_file), strength=0.2, seeds="1-2", api_name="/image_to_image")
    )
    assert list(made) == ["seed 1", "seed 2"]


@pytest.mark.parametrize(("given", "made"), [((1200, 900), (256, 192)), ((64, 64), (256, 256)), ((1, 5000), (32, 256))])
def test_an_image_of_any_size_is_worked_on_at_the_models_own(
    client: Client, tmp_path: Path, given: tuple[int, int], made: tuple[int, int]
) -> None:
    Image.new("RGB", given, "teal").save(tmp_path / "picture.png")
    tiles = client.predict(PROMPT, handle_file(tmp_path / "picture.png"), api_name="/image_to_image")
    assert Image.open(tiles[0]["image"]).size == made


def test_inpaint_changes_only_the_masked_part(client: Client, image_file: Path, mask: Path) -> None:
    made = opened(client.predict(PROMPT, handle_file(image_file), handle_file(mask), api_name="/inpaint"))
    changed = (made["seed 0"] != np.asarray(Image.open(image_file)).astype(int)).any(-1)
    assert changed[64:128, 64:128].mean() > 0.9
    changed[64:128, 64:128] = False
    assert not changed.any()


def test_images_arrive_one_by_one_and_a_cancelled_job_frees_the_model(client: Client, turnstile: Turnstile) -> None:
    turnstile.open.clear()
    turnstile.reached.clear()
    job = client.submit(PROMPT, seeds="0-63", api_name="/text_to_image")
    assert turnstile.reached.wait(60)
    cancel = threading.Thread(target=job.cancel)  # Gradio answers once the step at work is done
    cancel.start()
    turnstile.open.set()
    cancel.join(60)
    made = opened(client.predict(PROMPT, seeds="3", api_name="/text_to_image"))
    assert list(made) == ["seed 3"]
    assert len(job.outputs()) < 64


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("seeds", "eight", "seeds as whole numbers"),
        ("seeds", "4294967296", "seed must be"),
        ("seeds", "0-64", "at most 64 seeds"),
        ("steps", 0, "steps must be"),
        ("steps", 1_000_000, "steps must be"),
        ("guidance_scale", 1e308, "guidance scale must be"),
        ("first_temperature", -1, "temperature must be"),
        ("prompt", "a" * 20_000, "prompt is too long"),
        ("prompt", "a\0b", "not text"),
    ],
)
def test_a_bad_value_is_refused_in_one_plain_sentence(client: Client, setting: str, value: Any, words: str) -> None:
    with pytest.raises(AppError) as refusal:
        client.predict(**{"prompt": PROMPT, setting: value}, api_name="/text_to_image")
    assert words in str(refusal.value)
    assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"", b"<html></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
@pytest.mark.parametrize("name", ["picture.png", "picture.svg", "picture.gif"])
def test_what_is_no_image_is_refused_whatever_its_name(
    client: Client, tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError) as refusal:
        client.predict(PROMPT, handle_file(tmp_path / name), api_name="/image_to_image")
    assert "image" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"12"', "[]", "true"])
def test_raw_json_numbers_are_checked_on_the_server(address: str, number: str) -> None:
    """Python's JSON, which Gradio uses in places, lets in what no client would send."""
    answer = post_raw(address, "text_to_image", '{"prompt": "' + PROMPT + '", "steps": ' + number + "}")
    assert "event: error" in answer and "The number of steps must be a whole number from 1 to 100." in answer
    assert "Traceback" not in answer and 'File "' not in answer


def test_files_of_the_server_are_not_images(address: str) -> None:
    """A path in place of an upload reads nothing."""
    image_file = '{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}'
    answer = post_raw(address, "image_to_image", '{"prompt": "' + PROMPT + '", "image": ' + image_file + "}")
    assert "event: error" in answer and "root:" not in answer


def post_raw(address: str, endpoint: str, body: str) -> str:
    path = f"{address}gradio_api/call/v2/{endpoint}"
    joined = httpx.post(path, content=body, headers={"content-type": "application/json"})
    return httpx.get(f"{path}/{joined.raise_for_status().json()['event_id']}", timeout=60).text


def test_a_good_request_still_gives_its_image_after_all_that(client: Client) -> None:
    assert list(opened(client.predict(PROMPT, seeds="7", api_name="/text_to_image"))) == ["seed 7"]


LONG = "hat " * 80


@pytest.mark.parametrize(
    ("texts", "cut"),
    [
        ({"prompt": PROMPT}, []),
        ({"prompt": LONG}, ["prompt"]),
        ({"prompt": PROMPT, "negative_prompt": LONG}, ["negative prompt"]),
        ({"prompt": LONG, "negative_prompt": LONG}, ["prompt", "negative prompt"]),
        ({"prompt": PROMPT, "negative_prompt": LONG, "guidance_scale": 1}, []),  # which is then not used
    ],
)
def test_a_result_says_which_text_was_too_long(client: Client, texts: dict[str, Any], cut: list[str]) -> None:
    (tile,) = client.predict(**texts, api_name="/text_to_image")
    assert {"image", "caption"} <= set(tile)
    assert tile["note"].startswith(f"The {' and the '.join(cut)} ") if cut else tile["note"] is None
    recipe = {"version": 2, "task": "text_to_image", "seeds": [1], **texts}
    (tile,), (result,) = client.predict(json.dumps(recipe), api_name="/recipe")
    assert result["cut"] == cut and bool(tile["note"]) == bool(cut)
