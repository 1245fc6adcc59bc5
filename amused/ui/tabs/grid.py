"""A grid: the pictures of a tab's settings along two axes, one recipe each, ending in a labelled sheet.

Knows how a grid is asked for and shown; what can be put on an axis is known by `amused.recipe.grid`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from amused.errors import UserError
from amused.generation.contact_sheet import grid as lay_out
from amused.recipe.grid import AXES, NONE, Grid, expand
from amused.recipe.recipe import STRENGTHS, Recipe
from amused.serving import jobs
from amused.serving.runtime import Runtime
from amused.ui.run import (
    Request,
    Run,
    TabState,
    connect,
    count_pictures,
    describe_seconds,
    png_bytes,
    sample,
    save_file,
    status_line,
)
from amused.ui.settings import AT_ONCE, Panel
from amused.ui.sync import follow

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
OFFER_JS = """(axis) => {
    const chosen = (window.amusedAxes ||= {});
    if (axis === (chosen["%(field)s"] ?? %(first)s)) return { __type__: "update" };
    chosen["%(field)s"] = axis;
    return %(offers)s[axis] ?? { __type__: "update" };
}"""
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
        name.input(None, name, values, js=offer_values(name), **AT_ONCE)
    say = partial(say_before, runtime, task)
    told.value = say(*(part.value for part in [*axes, *asked]))
    inputs = [*axes, *asked]
    follow([*(part.change for part in inputs), panel.result.ended.change], say, inputs, [told])

    def run(former: Run, tab: TabState, tag: bool, *values: Any) -> Iterator[list[Any]]:
        yield from make(runtime, former, tab, tag, values[: len(axes)], lambda: read(*values[len(axes) :]))

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


def offer_values(axis: gr.Dropdown) -> str:
    """The script that fills in values for an axis that has just been chosen; a wording is the visitor's own.

    It runs in the browser, where nothing can be typed before it is done. A dropdown (Gradio 6.31) reports an input
    whenever it loses the focus, too: values stay as they are unless the axis is another one than before.
    """
    offers = {
        name: {
            "__type__": "update",
            "value": "" if name == WORDING else example,
            "placeholder": example,
            "interactive": name != NONE,
        }
        for name, example in PLACEHOLDERS.items()
    }
    return OFFER_JS % {"field": axis.elem_id, "first": json.dumps(axis.value), "offers": json.dumps(offers)}


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
    text, pace = count_pictures(len(recipes)), runtime.seconds_per_step(model)
    if pace is not None:
        text += f", about {describe_seconds(pace * count_steps(recipes))}"
    return status_line(text)


def count_steps(recipes: Sequence[Recipe]) -> int:
    return sum(recipe.steps - recipe.start for recipe in recipes)


def make(
    runtime: Runtime, former: Run, tab: TabState, tag: bool, axes: Sequence[str], read: Callable[[], Request]
) -> Iterator[list[Any]]:
    """Make the pictures of a grid one by one, then its sheet. Stopped, it keeps the finished ones, on a sheet too."""
    start: Recipe
    table: Grid

    def read_grid() -> jobs.Request:
        nonlocal start, table
        start, image, mask = read()
        table = expand(start, *axes)
        return jobs.Request(table.recipes, image, mask)

    def finish(images: list[Image.Image]) -> list[Any]:
        return [show_sheet(images, table.across, table.down, start) if images else gr.skip()]

    yield from sample(runtime, former, tab, tag, read_grid, finish=finish, also=1)


def show_sheet(pictures: list[Image.Image], across: Sequence[str], down: Sequence[str], recipe: Recipe) -> gr.Image:
    """The sheet of what was made, as a file: a picture given to the page would be compressed."""
    sheet = lay_out(pictures, across, down, recipe.prompt)
    return gr.Image(value=save_file(png_bytes(sheet), "amused-grid.png"), visible=True)
