"""Inpaint: repaint a part of an image, which is painted, white in a mask file, or a box (`mask_tools`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest
from amused.generation.pixel_masks import mask_rule
from amused.recipe.recipe import INPAINT, MAX_FEATHER, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui import examples, mask_tools
from amused.ui.describe import note
from amused.ui.drawing import Drawing, MaskEditor, build_editor, hide_grid, show_grid
from amused.ui.events import Updates, Values
from amused.ui.inputs import ImageInput
from amused.ui.latest import sync
from amused.ui.results import ResultView
from amused.ui.tab import Tab, build_controls, connect_tab


@dataclass(frozen=True)
class InpaintTab(Tab):
    """`cells` says how many cells of the token grid, which `drawing` shows, will be repainted."""

    drawing: MaskEditor
    mask_file: ImageInput
    left: gr.Slider
    top: gr.Slider
    width: gr.Slider
    height: gr.Slider
    inverted: gr.Checkbox
    only_masked: gr.Checkbox
    feather: gr.Slider
    cells: gr.HTML

    @property
    def box(self) -> list[gr.Slider]:
        return [self.left, self.top, self.width, self.height]

    @property
    def mask_sources(self) -> list[Component]:
        """What determines the mask."""
        return [self.drawing, self.mask_file, *self.box, self.inverted]

    @property
    def sources(self) -> list[Component]:
        return [*self.mask_sources, self.only_masked, self.feather]

    @property
    def file_inputs(self) -> list[Component]:
        return [self.drawing, self.mask_file]

    @property
    def own_controls(self) -> list[Component]:
        return [*self.box, self.inverted, self.only_masked, self.feather]

    def read_typed(self, values: Values) -> Request:
        recipe = self.settings.to_recipe(values)
        image, mask = self.read_images(values)
        recipe = replace(
            recipe,
            feather=values[self.feather],
            only_masked=values[self.only_masked],
            image=digest(image),
            mask=digest(mask),
        )
        return Request((recipe,), image, mask)

    def read_images(self, values: Values, expected: str | None = None) -> tuple[Image.Image, Image.Image]:
        drawing: Drawing = values[self.drawing]
        image = drawing.image(expected)
        return image, self.read_mask(values, image.size)

    def read_mask(self, values: Values, size: tuple[int, int]) -> Image.Image:
        box = [values[side] for side in self.box]
        return mask_tools.build_mask(size, values[self.drawing], values[self.mask_file], box, values[self.inverted])

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        """The mask of a recipe is a file to be used as it is: no box, not inverted."""
        return {**self.no_box(), self.feather: recipe.feather, self.only_masked: recipe.only_masked}

    def no_box(self) -> Updates:
        return {**dict.fromkeys(self.box, 0), self.inverted: False}

    def use_files(self, image: str | None, mask: str | None) -> Updates:
        return {} if image is None else {self.drawing: image, self.mask_file: mask, **self.no_box()}

    def show_cells(self, values: Values) -> Updates:
        """The token grid on the image, and what a run would repaint; nothing of what a run would refuse."""
        self.remember_inputs(values)
        drawing: Drawing = values[self.drawing]
        model = values[self.settings.model]
        try:
            image = drawing.image()
        except UserError:
            return {self.drawing: hide_grid(), self.cells: gr.HTML(visible=False)}
        try:
            mask = self.read_mask(values, image.size)
        except UserError:
            mask = None
        recipe = Recipe(INPAINT, "", (0,), model=model, only_masked=values[self.only_masked])
        recipe = self.runtime.with_default_size(recipe, image)
        size, _ = self.runtime.native_size(model)
        found = mask_tools.repainted_cells(recipe, mask, image.size, size, self.runtime.pixels_per_token(model))
        if found is None:
            return {self.drawing: hide_grid(), self.cells: gr.HTML(visible=False)}
        box, cells = found
        text = f"Will be repainted: {cells.sum()} of {cells.size} cells"
        if mask is not None and (file := values[self.mask_file]) is not None:
            text += f" (mask file: {mask_rule(file)}{', inverted' if values[self.inverted] else ''})"
        return {
            self.drawing: show_grid(image.size, box, cells),
            self.cells: gr.HTML(note(text), visible=mask is not None),
        }


def build(runtime: Runtime, result: ResultView) -> InpaintTab:
    with gr.Tab("Inpaint", id=INPAINT):
        inputs = build_inputs()
        controls = build_controls(INPAINT, runtime, result)
        tab = InpaintTab(runtime, controls, result, **inputs)
        shaping = [*tab.sources, tab.settings.model]
        sync(shaping, tab.show_cells, {*shaping, result.state}, [tab.drawing, tab.cells])
        connect_tab(tab)
        examples.connect(tab)
    return tab


def build_inputs() -> dict[str, Any]:
    """The components of an InpaintTab above its settings."""
    drawing = build_editor("Your image: paint over what should change", f"{INPAINT}-drawing", upload=True)
    cells = gr.HTML(visible=False, padding=False, elem_id=f"{INPAINT}-cells")
    with gr.Accordion("Mask from a file, or a box", open=False, elem_id=f"{INPAINT}-elsewhere"):
        mask_file = ImageInput(
            label="Mask: white is repainted",
            sources=["upload", "clipboard"],
            height=180,
            buttons=[],
            elem_id=f"{INPAINT}-mask",
        )
        with gr.Row():
            left = percent_slider("left", "Box left")
            top = percent_slider("top", "Box top")
        with gr.Row():
            width = percent_slider("across", "Box width", "0 means no box")
            height = percent_slider("down", "Box height", "0 means no box")
    with gr.Group():
        with gr.Row():
            inverted = gr.Checkbox(label="Invert the mask", elem_id=f"{INPAINT}-inverted", min_width=140)
            only_masked = gr.Checkbox(
                label="Repaint at full resolution",
                info="Crops to the mask; the rest keeps its size",
                elem_id=f"{INPAINT}-only-masked",
                min_width=140,
            )
        feather = gr.Slider(
            0,
            MAX_FEATHER,
            value=Recipe.feather,
            step=1,
            label="Feather",
            info="Soft edge, in pixels",
            elem_id=f"{INPAINT}-feather",
        )
    return {
        "drawing": drawing, "mask_file": mask_file, "left": left, "top": top, "width": width, "height": height,
        "inverted": inverted, "only_masked": only_masked, "feather": feather, "cells": cells,
    }  # fmt: skip


def percent_slider(name: str, label: str, info: str | None = None) -> gr.Slider:
    return gr.Slider(
        0, 100, value=0, step=1, label=f"{label}, %", info=info, min_width=130, elem_id=f"{INPAINT}-{name}"
    )
