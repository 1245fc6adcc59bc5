"""A tab: the controls of a task on one side, its results on the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from PIL import Image

from amused.recipe.recipe import Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.events import UI_ONLY, Updates, Values
from amused.ui.prompt_help import PromptHelp, connect_prompt_help
from amused.ui.queue_list import QueueList
from amused.ui.results import ResultView, RunAction, build_progress, connect, connect_queue, connect_stop
from amused.ui.settings import Settings, build_basic_settings, build_model_settings, build_sampling_settings

PLACEHOLDER = """Describe the image
{fox|cow} tries both; each line is a prompt of its own"""
MAX_NAME = 60  # characters
ANNOUNCE_JS = "(text) => window.amusedAnnounce(text)"


@dataclass(frozen=True)
class Controls:
    """What every tab has below its own inputs."""

    settings: Settings
    prompt_help: PromptHelp
    generate: gr.Button
    stop: gr.Button
    progress: gr.HTML
    queue: QueueList
    adapter_row: gr.Row
    basic: gr.Group


@dataclass(frozen=True)
class Tab(ABC):
    """Each task has a subclass, whose fields are the tab's own inputs."""

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
        return prompt if len(prompt) <= MAX_NAME else prompt[: MAX_NAME - 1] + "…"

    def read_images(self, values: Values, expected: str | None = None) -> tuple[Image.Image | None, Image.Image | None]:
        """The input image and its mask, from the values of `sources`; refused if the task lacks them."""
        return None, None

    def from_recipe(self, recipe: Recipe) -> Updates:
        """Updates that make the tab equal a recipe. Image inputs stay: a recipe contains no images."""
        return {**self.settings.from_recipe(recipe), **self.own_from_recipe(recipe.first)}

    def own_from_recipe(self, recipe: Recipe) -> Updates:
        return {}

    def use_files(self, image: str | None, mask: str | None) -> Updates:
        """Updates of `file_inputs` and `own_controls` for an example with these files; none without an image."""
        return {}


def build_controls(task: str, runtime: Runtime) -> Controls:
    """Prompt, buttons, prompt help, model and settings, from top to bottom."""
    prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8, placeholder=PLACEHOLDER, elem_id=f"{task}-prompt")
    with gr.Row(elem_classes="actions"):
        generate = gr.Button("Generate", variant="primary", scale=3, min_width=130, elem_id=f"{task}-run")
        stop = gr.Button("Stop", visible=False, scale=1, min_width=80, elem_id=f"{task}-stop")
        progress = build_progress(f"{task}-progress")
    queue = QueueList(task)
    prompt_help = PromptHelp(task, runtime)
    prompt.value = prompt_help.examples.samples[0][0]
    model, adapter_row = build_model_settings(task, runtime)
    basic_group, basic = build_basic_settings(task)
    with gr.Accordion("Advanced", open=False, elem_id=f"{task}-advanced"):
        sampling = build_sampling_settings(task, runtime)
    settings = Settings(task=task, runtime=runtime, prompt=prompt, **basic, **model, **sampling)  # type: ignore[arg-type]
    connect_prompt_help(prompt_help, settings)
    settings.random_seeds.change(
        lambda on: gr.Textbox(interactive=not on), settings.random_seeds, settings.seeds, **UI_ONLY
    )
    return Controls(settings, prompt_help, generate, stop, progress, queue, adapter_row, basic_group)


def connect_tab(tab: Tab) -> None:
    """Generate, its keyboard shortcut, Stop, and the announcement of how a run ends."""
    generate = RunAction(read=tab.read, inputs=tab.inputs, name=tab.name, shows_seeds=True)
    events = [tab.controls.generate.click, tab.controls.queue.another.click, tab.settings.prompt.submit]
    connect(tab.runtime, tab, events, generate)
    connect_stop(tab.runtime, tab.result)
    connect_queue(tab.result)
    tab.result.status.change(None, tab.result.status, None, js=ANNOUNCE_JS, **UI_ONLY)
