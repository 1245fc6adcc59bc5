"""The HTTP surface under attack, raw: files, redirects, origins, uploads, handlers that are not offered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake import fake_runtime
from helpers.serve import answers, serve

from amused.limits import MAX_PICTURE_BYTES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-that-must-not-leave"


@pytest.fixture(scope="module")
def steps() -> list[int]:
    return []


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / ".env").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def address(steps: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runtime = fake_runtime(before_step=lambda: steps.append(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_TOKEN", SECRET)
        with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
            yield address


FILES = [
    "/proc/self/environ",
    "/etc/passwd",
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd%00.png",
    "file:///etc/passwd",
    str(ROOT / "app.py"),
    str(ROOT / ".git/config"),
    str(ROOT / "amused/checkpoints/nouns/vqvae/diffusion_pytorch_model.fp16.safetensors"),
    "{secrets}/.env",
    "{secrets}/../secrets0/.env",
    "http://127.0.0.1:1/redirect",
    "https://example.org/",
    "//example.org/",
]


@pytest.mark.parametrize("route", ["gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "svelte/"])
@pytest.mark.parametrize("file", FILES)
def test_no_file_of_the_server_is_served(address: str, secrets: Path, route: str, file: str) -> None:
    answer = httpx.get(address + route + file.replace("{secrets}", str(secrets)), follow_redirects=False)
    assert 400 <= answer.status_code < 500
    for bytes_ in (SECRET, "root:", "PATH=", "argparse", "[core]", "safetensors.torch"):
        assert bytes_ not in answer.text


@pytest.mark.parametrize("route", ["monitoring", "monitoring/summary", "gradio_api/monitoring/summary", "metrics"])
def test_nobody_sees_how_the_page_is_used(address: str, route: str) -> None:
    assert 400 <= httpx.get(address + route).status_code < 500


@pytest.mark.parametrize("route", ["gradio_api/proxy=http://127.0.0.1:1/", "gradio_api/proxy=https://example.org/"])
def test_nothing_is_fetched_for_a_visitor(address: str, route: str) -> None:
    assert 400 <= httpx.get(address + route).status_code < 500


@pytest.mark.parametrize("file", ["/etc/passwd", "{secrets}/.env", "https://127.0.0.1:1/x.png", "gradio_api/file=/etc"])
@pytest.mark.parametrize("endpoint", ["image_to_image", "inpaint", "recipe"])
def test_no_file_of_the_server_is_taken_for_an_upload(
    address: str, secrets: Path, steps: list[int], endpoint: str, file: str
) -> None:
    path = file.replace("{secrets}", str(secrets))
    before = len(steps)
    for given in ({"path": path}, {"path": path, "url": path}, {"path": None, "url": path}):
        image_file = {**given, "meta": {"_type": "gradio.FileData"}}
        data = {
            "image_to_image": {"prompt": "a", "image": image_file},
            "inpaint": {"prompt": "a", "image": image_file, "mask": image_file},
            "recipe": {"recipe": "task=image_to_image&prompt=a&seeds=0&model=nouns", "image": image_file},
        }[endpoint]
        answer = call(address, endpoint, data)
        assert "complete" not in answer and "Traceback" not in answer and SECRET not in answer
    assert len(steps) == before


def call(address: str, endpoint: str, data: dict) -> str:
    joined = httpx.post(f"{address}gradio_api/call/v2/{endpoint}", json=data)
    if joined.status_code >= 400:
        return joined.text
    return httpx.get(f"{address}gradio_api/call/v2/{endpoint}/{joined.json()['event_id']}", timeout=60).text


def test_an_upload_that_is_too_large_is_refused_and_leaves_no_file(address: str, tmp_path: Path) -> None:
    content = b"x" * (MAX_PICTURE_BYTES + 1)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", content)}, timeout=60)
    assert answer.status_code == 413 and str(tmp_path.parent) not in answer.text


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "a\x00b.png", ".env", "x" * 500])
def test_an_upload_lands_in_the_cache_whatever_its_name(address: str, name: str) -> None:
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": (name, b"not a picture")})
    if answer.status_code == 200:
        (path,) = answer.json()
        assert Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve())
    else:
        assert answer.status_code < 500
    assert not Path("/etc/evil.png").exists()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_another_site_s_script_gets_no_answer_it_may_read(address: str, origin: str) -> None:
    headers = {"origin": origin, "cookie": "a=b"}
    answer = httpx.post(f"{address}gradio_api/call/text_to_image", json={"data": ["a"]}, headers=headers)
    allowed = answer.headers.get("access-control-allow-origin")
    assert answer.status_code >= 400 or allowed not in (origin, "*")


VALUES = [None, "../../../../etc/passwd", 1e308, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, [[]]]


def test_the_page_s_own_handlers_give_nothing_away_to_whoever_calls_them(address: str, steps: list[int]) -> None:
    """They are not offered to programs, but whoever reads the page's source can call them."""
    config = httpx.get(f"{address}config").json()
    private = [one for one in config["dependencies"] if one["api_visibility"] != "public"]
    assert len(private) > 50
    types = {one["id"]: one["type"] for one in config["components"]}

    def may_run(handler: dict) -> bool:
        """As "4 more" may: it takes nothing from its caller that could be wrong."""
        return {types[one] for one in handler["inputs"]} <= {"state", "checkbox"}

    before = len(steps)
    with httpx.Client(base_url=address) as client:
        for handler in sorted(private, key=may_run):  # last, as a run goes on behind its answer
            data = [VALUES[(handler["id"] + place) % len(VALUES)] for place in range(len(handler["inputs"]))]
            body = {"fn_index": handler["id"], "data": data, "session_hash": "nobody"}
            answer = client.post("gradio_api/run/predict", json=body).text
            for bytes_ in (SECRET, "root:", "Traceback", 'File "', "site-packages"):
                assert bytes_ not in answer, handler["api_name"]
            assert may_run(handler) or len(steps) == before, handler["targets"]


@pytest.mark.parametrize("index", [0, -1])
def test_events_of_a_page_that_holds_nothing_fail_in_a_sentence_at_most(address: str, index: int) -> None:
    """As from a page whose session has ended, or whose last kept image is gone: nothing is picked, kept or made."""
    config = httpx.get(f"{address}config").json()
    values = {one["id"]: one["props"].get("value") for one in config["components"]}
    values |= {one["id"]: 0 for one in config["components"] if one["type"] == "dataset"}  # the example that is clicked
    events = [one for one in config["dependencies"] if one["backend_fn"] and one["api_visibility"] == "private"]
    quick = [one for one in events if not one["types"]["generator"]]  # the others are runs
    assert len(quick) > 60 and sum(one["queue"] for one in quick) > 10
    with httpx.Client(base_url=address) as client:
        for event in quick:
            data = [values[component] for component in event["inputs"]]
            (answer,) = answers(client, event, [data], "nothing", {"index": index, "value": None})
            assert "data" in answer or answer["error"], (event["targets"], event["outputs"])


def test_a_good_request_still_gives_its_image_after_all_that(address: str) -> None:
    answer = call(address, "text_to_image", {"prompt": "a fox", "seeds": "7"})
    assert "event: complete" in answer and "seed 7" in answer
