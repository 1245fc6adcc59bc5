"""One click on an example fills its tab: the words, the seed, and where it has them a picture and a mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from amused.serving.runtime import Runtime
from amused.ui import prompts
from amused.ui.run import save_file
from amused.ui.settings import AT_ONCE, Panel, slide

Fill = Callable[[str, str | None], list[Any]]  # files of a picture and of a mask, to updates of a tab's own inputs


def offer(runtime: Runtime, panel: Panel, own: list[Any], fill_own: Fill) -> None:
    """Connect the examples of a tab, whose picture inputs are `own`."""
    settings = panel.settings
    panel.hints.examples.click(
        partial(fill, runtime, panel.task, fill_own),
        [panel.hints.examples, settings.model],
        [settings.prompt, settings.seeds, settings.count, settings.random_seeds, settings.strength, *own],
        **AT_ONCE,
    )


def fill(runtime: Runtime, task: str, fill_own: Fill, index: int, model: str) -> list[Any]:
    example = prompts.examples(task, model, runtime.choice(model).traits)[index]
    picture, mask = (copy(name) for name in (example.picture, example.mask))
    return [
        example.prompt,
        gr.Textbox(value=example.seeds, interactive=True),
        1,
        False,
        gr.skip() if example.strength is None else slide(example.strength, 0.05, 1.0),
        *fill_own(picture, mask),
    ]


def copy(name: str | None) -> str | None:
    """A file of the examples where the page may serve it from."""
    return None if name is None else save_file((prompts.FOLDER / name).read_bytes(), name)
