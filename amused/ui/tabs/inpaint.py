"""Inpaint: repaint a part of an image, which is painted, white in a mask file, or a box (`mask_tools`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest, load_image, png_bytes
from amused.generation.pixel_masks import mask_rule
from amused.recipe.recipe import INPAINT, MAX_FEATHER, Recipe
from amused.serving import file_cache
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui import examples, mask_tools
from amused.ui.drawing import Drawing, DrawingInput, DrawingMirror, build_drawing, editor_value, mirror_drawing
from amused.ui.events import UI_ONLY, Updates, Values
from amused.ui.inputs import ImageInput
from amused.ui.latest import sync
from amused.ui.results import ResultView
from amused.ui.tab import Tab, build_controls, connect_tab

MAX_EDITOR_SIDE = 768  # pixels; the editor gets a reduced copy of larger images


@dataclass(frozen=True)
class Original:
    """The file of a large image, and the digest of its reduced copy, which is in the editor."""

    path: str
    reduced: str


@dataclass(frozen=True)
class InpaintTab(Tab):
    """`mirror` stands for `drawing` (see `drawing.mirror_drawing`); `original` is the State of an Original or None."""

    drawing: DrawingInput
    mirror: DrawingMirror
    original: gr.State
    mask_file: ImageInput
    left: gr.Slider
    top: gr.Slider
    width: gr.Slider
    height: gr.Slider
    inverted: gr.Checkbox
    only_masked: gr.Checkbox
    feather: gr.Slider
    cells: gr.Image

    @property
    def box(self) -> list[gr.Slider]:
        return [self.left, self.top, self.width, self.height]

    @property
    def mask_sources(self) -> list[Component]:
        """What determines the mask."""
        return [self.mirror, self.mask_file, *self.box, self.inverted]

    @property
    def sources(self) -> list[Component]:
        return [*self.mask_sources, self.only_masked, self.feather, self.original]

    @property
    def file_inputs(self) -> list[Component]:
        return [self.drawing, self.mask_file]

    @property
    def own_controls(self) -> list[Component]:
        return [*self.box, self.inverted, self.only_masked, self.feather]

    @property
    def before_read(self) -> Callable[[list[Any]], Any]:
        return partial(mirror_drawing, mirror=self.mirror)

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
        """The image in full size, and its mask."""
        drawing: Drawing = values[self.mirror]
        image = in_full_size(drawing.image(), values[self.original])
        box = [values[side] for side in self.box]
        mask = mask_tools.build_mask(image.size, drawing, values[self.mask_file], box, values[self.inverted])
        return image, mask

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        """The mask of a recipe is a file to be used as it is: no box, not inverted."""
        return {**self.no_box(), self.feather: recipe.feather, self.only_masked: recipe.only_masked}

    def no_box(self) -> Updates:
        return {**dict.fromkeys(self.box, 0), self.inverted: False}

    def use_files(self, image: str | None, mask: str | None) -> Updates:
        return {} if image is None else {self.drawing: editor_value(image), self.mask_file: mask, **self.no_box()}

    def show_cells(self, values: Values) -> Updates:
        """A preview of what a run would repaint; none while a run would be refused."""
        model = values[self.settings.model]
        try:
            image, mask = self.read_images(values)
            recipe = Recipe(INPAINT, "", (0,), model=model, only_masked=values[self.only_masked])
            size, _ = self.runtime.native_size(model)
            recipe = self.runtime.with_default_size(recipe, image)
            pixels_per_token = self.runtime.pixels_per_token(model)
            shown, count, total = mask_tools.preview_cells(recipe, image, mask, size, pixels_per_token)
        except UserError:
            return {self.cells: gr.Image(value=None, visible=False)}
        label = f"Will be repainted: {count} of {total} cells"
        if (file := values[self.mask_file]) is not None:
            label += f" (mask file: {mask_rule(file)}{', inverted' if values[self.inverted] else ''})"
        return {self.cells: gr.Image(value=shown, visible=True, label=label)}

    def reduce(self, values: Values) -> Updates:
        """Give the editor a reduced copy of a large image: it uploads the whole image at every stroke."""
        drawing: Drawing = values[self.mirror]
        try:
            image = drawing.image()
        except UserError as error:
            gr.Warning(str(error))
            return {self.drawing: None, self.original: None}
        if max(image.size) <= MAX_EDITOR_SIDE:
            return {self.original: None}
        copy = image.copy()
        copy.thumbnail((MAX_EDITOR_SIDE, MAX_EDITOR_SIDE))
        path = file_cache.save(png_bytes(copy), "reduced.png")
        original = Original(file_cache.save(png_bytes(image, compress_level=1), "original.png"), digest(copy))
        return {self.drawing: editor_value(path), self.original: original}


def build(runtime: Runtime) -> InpaintTab:
    with gr.Tab("Inpaint", id=INPAINT), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls") as column:
            inputs = build_inputs()
            controls = build_controls(INPAINT, runtime)
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = ResultView(INPAINT, "Upload an image and paint over what should change", controls.stop)
            mirror = DrawingMirror.of(inputs["drawing"])
        tab = InpaintTab(runtime, controls, result, mirror=mirror, original=gr.State(None), **inputs)
    with column:
        mirror_drawing([tab.drawing.change], mirror)
        mirror_drawing([tab.drawing.upload], mirror).then(tab.reduce, {mirror}, [tab.drawing, tab.original], **UI_ONLY)
        shaping = [*tab.mask_sources, tab.only_masked, tab.settings.model]
        sync(shaping, tab.show_cells, {*shaping, tab.original}, [tab.cells])
        connect_tab(tab)
        examples.connect(tab)
    return tab


def build_inputs() -> dict[str, Any]:
    """The components of an InpaintTab above its settings."""
    drawing = build_drawing("Your image: paint over what should change", 460, f"{INPAINT}-drawing", upload=True)
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
    cells = gr.Image(
        label="Will be repainted",
        visible=False,
        interactive=False,
        height=300,
        buttons=["fullscreen"],
        elem_id=f"{INPAINT}-cells",
    )
    return {
        "drawing": drawing, "mask_file": mask_file, "left": left, "top": top, "width": width, "height": height,
        "inverted": inverted, "only_masked": only_masked, "feather": feather, "cells": cells,
    }  # fmt: skip


def percent_slider(name: str, label: str, info: str | None = None) -> gr.Slider:
    return gr.Slider(
        0, 100, value=0, step=1, label=f"{label}, %", info=info, min_width=130, elem_id=f"{INPAINT}-{name}"
    )


def in_full_size(image: Image.Image, original: Original | None) -> Image.Image:
    """The image in the editor, or the original of which it is the reduced copy."""
    if original is None or digest(image) != original.reduced:
        return image
    return load_image(original.path)
