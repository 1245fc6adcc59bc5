"""From a click to a gallery that fills: progress, previews, stopping, and errors that lose nothing.

Knows no task: whoever starts a run says how its settings and pictures are read.
"""

from __future__ import annotations

import html
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import UserError
from ..images import digest
from ..links import png_info
from ..recipe import Recipe
from ..runtime import Finished, Runtime, Waiting, Working
from ..turns import forget_frames
from . import cache
from .following import COUNT_JS
from .settings import AT_ONCE, Panel

log = logging.getLogger(__name__)

# Of events that use the model: who is next is decided by the runtime, not by Gradio, which would go on with one run to
# its end before it begins the next.
SAMPLING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}

MAX_WAITING_RUNS = 4  # of one tab
LOOK_SECONDS = 0.25  # a run that waits for another one of its tab looks up this often

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
    """One finished picture: its file, its seed, the recipe of this one seed, and what replays it.

    `image` and `mask` are the files that an image task, or the first of a chain of recipes, was given; `made` says
    on what the picture was made (`Runtime.made`).
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
class Ticket:
    """One run of a tab: whether another one was before it, and what Stop asks of it.

    A run that is `stopped` ends with what it has made; one that is `dropped` never begins.
    """

    behind: bool
    stopped: bool = False
    dropped: bool = False


@dataclass
class Desk:
    """What the events of one tab tell each other: the same object for all of them.

    `line` holds the run at work and behind it those that wait for it to end, `pressed` those that are still to come,
    `last` what the tab shows since its last run, `dropped` how many waiting runs Stop has dropped since then.
    """

    line: list[Ticket] = field(default_factory=list)
    pressed: list[Ticket] = field(default_factory=list)
    last: Run | None = None
    dropped: int = 0

    @property
    def stop(self) -> bool:
        """Whether the run at work is to end."""
        return bool(self.line) and self.line[0].stopped

    def press(self) -> None:
        self.pressed.append(Ticket(behind=bool(self.line or self.pressed)))

    def ask_to_stop(self) -> None:
        """End the run at work, and drop all that wait."""
        tickets = [ticket for ticket in [*self.line, *self.pressed] if not ticket.dropped]
        for ticket in tickets[:1]:
            ticket.stopped = True
        for ticket in tickets[1:]:
            ticket.dropped = True
            self.dropped += 1


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
    desk: gr.State
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
    return Result(status, gallery, place, gr.State(Run()), gr.State(Desk()), gr.State(True), ended)


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

    def run(former: Run, desk: Desk, tag: bool, *values: Any) -> Iterator[list[Any]]:
        # Seeds that were written are left alone: the next ones may be being typed.
        yield from sample(runtime, former, desk, tag, lambda: read(*values), write=bool(values[chance]))

    connect(panel, [panel.run.click, panel.settings.prompt.submit], run, inputs, bring=bring)
    panel.stop.click(ask_to_stop, result.desk, [result.status, panel.stop], **AT_ONCE)
    return panel


def connect(
    panel: Panel,
    pressed: list[Any],
    run: Callable[..., Iterator[list[Any]]],
    inputs: list[Any],
    also: Sequence[Any] = (),
    bring: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Start `run(former run, desk, tag, *inputs)` by any of these events; as often as wanted, one after the other.

    What it yields is for the outputs of `page`, and for those in `also` after them. `bring(events)` connects what has
    to be done before the inputs are read.
    """
    result: Result = panel.result
    gr.on(pressed, None, None, [result.status, panel.stop], js=WAITING_JS, show_progress="hidden")
    gr.on(pressed, lambda desk: desk.press(), result.desk, None, **AT_ONCE)
    start = partial(gr.on, pressed) if bring is None else bring(pressed).then
    running = start(
        run,
        [result.run, result.desk, result.tag, *inputs],
        [result.status, result.gallery, result.run, panel.settings.seeds, panel.stop, *also],
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple",
        **SAMPLING,
    )
    # However a run ended, and even if it could not say so itself.
    for ended in (running.then, running.failure):
        ended(settle, [result.run, result.desk], [result.status, result.gallery, panel.stop], **AT_ONCE)
        ended(None, None, result.ended, js=COUNT_JS, **AT_ONCE)


Work = Callable[[Run, bool], Iterator[list[Any]]]
"""Given the run before and whether its pictures stay, yields updates of `page` and perhaps more behind them."""


def at_desk(desk: Desk, former: Run, work: Work, outputs: int = 5) -> Iterator[list[Any]]:
    """Work once the earlier runs of this tab have ended; what goes wrong is told and loses nothing."""
    ticket = desk.pressed.pop(0) if desk.pressed else Ticket(behind=bool(desk.line))
    if len(desk.line) > MAX_WAITING_RUNS:
        raise gr.Error(f"{MAX_WAITING_RUNS} runs of this tab wait already: let one end first.", print_exception=False)
    desk.line.append(ticket)
    sentence = None
    run = former
    try:
        while desk.line[0] is not ticket and not ticket.dropped:
            yield [gr.skip()] * outputs  # the status is that of the run before; and this can be closed here
            time.sleep(LOOK_SECONDS)
        if ticket.dropped:
            return
        run = former = replace(desk.last or former, made=0, wanted=0, note="")
        for update in work(former, ticket.behind):
            if isinstance(update[2], Run):
                run = update[2]
            yield update
    except Exception as error:
        sentence = explain(error)
    finally:
        if desk.line[0] is ticket and not ticket.dropped:
            desk.last, desk.dropped = run, 0
        desk.line.remove(ticket)
    if sentence is not None:  # outside of `except`, where the error and all that it holds would live on
        yield [*page(run=replace(run, note=sentence)), *[gr.skip()] * (outputs - 5)]
        raise gr.Error(sentence, print_exception=False)


def sample(
    runtime: Runtime,
    former: Run,
    desk: Desk,
    tag: bool,
    read: Callable[[], Request],
    append: bool = False,
    write: bool = False,
) -> Iterator[list[Any]]:
    """Make the pictures of a request, telling the page after each step.

    Args:
        tag: put the recipe into the files.
        append: add to the pictures that are there, as a run does that waited for another one.
        write: put the seeds into their field.
    """

    def work(former: Run, waited: bool) -> Iterator[list[Any]]:
        with runtime.visit() as visit:
            yield from told(visit.admitted(), desk)
            recipe, image, mask = read()
            run = replace(former, wanted=len(recipe.seeds))
            started = time.monotonic()
            seeds = write_seeds(recipe) if write else None
            yield page(status=busy_line("Starting"), run=run, seeds=seeds, stop=gr.Button(visible=True))
            yield from told(visit.wait(recipe.model), desk)
            shots: tuple[Shot, ...] = former.shots if append or waited else ()
            cut = False
            if not desk.stop:
                source = save_source(image), save_source(mask, "mask.png")
                recipe = completed(runtime, recipe, image, mask)
                pace = Pace(len(recipe.seeds))
                total = len(shots) + len(recipe.seeds)
                for event in visit.generate(recipe, image, mask):
                    if isinstance(event, Waiting):
                        yield page(status=busy_line(event.text, event.share))
                    elif isinstance(event, Working):
                        update = page(status=busy_line(pace.describe(event), pace.share(event)))
                        if event.preview is not None:
                            update[1] = show(shots, total, event)
                        yield update
                    else:
                        cut = event.cut
                        shots = (*shots, finished(event, recipe, tag, *source))
                        run = replace(run, shots=shots, made=run.made + 1)
                        yield page(gallery=show(shots, total), run=run)
                    if desk.stop:
                        break
            visit.stopped = desk.stop
            yield page(run=replace(run, note=summary(run, desk, time.monotonic() - started, cut)))

    yield from at_desk(desk, former, work)


def told(waiting: Iterator[Waiting], desk: Desk) -> Iterator[list[Any]]:
    """What a run waits for, on the page, until that is over or Stop is pressed."""
    for news in waiting:
        if desk.stop:
            return
        yield page(status=busy_line(news.text, news.share))


def summary(run: Run, desk: Desk, seconds: float, cut: bool) -> str:
    """How a run ended."""
    if desk.stop:
        note = f"Stopped: {count_pictures(run.made)} of {run.wanted} kept" if run.made else "Stopped"
        if not desk.dropped:
            return note
        return f"{note}. {'1 waiting run' if desk.dropped == 1 else f'{desk.dropped} waiting runs'} dropped"
    note = f"{count_pictures(run.made)} in {describe_seconds(seconds)}"
    return f"{note}. The prompt is longer than the model reads: its end was left out" if cut else note


def completed(runtime: Runtime, recipe: Recipe, image: Image.Image | None, mask: Image.Image | None) -> Recipe:
    """The recipe with all that it takes to replay it: its size, and digests of its adapter and what it was given."""
    recipe = runtime.named(recipe)
    if recipe.parent is not None or image is None:
        return recipe
    recipe = runtime.sized(recipe, image)
    given = None if mask is None else recipe.mask or digest(mask)
    return replace(recipe, image=recipe.image or digest(image), mask=given)


def finished(event: Finished, recipe: Recipe, tag: bool, image: str | None = None, mask: str | None = None) -> Shot:
    recipe, pixels = recipe.with_seeds([event.seed]), bare(event.image)
    name = digest(pixels)
    path = save_picture(event, png_info(recipe, name, event.made) if tag else None)
    return Shot(path, event.seed, recipe, name, pixels.size, image, mask, event.made)


def page(status: Any = None, gallery: Any = None, run: Any = None, seeds: Any = None, stop: Any = None) -> list[Any]:
    """What changes on the page; the rest stays as it is."""
    return [gr.skip() if value is None else value for value in (status, gallery, run, seeds, stop)]


def ask_to_stop(desk: Desk) -> list[Any]:
    desk.ask_to_stop()
    return [busy_line("Stopping"), gr.Button(visible=False)]


def settle(run: Run, desk: Desk) -> list[Any]:
    if desk.line:  # the next run is at work already
        return [gr.skip(), gr.skip(), gr.skip()]
    waiting = gr.Button(visible=bool(desk.pressed))
    return [status_line(run.note or "Stopped"), show(run.shots), waiting]


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


def show(shots: tuple[Shot, ...], total: int | None = None, working: Working | None = None) -> gr.Gallery:
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


def save_picture(picture: Finished, info: PngInfo | None = None) -> str:
    return save_file(png_bytes(bare(picture.image), info), f"amused-seed-{picture.seed}.png")


def save_source(image: Image.Image | None, name: str = "given.png") -> str | None:
    """A picture or mask that was given, for those that want to go on from a result of it."""
    return None if image is None else save_file(png_bytes(image, compress_level=1), name)


def png_bytes(image: Image.Image, info: PngInfo | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def save_file(content: bytes, name: str) -> str:
    return cache.save(content, name)


def save_preview(image: Image.Image) -> str:
    # Small and lossy: there are many of them, and each is looked at for a moment.
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    return save_file(buffer.getvalue(), "preview.webp")


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
