"""Inpaint: a part of a picture is drawn anew, the rest stays.

The part is what is painted, what is white in a file, or a box: see `mask_tools`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest, load_image
from amused.recipe.recipe import INPAINT, MAX_FEATHER, SIDE_MULTIPLE, Recipe
from amused.serving.runtime import Runtime
from amused.ui import examples, mask_tools
from amused.ui.inputs import Carried, Drawing, DrawingInput, PictureInput, Raw
from amused.ui.run import Request, build_result, png_bytes, save_file, wire
from amused.ui.settings import AT_ONCE, Panel, build_panel, read_recipe
from amused.ui.sync import carry, follow

MAX_PAINTED = 768  # side in pixels up to which a picture is painted on as it is


def build(runtime: Runtime) -> Panel:
    with gr.Tab("Inpaint", id=INPAINT), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls") as controls:
            drawing = DrawingInput(
                label="Your picture: paint over what should change",
                type="filepath",
                image_mode="RGBA",
                format="png",
                sources=["upload", "clipboard"],
                layers=False,
                transforms=(),
                brush=gr.Brush(colors=["#f43f5e"], color_mode="fixed", default_size=24),
                eraser=gr.Eraser(default_size=24),
                canvas_size=(512, 512),
                height=460,
                buttons=[],
                elem_id=f"{INPAINT}-drawing",
            )
            with gr.Accordion("A mask from a file, or a box", open=False, elem_id=f"{INPAINT}-elsewhere"):
                file = PictureInput(
                    label="A mask: white is repainted",
                    sources=["upload", "clipboard"],
                    height=180,
                    buttons=[],
                    elem_id=f"{INPAINT}-mask",
                )
                with gr.Row():
                    left = percent("left", "Box left", 0)
                    top = percent("top", "Box top", 0)
                with gr.Row():
                    across = percent("across", "Box width", 0, "0 is no box")
                    down = percent("down", "Box height", 0, "0 is no box")
            with gr.Group():
                with gr.Row():
                    inverted = gr.Checkbox(
                        label="Repaint the rest instead", elem_id=f"{INPAINT}-inverted", min_width=140
                    )
                    only_masked = gr.Checkbox(
                        label="Only the masked part",
                        info="A large picture keeps its size",
                        elem_id=f"{INPAINT}-only-masked",
                        min_width=140,
                    )
                feather = gr.Slider(
                    0,
                    MAX_FEATHER,
                    value=Recipe.feather,
                    step=1,
                    label="Feather",
                    info="Pixels over which the new blends into the old",
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
            panel = build_panel(INPAINT, runtime)
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = build_result(INPAINT, "Upload a picture and paint over what should change")
            carried = Carried.of(drawing)
            carry([drawing.change], carried)
        original = gr.State(None)
        own = [carried, file, left, top, across, down, inverted, feather, only_masked, original]
        panel = wire(runtime, panel, result, own, read, partial(carry, carried=carried))
    examples.offer(runtime, panel, [drawing, file, left, top, across, down, inverted], fill_example)
    shaping = [carried, file, left, top, across, down, inverted, only_masked, panel.settings.model]
    changes = [part.change for part in shaping]
    with controls:
        carry([drawing.upload], carried).then(make_handy, carried, [drawing, original], **AT_ONCE)
        follow(changes, partial(show_cells, runtime), [*own, panel.settings.model], [cells])
    told = [left, top, across, down, inverted, feather, only_masked]
    return replace(panel, media=[drawing, file], own=own, read=read, shaping=told, shape=shape_of)


def percent(name: str, label: str, value: float, info: str | None = None) -> gr.Slider:
    return gr.Slider(
        0, 100, value=value, step=1, label=f"{label}, %", info=info, min_width=130, elem_id=f"{INPAINT}-{name}"
    )


def fill_example(picture: str | None, mask: str | None) -> list[Any]:
    """The picture with its mask as the only one; without a picture all stays as it is."""
    if picture is None:
        return [gr.skip()] * 7
    return [{"background": picture, "layers": [], "composite": None}, mask, 0, 0, 0, 0, False]


def shape_of(recipe: Recipe) -> list[Any]:
    """The controls as a recipe needs them, whose mask is a file as it is."""
    return [0, 0, 0, 0, False, recipe.feather, recipe.only_masked]


def read(
    drawing: Drawing,
    file: Raw | None,
    left: float,
    top: float,
    across: float,
    down: float,
    inverted: bool,
    feather: float,
    only_masked: bool,
    original: Original | None,
    *settings: Any,
) -> Request:
    recipe = read_recipe(INPAINT, *settings)
    picture = as_uploaded(drawing, original)
    mask = mask_tools.build_mask(picture.size, drawing, file, (left, top, across, down), inverted)
    recipe = replace(recipe, feather=feather, only_masked=only_masked, image=digest(picture), mask=digest(mask))
    return recipe, picture, mask


@dataclass(frozen=True)
class Original:
    """The file of a large picture whose reduced copy, of this digest, is the one that is painted on."""

    path: str
    reduced: str


def make_handy(drawing: Drawing) -> list[Any]:
    """Put a reduced copy of a large picture into the editor: it sends all of it at every stroke, and fails at some."""
    try:
        picture = drawing.picture()
    except UserError as error:
        gr.Warning(str(error))
        return [None, None]
    if max(picture.size) <= MAX_PAINTED:
        return [gr.skip(), None]
    copy = picture.copy()
    copy.thumbnail((MAX_PAINTED, MAX_PAINTED))
    path = save_file(png_bytes(copy), "picture.png")
    original = Original(save_file(png_bytes(picture, compress_level=1), "original.png"), digest(copy))
    return [{"background": path, "layers": [], "composite": None}, original]


def as_uploaded(drawing: Drawing, original: Original | None) -> Image.Image:
    """The picture in the editor, in its full size where that is a reduced copy."""
    picture = drawing.picture()
    if original is None or digest(picture) != original.reduced:
        return picture
    return load_image(original.path)


def show_cells(
    runtime: Runtime,
    drawing: Drawing,
    file: Raw | None,
    left: float,
    top: float,
    across: float,
    down: float,
    inverted: bool,
    feather: float,
    only_masked: bool,
    original: Original | None,
    model: str,
) -> gr.Image:
    """The preview of what a run would repaint; none while there is nothing to say, a run tells why."""
    try:
        picture = as_uploaded(drawing, original)
        mask = mask_tools.build_mask(picture.size, drawing, file, (left, top, across, down), inverted)
        recipe = Recipe(INPAINT, "", (0,), model=model, only_masked=only_masked)
        size, _ = runtime.native_size(model)
        shown, count, total = mask_tools.preview(
            runtime.with_default_size(recipe, picture), picture, mask, size, SIDE_MULTIPLE
        )
    except UserError:
        return gr.Image(value=None, visible=False)
    return gr.Image(value=shown, visible=True, label=f"Will be repainted: {count} of {total} cells")
