"""One model for all tabs, since only one is in memory; prompt help and adapters follow it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from amused.serving.runtime import Runtime
from amused.ui.events import LATEST, UNQUEUED, Updates, Values
from amused.ui.prompt_help import prompt_help_for
from amused.ui.settings import Settings, adapter_choices, model_note
from amused.ui.tab import Tab


def connect_models(runtime: Runtime, tabs: Sequence[Tab]) -> None:
    """Select a tab's model in all tabs; the prompt help and settings that nobody changed follow the model."""

    def hint(tab: Tab, model: str) -> Updates:
        note = gr.Dropdown(info=model_note(runtime, model))
        return {tab.settings.model: note, **prompt_help_for(runtime, tab.controls.prompt_help, tab.task, model)}

    def follow(picker: gr.Dropdown, values: Values) -> Updates:
        model = values[picker]
        updates: Updates = dict.fromkeys((other for other in pickers if other is not picker), model)
        for tab in tabs:
            updates |= tab.settings.follow_model(model, values)
        return updates

    pickers = [tab.settings.model for tab in tabs]
    following = [part for tab in tabs for part in tab.settings.own(runtime.default)]
    for tab, picker in zip(tabs, pickers, strict=True):
        others = [other for other in pickers if other is not picker]
        picker.input(partial(follow, picker), {picker, *following}, [*others, *following], **LATEST)
        picker.change(partial(hint, tab), picker, [picker, *tab.controls.prompt_help.outputs()], **UNQUEUED)


def connect_adapters(runtime: Runtime, tabs: Sequence[Tab], page: gr.Blocks) -> None:
    """Offer the model's adapters; the folder is read on page load and model change."""
    if runtime.adapters is None:
        return

    def offer(tab: Tab, model: str) -> Updates:
        choices = adapter_choices(runtime, model)
        row = tab.controls.adapter_row
        return {row: gr.Row(visible=len(choices) > 1), tab.settings.adapter: gr.Dropdown(choices=choices)}

    def drop(changed: Settings, values: Values) -> Updates:
        model = values[changed.model]
        return {adapter: "" for adapter in adapters if not adapter_fits(runtime, model, values[adapter])}

    adapters = [tab.settings.adapter for tab in tabs]
    for tab in tabs:
        settings = tab.settings
        shown = [tab.controls.adapter_row, settings.adapter]
        gr.on([page.load, settings.model.change], partial(offer, tab), settings.model, shown, **LATEST)
        # The other tabs take over the model.
        settings.model.input(partial(drop, settings), {settings.model, *adapters}, adapters, **LATEST)


def use_model(runtime: Runtime, settings: Settings, model: str, adapter: Any) -> Updates:
    """Updates of a tab that takes over another tab's model; `adapter` is its current one."""
    updates: Updates = {settings.model: model}
    if not adapter_fits(runtime, model, adapter):
        updates[settings.adapter] = ""
    return updates


def adapter_fits(runtime: Runtime, model: str, adapter: Any) -> bool:
    return adapter in ("", *runtime.adapters_for(model))
