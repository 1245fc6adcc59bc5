"""Text to image: a prompt becomes pictures."""

from __future__ import annotations

from typing import Any

import gradio as gr

from amused.recipe.recipe import TEXT_TO_IMAGE
from amused.serving.runtime import Runtime
from amused.ui import examples
from amused.ui.run import Request, build_result, wire
from amused.ui.settings import Panel, build_panel, read_recipe
from amused.ui.tabs import grid as grid_panel


def build(runtime: Runtime) -> Panel:
    with gr.Tab("Text to image", id=TEXT_TO_IMAGE), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            panel = build_panel(TEXT_TO_IMAGE, runtime)
            controls = gr.Column()
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = build_result(TEXT_TO_IMAGE, "Pictures appear here, one by one")
            sheet = grid_panel.build_sheet(TEXT_TO_IMAGE)
        panel = wire(runtime, panel, result, [], read)
        with controls:
            grid_panel.build(runtime, panel, sheet, [], read)
        examples.offer(runtime, panel, [], lambda *_: [])
    return panel


def read(*settings: Any) -> Request:
    return read_recipe(TEXT_TO_IMAGE, *settings), None, None
