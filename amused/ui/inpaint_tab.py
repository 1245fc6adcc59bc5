"""Inpaint: the painted part of a picture is drawn anew, the rest stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from ..recipe import INPAINT
from ..runtime import Runtime
from .inputs import Drawing, DrawingInput
from .run import Request, build_result, wire
from .settings import Panel, build_panel, read_recipe


def build(runtime: Runtime) -> Panel:
    with gr.Tab("Inpaint", id=INPAINT), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            drawing = DrawingInput(
                label="Your picture",
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
            panel = build_panel(INPAINT, runtime)
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = build_result(INPAINT, "Upload a picture and paint over what should change")
        wire(runtime, panel, result, [drawing], read)
    return replace(panel, media=[drawing], result=result)


def read(drawing: Drawing, *settings: Any) -> Request:
    recipe = read_recipe(INPAINT, *settings)
    picture = drawing.picture()
    return recipe, picture, drawing.mask(picture.size)
