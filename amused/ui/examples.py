"""A click on an example fills its tab: prompt, seed, strength, and image and mask if it has them."""

from __future__ import annotations

from functools import partial

import gradio as gr

from amused.serving import file_cache
from amused.ui import prompts
from amused.ui.events import LATEST, NO_CHANGE, Updates, Values
from amused.ui.settings import MIN_SLIDER_STRENGTH, slider_at
from amused.ui.tab import Tab


def connect(tab: Tab) -> None:
    settings, dataset = tab.settings, tab.controls.prompt_help.examples
    filled = [settings.prompt, settings.seeds, settings.count, settings.random_seeds, settings.strength]
    outputs = [*filled, *tab.file_inputs, *tab.own_controls]
    dataset.click(partial(fill, tab), {dataset, settings.model}, outputs, **LATEST)


def fill(tab: Tab, values: Values) -> Updates:
    settings, model, index = tab.settings, values[tab.settings.model], values[tab.controls.prompt_help.examples]
    offered = prompts.examples(tab.task, model, tab.runtime.choice(model).traits)
    if type(index) is not int or not 0 <= index < len(offered):  # clicked while the model was changing
        return NO_CHANGE
    example = offered[index]
    updates: Updates = {
        settings.prompt: example.prompt,
        settings.seeds: gr.Textbox(value=example.seeds, interactive=True),
        settings.count: 1,
        settings.random_seeds: False,
        **tab.use_files(publish(example.image), publish(example.mask)),
    }
    if example.strength is not None:
        updates[settings.strength] = slider_at(example.strength, MIN_SLIDER_STRENGTH, 1.0)
    return updates


def publish(name: str | None) -> str | None:
    """Copy a file of the examples to where the page may serve it from."""
    return None if name is None else file_cache.save((prompts.FOLDER / name).read_bytes(), name)
