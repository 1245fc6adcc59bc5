"""Many people at once, through real HTTP: python -m tests.measure.load [--people 50] [--requests 4] [--model nouns]

Starts the page in a process of its own and lets everybody ask for pictures of all three tasks while somebody sweeps 64
seeds. Looks that everybody got their own, how long they waited, and how quickly a full queue says so.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from amused.benchmark.startup import free_port, wait_for_page
from amused.generation.images import digest
from amused.recipe.metadata import from_png_file
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TASKS, TEXT_TO_IMAGE, Recipe
from amused.serving.queue import BUSY

ROOT = Path(__file__).parents[2]
PROMPT = "a pixel art character with square red glasses, a {}-shaped head on a {} background"
HEADS, BACKGROUNDS = ("cow", "fox", "owl", "whale", "toaster", "cat", "rabbit"), ("blue", "warm", "cool", "grey")


@dataclass
class Asked:
    """One request and what became of it."""

    recipe: Recipe
    seconds: float = 0.0
    refused: list[float] = field(default_factory=list)  # seconds that it took to be told that too many wait
    made: list[tuple[Recipe, str]] = field(default_factory=list)  # what each picture says of itself, and its digest
    error: str = ""


def request_of(person: int, number: int, steps: int, model: str) -> Recipe:
    """A request that nobody else has."""
    task = TASKS[(person + number) % 3]
    prompt = PROMPT.format(HEADS[person % len(HEADS)], BACKGROUNDS[number % len(BACKGROUNDS)])
    strength = {IMAGE_TO_IMAGE: 0.5, INPAINT: 1.0}.get(task)
    return Recipe(task, prompt, (1000 * person + number,), model=model, steps=steps, strength=strength)


def picture_of(person: int) -> bytes:
    pixels = np.random.default_rng(person).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST))


def mask() -> bytes:
    image = Image.new("L", (256, 256))
    image.paste(255, (64, 64, 192, 192))
    return png(image)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Page:
    """The page as programs use it, without their libraries."""

    def __init__(self, address: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=f"{address}gradio_api/", timeout=1800, limits=limits)
        self.parameters: dict[str, list[dict[str, Any]]] = {}

    async def read(self) -> None:
        info = (await self.client.get("info")).json()["named_endpoints"]
        self.parameters = {name.strip("/"): endpoint["parameters"] for name, endpoint in info.items()}

    async def upload(self, content: bytes) -> dict[str, Any]:
        answer = await self.client.post("upload", files={"files": ("given.png", content)})
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def ask(self, asked: Asked, given: dict[str, bytes]) -> Asked:
        recipe = asked.recipe
        values: dict[str, Any] = {
            "prompt": recipe.prompt,
            "seeds": ", ".join(map(str, recipe.seeds)),
            "steps": recipe.steps,
            "model": recipe.model,
            "strength": recipe.strength,
        }
        for name, content in given.items():
            values[name] = await self.upload(content)
        began = time.monotonic()
        data = [
            values.get(parameter["parameter_name"], parameter.get("parameter_default"))
            for parameter in self.parameters[recipe.task]
        ]
        joined = await self.client.post(f"call/{recipe.task}", json={"data": data})
        if joined.status_code != 200:
            asked.error = joined.text
        else:
            last, event = "", ""
            async with self.client.stream("GET", f"call/{recipe.task}/{joined.json()['event_id']}") as stream:
                async for line in stream.aiter_lines():
                    kind, _, rest = line.partition(": ")
                    event = rest if kind == "event" else event
                    last = rest if kind == "data" and event in ("complete", "error") else last
            if event == "complete":
                tiles = json.loads(last)[0]
                files = [await self.client.get(f"file={tile['image']['path']}") for tile in tiles]
                asked.made = [read_picture(file.content) for file in files]
            else:
                asked.error = last
        asked.seconds = time.monotonic() - began
        return asked


def read_picture(content: bytes) -> tuple[Recipe, str]:
    return from_png_file(content).recipe, digest(Image.open(io.BytesIO(content)).convert("RGB"))


async def crowd(address: str, people: int, requests: int, steps: int, model: str, sweep: int) -> dict[str, list[Asked]]:
    """What became of the requests of people, of the sweep beside them, and of those that came when all was full."""
    page = Page(address)
    await page.read()

    async def person(index: int) -> list[Asked]:
        done = []
        for number in range(requests):
            recipe = request_of(index, number, steps, model)
            given = {} if recipe.task == TEXT_TO_IMAGE else {"image": picture_of(index)}
            if recipe.task == INPAINT:
                given["mask"] = mask()
            one, refused = await page.ask(Asked(recipe), given), []
            while BUSY in one.error:
                refused.append(one.seconds)
                await asyncio.sleep(1)  # and try again, as a person would
                one = await page.ask(Asked(recipe, refused=refused), given)
            done.append(one)
        return done

    swept = Asked(Recipe(TEXT_TO_IMAGE, PROMPT.format("cat", "warm"), tuple(range(sweep)), model=model, steps=steps))
    sweeping = asyncio.create_task(page.ask(swept, {}))
    await asyncio.sleep(0.5)
    persons = [asyncio.create_task(person(index)) for index in range(people)]
    await asyncio.sleep(0.5)
    late = [Asked(request_of(people + 3 * index, -people % 3, steps, model)) for index in range(15)]
    came_late = await asyncio.gather(*(page.ask(one, {}) for one in late))
    done = [one for done in await asyncio.gather(*persons) for one in done]
    return {"people": done, "sweep": [await sweeping], "late": list(came_late)}


def check(asked: list[Asked]) -> None:
    """Everybody got their own picture, one a seed, in the order of the seeds."""
    for one in asked:
        assert not one.error, one.error
        assert [recipe.seeds for recipe, _ in one.made] == [(seed,) for seed in one.recipe.seeds]
        for recipe, _ in one.made:
            assert (recipe.task, recipe.prompt) == (one.recipe.task, one.recipe.prompt)


def check_alone(asked: list[Asked], model: str) -> int:
    """The pictures are those that a model alone gives; how many were compared."""
    import amused
    from amused.generation.pipeline import Picture

    alone = amused.load(model)
    texts = [one for one in asked if one.recipe.task == TEXT_TO_IMAGE]
    for one in texts:
        first = one.made[0][0]  # with the model's own settings, which the request leaves out
        assert first.steps == one.recipe.steps
        events = alone.generate(first.with_seeds(one.recipe.seeds))
        assert [name for _, name in one.made] == [digest(event.image) for event in events if isinstance(event, Picture)]
    return len(texts)


def describe(name: str, asked: list[Asked]) -> str:
    seconds = sorted(one.seconds for one in asked)
    if not seconds:
        return f"{name}: none"
    late = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
    return (
        f"{name}: {len(asked)} requests, median {statistics.median(seconds):.1f} s, 95 % within {late:.1f} s, "
        f"most {seconds[-1]:.1f} s"
    )


def start(model: str) -> tuple[subprocess.Popen, str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "app.py", "--model", model, "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "AMUSED_OWNER_TOKEN": "the-token-of-a-load-test"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/"
    wait_for_page(address, server)
    return server, address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sweep", type=int, default=64)
    parser.add_argument("--model", default="nouns")
    flags = parser.parse_args()
    server, address = start(flags.model)
    try:
        began = time.monotonic()
        given = asyncio.run(crowd(address, flags.people, flags.requests, flags.steps, flags.model, flags.sweep))
        total = time.monotonic() - began
        numbers = httpx.get(f"{address}metrics", auth=("", "the-token-of-a-load-test")).text
    finally:
        server.terminate()
    busy = [one for one in given["late"] if BUSY in one.error]
    refused = [seconds for one in given["people"] for seconds in one.refused] + [one.seconds for one in busy]
    served = [one for one in given["late"] if not one.error]
    check([*given["people"], *given["sweep"], *served])
    assert len(busy) + len(served) == len(given["late"]), [one.error for one in given["late"]]
    (swept,) = given["sweep"]
    compared = check_alone([*given["people"][:60], *given["sweep"]], flags.model)
    print(f"{total:.1f} s in all; everybody got their own pictures, {compared} requests compared with a run alone")
    for task in (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT):
        print(describe(task, [one for one in given["people"] if one.recipe.task == task]))
    print(describe("all people", given["people"]))
    print(describe(f"the sweep of {flags.sweep}", given["sweep"]))
    print(describe("told that too many wait", [Asked(swept.recipe, seconds) for seconds in refused]))
    print(describe("came late and got in", served))
    print(numbers)


if __name__ == "__main__":
    main()
