"""Text to image: a prompt becomes images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gradio as gr
from gradio.components import Component

from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui import examples, grid
from amused.ui.events import Updates, Values
from amused.ui.latest import sync
from amused.ui.results import ResultView
from amused.ui.shapes import SHAPES, SQUARE, shape_of, sides
from amused.ui.tab import Tab, build_controls, connect_tab


@dataclass(frozen=True)
class TextTab(Tab):
    shape: gr.Dropdown

    @property
    def sources(self) -> list[Component]:
        return [self.shape]

    @property
    def own_controls(self) -> list[Component]:
        return [self.shape]

    def read_typed(self, values: Values) -> Request:
        recipe = self.settings.to_recipe(values)
        if values[self.shape] != SQUARE:  # which is the model's own size: links need not name it
            width, height = sides(values[self.shape], *self.runtime.native_size(recipe.model))
            recipe = replace(recipe, width=width, height=height)
        return Request((recipe,))

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        return {self.shape: shape_of(recipe.width, recipe.height, *self.runtime.native_size(recipe.model)) or SQUARE}


def build(runtime: Runtime, result: ResultView) -> TextTab:
    with gr.Tab("Text to image", id=TEXT_TO_IMAGE):
        controls = build_controls(TEXT_TO_IMAGE, runtime, result)
        with controls.basic:
            shape = gr.Dropdown(list(SHAPES), value=SQUARE, label="Shape", elem_id=f"{TEXT_TO_IMAGE}-shape")
        tab = TextTab(runtime, controls, result, shape)
        connect_tab(tab)
        sync([shape], tab.remember_inputs, {shape, result.state}, [])
        grid.GridSection(tab)
        examples.connect(tab)
    return tab
