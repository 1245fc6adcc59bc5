"""Hostile and odd requests through raw HTTP: images, masks, prompts, numbers. Each is either obeyed or refused in a
sentence, without the model having been asked; and the next good request gives its known image."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fake import fake_runtime, sampled
from helpers.images import HOSTILE, odd_images, saved
from helpers.serve import serve
from PIL import Image

from amused.generation.images import digest
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import from_png_file
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe

pytestmark = pytest.mark.slow

GOOD = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))


class Server:
    """The page on the fake model, as a program that writes its own JSON meets it."""

    def __init__(self, address: str, steps: list[int]) -> None:
        self.steps = steps
        self.client = httpx.Client(base_url=f"{address}gradio_api/", timeout=60)
        info = self.client.get("info").json()["named_endpoints"]
        self.parameters = {name.strip("/"): endpoint["parameters"] for name, endpoint in info.items()}

    def upload(self, content: bytes, name: str = "picture.png") -> dict[str, Any]:
        (path,) = self.client.post("upload", files={"files": (name, content)}).json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def ask(self, endpoint: str, **values: Any) -> tuple[str, list[Any]]:
        """ "complete" and what came, or "error" and why."""
        values = {"prompt": "a fox", "steps": 2, "seeds": "7", **values}
        data = [values.get(one["parameter_name"], one.get("parameter_default")) for one in self.parameters[endpoint]]
        body = json.dumps({"data": data}).encode("utf-8", "surrogatepass")
        joined = self.client.post(f"call/{endpoint}", content=body, headers={"content-type": "application/json"})
        if joined.status_code >= 400:
            assert joined.status_code < 500, joined.text
            return "error", [joined.text]
        answer = self.client.get(f"call/{endpoint}/{joined.json()['event_id']}").text
        event, data = answer.rsplit("event: ", 1)[1].split("\ndata: ", 1)
        for bytes_ in ("Traceback", 'File "', "/tmp", "site-packages"):
            assert event == "complete" or bytes_ not in answer
        return event, [data.strip()]

    def image(self, answer: list[Any]) -> bytes:
        (tile,) = json.loads(answer[0])[0]
        return self.client.get(f"file={tile['image']['path']}").content

    def refuses(self, endpoint: str, **values: Any) -> str:
        before = len(self.steps)
        event, (why,) = self.ask(endpoint, **values)
        assert event == "error" and len(self.steps) == before
        if why.startswith('{"error"'):
            why = json.loads(why)["error"] or ""
        assert len(why) < 400 and "\n" not in why and "went wrong" not in why
        return why

    def obeys(self, endpoint: str, **values: Any) -> Image.Image:
        event, answer = self.ask(endpoint, **values)
        assert event == "complete", answer
        return Image.open(io.BytesIO(self.image(answer))).convert("RGB")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    steps: list[int] = []
    runtime = fake_runtime(before_step=lambda: steps.append(1))
    with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
        yield Server(address, steps)


# Images

IMAGE_TASKS = ["image_to_image", "inpaint"]


def header_of(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    return saved(GOOD, kind, save_all=True, append_images=[Image.new("RGB", GOOD.size)], duration=50)


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(Image.new("RGB", (64, 32), "teal"), "JPEG", exif=exif)


ODD = {
    **odd_images(),
    **{f"{width}x{height}": saved(Image.new("RGB", (width, height)), "PNG") for width, height in
       [(1, 1), (1, 5000), (5000, 1), (511, 513)]},
    **{f"EXIF {value}": oriented(value) for value in range(1, 9)},
    **{f"animated {kind}": animated(kind) for kind in ("GIF", "WEBP", "PNG")},
    "transparent RGBA": saved(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "PNG"),
    "PNG and ZIP in one": saved(GOOD, "PNG") + b"PK\x03\x04" + bytes(100),
    "a JPEG named .png": saved(GOOD, "JPEG"),
}  # fmt: skip
BAD = {
    **HOSTILE,
    "20k x 20k": header_of(20_000, 20_000),
    "13k x 13k": header_of(13_000, 13_000),
    "0 x 0": header_of(0, 0),
    "2^31 x 2^31": header_of(2**31 - 1, 2**31 - 1),
    "bad CRC": saved(GOOD, "PNG")[:1000] + b"\0\0\0\0" + saved(GOOD, "PNG")[1004:],
    "half a JPEG": saved(GOOD, "JPEG")[:5000],
    "ICO": saved(GOOD.resize((32, 32)), "ICO"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("endpoint", IMAGE_TASKS)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_accepted(server: Server, endpoint: str, name: str) -> None:
    given = {"image": server.upload(ODD[name])}
    if endpoint == "inpaint":
        given["mask"] = server.upload(saved(Image.new("L", (64, 64), 255), "PNG"))
    made = server.obeys(endpoint, **given)
    assert max(made.size) == 256
    if name.startswith("EXIF"):
        assert made.size == ((256, 128) if int(name[5:]) <= 4 else (128, 256))


@pytest.mark.parametrize(
    ("endpoint", "file"),
    [*((entry, "picture.png") for entry in (*IMAGE_TASKS, "the mask", "recipe")), ("image_to_image", "picture.svg")],
)
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_quickly(server: Server, endpoint: str, file: str, name: str) -> None:
    good, bad = server.upload(saved(GOOD, "PNG")), server.upload(BAD[name], file)
    given = {
        "image_to_image": {"image": bad},
        "inpaint": {"image": bad, "mask": good},
        "the mask": {"image": good, "mask": bad},
        "recipe": {"recipe": "task=image_to_image&prompt=a&model=nouns", "image": bad},
    }[endpoint]
    began = time.monotonic()
    why = server.refuses("inpaint" if endpoint == "the mask" else endpoint, **given)
    assert "too large" in why or not name.endswith(("20k", "13k"))
    assert time.monotonic() - began < 5  # decoding 400 megapixels would take longer, and gigabytes


# Masks


def strokes(colour: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", GOOD.size)
    image.paste(colour, (64, 64, 128, 128))
    return image


def grey_square(level: int, size: int = 256, inverted: bool = False) -> Image.Image:
    image = Image.new("L", (size, size), level if inverted else 0)
    image.paste(0 if inverted else level, tuple(side * size // 256 for side in (64, 64, 128, 128)))
    return image


def one_pixel() -> Image.Image:
    image = Image.new("L", GOOD.size)
    image.putpixel((100, 100), 255)
    return image


MASKS = {  # with the box that may change, or None for all but the square
    "a square": (grey_square(255), (64, 64, 128, 128)),
    "another size": (grey_square(255, 64), (64, 64, 128, 128)),
    "larger": (grey_square(255, 1024), (64, 64, 128, 128)),
    "soft grey": (grey_square(60), (64, 64, 128, 128)),
    "red strokes": (strokes((255, 0, 0, 255)), (64, 64, 128, 128)),
    "black strokes": (strokes((0, 0, 0, 200)), (64, 64, 128, 128)),
    "full": (Image.new("L", GOOD.size, 255), (0, 0, 256, 256)),
    "one pixel": (one_pixel(), (100, 100, 101, 101)),
    "inverted": (grey_square(255, inverted=True), None),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_says_what_changes(server: Server, name: str) -> None:
    mask, box = MASKS[name]
    images = {"image": server.upload(saved(GOOD, "PNG")), "mask": server.upload(saved(mask, "PNG"))}
    made = server.obeys("inpaint", **images)
    changed = (np.asarray(made) != np.asarray(GOOD)).any(-1)
    inside = np.zeros(changed.shape, bool)
    left, top, right, bottom = box or (64, 64, 128, 128)
    inside[top:bottom, left:right] = True
    inside = inside if box else ~inside
    assert not changed[~inside].any() and changed[inside].mean() > 0.9


@pytest.mark.parametrize("mask", [Image.new("L", (256, 256)), Image.new("RGBA", (256, 256)), Image.new("1", (8, 8))])
def test_an_empty_mask_has_nothing_to_repaint(server: Server, mask: Image.Image) -> None:
    images = {"image": server.upload(saved(GOOD, "PNG")), "mask": server.upload(saved(mask, "PNG"))}
    assert "Paint over the part" in server.refuses("inpaint", **images)


@pytest.mark.parametrize("missing", ["image", "mask"])
def test_what_is_missing_is_named(server: Server, missing: str) -> None:
    images = {name: server.upload(saved(GOOD, "PNG")) for name in ("image", "mask") if name != missing}
    assert missing in server.refuses("inpaint", **images)


# Prompts

PROMPTS = {
    "empty": "",
    "10,000 characters": "fox " * 2500,
    "emoji": "🦊👩‍👩‍👧‍👦🏳️‍🌈",
    "right to left": "ثعلب \u202e أحمر \u202c",
    "combining": "f\u0301ox" * 50,
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "Markdown": "[a link](javascript:alert(1)) ![](http://example.org/x.png)",
    "template": "{{7*7}} ${7*7} %s %n {0}",
    "line breaks": "a\r\nfox\t\u2028\u2029",
    "quotes": "'; DROP TABLE pictures; -- \"\\",
}
BAD_PROMPTS = {"NUL": "a\0b", "a lone surrogate": "a\ud800b", "10,001": "a" * 10_001, "1 MB": "a" * 1_000_000}
NO_TEXT = {"a number": 5, "true": True, "a list": ["a"], "an object": {"a": 1}}


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_comes_back_as_it_was_in_the_image_s_recipe_and_in_its_link(
    server: Server, field: str, name: str
) -> None:
    event, answer = server.ask("text_to_image", **{field: PROMPTS[name]})
    assert event == "complete"
    recipe = from_png_file(server.image(answer)).recipe
    assert getattr(recipe, field) == PROMPTS[name]
    assert from_query(to_query(recipe)).recipe == recipe


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_what_is_no_prompt_is_refused(server: Server, field: str, name: str) -> None:
    server.refuses("text_to_image", **{field: BAD_PROMPTS[name]})


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_no_prompt_or_written_as_one(server: Server, name: str) -> None:
    event, answer = server.ask("text_to_image", prompt=NO_TEXT[name])
    if event == "complete":
        assert isinstance(from_png_file(server.image(answer)).recipe.prompt, str)


# Numbers

NUMBERS = ["steps", "guidance_scale", "first_temperature", "last_temperature", "strength"]
NEVER = [float("nan"), float("inf"), float("-inf"), -1, 1e308, 2**63, 2**64, 10**400, "twelve", True, [], {}, 1e6]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", NEVER, ids=lambda value: str(value)[:12])
def test_a_number_that_is_none_is_refused(server: Server, field: str, value: object) -> None:
    if field == "strength":
        server.refuses("image_to_image", image=server.upload(saved(GOOD, "PNG")), strength=value)
    else:
        server.refuses("text_to_image", **{field: value})


FIELDS = {
    "text_to_image": ["prompt", "negative_prompt", "seeds", "model", "adapter_strength"],
    "image_to_image": ["image"],
    "inpaint": ["image", "mask"],
    "recipe": ["recipe"],
}


@pytest.mark.parametrize(("endpoint", "field"), [(name, field) for name, fields in FIELDS.items() for field in fields])
def test_null_is_refused_in_a_sentence(server: Server, endpoint: str, field: str) -> None:
    given = {"image": server.upload(saved(GOOD, "PNG")), "mask": server.upload(saved(GOOD, "PNG"))}
    why = server.refuses(endpoint, **{**given, "model": "nouns", field: None})
    assert why.endswith("."), why


def test_null_for_what_may_be_left_out_is_obeyed(server: Server) -> None:
    own = ("adapter", *NUMBERS[:-1], "sampler", "corrector_rounds")
    server.obeys("text_to_image", model="nouns", **dict.fromkeys(own))
    server.obeys("image_to_image", model="nouns", image=server.upload(saved(GOOD, "PNG")), strength=None)


SEEDS = ["", "NaN", "-1", "4294967296", "18446744073709551616", "1e3", "1.5", "0-64", "5-3", "8;DROP", None, [], True]


@pytest.mark.parametrize("value", SEEDS, ids=str)
def test_seeds_that_are_none_are_refused(server: Server, value: object) -> None:
    server.refuses("text_to_image", seeds=value)


MODELS = ["", "../../etc/passwd", "owner/name", "https://example.org/m", "nouns\0", "NOUNS", None, 5, [], "a" * 100_000]


@pytest.mark.parametrize("value", MODELS, ids=lambda value: str(value)[:20])
def test_a_model_that_is_not_listed_is_refused(server: Server, value: object) -> None:
    server.refuses("text_to_image", model=value)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range_of_seeds(server: Server, seed: int) -> None:
    event, answer = server.ask("text_to_image", seeds=str(seed))
    assert event == "complete" and from_png_file(server.image(answer)).recipe.seeds == (seed,)


def test_a_good_request_gives_its_known_image_after_all_that(server: Server) -> None:
    recipe = Recipe(TEXT_TO_IMAGE, "a fox", (7,), model="nouns", steps=2)
    *_, expected = sampled(fake_runtime(), recipe)
    assert digest(server.obeys("text_to_image")) == digest(expected.image)
