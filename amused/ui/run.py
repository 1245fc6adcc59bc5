"""From a click to a gallery that fills: progress, previews, stopping, and errors that lose nothing.

Knows no task: a tab says how its settings and pictures are read.
"""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
from gradio import processing_utils, utils
from PIL import Image

from ..errors import UserError
from ..recipe import Recipe
from ..runtime import Finished, Runtime, Working
from .settings import AT_ONCE, Panel

log = logging.getLogger(__name__)

# Events that use the model share it: one at a time, whichever tab or program they come from.
SAMPLING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}

FAILED = "Something went wrong on our side. Your settings are kept: please try again."
OUT_OF_MEMORY = "The machine ran out of memory: choose a smaller model, or try again later."

# Runs in the browser the moment the button is pressed, when the request still waits for its turn.
WAITING_JS = """() => [
    '<div class="status"><p>Waiting for the model</p><progress aria-label="Progress"></progress></div>',
    {__type__: 'update', visible: true}
]"""

Request = tuple[Recipe, Image.Image | None, Image.Image | None]  # with the picture and the mask to start from


@dataclass(frozen=True)
class Shot:
    """One finished picture: its file, its seed, and the recipe of the run it belongs to."""

    path: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Run:
    """What a tab remembers: the pictures it shows, and how the run that made them ended (empty while it goes on)."""

    shots: tuple[Shot, ...] = ()
    made: int = 0
    wanted: int = 0
    note: str = ""


@dataclass(frozen=True)
class Result:
    """The components that a run fills."""

    status: gr.HTML
    gallery: gr.Gallery
    run: gr.State


def build_result(task: str, hint: str) -> Result:
    status = gr.HTML(value=status_line(hint), padding=False, elem_id=f"{task}-status", elem_classes="told")
    gallery = gr.Gallery(
        label="Pictures",
        show_label=False,
        format="png",
        columns=2,
        object_fit="contain",
        interactive=False,
        buttons=["download", "download_all", "fullscreen"],
        elem_id=f"{task}-gallery",
        elem_classes="pictures",
    )
    return Result(status, gallery, gr.State(Run()))


def wire(runtime: Runtime, panel: Panel, result: Result, media: list[Any], read: Callable[..., Request]) -> None:
    """Connect a tab: `read(*media, *settings)` gives the request, or raises UserError."""
    inputs = [*media, *panel.settings.inputs()]

    def run(former: Run, *values: Any) -> Iterator[list[Any]]:
        yield from sample(runtime, former, lambda: read(*values))

    pressed: list[Any] = [panel.run.click, panel.settings.prompt.submit]
    gr.on(pressed, None, None, [result.status, panel.stop], js=WAITING_JS, show_progress="hidden")
    running = gr.on(
        pressed,
        run,
        [result.run, *inputs],
        [result.status, result.gallery, result.run, panel.settings.seeds],
        show_progress="hidden",
        api_visibility="private",
        **SAMPLING,
    )
    panel.stop.click(None, None, None, cancels=[running], **AT_ONCE)
    # A run that was stopped cannot say a last word itself, so this says it for every run, however it ended.
    for ended in (running.then, running.failure):
        ended(settle, result.run, [result.status, result.gallery, panel.stop], **AT_ONCE)


def sample(runtime: Runtime, former: Run, read: Callable[[], Request]) -> Iterator[list[Any]]:
    """Make the pictures of a request, telling the page after each step."""
    run = former
    try:
        recipe, image, mask = read()
        run = replace(former, made=0, wanted=len(recipe.seeds), note="")
        started = time.monotonic()
        yield page(status=busy_line("Starting"), run=run, seeds=write_seeds(recipe))
        for text, share in runtime.loading(recipe.model):
            yield page(status=busy_line(text, share))
        recipe = runtime.sized(recipe, image)
        pace = Pace(len(recipe.seeds))
        shots: tuple[Shot, ...] = ()
        for event in runtime.generate(recipe, image, mask):
            if isinstance(event, Working):
                update = page(status=busy_line(pace.describe(event), pace.share(event)))
                if event.preview is not None:
                    update[1] = show(shots, recipe, event)
                yield update
                continue
            shots = (*shots, Shot(save_picture(event), event.seed, recipe))
            run = replace(run, shots=shots, made=len(shots))
            yield page(gallery=show(shots, recipe), run=run)
        run = replace(run, note=f"{count_pictures(len(shots))} in {describe_seconds(time.monotonic() - started)}")
        yield page(run=run)
    except Exception as error:
        sentence = explain(error)
        yield page(run=replace(run, note=sentence))
        raise gr.Error(sentence, print_exception=False) from None


def page(status: Any = None, gallery: Any = None, run: Any = None, seeds: Any = None) -> list[Any]:
    """What changes on the page; the rest stays as it is."""
    return [gr.skip() if value is None else value for value in (status, gallery, run, seeds)]


def settle(run: Run) -> list[Any]:
    stopped = f"Stopped: {count_pictures(run.made)} of {run.wanted} kept" if run.made else "Stopped"
    return [status_line(run.note or stopped), show(run.shots), gr.Button(visible=False)]


def explain(error: Exception) -> str:
    """The sentence for a person; what they need not know goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, gr.Error):
        return str(error.message)
    log.error("a run failed", exc_info=error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return OUT_OF_MEMORY
    return FAILED


# Pictures


def show(shots: tuple[Shot, ...], recipe: Recipe | None = None, working: Working | None = None) -> gr.Gallery:
    """The gallery of the finished pictures and, where one is being made, of the picture so far."""
    tiles: list[tuple[Any, str]] = [(shot.path, f"seed {shot.seed}") for shot in shots]
    if working is not None and working.preview is not None:
        tiles.append((save_preview(working.preview), f"seed {working.seed}"))
    total = len(recipe.seeds) if recipe is not None else len(tiles)
    return gr.Gallery(value=tiles, columns=columns_for(total))


def columns_for(total: int) -> int:
    return 1 if total <= 1 else 2 if total <= 4 else 3 if total <= 9 else 4 if total <= 32 else 6


def save_picture(picture: Finished) -> str:
    # From the bare pixels: Gradio writes every text in `info` into the file, those of a visitor's own picture too.
    image = Image.fromarray(np.asarray(picture.image.convert("RGB")))
    name = f"amused-seed-{picture.seed}"
    return processing_utils.save_pil_to_cache(image, cache_dir=utils.get_upload_folder(), name=name, format="png")


def save_preview(image: Image.Image) -> str:
    # Small and lossy: there are many of them, and each is looked at for a moment.
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    return processing_utils.save_pil_to_cache(image, cache_dir=utils.get_upload_folder(), name="preview", format="webp")


def write_seeds(recipe: Recipe) -> str:
    """What to write in the field so that the same seeds come again."""
    first, last = recipe.seeds[0], recipe.seeds[-1]
    if recipe.seeds == tuple(range(first, last + 1)):
        return str(first)
    return ", ".join(str(seed) for seed in recipe.seeds)


# Words


class Pace:
    """Where a run is and how long it will still take, from the steps done so far."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._started = time.monotonic()

    def share(self, event: Working) -> float:
        return (event.index + event.step / event.steps) / self._pictures

    def describe(self, event: Working) -> str:
        text = f"picture {event.index + 1} of {self._pictures}, step {event.step} of {event.steps}"
        done = event.index * event.steps + event.step
        left = (self._pictures * event.steps - done) * (time.monotonic() - self._started) / done
        return text if done < 2 or left < 0.5 else f"{text}, about {describe_seconds(left)} left"


def describe_seconds(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def count_pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def status_line(text: str) -> str:
    """How things stand; read out by screen readers."""
    return f'<div class="status" role="status"><p>{html.escape(text)}</p></div>'


def busy_line(text: str, share: float | None = None) -> str:
    """What is being done, above a bar of the share done. Not read out: it changes with every step."""
    value = "" if share is None else f'max="1" value="{share:.3f}"'
    return f'<div class="status"><p>{html.escape(text)}</p><progress {value} aria-label="Progress"></progress></div>'
