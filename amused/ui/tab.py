"""A tab: the controls of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from PIL import Image

from amused.recipe.recipe import Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.drawing import Drawing
from amused.ui.events import NO_CHANGE, UNQUEUED, Updates, Values
from amused.ui.prompt_help import PromptHelp, connect_prompt_help
from amused.ui.results import ResultState, ResultView
from amused.ui.runs import RunAction, connect
from amused.ui.settings import Settings, build_basic_settings, build_model_settings, build_sampling_settings
from amused.wording import shorten

PLACEHOLDER = """Describe the image
{fox|cow} tries both; each line is a prompt of its own"""
MAX_NAME = 60  # characters
MAX_CHOICE = 100  # characters of what can be chosen
MAX_MASK_BYTES = 500_000  # of its PNG: one of a few strokes has some ten thousand


@dataclass(frozen=True)
class Controls:
    """What every tab has below its own inputs. While a run goes on, `another` does what `generate` does."""

    settings: Settings
    prompt_help: PromptHelp
    generate: gr.Button
    another: gr.Button
    adapter_row: gr.Row
    basic: gr.Group


@dataclass(frozen=True)
class Tab(ABC):
    """Each task has a subclass, whose fields are the tab's own inputs. `result` is that of all tabs."""

    runtime: Runtime
    controls: Controls
    result: ResultView

    @property
    def settings(self) -> Settings:
        return self.controls.settings

    @property
    def task(self) -> str:
        return self.settings.task

    @property
    def sources(self) -> list[Component]:
        """The tab's own inputs: what `read` needs besides the settings."""
        return []

    @property
    def file_inputs(self) -> list[Component]:
        """Inputs for images: the image, then the mask. Their values are paths."""
        return []

    @property
    def inputs(self) -> set[Block]:
        """All that `read` needs."""
        return {*self.settings.components().values(), *self.sources}

    @property
    def fillable(self) -> list[Block]:
        """All that `from_recipe` may update."""
        return [*self.settings.components().values(), *self.own_controls]

    @property
    def own_controls(self) -> list[Component]:
        """The tab's own inputs that a recipe determines."""
        return []

    @abstractmethod
    def read_typed(self, values: Values) -> Request:
        """One recipe, its prompt as typed, from the values of `inputs`."""

    def read(self, values: Values) -> Request:
        """What Generate runs: a recipe for each prompt that the typed one stands for."""
        request = self.read_typed(values)
        sweep = self.settings.sweep(request.recipes[0])
        return replace(request, recipes=sweep.recipes, labels=sweep.labels)

    def name(self, values: Values) -> str:
        """What Generate makes, for people."""
        prompt = " ".join(values[self.settings.prompt].split()) or "no prompt"
        return shorten(prompt, MAX_NAME)

    def read_images(self, values: Values, expected: str | None = None) -> tuple[Image.Image | None, Image.Image | None]:
        """The input image and its mask, from the values of `sources`; refused if the task lacks them."""
        return None, None

    def from_recipe(self, recipe: Recipe) -> Updates:
        """Updates that make the tab equal a recipe. Image inputs stay: a recipe contains no images."""
        return {**self.settings.from_recipe(recipe), **self.own_from_recipe(recipe.first)}

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        return {}

    def remember_inputs(self, values: Values) -> Updates:
        """Hold the values of `sources` for a reload; `values` has these and the page's state."""
        state: ResultState = values[self.result.state]
        state.inputs |= {component: returnable(values[component]) for component in self.sources}
        return NO_CHANGE

    def use_files(self, image: str | None, mask: str | None) -> Updates:
        """Updates of `file_inputs` and `own_controls` for an example with these files; none without an image."""
        return {}


def returnable(value: Any) -> Any:
    """The value of an input as it may be held and given to the page again; None for a file that is gone.

    Visitors send what they like: what no input of ours gives is None, and a mask beyond `MAX_MASK_BYTES` is left out.
    """
    match value:
        case Drawing():
            mask = value.layers if sum(map(len, value.layers)) <= MAX_MASK_BYTES else ()
            return None if returnable(value.background) is None else replace(value, layers=mask)
        case Path():
            return value if value.exists() else None
        case bool() | int() | float():
            return value
        case str() if len(value) <= MAX_CHOICE:
            return value
    return None


def build_controls(task: str, runtime: Runtime, result: ResultView) -> Controls:
    """Prompt, buttons, prompt help, model and settings, from top to bottom."""
    runs = result.controls[task]
    prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8, placeholder=PLACEHOLDER, elem_id=f"{task}-prompt")
    with gr.Row(elem_classes="actions"):
        generate = gr.Button("Generate", variant="primary", scale=3, min_width=130, elem_id=f"{task}-run")
        render(runs.stop, runs.progress)
    with gr.Column(elem_classes="queue", elem_id=f"{task}-queue"):
        another = gr.Button("Queue another", size="sm", elem_id=f"{task}-queue-another")
        render(runs.waiting)
    prompt_help = PromptHelp(task, runtime)
    prompt.value = prompt_help.examples.samples[0][0]
    model, adapter_row = build_model_settings(task, runtime)
    basic_group, basic = build_basic_settings(task)
    with gr.Accordion("Advanced", open=False, elem_id=f"{task}-advanced"):
        sampling = build_sampling_settings(task, runtime)
    settings = Settings(task=task, runtime=runtime, prompt=prompt, **basic, **model, **sampling)  # type: ignore[arg-type]
    connect_prompt_help(prompt_help, settings)
    settings.random_seeds.change(
        lambda on: gr.Textbox(interactive=not on), settings.random_seeds, settings.seeds, **UNQUEUED
    )
    return Controls(settings, prompt_help, generate, another, adapter_row, basic_group)


def render(*blocks: Block) -> None:
    """Put blocks here that were built before."""
    for block in blocks:
        block.render()  # type: ignore[no-untyped-call]


def connect_tab(tab: Tab) -> None:
    """Generate, and its keyboard shortcut."""
    generate = RunAction(read=tab.read, inputs=tab.inputs, name=tab.name, settings=tab.settings)
    events = [tab.controls.generate.click, tab.controls.another.click, tab.settings.prompt.submit]
    connect(tab.runtime, tab.result, events, generate)
