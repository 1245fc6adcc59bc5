"""From a click to a gallery that fills: progress, previews, stopping, and errors that lose nothing.

Knows no task: whoever starts a run says how its settings and pictures are read.
"""

from __future__ import annotations

import html
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from amused.errors import UserError
from amused.generation.images import digest
from amused.recipe.metadata import png_info
from amused.recipe.recipe import Recipe
from amused.recipe.seeds import format_seeds
from amused.serving import file_cache, jobs
from amused.serving.jobs import Progress, Started, Summary
from amused.serving.runtime import Runtime
from amused.serving.scheduler import Status, forget_frames
from amused.ui.settings import AT_ONCE, Panel
from amused.ui.sync import COUNT_JS

log = logging.getLogger(__name__)

# Of events that use the model: who is next is decided by the runtime, not by Gradio, which would go on with one run to
# its end before it begins the next.
SAMPLING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}

FAILED = "Something went wrong on our side. Your settings are kept: please try again."
OUT_OF_MEMORY = "The machine ran out of memory: choose a smaller model, or try again later."

# Runs in the browser the moment the button is pressed, when the request still waits for its turn.
WAITING_JS = """() => [
    '<div class="status"><p>Waiting for the model</p><progress aria-label="Progress"></progress></div>',
    {__type__: 'update', visible: true}
]"""

Request = tuple[Recipe, Image.Image | None, Image.Image | None]  # with the picture and the mask to start from


def as_request(read: Request) -> jobs.Request:
    recipe, image, mask = read
    return jobs.Request((recipe,), image, mask)


@dataclass(frozen=True)
class Shot:
    """One finished picture: its file, its seed, the recipe of this one seed, and what replays it.

    `image` and `mask` are the files that an image task, or the first of a chain of recipes, was given; `made` says
    on what the picture was made (`Result.fingerprint`).
    """

    path: str
    seed: int
    recipe: Recipe
    digest: str
    size: tuple[int, int]
    image: str | None = None
    mask: str | None = None
    made: str | None = None


@dataclass(frozen=True)
class Run:
    """What a tab remembers: the pictures it shows, and how the run that made them ended (empty while it goes on)."""

    shots: tuple[Shot, ...] = ()
    made: int = 0
    wanted: int = 0
    note: str = ""


@dataclass(eq=False)
class TabState:
    """What the events of one tab share: the same object for all of them, and the owner of the tab's runs.

    Attributes:
        pressed: for each run that is still to come, whether another one was before it and `stops` at that time.
        runs: how many go on or wait.
        stops: how often Stop was pressed; `dropped` how many waiting runs the last one dropped.
        last: what the tab shows.
    """

    pressed: list[tuple[bool, int]] = field(default_factory=list)
    runs: int = 0
    stops: int = 0
    dropped: int = 0
    last: Run | None = None

    def press(self) -> None:
        self.pressed.append((bool(self.runs or self.pressed), self.stops))

    def begin(self) -> tuple[bool, int]:
        """A run comes: whether another one was before it when it was asked for, and `stops` at that time."""
        pressed = self.pressed.pop(0) if self.pressed else (bool(self.runs), self.stops)
        self.runs += 1
        return pressed


@dataclass(frozen=True)
class Result:
    """The components that a run fills. `place` is where a picked picture is shown, `tag` whether files say how.

    `ended` is a number that changes when a run has ended. It is for whatever follows a run: the change of a State is
    not told to the browser by events with `queue=False` (Gradio 6.31), so nothing may wait for that of `run`.
    """

    status: gr.HTML
    gallery: gr.Gallery
    place: gr.Column
    run: gr.State
    tab: gr.State
    tag: gr.State
    ended: gr.Number


def build_result(task: str, hint: str) -> Result:
    status = gr.HTML(value=status_line(hint), padding=False, elem_id=f"{task}-status", elem_classes="told")
    gallery = gr.Gallery(
        label="Pictures",
        show_label=False,
        format="png",
        columns=2,
        object_fit="contain",
        allow_preview=False,  # a picture that is picked is shown below, with all that can be done with it
        interactive=False,
        buttons=["download_all", "fullscreen"],
        elem_id=f"{task}-gallery",
        elem_classes="pictures",
    )
    place = gr.Column(visible=False, elem_id=f"{task}-picked", elem_classes="picked")
    ended = gr.Number(0, visible="hidden", elem_id=f"{task}-ended")
    return Result(status, gallery, place, gr.State(Run()), gr.State(TabState()), gr.State(True), ended)


def wire(
    runtime: Runtime,
    panel: Panel,
    result: Result,
    media: list[Any],
    read: Callable[..., Request],
    bring: Callable[[list[Any]], Any] | None = None,
) -> Panel:
    """Connect a tab: `read(*media, *settings)` gives the request, or raises UserError. Gives the whole panel."""
    inputs = [*media, *panel.settings.inputs()]
    chance = inputs.index(panel.settings.random_seeds)
    panel = replace(panel, media=media, result=result, own=media, read=read, bring=bring)

    def run(former: Run, tab: TabState, tag: bool, *values: Any) -> Iterator[list[Any]]:
        # Seeds that were written are left alone: the next ones may be being typed.
        yield from sample(runtime, former, tab, tag, lambda: as_request(read(*values)), write=bool(values[chance]))

    connect(panel, [panel.run.click, panel.settings.prompt.submit], run, inputs, bring=bring)
    panel.stop.click(partial(ask_to_stop, runtime), result.tab, [result.status, panel.stop], **AT_ONCE)
    return panel


def connect(
    panel: Panel,
    pressed: list[Any],
    run: Callable[..., Iterator[list[Any]]],
    inputs: list[Any],
    also: Sequence[Any] = (),
    bring: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Start `run(former run, tab, tag, *inputs)` by any of these events; as often as wanted, one after the other.

    What it yields is for the outputs of `page`, and for those in `also` after them. `bring(events)` connects what has
    to be done before the inputs are read.
    """
    result: Result = panel.result
    gr.on(pressed, None, None, [result.status, panel.stop], js=WAITING_JS, show_progress="hidden")
    gr.on(pressed, lambda tab: tab.press(), result.tab, None, **AT_ONCE)
    start = partial(gr.on, pressed) if bring is None else bring(pressed).then
    running = start(
        run,
        [result.run, result.tab, result.tag, *inputs],
        [result.status, result.gallery, result.run, panel.settings.seeds, panel.stop, *also],
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple",
        **SAMPLING,
    )
    # However a run ended, and even if it could not say so itself.
    for ended in (running.then, running.failure):
        ended(settle, [result.run, result.tab], [result.status, result.gallery, panel.stop], **AT_ONCE)
        ended(None, None, result.ended, js=COUNT_JS, **AT_ONCE)


def sample(
    runtime: Runtime,
    former: Run,
    tab: TabState,
    tag: bool,
    read: Callable[[], jobs.Request],
    append: bool = False,
    write: bool = False,
    finish: Callable[[list[Image.Image]], list[Any]] = lambda images: [],
    also: int = 0,
) -> Iterator[list[Any]]:
    """Make the pictures of a request, telling the page after each step; what goes wrong loses nothing.

    Args:
        tag: put the recipe into the files.
        append: add to the pictures that are there, as a run does that waited for another one.
        write: put the seeds into their field.
        finish: updates at the end, for `also` outputs beyond those of `page`.
    """
    waited, stops = tab.begin()
    run = former
    shots: tuple[Shot, ...] = ()
    images: list[Image.Image] = []
    source: tuple[str | None, str | None] = (None, None)
    total, sentence = 0, None
    try:
        for event in runtime.run(read, tab, lambda: tab.stops > stops):
            update, others = page(), [gr.skip()] * also
            if isinstance(event, Status):
                if not event.behind_owner:  # else the status is that of the run before
                    update = page(status=busy_line(event.text, event.share))
            elif isinstance(event, Started):
                before = tab.last or former
                shots = before.shots if append or waited else ()
                total = len(shots) + event.num_images
                run = tab.last = replace(before, made=0, wanted=event.num_images, note="")
                seeds = format_seeds(event.request.recipes[0].seeds) if write else None
                yield [*page(status=busy_line("Starting"), run=run, seeds=seeds, stop=gr.Button(visible=True)), *others]
                source = save_source(event.request.image), save_source(event.request.mask, "mask.png")
                continue
            elif isinstance(event, Progress):
                update = page(status=busy_line(describe(event), event.share))
                if event.preview is not None:
                    update[1] = show(shots, total, event)
            elif isinstance(event, jobs.Result):
                images.append(event.image)
                shots = (*shots, finished(event, tag, *source))
                run = tab.last = replace(run, shots=shots, made=len(images))
                update = page(gallery=show(shots, total), run=run)
            elif event.num_images or not waited:  # a run dropped while it waited leaves the note of the first
                run = run if event.num_images else tab.last or former
                run = tab.last = replace(run, note=summary(event, tab.dropped))
                update, others = page(run=run), finish(images)
            yield [*update, *others]
    except Exception as error:
        sentence = explain(error)
    finally:
        tab.runs -= 1
    if sentence is not None:  # outside of `except`, where the error and all that it holds would live on
        if total or not tab.runs:  # else what the tab shows is of another run
            run = tab.last = replace(tab.last or former, note=sentence)
            yield [*page(run=run), *[gr.skip()] * also]
        raise gr.Error(sentence, print_exception=False)


def summary(event: Summary, dropped: int = 0) -> str:
    """How a run ended; `dropped` runs that waited behind it were stopped with it."""
    if event.stopped:
        kept = count_pictures(event.num_done)
        note = f"Stopped: {kept} of {event.num_images} kept" if event.num_done else "Stopped"
        return f"{note}. {dropped} waiting {'run was' if dropped == 1 else 'runs were'} dropped" if dropped else note
    note = f"{count_pictures(event.num_done)} in {describe_seconds(event.seconds)}"
    if event.prompt_is_cut:
        return f"{note}. The prompt is longer than the model reads: its end was left out"
    return note


def finished(event: jobs.Result, tag: bool, image: str | None = None, mask: str | None = None) -> Shot:
    pixels = bare(event.image)
    name = digest(pixels)
    path = save_picture(event, png_info(event.recipe, name, event.fingerprint) if tag else None)
    return Shot(path, event.seed, event.recipe, name, pixels.size, image, mask, event.fingerprint)


def page(status: Any = None, gallery: Any = None, run: Any = None, seeds: Any = None, stop: Any = None) -> list[Any]:
    """What changes on the page; the rest stays as it is."""
    return [gr.skip() if value is None else value for value in (status, gallery, run, seeds, stop)]


def ask_to_stop(runtime: Runtime, tab: TabState) -> list[Any]:
    """End the tab's run, and drop those that wait behind it or are still on their way here."""
    tab.stops += 1
    tab.dropped = max(0, tab.runs + len(tab.pressed) - 1)
    runtime.stop(tab)
    return [busy_line("Stopping"), gr.Button(visible=False)]


def settle(run: Run, tab: TabState) -> list[Any]:
    if tab.runs:  # the next run is at work already
        return [gr.skip(), gr.skip(), gr.skip()]
    return [status_line(run.note or "Stopped"), show(run.shots), gr.Button(visible=bool(tab.pressed))]


def explain(error: Exception) -> str:
    """The sentence for a person; what they need not know goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or "outofmemory" in str(error).lower().replace(" ", ""):
        log.error("out of memory", exc_info=error)
        forget_frames(error)
        return OUT_OF_MEMORY
    if isinstance(error, gr.Error):  # of `spaces`, about the visitor's time on a shared GPU
        return str(error.message)
    log.error("a run failed", exc_info=error)
    return FAILED


# Pictures


def show(shots: tuple[Shot, ...], total: int | None = None, working: Progress | None = None) -> gr.Gallery:
    """The gallery of the finished pictures and, where one is being made, of the picture so far."""
    tiles: list[tuple[Any, str]] = [(shot.path, f"seed {shot.seed}") for shot in shots]
    if working is not None and working.preview is not None:
        tiles.append((save_preview(working.preview), f"seed {working.seed}"))
    return gr.Gallery(value=tiles, columns=columns_for(total or len(tiles)))


def columns_for(total: int) -> int:
    return 1 if total <= 1 else 2 if total <= 4 else 3 if total <= 9 else 4 if total <= 32 else 6


def bare(image: Image.Image) -> Image.Image:
    """Nothing but the pixels: files would also tell what is in `info`, of a visitor's own picture too."""
    return Image.fromarray(np.asarray(image.convert("RGB")))


def save_picture(picture: jobs.Result, info: PngInfo | None = None) -> str:
    return save_file(png_bytes(bare(picture.image), info), f"amused-seed-{picture.seed}.png")


def save_source(image: Image.Image | None, name: str = "given.png") -> str | None:
    """A picture or mask that was given, for those that want to go on from a result of it."""
    return None if image is None else save_file(png_bytes(image, compress_level=1), name)


def png_bytes(image: Image.Image, info: PngInfo | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def save_file(content: bytes, name: str) -> str:
    return file_cache.save(content, name)


def save_preview(image: Image.Image) -> str:
    # Small and lossy: there are many of them, and each is looked at for a moment.
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    return save_file(buffer.getvalue(), "preview.webp")


# Words


def describe(event: Progress) -> str:
    text = f"picture {event.index + 1} of {event.num_images}, step {event.step} of {event.steps}"
    if event.seconds_left is None or event.seconds_left < 0.5:
        return text
    return f"{text}, about {describe_seconds(event.seconds_left)} left"


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
