"""The grid of a tab: its settings varied along two axes (`amused.recipe.grid`), shown as a labelled sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.components import Component

from amused.errors import UserError
from amused.generation.contact_sheet import grid as draw_grid
from amused.generation.images import png_bytes
from amused.recipe.grid import AXES, NONE, Grid, expand
from amused.recipe.recipe import STRENGTHS, Recipe
from amused.serving import file_cache
from amused.ui.events import UNQUEUED, Updates, Values
from amused.ui.files import GeneratedImage, open_image
from amused.ui.latest import sync
from amused.ui.results import ResultState, build_progress
from amused.ui.runs import PartialRequest, RunAction, connect
from amused.ui.status import describe_seconds, status_line
from amused.ui.tab import Tab
from amused.wording import plural, shorten

WORDING = "prompt wording"
PLACEHOLDERS = {
    NONE: "",
    "seed": "8, 15, 100-103",
    "steps": "4, 8, 12, 20",
    "guidance": "2, 5, 10",
    "temperature": "0, 1, 2, 4",
    "strength": "0.3, 0.5, 0.7, 0.9",
    WORDING: "fox, owl, cow (fox is in the prompt)",
}
OFFER_JS = """(axis) => {
    const axes = (window.amusedAxes ||= {});
    if (axis === (axes["%(field)s"] ?? %(first)s)) return { __type__: "update" };
    axes["%(field)s"] = axis;
    return %(offers)s[axis] ?? { __type__: "update" };
}"""
MAX_LINE = 300
ACROSS, DOWN = ("steps", "4, 8, 12"), ("seed", "0-2")


@dataclass(frozen=True, kw_only=True)
class GridRequest(PartialRequest):
    """The cells that were not made before; `cells` are the recipes of all, as their images have them."""

    grid: Grid
    cells: tuple[Recipe, ...]


class Axis:
    def __init__(self, elem_id: str, label: str, names: list[str], name: str, values: str) -> None:
        with gr.Row():
            self.name = gr.Dropdown(names, value=name, label=label, min_width=130, elem_id=elem_id)
            self.values = gr.Textbox(
                value=values,
                label=f"Values {label.lower()}",
                placeholder=PLACEHOLDERS[name],
                max_lines=1,
                min_width=160,
                elem_id=f"{elem_id}-values",
            )
        self.name.input(None, self.name, self.values, js=offer_values(self.name), **UNQUEUED)


class GridSection:
    """The section of a tab, closed."""

    def __init__(self, tab: Tab) -> None:
        self.tab, self.sheet, task = tab, tab.result.sheet, tab.task
        names = [name for name in AXES if name != "strength" or task in STRENGTHS]
        with gr.Accordion("Grid", open=False, elem_id=f"{task}-grid"):
            gr.Markdown("One image per pair of values, on a labelled sheet.")
            self.across = Axis(f"{task}-across", "Across", names, *ACROSS)
            self.down = Axis(f"{task}-down", "Down", names, *DOWN)
            make = gr.Button("Make the grid", elem_id=f"{task}-grid-make")
            # Below the button, which would move away from a press when the estimate gets another line.
            self.estimate = gr.HTML(padding=False, elem_id=f"{task}-grid-estimate", elem_classes="status-box")
            progress = build_progress(f"{task}-grid-progress")
        inputs = self.estimate_inputs
        self.estimate.value = self.describe_estimate({part: part.value for part in inputs})[self.estimate]
        sync([*inputs, tab.result.ended], self.describe_estimate, {*inputs}, [self.estimate])
        self.action = RunAction(
            read=self.read,
            inputs={*self.axes, *tab.inputs},
            name=self.name,
            progress=progress,
            finish=self.show_sheet,
        )
        connect(tab.runtime, tab.result, [make.click], self.action)

    @property
    def axes(self) -> list[Component]:
        return [self.across.name, self.across.values, self.down.name, self.down.values]

    @property
    def estimate_inputs(self) -> list[Component]:
        settings = self.tab.settings
        return [*self.axes, settings.prompt, settings.steps, settings.strength, settings.model]

    def name(self, values: Values) -> str:
        axes = [name for axis in (self.across, self.down) if (name := values[axis.name]) != NONE]
        return f"Grid: {' by '.join(axes)}"

    def expand(self, recipe: Recipe, values: Values) -> Grid:
        return expand(recipe, *(values[part] for part in self.axes))

    def describe_estimate(self, values: Values) -> Updates:
        """What a run will make and how long it will take, or what is wrong with the values."""
        settings, task = self.tab.settings, self.tab.task
        model = values[settings.model]
        try:
            recipe = Recipe(
                task,
                values[settings.prompt],
                (0,),
                model=model,
                steps=values[settings.steps],
                strength=values[settings.strength] if task in STRENGTHS else None,
            )
            grid = self.expand(settings.single(recipe), values)
        except UserError as error:
            return {self.estimate: status_line(str(error))}
        text, seconds_per_step = plural(len(grid.recipes), "image"), self.tab.runtime.seconds_per_step(model)
        if seconds_per_step is not None:
            steps = sum(recipe.passes for recipe in grid.recipes)
            text += f", about {describe_seconds(seconds_per_step * steps)}"
        return {self.estimate: status_line(text, *describe_axes(grid))}

    def read(self, values: Values) -> GridRequest:
        request = self.tab.read_typed(values)
        grid = self.expand(self.tab.settings.single(request.recipes[0]), values)
        known = made_before(values[self.tab.result.state])
        freeze = self.tab.runtime.freeze_recipe
        cells = tuple(freeze(recipe, request.image, request.mask) for recipe in grid.recipes)
        return GridRequest(
            tuple(recipe for recipe, cell in zip(grid.recipes, cells) if cell not in known),
            request.image,
            request.mask,
            existing=tuple(known[cell] for cell in cells if cell in known),
            grid=grid,
            cells=cells,
        )

    def show_sheet(self, request: GridRequest, images: Sequence[GeneratedImage]) -> Updates:
        """The sheet of the finished images, as a file: Gradio would compress an image."""
        finished = {image.recipe: image.path for image in images}
        cells = [open_image(finished[cell]) if cell in finished else None for cell in request.cells]
        sheet = draw_grid(cells, request.grid.across, request.grid.down, request.grid.recipes[0].prompt)
        return {self.sheet: gr.Image(value=file_cache.save(png_bytes(sheet), "amused-grid.png"), visible=True)}


def made_before(state: ResultState) -> dict[Recipe, GeneratedImage]:
    """The images of the visit by recipe, as long as their files are there."""
    images = (image for entry in state.history.entries for image in entry.images)
    return {image.recipe: image for image in images if Path(image.path).exists()}


def describe_axes(grid: Grid) -> list[str]:
    """Each axis with its values; the prompts in full, as a wording may replace more or less than was meant."""
    prompts = list(dict.fromkeys(recipe.prompt for recipe in grid.recipes))
    axes = ("Across", grid.across), ("Down", grid.down)
    lines = [f"{name}: {', '.join(labels)}" for name, labels in axes if labels != ("",)]
    if len(prompts) > 1:
        lines.append(f"Prompts: {' | '.join(prompts)}")
    return [shorten(line, MAX_LINE) for line in lines]


def offer_values(axis: gr.Dropdown) -> str:
    """A script that fills in example values for a newly selected axis; a wording is the visitor's own.

    It runs in the browser, before anything can be typed. A dropdown (Gradio 6.31) also reports an input when it loses
    focus: the values stay unless the axis has changed.
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
