"""The settings of a tab: their components, and the one way from what was typed to a Recipe.

The Recipe checks itself; nothing is checked here but what would not survive being put into one.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import gradio as gr

from amused.recipe.recipe import (
    MAX_ADAPTER_STRENGTH,
    MAX_GUIDANCE_SCALE,
    MAX_SEEDS,
    MAX_STEPS,
    STRENGTHS,
    Recipe,
    whole,
)
from amused.recipe.seeds import format_seeds, parse_seeds
from amused.serving.runtime import Runtime
from amused.ui import prompts
from amused.ui.inputs import NameInput

# Of events that only change the page: they never wait behind a picture that is being made.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


RANDOM_SEEDS = 1_000_000  # of the 2**32 there are: short enough to tell somebody
MAX_SLIDER_TEMPERATURE = 5.0
MIN_SLIDER_STRENGTH = 0.05


@dataclass(frozen=True)
class Settings:
    """The components whose values make a recipe, in the order that `read_recipe` takes them."""

    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    seeds: gr.Textbox
    count: gr.Slider
    random_seeds: gr.Checkbox
    steps: gr.Slider
    guidance_scale: gr.Slider
    first_temperature: gr.Slider
    last_temperature: gr.Slider
    strength: gr.Slider
    model: gr.Dropdown
    adapter: gr.Dropdown
    adapter_strength: gr.Slider

    def inputs(self) -> list[Any]:
        return [getattr(self, part.name) for part in fields(self)]


@dataclass(frozen=True)
class Hints:
    """The components that offer a model's words, and its adapters. They follow the choice of the model."""

    examples: gr.Dataset
    words: gr.Accordion
    parts: list[gr.Dropdown]
    adapting: gr.Row

    def outputs(self) -> list[Any]:
        return [self.examples, self.words, *self.parts]


@dataclass(frozen=True)
class Panel:
    """A tab: `media` are its own picture inputs, first the picture; `result` is what a run fills (run.Result).

    `read(*own, *settings)` gives what its button would run, once what `bring(events)` connects has brought its inputs
    up to date; `shape(recipe)` are values for `shaping`, those of its own
    controls that a recipe tells.
    """

    task: str
    settings: Settings
    hints: Hints
    run: gr.Button
    stop: gr.Button
    media: list[Any] = field(default_factory=list)
    result: Any = None
    own: list[Any] = field(default_factory=list)
    read: Callable[..., Any] | None = None
    bring: Callable[[list[Any]], Any] | None = None
    shaping: list[Any] = field(default_factory=list)
    shape: Callable[[Recipe], list[Any]] = lambda recipe: []


def read_recipe(
    task: str,
    prompt: str,
    negative_prompt: str,
    seeds: str,
    count: float,
    random_seeds: bool,
    steps: float,
    guidance_scale: float,
    first_temperature: float,
    last_temperature: float,
    strength: float | None,
    model: str,
    adapter: str | None,
    adapter_strength: float,
) -> Recipe:
    return Recipe(
        task=task,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seeds=choose_seeds(seeds, count, random_seeds),
        steps=steps,
        guidance_scale=guidance_scale,
        temperature=(first_temperature, last_temperature),
        strength=None if task == "text_to_image" else strength,
        model=model,
        adapter=adapter,
        adapter_strength=adapter_strength,
    )


def fill(recipe: Recipe) -> list[Any]:
    """Updates for `Settings.inputs()` that make them say what the recipe says. Its model and adapter must be listed."""
    seeds, strength = recipe.seeds, inherited(recipe, "strength")
    return [
        recipe.prompt,
        recipe.negative_prompt,
        gr.Textbox(value=format_seeds(seeds), interactive=True),
        len(seeds),
        False,
        recipe.steps,
        recipe.guidance_scale,
        *(slide(value, 0.0, MAX_SLIDER_TEMPERATURE) for value in recipe.temperature),
        gr.skip() if strength is None else slide(strength, MIN_SLIDER_STRENGTH, 1.0),
        recipe.model,
        recipe.adapter or "",
        recipe.adapter_strength,
    ]


def fill_model(runtime: Runtime, model: str, adapter: Any) -> list[Any]:
    """Updates for `Settings.inputs()` of a tab that follows the model of another one; `adapter` is the tab's own."""
    changed = {"model": model, "adapter": fitting_adapter(runtime, model, adapter)}
    return [changed.get(part.name, gr.skip()) for part in fields(Settings)]


def fitting_adapter(runtime: Runtime, model: str, chosen: Any) -> Any:
    """The update of an adapter's field: none is left in it that does not fit the model."""
    return gr.skip() if chosen in ("", *runtime.adapters_for(model)) else ""


def inherited(recipe: Recipe, field: str) -> Any:
    """A field of the recipe, or where it has none, as a varied picture has no strength, that of the first picture."""
    value = getattr(recipe, field)
    return inherited(recipe.parent, field) if value is None and recipe.parent is not None else value


def slide(value: float, low: float, high: float) -> gr.Slider:
    """A slider at this value, with room for one that a link may hold but that the slider does not usually offer."""
    return gr.Slider(value=value, minimum=min(low, value), maximum=max(high, value))


def choose_seeds(text: str, count: float, random_seeds: bool) -> tuple[int, ...]:
    """A list as it is written; else `count` seeds in a row, from the one written or from a random one."""
    number = whole("number of pictures", count, 1, MAX_SEEDS)
    if random_seeds:
        first = secrets.randbelow(RANDOM_SEEDS)
    else:
        seeds = parse_seeds(text)
        if len(seeds) > 1:
            return seeds
        first = seeds[0]
    return tuple(range(first, first + number))


def build_panel(task: str, runtime: Runtime) -> Panel:
    """Everything below a tab's own picture inputs, in the order in which it is used."""
    traits = runtime.choice(runtime.default).traits
    samples = prompts.examples(task, runtime.default, traits)

    prompt = gr.Textbox(
        value=samples[0].prompt,
        label="Prompt",
        lines=3,
        max_lines=8,
        placeholder="Describe the picture",
        elem_id=f"{task}-prompt",
    )
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Generate", variant="primary", scale=3, min_width=130, elem_id=f"{task}-run")
        stop = gr.Button("Stop", visible=False, scale=1, min_width=80, elem_id=f"{task}-stop")
    with gr.Row(elem_classes="ideas"):
        surprise = gr.Button("Surprise me", size="sm", scale=0, min_width=110, elem_id=f"{task}-surprise")
        examples = gr.Dataset(
            components=["textbox"],
            samples=[[example.prompt] for example in samples],
            sample_labels=[example.label for example in samples],
            type="index",
            show_label=False,
            container=False,
            scale=1,
            elem_id=f"{task}-examples",
        )
    with gr.Accordion("Words this model knows", open=False, visible=traits is not None) as words, gr.Row():
        parts = [part_dropdown(task, part, traits) for part in prompts.PARTS]
    with gr.Group():
        with gr.Row():
            count = gr.Slider(1, MAX_SEEDS, value=4, step=1, label="Pictures", elem_id=f"{task}-count")
            seeds = gr.Textbox(
                value="0",
                label="First seed, or a list",
                placeholder="8, or 8, 15, 100-115",
                max_lines=1,
                interactive=False,
                elem_id=f"{task}-seeds",
            )
        random_seeds = gr.Checkbox(value=True, label="New random seeds for each run", elem_id=f"{task}-random")
        strength = gr.Slider(
            MIN_SLIDER_STRENGTH,
            1.0,
            value=STRENGTHS.get(task, 1.0),
            step=0.05,
            label="Strength",
            info="Low stays close to your picture; 1 starts afresh",
            visible=task != "text_to_image",
            elem_id=f"{task}-strength",
        )
    with gr.Accordion("Advanced", open=False, elem_id=f"{task}-advanced"):
        model = gr.Dropdown(
            choices=[(f"{choice.name} · {choice.about}", choice.name) for choice in runtime.models],
            value=runtime.default,
            label="Model",
            info=model_note(runtime, runtime.default),
            elem_id=f"{task}-model",
        )
        adapters = adapter_choices(runtime, runtime.default)
        with gr.Row(visible=len(adapters) > 1) as adapting:
            adapter = NameInput(adapters, value="", label="Adapter", elem_id=f"{task}-adapter")
            adapter_strength = gr.Slider(
                0.0,
                MAX_ADAPTER_STRENGTH,
                value=Recipe.adapter_strength,
                step=0.05,
                label="Adapter's strength",
                info="0 is the model alone",
                elem_id=f"{task}-adapter-strength",
            )
        negative_prompt = gr.Textbox(
            value=Recipe.negative_prompt,
            label="Negative prompt",
            placeholder="What should stay out of the picture",
            elem_id=f"{task}-negative",
        )
        with gr.Row():
            steps = gr.Slider(
                1, MAX_STEPS, value=Recipe.steps, step=1, label="Steps", info="More is slower", elem_id=f"{task}-steps"
            )
            guidance_scale = gr.Slider(
                0.0,
                MAX_GUIDANCE_SCALE,
                value=Recipe.guidance_scale,
                step=0.5,
                label="Guidance",
                info="How closely to follow the prompt",
                elem_id=f"{task}-guidance",
            )
        with gr.Row():
            first_temperature = gr.Slider(
                0.0,
                MAX_SLIDER_TEMPERATURE,
                value=Recipe.temperature[0],
                step=0.1,
                label="Temperature",
                info="Variety, at the first step",
                elem_id=f"{task}-first-temperature",
            )
            last_temperature = gr.Slider(
                0.0,
                MAX_SLIDER_TEMPERATURE,
                value=Recipe.temperature[1],
                step=0.1,
                label="Final temperature",
                info="Variety, at the last step",
                elem_id=f"{task}-last-temperature",
            )

    prompt_only: dict[str, Any] = {"outputs": prompt, **AT_ONCE}
    surprise.click(lambda name: prompts.surprise(traits_of(runtime, name), random.Random()), model, **prompt_only)
    for dropdown in parts:
        dropdown.input(prompts.sentence, parts, **prompt_only)
    random_seeds.change(lambda on: gr.Textbox(interactive=not on), random_seeds, seeds, **AT_ONCE)

    settings = Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seeds=seeds,
        count=count,
        random_seeds=random_seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        first_temperature=first_temperature,
        last_temperature=last_temperature,
        strength=strength,
        model=model,
        adapter=adapter,
        adapter_strength=adapter_strength,
    )
    return Panel(task, settings, Hints(examples, words, parts, adapting), run, stop)


def part_dropdown(task: str, part: str, traits: dict[str, Any] | None) -> gr.Dropdown:
    return gr.Dropdown(
        choices=part_choices(part, traits), value="", label=part.capitalize(), min_width=130, elem_id=f"{task}-{part}"
    )


def part_choices(part: str, traits: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [("any", ""), *((word, word) for word in prompts.words(traits or {}, part))]


def traits_of(runtime: Runtime, model: str) -> dict[str, Any] | None:
    return runtime.choice(model).traits


def model_note(runtime: Runtime, model: str) -> str:
    download = runtime.choice(model).download
    return f"Downloads {download} the first time it is used" if download else "Ready, nothing to download"


def adapter_choices(runtime: Runtime, model: str) -> list[tuple[str, str]]:
    return [("none", ""), *((name, name) for name in runtime.adapters_for(model))]


def follow_adapters(runtime: Runtime, panels: list[Panel], page: gr.Blocks) -> None:
    """The adapters that fit the chosen model, as the folder is when the page is opened or the model changes."""

    def offer(model: str) -> list[Any]:
        choices = adapter_choices(runtime, model)
        return [gr.Row(visible=len(choices) > 1), gr.Dropdown(choices=choices)]

    def drop(model: str, *chosen: str | None) -> list[Any]:
        return [fitting_adapter(runtime, model, one) for one in chosen]

    adapters = [panel.settings.adapter for panel in panels]
    for panel in panels if runtime.adapters is not None else ():
        settings = panel.settings
        shown = [panel.hints.adapting, settings.adapter]
        gr.on([page.load, settings.model.change], offer, settings.model, shown, **AT_ONCE)
        settings.model.input(drop, [settings.model, *adapters], adapters, **AT_ONCE)  # the other tabs follow it


def follow_model(runtime: Runtime, panels: list[Panel]) -> None:
    """A model chosen in one tab is chosen in all, as only one is held in memory; a tab's hints follow its model."""

    def hint(task: str, model: str) -> list[Any]:
        traits = traits_of(runtime, model)
        samples = prompts.examples(task, model, traits)
        return [
            gr.Dropdown(info=model_note(runtime, model)),
            gr.Dataset(
                samples=[[example.prompt] for example in samples], sample_labels=[example.label for example in samples]
            ),
            gr.Accordion(visible=traits is not None),
            *(gr.Dropdown(choices=part_choices(part, traits), value="") for part in prompts.PARTS),
        ]

    pickers = [panel.settings.model for panel in panels]
    for panel, picker in zip(panels, pickers, strict=True):
        others = [other for other in pickers if other is not picker]
        picker.input(lambda model: [model] * (len(pickers) - 1), picker, others, **AT_ONCE)
        picker.change(partial(hint, panel.task), picker, [picker, *panel.hints.outputs()], **AT_ONCE)
