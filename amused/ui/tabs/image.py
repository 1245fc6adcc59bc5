"""Image to image: an uploaded image, fitted to a size of the model, is redrawn to match a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest, fit, load_image
from amused.recipe.recipe import FITS, IMAGE_TO_IMAGE, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui import examples, grid
from amused.ui.events import Updates, Values
from amused.ui.inputs import NO_IMAGE, ImageInput, Raw
from amused.ui.latest import sync
from amused.ui.results import ResultView
from amused.ui.shapes import OWN_SHAPE, SHAPES, SQUARE, shape_of, sides
from amused.ui.status import status_line
from amused.ui.tab import Tab, build_controls, connect_tab

FIT_LABELS = {"crop": "Crop", "pad": "Pad", "stretch": "Stretch"}


@dataclass(frozen=True)
class ImageTab(Tab):
    """`fit_row` holds `shape` and `fit`; `seen` shows what they make of the image."""

    image: ImageInput
    shape: gr.Dropdown
    fit: gr.Radio
    seen: gr.Image
    fit_row: gr.Row

    @property
    def sources(self) -> list[Component]:
        return [self.image, self.shape, self.fit]

    @property
    def file_inputs(self) -> list[Component]:
        return [self.image]

    @property
    def own_controls(self) -> list[Component]:
        return [self.shape, self.fit]

    def read_typed(self, values: Values) -> Request:
        image, _ = self.read_images(values)
        recipe = self.sized(self.settings.to_recipe(values), values)
        return Request((replace(recipe, image=digest(image)),), image)

    def read_images(self, values: Values, expected: str | None = None) -> tuple[Image.Image, None]:
        return read_image(values[self.image], expected), None

    def sized(self, recipe: Recipe, values: Values) -> Recipe:
        """The recipe with the selected size and fit."""
        width, height = sides(values[self.shape], *self.runtime.native_size(recipe.model))
        return replace(recipe, width=width, height=height, fit=values[self.fit])

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        """The image's own shape stands for a size that no other shape has."""
        shape = shape_of(recipe.width, recipe.height, *self.runtime.native_size(recipe.model))
        return {self.shape: shape or OWN_SHAPE, self.fit: recipe.fit}

    def use_files(self, image: str | None, mask: str | None) -> Updates:
        return {} if image is None else {self.image: image}

    def show_seen(self, values: Values) -> Updates:
        """What the model will be given; why an image cannot be read."""
        self.remember_inputs(values)
        try:
            image = read_image(values[self.image])
            recipe = self.sized(Recipe(IMAGE_TO_IMAGE, "", (0,), model=values[self.settings.model]), values)
            recipe = self.runtime.with_default_size(recipe, image)
            assert recipe.width is not None and recipe.height is not None
            shown = fit(image, recipe.width, recipe.height, recipe.fit)
        except UserError as error:
            hidden: Updates = {self.seen: gr.Image(value=None, visible=False), self.fit_row: gr.Row(visible=False)}
            return hidden if values[self.image] is None else {**hidden, self.result.status: status_line(str(error))}
        label = f"What the model sees: {shown.width} × {shown.height}"
        return {self.seen: gr.Image(value=shown, visible=True, label=label), self.fit_row: gr.Row(visible=True)}


def build(runtime: Runtime, result: ResultView) -> ImageTab:
    with gr.Tab("Image to image", id=IMAGE_TO_IMAGE):
        inputs = build_inputs()
        controls = build_controls(IMAGE_TO_IMAGE, runtime, result)
        tab = ImageTab(runtime, controls, result, **inputs)
        connect_tab(tab)
        examples.connect(tab)
        grid.GridSection(tab)
        changing = [*tab.sources, tab.settings.model]
        sync(changing, tab.show_seen, {*changing, result.state}, [tab.seen, tab.fit_row, result.status])
    return tab


def build_inputs() -> dict[str, Any]:
    """The components of an ImageTab that give it its image."""
    with gr.Row():
        image = ImageInput(
            label="Your image",
            sources=["upload", "clipboard"],
            height=280,
            min_width=200,
            buttons=[],
            elem_id=f"{IMAGE_TO_IMAGE}-picture",
        )
        seen = gr.Image(
            label="What the model sees",
            visible=False,
            interactive=False,
            height=280,
            min_width=200,
            buttons=[],
            elem_id=f"{IMAGE_TO_IMAGE}-seen",
        )
    with gr.Row(visible=False) as fit_row:
        shape = gr.Dropdown(
            [*SHAPES, OWN_SHAPE],
            value=SQUARE,
            label="Shape",
            info="The models were trained on squares",
            elem_id=f"{IMAGE_TO_IMAGE}-shape",
        )
        fit_mode = gr.Radio(
            [(FIT_LABELS[mode], mode) for mode in FITS],
            value=Recipe.fit,
            label="Fit",
            elem_id=f"{IMAGE_TO_IMAGE}-fit",
        )
    return {"image": image, "seen": seen, "fit_row": fit_row, "shape": shape, "fit": fit_mode}


def read_image(file: Raw | None, expected: str | None = None) -> Image.Image:
    if file is None:
        raise UserError(NO_IMAGE)
    return load_image(file, expected)
