"""Text to image: a prompt becomes images."""

from __future__ import annotations

import gradio as gr

from amused.recipe.recipe import TEXT_TO_IMAGE
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui import examples, grid
from amused.ui.events import Values
from amused.ui.results import ResultView
from amused.ui.tab import Tab, build_controls, connect_tab


class TextTab(Tab):
    def read(self, values: Values) -> Request:
        return Request((self.settings.to_recipe(values),))


def build(runtime: Runtime) -> TextTab:
    with gr.Tab("Text to image", id=TEXT_TO_IMAGE), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            controls = build_controls(TEXT_TO_IMAGE, runtime)
            below = gr.Column()
        with gr.Column(scale=6, min_width=320, elem_classes="result"):
            result = ResultView(TEXT_TO_IMAGE, "Images appear here, one by one", controls.stop)
            sheet = grid.build_sheet(TEXT_TO_IMAGE)
    tab = TextTab(runtime, controls, result)
    with below:
        connect_tab(tab)
        grid.GridSection(tab, sheet)
        examples.connect(tab)
    return tab
