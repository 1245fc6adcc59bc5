"""Many requests for a long time: python -m tests.measure.endure [--minutes 30] [--model nouns]

Starts the page in a process of its own, keeps asking it for pictures of all three tasks, gives some up, sends some that
are refused, and writes down what the page holds: memory, threads, open files, the cache. All of it has to level off.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.measure import load
from tests.measure.load import INPAINT, TEXT_TO_IMAGE, Asked, Page, Recipe, mask, picture_of, request_of

STEPS = 4


def held(process: int, cache: Path) -> dict[str, float]:
    """Megabytes of memory, threads, open files; files and megabytes of the cache."""
    folder = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    files = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
    return {
        "memory MB": round(int(status["VmRSS"].split()[0]) / 1024),
        "threads": int(status["Threads"]),
        "open files": len(list((folder / "fd").iterdir())),
        "cached files": len(files),
        "cache MB": round(sum(files) / 1e6, 1),
    }


async def ask_on(address: str, until: float, first: int, model: str, done: list[int]) -> None:
    """One request after the other; every tenth is refused, and every seventh given up."""
    page = Page(address)
    await page.read()
    number = first
    while time.monotonic() < until:
        number += 3
        recipe = request_of(number, 0, STEPS, model)
        given = {} if recipe.task == TEXT_TO_IMAGE else {"image": picture_of(number)}
        if recipe.task == INPAINT:
            given["mask"] = b"no picture" if number % 10 == 0 else mask()
        asked = Asked(recipe)
        if number % 7 == 0:
            asked = Asked(Recipe(TEXT_TO_IMAGE, recipe.prompt, tuple(range(8)), model=model, steps=STEPS))
            try:
                await asyncio.wait_for(page.ask(asked, {}), 0.5)
            except TimeoutError:
                done[0] += 1
                continue
        else:
            await page.ask(asked, given)
        if not asked.error:
            load.check([asked])
        done[0] += 1


async def endure(address: str, process: int, cache: Path, seconds: float, every: float, model: str) -> list[dict]:
    """What the page holds, each so many seconds, and how many requests were done by then."""
    done, curve, began = [0], [], time.monotonic()
    asking = [asyncio.create_task(ask_on(address, began + seconds, 10**5 * n, model, done)) for n in range(3)]
    while not all(task.done() for task in asking):
        await asyncio.sleep(every)
        point = {"seconds": round(time.monotonic() - began), "requests": done[0], **held(process, cache)}
        curve.append(point)
        print(point, flush=True)
    await asyncio.gather(*asking)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="nouns")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache
        os.environ["AMUSED_CACHE_MEGABYTES"] = "50"
        server, address = load.start(flags.model)
        try:
            seconds = 60 * flags.minutes
            asyncio.run(endure(address, server.pid, Path(cache), seconds, max(5, seconds / 30), flags.model))
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
