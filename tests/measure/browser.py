"""What a browser on the same machine costs a sweep: python -m tests.measure.browser [--count 16] [--turns 2]

A sweep of nouns on the page, watched in Chromium, and the same images from the model alone, in turns. Without a GPU the
browser draws on the cores that the model needs, so that each update and each animation of the page is felt.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright

from amused.memory import keep_freed_memory
from amused.recipe.recipe import Recipe
from amused.serving.model import FinishedImage
from amused.serving.runtime import Runtime
from tests.helpers.browser import CHROMIUM, FLAGS, expect_done, new_context, run, set_seeds
from tests.helpers.serve import serve

TASK, PROMPT = "text_to_image", "a pixel art character"


def browser_seconds() -> float:
    """CPU time of this process's browser so far."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(one.cpu_times()[:2]) for one in children if "chrom" in one.name())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="images of a sweep (default: 16)")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    runtime = Runtime(default="nouns")
    with (
        tempfile.TemporaryDirectory() as cache,
        serve(runtime, Path(cache)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = new_context(browser, 1280, 900).new_page()
        page.goto(address)
        page.wait_for_function("window.amusedRestored")
        for turn in range(options.turns + 1):  # the first loads the model and is not counted
            count = options.count if turn else 1
            set_seeds(page, TASK, "0", count)
            began, spent = time.monotonic(), browser_seconds()
            run(page, TASK)
            expect_done(page, TASK, count)
            watched, spent = time.monotonic() - began, browser_seconds() - spent
            if not turn:
                continue
            began = time.monotonic()
            recipe = Recipe(TASK, PROMPT, tuple(range(count)), model=runtime.default)
            made = [event for event in runtime.queue.model.generate(recipe) if isinstance(event, FinishedImage)]
            alone = time.monotonic() - began
            assert len(made) == count
            print(
                f"{count} images: {watched:.1f} s on the page, of which the browser took {spent:.1f} s of CPU time, "
                f"{alone:.1f} s alone: {watched / alone:.2f} times"
            )


if __name__ == "__main__":
    main()
