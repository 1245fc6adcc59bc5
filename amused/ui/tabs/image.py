"""Image to image: a picture of one's own, brought to a shape that the model can work on, is redrawn after a prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest, fit, load_image
from amused.recipe.recipe import FITS, IMAGE_TO_IMAGE, Recipe
from amused.serving.runtime import Runtime
from amused.ui import examples
from amused.ui.inputs import NO_PICTURE, PictureInput, Raw
from amused.ui.run import Request, Run, build_result, wire
from amused.ui.settings import AT_ONCE, Panel, build_panel, read_recipe
from amused.ui.sync import follow
from amused.ui.tabs import grid as grid_panel

OWN_SHAPE = "As the picture"
SHAPES = {
    OWN_SHAPE: None,
    "Square": (1, 1),
    "Landscape 4:3": (4, 3),
    "Portrait 3:4": (3, 4),
    "Landscape 3:2": (3, 2),
    "Portrait 2:3": (2, 3),
    "Landscape 16:9": (16, 9),
    "Portrait 9:16": (9, 16),
}
FIT_LABELS = {"crop": "Crop", "pad": "Pad", "stretch": "Stretch"}


def build(runtime: Runtime) -> Panel:
    with gr.Tab("Image to image", id=IMAGE_TO_IMAGE), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            with gr.Row():
                picture = PictureInput(
                    label="Your picture",
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
            with gr.Row(visible=False) as shaping:
                shape = gr.Dropdown(list(SHAPES), value=OWN_SHAPE, label="Shape", elem_id=f"{IMAGE_TO_IMAGE}-shape")
                fitting = gr.Radio(
                    [(FIT_LABELS[mode], mode) for mode in FITS],
                    value=Recipe.fit,
                    label="Fit",
                    elem_id=f"{IMAGE_TO_IMAGE}-fit",
                )
            panel = build_panel(IMAGE_TO_IMAGE, runtime)
            controls = gr.Column(elem_classes="more")
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = build_result(IMAGE_TO_IMAGE, "Upload a picture and say what it should become")
            sheet = grid_panel.build_sheet(IMAGE_TO_IMAGE)
            with gr.Accordion("Before and after", open=False, visible=False) as comparing:
                slider = gr.ImageSlider(
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["fullscreen"],
                    elem_id=f"{IMAGE_TO_IMAGE}-compare",
                )
    own = [picture, shape, fitting]
    reading = partial(read, runtime)
    panel = wire(runtime, panel, result, own, reading)
    with controls:
        grid_panel.build(runtime, panel, sheet, own, reading)
    examples.offer(runtime, panel, [picture], lambda file, _: [file or gr.skip()])

    shown = [*own, panel.settings.model]
    with controls:
        follow([part.change for part in shown], partial(show_seen, runtime), shown, [seen, shaping])
    both = [comparing, slider]
    result.ended.change(lambda run, raw: compare(run, raw, 0), [result.run, picture], both, **AT_ONCE)
    result.gallery.select(compare_selected, [result.run, picture], both, **AT_ONCE)
    told = partial(shape_of, runtime)
    return replace(panel, media=[picture], own=own, read=reading, shaping=[shape, fitting], shape=told)


def read(runtime: Runtime, picture: Raw | None, shape: str, fitting: str, *settings: Any) -> Request:
    recipe = read_recipe(IMAGE_TO_IMAGE, *settings)
    if picture is None:
        raise UserError(NO_PICTURE)
    image = load_image(picture)
    width, height = sides(shape, *runtime.native_size(recipe.model))
    return replace(recipe, width=width, height=height, fit=fitting, image=digest(image)), image, None


def shape_of(runtime: Runtime, recipe: Recipe) -> list[Any]:
    """Shape and fit as a recipe needs them; the picture's own shape where its sides are of none that is offered."""
    wanted, measures = (recipe.width, recipe.height), runtime.native_size(recipe.model)
    return [next((shape for shape in SHAPES if sides(shape, *measures) == wanted), OWN_SHAPE), recipe.fit]


def sides(shape: str, size: int, multiple: int) -> tuple[int | None, int | None]:
    """Width and height of a shape with the longer side as the model was made for; neither for the picture's own."""
    if shape not in SHAPES:
        raise UserError(f"A shape is one of {', '.join(SHAPES)}.")
    ratio = SHAPES[shape]
    if ratio is None:
        return None, None
    width, height = (max(multiple, round(side / max(ratio) * size / multiple) * multiple) for side in ratio)
    return width, height


def show_seen(runtime: Runtime, picture: Raw | None, shape: str, fitting: str, model: str) -> list[Any]:
    """What the model will be given; nothing while there is no picture that can be read."""
    try:
        if picture is None:
            raise UserError(NO_PICTURE)
        image = load_image(picture)
        width, height = sides(shape, *runtime.native_size(model))
        recipe = Recipe(IMAGE_TO_IMAGE, "", (0,), model=model, width=width, height=height, fit=fitting)
        shown = fitted(runtime.with_default_size(recipe, image), image)
    except UserError:
        return [gr.Image(value=None, visible=False), gr.Row(visible=False)]
    label = f"What the model sees: {shown.width} x {shown.height}"
    return [gr.Image(value=shown, visible=True, label=label), gr.Row(visible=True)]


def fitted(recipe: Recipe, image: Image.Image) -> Image.Image:
    return fit(image, recipe.width, recipe.height, recipe.fit)


def compare_selected(run: Run, picture: Raw | None, selected: gr.SelectData) -> list[Any]:
    return compare(run, picture, selected.index)


def compare(run: Run, picture: Raw | None, index: int) -> list[Any]:
    """The picture as the model saw it, and a result of it; nothing if another picture has been chosen since."""
    shot = run.shots[index] if 0 <= index < len(run.shots) else None
    try:
        image = load_image(picture) if shot is not None and picture is not None else None
    except UserError:
        image = None
    if image is None or shot.recipe.task != IMAGE_TO_IMAGE or digest(image) != shot.recipe.image:
        return [gr.Accordion(visible=False), None]
    return [gr.Accordion(visible=True), (fitted(shot.recipe, image), shot.path)]
