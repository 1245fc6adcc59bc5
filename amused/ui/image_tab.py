"""Image to image: a picture of one's own is redrawn after a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from ..errors import UserError
from ..images import load_picture
from ..recipe import IMAGE_TO_IMAGE
from ..runtime import Runtime
from .inputs import NO_PICTURE, PictureInput, Raw
from .run import Request, build_result, wire
from .settings import Panel, build_panel, read_recipe


def build(runtime: Runtime) -> Panel:
    with gr.Tab("Image to image", id=IMAGE_TO_IMAGE), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            picture = PictureInput(
                label="Your picture",
                sources=["upload", "clipboard"],
                height=280,
                buttons=[],
                elem_id=f"{IMAGE_TO_IMAGE}-picture",
            )
            panel = build_panel(IMAGE_TO_IMAGE, runtime)
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = build_result(IMAGE_TO_IMAGE, "Upload a picture and say what it should become")
        wire(runtime, panel, result, [picture], read)
    return replace(panel, media=[picture], result=result)


def read(picture: Raw | None, *settings: Any) -> Request:
    recipe = read_recipe(IMAGE_TO_IMAGE, *settings)
    if picture is None:
        raise UserError(NO_PICTURE)
    return recipe, load_picture(picture), None
