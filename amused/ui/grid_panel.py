"""A grid: the pictures of a tab's settings along two axes, one recipe each, ending in a labelled sheet.

Knows how a grid is asked for and shown; what can be put on an axis is known by `amused.axes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from ..axes import AXES, NONE, expand
from ..errors import UserError
from ..recipe import STRENGTHS, Recipe
from ..runtime import Finished, Runtime, Waiting, Working
from ..sheets import grid as lay_out
from .following import follow
from .run import (
    Desk,
    Request,
    Run,
    Shot,
    at_desk,
    busy_line,
    completed,
    connect,
    count_pictures,
    describe_seconds,
    finished,
    page,
    png_bytes,
    save_file,
    save_source,
    show,
    status_line,
    summary,
    told,
)
from .settings import AT_ONCE, Panel

WORDING = "prompt wording"
PLACEHOLDERS = {
    NONE: "",
    "seed": "8, 15, 100-103",
    "steps": "4, 8, 12, 20",
    "guidance": "2, 5, 10",
    "temperature": "0, 1, 2, 4",
    "strength": "0.3, 0.5, 0.7, 0.9",
    WORDING: "fox, owl, cow: the first stands in the prompt",
}
ACROSS, DOWN = ("steps", "4, 8, 12"), ("seed", "0-2")


def build_sheet(task: str) -> gr.Image:
    """Where the labelled sheet will be shown."""
    return gr.Image(
        label="Grid",
        show_label=False,  # it would cover the sheet's own heading
        visible=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id=f"{task}-sheet",
    )


def build(runtime: Runtime, panel: Panel, sheet: gr.Image, own: list[Any], read: Callable[..., Request]) -> None:
    """The folded area, where the page is being built; `own` are the tab's inputs that `read` takes before settings."""
    task, settings = panel.task, panel.settings
    names = [name for name in AXES if name != "strength" or task in STRENGTHS]
    with gr.Accordion("Grid", open=False, elem_id=f"{task}-grid"):
        gr.Markdown("One picture for every pair of values, and all of them on a labelled sheet.")
        across, across_values = axis(task, "across", "Across", names, *ACROSS)
        down, down_values = axis(task, "down", "Down", names, *DOWN)
        axes = [across, across_values, down, down_values]
        asked = [settings.prompt, settings.steps, settings.strength, settings.model]
        told = gr.HTML(padding=False, elem_id=f"{task}-grid-told", elem_classes="told")
        start = gr.Button("Make the grid", elem_id=f"{task}-grid-make")

    for name, values in ((across, across_values), (down, down_values)):
        name.input(offer_values, name, values, **AT_ONCE)
    say = partial(say_before, runtime, task)
    told.value = say(*(part.value for part in [*axes, *asked]))
    inputs = [*axes, *asked]
    follow([*(part.change for part in inputs), panel.result.ended.change], say, inputs, [told])

    def run(former: Run, desk: Desk, tag: bool, *values: Any) -> Iterator[list[Any]]:
        yield from make(runtime, former, desk, tag, values[: len(axes)], lambda: read(*values[len(axes) :]))

    connect(panel, [start.click], run, [*axes, *own, *settings.inputs()], also=[sheet])


def axis(task: str, side: str, label: str, names: list[str], name: str, values: str) -> tuple[Any, Any]:
    with gr.Row():
        chosen = gr.Dropdown(names, value=name, label=label, min_width=130, elem_id=f"{task}-{side}")
        listed = gr.Textbox(
            value=values,
            label=f"Values {label.lower()}",
            placeholder=PLACEHOLDERS[name],
            max_lines=1,
            min_width=160,
            elem_id=f"{task}-{side}-values",
        )
    return chosen, listed


def offer_values(name: str) -> gr.Textbox:
    """Values for an axis that has just been chosen; a wording is the visitor's own."""
    example = PLACEHOLDERS.get(name, "")
    return gr.Textbox(value="" if name == WORDING else example, placeholder=example, interactive=name != NONE)


def say_before(
    runtime: Runtime,
    task: str,
    across: str,
    across_values: str,
    down: str,
    down_values: str,
    prompt: str,
    steps: float,
    strength: float,
    model: str,
) -> str:
    """How many pictures a grid will have and how long they will take, or what is wrong with it."""
    try:
        start = Recipe(task, prompt, (0,), model=model, steps=steps, strength=strength if task in STRENGTHS else None)
        recipes = expand(start, across, across_values, down, down_values).recipes
    except UserError as error:
        return status_line(str(error))
    text, pace = count_pictures(len(recipes)), runtime.pace(model)
    if pace is not None:
        text += f", about {describe_seconds(pace * count_steps(recipes))}"
    return status_line(text)


def count_steps(recipes: Sequence[Recipe]) -> int:
    return sum(recipe.steps - recipe.start for recipe in recipes)


def make(
    runtime: Runtime, former: Run, desk: Desk, tag: bool, axes: Sequence[str], read: Callable[[], Request]
) -> Iterator[list[Any]]:
    """Make the pictures of a grid one by one, then its sheet. Stopped, it keeps the finished ones, on a sheet too."""

    def work(former: Run, waited: bool) -> Iterator[list[Any]]:
        with runtime.visit() as visit:
            yield from ([*update, gr.skip()] for update in told(visit.admitted(), desk))
            recipe, image, mask = read()
            table = expand(recipe, *axes)
            run = replace(former, wanted=len(table.recipes))
            started = time.monotonic()
            yield [*page(status=busy_line("Starting"), run=run, stop=gr.Button(visible=True)), gr.skip()]
            yield from ([*update, gr.skip()] for update in told(visit.wait(recipe.model), desk))
            shots: tuple[Shot, ...] = former.shots if waited else ()
            pictures: list[Image.Image] = []
            source = save_source(image), save_source(mask, "mask.png")
            recipes = [completed(runtime, point, image, mask) for point in table.recipes]
            total, done, cut = len(shots) + len(recipes), 0, False
            began = time.monotonic()
            for point in recipes if not desk.stop else ():
                for event in visit.generate(point, image, mask):
                    if isinstance(event, Waiting):
                        update = page(status=busy_line(event.text, event.share))
                    elif isinstance(event, Finished):
                        cut |= event.cut
                        shots = (*shots, finished(event, point, tag, *source))
                        pictures.append(event.image)
                        run = replace(run, shots=shots, made=len(pictures))
                        update = page(gallery=show(shots, total), run=run)
                    else:
                        done += 1
                        seconds = (time.monotonic() - began) / done * (count_steps(recipes) - done)
                        share = done / count_steps(recipes)
                        update = page(status=busy_line(describe(event, len(pictures), len(recipes), seconds), share))
                        if event.preview is not None:
                            update[1] = show(shots, total, event)
                    yield [*update, gr.skip()]
                    if desk.stop:
                        break
                if desk.stop:
                    break
            visit.stopped = desk.stop
            run = replace(run, note=summary(run, desk, time.monotonic() - started, cut))
            yield [*page(run=run), show_sheet(pictures, table.across, table.down, recipe)]

    yield from at_desk(desk, former, work, outputs=6)


def describe(event: Working, made: int, wanted: int, seconds: float) -> str:
    text = f"picture {made + 1} of {wanted}, step {event.step} of {event.steps}"
    return text if seconds < 0.5 else f"{text}, about {describe_seconds(seconds)} left"


def show_sheet(pictures: list[Image.Image], across: Sequence[str], down: Sequence[str], recipe: Recipe) -> gr.Image:
    """The sheet of what was made, as a file: a picture given to the page would be compressed."""
    if not pictures:
        return gr.skip()
    sheet = lay_out(pictures, across, down, recipe.prompt)
    return gr.Image(value=save_file(png_bytes(sheet), "amused-grid.png"), visible=True)
