"""What is given as an uploaded file is one: by raw HTTP, at every input of every event, found in the page's own
configuration, so that none can be forgotten."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake import fake_runtime
from helpers.serve import serve
from PIL import Image

from amused.errors import UserError
from amused.generation.images import read_bytes
from amused.ui.uploads import NOT_UPLOADED

pytestmark = pytest.mark.slow

META = {"_type": "gradio.FileData"}
# What these hold is no file, whatever is sent; any other kind of component, also one to come, may hold one.
PLAIN = {"textbox", "number", "slider", "checkbox", "dropdown", "radio", "dataset", "HTML", "state"}
SHAPES = {
    "alone": lambda file: file,
    "source": lambda file: {"source": file, "image": None, "mask": ""},
    "shown": lambda file: {"source": None, "image": file, "mask": ""},
    "list": lambda file: [file],
    "gallery": lambda file: [{"image": file, "caption": "a"}],
    "within": lambda file: {"value": {"any": [[file]]}},
}
FORMS = {
    "bare": lambda path: {"path": path},
    "meta": lambda path: {"path": path, "meta": META},
    "url": lambda path: {"path": path, "url": f"/gradio_api/file={path}", "orig_name": "a.png"},
    "stream": lambda path: {"path": path, "meta": META, "is_stream": True, "url": path},
}
FEW = ["another's image", "nothing", "a link to it", "a named pipe"]


@dataclass
class Place:
    """A page, its upload folder, and a private image next to that."""

    client: httpx.Client
    steps: list[int]
    cache: Path
    private: Path
    events: list[dict[str, Any]]
    kinds: dict[int, str]

    def hostile(self) -> dict[str, Any]:
        secret = self.private / "secret.png"
        return {
            "another's image": str(secret),
            "nothing": str(self.private / "none.png"),
            "a folder's neighbour": f"{self.cache}-private/secret.png",
            "upwards": f"{self.cache}/../{self.private.name}/secret.png",
            "down and upwards": f"{self.cache}/folder/../../{self.private.name}/secret.png",
            "through /proc/self/cwd": f"/proc/self/cwd/{os.path.relpath(secret)}",
            "through /proc/self/root": f"/proc/self/root{secret}",
            "from the working folder": os.path.relpath(secret),
            "two slashes": f"/{secret}",
            "a link to it": str(self.cache / "link.png"),
            "a link to its folder": str(self.cache / "linked" / "secret.png"),
            "a link to nothing": str(self.cache / "dangling.png"),
            "a named pipe": str(self.cache / "pipe.png"),
            "a named pipe elsewhere": str(self.private / "pipe.png"),
            "a folder": str(self.cache / "folder"),
            "the upload folder": str(self.cache),
            "a device": "/dev/zero",
            "an address": "https://example.org/secret.png",
            "a file address": f"file://{secret}",
            "a character that is none": f"{self.cache}/\0.png",
            "half a character": f"{self.cache}/\ud800.png",
            "a long name": f"{self.cache}/{'a' * 5000}.png",
            "no name": "",
            "a number": 5,
            "a list": [str(secret)],
        }

    def run(self, event: dict[str, Any], data: list[Any], **more: Any) -> dict[str, Any]:
        body = json.dumps({"fn_index": event["id"], "data": data, "session_hash": "visitor", **more}).encode()
        answer = self.client.post("run/predict", content=body, headers={"content-type": "application/json"})
        return answer.json()

    def slots(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each input that may hold a file, with its event."""
        for event in self.events:
            for place, component in enumerate(event["inputs"]):
                if self.kinds[component] not in PLAIN:
                    yield event, place

    def call(self, endpoint: str, data: dict[str, Any]) -> str:
        joined = self.client.post(f"call/v2/{endpoint}", json=data)
        return self.client.get(f"call/v2/{endpoint}/{joined.json()['event_id']}").text

    def cached(self) -> set[Path]:
        return {path for path in self.cache.rglob("*") if path.is_symlink() or not path.is_dir()}

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """No step of a model is taken meanwhile, and no file comes into the cache."""
        before = len(self.steps), self.cached()
        yield
        assert (len(self.steps), self.cached()) == before


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gate")
    cache, private = folder / "cache", folder / "private"
    for path in (cache, private, cache / "folder", folder / "cache-private"):
        path.mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for path in (private, folder / "cache-private"):
        Image.fromarray(pixels).save(path / "secret.png")
    (cache / "link.png").symlink_to(private / "secret.png")
    (cache / "linked").symlink_to(private)
    (cache / "dangling.png").symlink_to(private / "none.png")
    for path in (cache, private):
        os.mkfifo(path / "pipe.png")
    steps: list[int] = []
    with serve(fake_runtime(before_step=lambda: steps.append(1)), cache) as url:
        with httpx.Client(base_url=f"{url}gradio_api/", timeout=10) as client:  # what hangs fails
            config = client.get(f"{url}config").json()
            kinds = {
                component["id"]: component["props"].get("component_class_name") or component["type"]
                for component in config["components"]
            }
            yield Place(client, steps, cache, private, config["dependencies"], kinds)
        for path in (cache, private):  # whoever waits for a writer can go
            os.close(os.open(path / "pipe.png", os.O_RDWR | os.O_NONBLOCK))


def test_every_input_that_may_hold_a_file_is_found(page: Place) -> None:
    found = {page.kinds[event["inputs"][place]] for event, place in page.slots()}
    assert {"image", "MaskEditor", "file"} <= found and len(list(page.slots())) > 15


def test_a_file_that_was_not_uploaded_is_refused_at_every_input(page: Place) -> None:
    """In one sentence, whether there is anything or not."""
    with page.untouched():
        for event, place in page.slots():
            kind = page.kinds[event["inputs"][place]]
            for name in FEW:
                for form in ("bare", "meta"):
                    for shape in ["alone"] if kind in ("image", "file") else ["source", "shown"]:
                        data = [None] * len(event["inputs"])
                        data[place] = SHAPES[shape](FORMS[form](page.hostile()[name]))
                        answer = page.run(event, data)
                        assert answer.get("error") == NOT_UPLOADED, (kind, place, name, form, shape, event)


def test_a_file_that_was_not_uploaded_is_refused_in_any_other_input(page: Place) -> None:
    """No component passes it on, not even a text's: what came back of it as a value would be copied for all to see."""
    file = FORMS["meta"](str(page.private / "secret.png"))
    with page.untouched():
        for event in page.events:
            answers = [page.run(event, [file for _ in event["inputs"]])] if event["inputs"] else []
            answers.append(page.run(event, [None for _ in event["inputs"]], event_data={"index": 0, "value": file}))
            assert all(answer.get("error") == NOT_UPLOADED for answer in answers), event


@pytest.mark.parametrize("shape", SHAPES)
def test_every_path_is_refused_in_every_form_and_shape(page: Place, shape: str) -> None:
    event, place = next(page.slots())
    with page.untouched():
        for name, path in page.hostile().items():
            for form in FORMS.values():
                data = [None] * len(event["inputs"])
                data[place] = SHAPES[shape](form(path))
                assert page.run(event, data).get("error") == NOT_UPLOADED, name


def sent_to_endpoints(file: Any, good: Any) -> list[tuple[str, dict[str, Any]]]:
    replayed = "task={}&prompt=a&seeds=0&model=nouns&strength=0.05"
    return [
        ("image_to_image", {"prompt": "a", "image": file, "strength": 0.05}),
        ("inpaint", {"prompt": "a", "image": file, "mask": good}),
        ("inpaint", {"prompt": "a", "image": good, "mask": file}),
        ("recipe", {"recipe": replayed.format("image_to_image"), "image": file}),
        ("recipe", {"recipe": replayed.format("inpaint"), "image": good, "mask": file}),
    ]


def upload(page: Place) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(content, "PNG")
    (path,) = page.client.post("upload", files={"files": ("white.png", content.getvalue())}).json()
    return {"path": path, "meta": META}


def test_the_endpoints_say_the_same_of_what_exists_and_of_what_does_not(page: Place) -> None:
    good = upload(page)
    with page.untouched():
        for name in FEW:
            for form in (FORMS["bare"], FORMS["meta"]):
                for endpoint, data in sent_to_endpoints(form(page.hostile()[name]), good):
                    answer = page.call(endpoint, data)
                    assert "event: complete" not in answer and NOT_UPLOADED in answer, (endpoint, name)
                    assert str(page.cache.parent) not in answer


def test_what_was_uploaded_and_what_the_page_made_is_accepted(page: Place) -> None:
    good = upload(page)
    for form in (FORMS["bare"], FORMS["meta"]):
        for endpoint, data in sent_to_endpoints(form(good["path"]), good):
            assert "event: complete" in page.call(endpoint, data)
    answer = page.call("text_to_image", {"prompt": "a fox", "seeds": "7"})
    (tile,) = json.loads(answer.rsplit("data: ", 1)[1])[0]
    assert "event: complete" in page.call("image_to_image", {"prompt": "a", "image": tile["image"]})


def test_what_was_swept_away_is_no_secret(page: Place) -> None:
    """It was there, or its name could not be known."""
    with page.untouched():
        answer = page.call("image_to_image", {"prompt": "a", "image": {"path": str(page.cache / "0" / "gone.png")}})
    assert "cannot be opened" in answer


def test_nothing_outside_is_looked_at(page: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(name: str) -> Any:
        real = getattr(os, name)

        def watch(path: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(path, int):
                seen.append(os.fsdecode(path))
            return real(path, *args, **options)

        return watch

    for name in ("stat", "lstat", "open", "readlink", "scandir", "access"):
        monkeypatch.setattr(os, name, watched(name))
    event, place = next(page.slots())
    data: list[Any] = [None] * len(event["inputs"])
    for path in page.hostile().values():
        for form in FORMS.values():
            data[place] = form(path)
            page.run(event, data)
    assert str(page.cache) in seen  # it does watch
    assert not [path for path in seen if str(page.private) in path or "/linked/" in path or "-private" in path]


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError):
        read_bytes(tmp_path / "pipe.png")
