"""A tab of the page without a browser: its components, and the values that a handler gets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import gradio as gr
import pytest
from gradio.routes import App

from amused.serving.runtime import Runtime
from amused.ui.drawing import Drawing, MaskEditor
from amused.ui.events import Values
from amused.ui.page import TASKS
from amused.ui.results import ResultState, ResultView
from amused.ui.tab import Tab

AnyTab = TypeVar("AnyTab", bound=Tab)

SETTINGS = {"prompt": "a fox", "count": 1, "random_seeds": False}


def build_tab(build: Callable[[Runtime, ResultView], AnyTab], runtime: Runtime) -> AnyTab:
    with pytest.MonkeyPatch.context() as patch:
        # Blocks makes a server twice, which takes most of the time, and here nothing is served.
        patch.setattr(App, "create_app", lambda *_, **__: None)
        with gr.Blocks():
            result = ResultView(TASKS, "Images appear here")
            with gr.Tabs():
                return build(runtime, result)


def values_of(tab: Tab, state: ResultState | None = None, **changes: Any) -> Values:
    """What a tab holds when the page opens, but for `changes`, by the names of fields of Settings or of the tab."""
    own = {field.name: getattr(tab, field.name) for field in fields(tab) if hasattr(getattr(tab, field.name), "value")}
    named = {**own, **tab.settings.components()}
    values = {component: component.value for component in named.values()}
    values |= {component: Drawing(None, ()) for component in own.values() if isinstance(component, MaskEditor)}
    values |= {tab.result.state: state or ResultState(), tab.result.write_metadata: True, tab.result.pressed_at: 0}
    return values | {named[name]: value for name, value in (SETTINGS | changes).items()}
