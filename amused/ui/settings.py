"""The settings of a tab: their components, and the conversion of their values to a Recipe and back.

Recipe validates; this checks only seeds and counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from amused.errors import UserError
from amused.limits import MAX_SEEDS, MAX_STEPS
from amused.recipe.recipe import (
    IMAGE_TO_IMAGE,
    MASK_BY,
    MAX_ADAPTER_STRENGTH,
    MAX_CORRECTOR_ROUNDS,
    MAX_GUIDANCE_SCALE,
    SAMPLERS,
    STRENGTHS,
    TEXT_TO_IMAGE,
    Recipe,
    whole,
)
from amused.recipe.seeds import format_seeds, parse_seeds
from amused.recipe.sweep import Sweep, escape, expand
from amused.recipe.words import known_words
from amused.serving.runtime import Runtime
from amused.ui.events import Updates, Values
from amused.ui.inputs import NameInput
from amused.ui.setting_examples import low_high

RANDOM_SEEDS = 1_000_000  # of 2**32: short seeds are easier to copy
MAX_SLIDER_TEMPERATURE = 10.0
MIN_SLIDER_STRENGTH = 0.05
ONE_PROMPT = 'A grid takes one prompt: leave out braces and further lines, or choose the axis "prompt wording".'


@dataclass(frozen=True)
class Settings:
    """The components whose values make a recipe. A component for a field of Recipe has its name."""

    task: str
    runtime: Runtime
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    seeds: gr.Textbox
    count: gr.Slider
    random_seeds: gr.Checkbox
    steps: gr.Slider
    guidance_scale: gr.Slider
    first_temperature: gr.Slider
    last_temperature: gr.Slider
    sampler: gr.Dropdown
    corrector_rounds: gr.Slider
    mask_by: gr.Dropdown
    strength: gr.Slider
    model: gr.Dropdown
    adapter: gr.Dropdown
    adapter_strength: gr.Slider

    def components(self) -> dict[str, Component]:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("task", "runtime")}

    def to_recipe(self, values: Values) -> Recipe:
        """The recipe that these values ask for, of the model as it is now, its prompt as typed (see `sweep`).

        Random seeds are drawn here.
        """
        recipe = to_recipe(self.task, {name: values[part] for name, part in self.components().items()})
        return replace(recipe, model_version=own_settings(self.runtime, recipe.model)["model_version"])

    def sweep(self, recipe: Recipe) -> Sweep:
        """The recipes of a recipe whose prompt is as typed."""
        return expand(recipe, known_words(self.runtime.choice(recipe.model).traits))

    def single(self, recipe: Recipe) -> Recipe:
        """The only recipe of a recipe whose prompt is as typed; a sweep over prompts is refused."""
        sweep = self.sweep(recipe.with_seeds(recipe.seeds[:1]))
        if sweep.labels:
            raise UserError(ONE_PROMPT)
        return sweep.recipes[0].with_seeds(recipe.seeds)

    def own(self, model: str) -> dict[Component, Any]:
        """A model's own settings."""
        components = self.components()
        return {
            components[name]: value for name, value in own_settings(self.runtime, model).items() if name in components
        }

    def follow_model(self, model: str, values: Values) -> Updates:
        """Updates from any model's own settings to those of this one; what a visitor has changed stays."""
        others = [self.own(choice.name) for choice in self.runtime.models]
        return {
            part: value
            for part, value in self.own(model).items()
            if values[part] != value and any(values[part] == other[part] for other in others)
        }

    def from_recipe(self, recipe: Recipe) -> Updates:
        """Updates that make the settings equal a recipe. Its model and adapter must be listed."""
        first, last = recipe.temperature
        updates: Updates = {
            self.prompt: escape(recipe.prompt),
            self.negative_prompt: recipe.negative_prompt,
            self.seeds: gr.Textbox(value=format_seeds(recipe.seeds), interactive=True),
            self.count: len(recipe.seeds),
            self.random_seeds: False,
            self.steps: recipe.steps,
            self.guidance_scale: recipe.guidance_scale,
            self.first_temperature: slider_at(first, 0.0, MAX_SLIDER_TEMPERATURE),
            self.last_temperature: slider_at(last, 0.0, MAX_SLIDER_TEMPERATURE),
            self.sampler: recipe.sampler,
            self.corrector_rounds: recipe.corrector_rounds,
            self.mask_by: recipe.first.mask_by,
            self.model: recipe.model,
            self.adapter: recipe.adapter or "",
            self.adapter_strength: recipe.adapter_strength,
        }
        # A varied image has no strength: the first image's is shown.
        strength = recipe.first.strength if recipe.strength is None else recipe.strength
        if strength is not None:
            updates[self.strength] = slider_at(strength, MIN_SLIDER_STRENGTH, 1.0)
        return updates


def own_settings(runtime: Runtime, model: str) -> dict[str, Any]:
    """A model's own settings, by name, with two for the temperature, as on the page and in the API."""
    settings = dict(runtime.choice(model).defaults)
    settings["first_temperature"], settings["last_temperature"] = settings.pop("temperature")
    return settings


def to_recipe(task: str, named: Mapping[str, Any]) -> Recipe:
    """The recipe of settings by name, as a browser remembers them."""
    return Recipe(
        task=task,
        prompt=named["prompt"],
        negative_prompt=named["negative_prompt"],
        seeds=draw_seeds(named["seeds"], named["count"], named["random_seeds"]),
        steps=named["steps"],
        guidance_scale=named["guidance_scale"],
        temperature=(named["first_temperature"], named["last_temperature"]),
        sampler=named["sampler"],
        corrector_rounds=named["corrector_rounds"],
        mask_by=named["mask_by"],
        strength=named["strength"] if task in STRENGTHS else None,
        model=named["model"],
        adapter=named["adapter"],
        adapter_strength=named["adapter_strength"],
    )


def draw_seeds(text: str, count: float, is_random: bool) -> tuple[int, ...]:
    """A typed list as is; else `count` consecutive seeds from the typed or a random one."""
    number = whole("number of images", count, 1, MAX_SEEDS)
    if is_random:
        first = secrets.randbelow(RANDOM_SEEDS)
    else:
        seeds = parse_seeds(text)
        if len(seeds) > 1:
            return seeds
        first = seeds[0]
    return tuple(range(first, first + number))


def slider_at(value: float, low: float, high: float) -> gr.Slider:
    """A slider at this value; its range grows to include it, since links may hold any valid value."""
    return gr.Slider(value=value, minimum=min(low, value), maximum=max(high, value))


# Components, in the order of the page


def build_basic_settings(task: str) -> tuple[gr.Group, dict[str, Component]]:
    """Number of images, seeds, strength, and the group they are in."""
    with gr.Group() as group:
        with gr.Row():
            count = gr.Slider(1, MAX_SEEDS, value=4, step=1, label="Images", elem_id=f"{task}-count")
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
            info="Low stays close to your image; 1 starts from scratch",
            elem_classes=low_high("strength"),
            visible=task != TEXT_TO_IMAGE,
            elem_id=f"{task}-strength",
        )
    return group, {"count": count, "seeds": seeds, "random_seeds": random_seeds, "strength": strength}


def build_model_settings(task: str, runtime: Runtime) -> tuple[dict[str, Component], gr.Row]:
    """Model and adapter, and the row of the adapter."""
    model = gr.Dropdown(
        choices=[(f"{choice.name} · {choice.about}", choice.name) for choice in runtime.models],
        value=runtime.default,
        label="Model",
        info=model_note(runtime, runtime.default),
        elem_id=f"{task}-model",
    )
    adapters = adapter_choices(runtime, runtime.default)
    with gr.Row(visible=len(adapters) > 1) as adapter_row:
        adapter = NameInput(adapters, value="", label="Adapter", elem_id=f"{task}-adapter")
        adapter_strength = gr.Slider(
            0.0,
            MAX_ADAPTER_STRENGTH,
            value=Recipe.adapter_strength,
            step=0.05,
            label="Adapter strength",
            info="0 turns it off",
            elem_id=f"{task}-adapter-strength",
        )
    return {"model": model, "adapter": adapter, "adapter_strength": adapter_strength}, adapter_row


def build_sampling_settings(task: str, runtime: Runtime) -> dict[str, Component]:
    """Negative prompt, steps, guidance, temperatures, sampler."""
    own = own_settings(runtime, runtime.default)
    negative_prompt = gr.Textbox(
        value=Recipe.negative_prompt,
        label="Negative prompt",
        placeholder="What to keep out of the image",
        elem_id=f"{task}-negative",
    )
    with gr.Row():
        steps = gr.Slider(
            1,
            MAX_STEPS,
            value=own["steps"],
            step=1,
            label="Steps",
            info="More is slower",
            elem_classes=low_high("steps"),
            elem_id=f"{task}-steps",
        )
        guidance_scale = gr.Slider(
            0.0,
            MAX_GUIDANCE_SCALE,
            value=own["guidance_scale"],
            step=0.5,
            label="Guidance",
            info="How closely to follow the prompt",
            elem_classes=low_high("guidance_scale"),
            elem_id=f"{task}-guidance",
        )
    first, last = own["first_temperature"], own["last_temperature"]
    with gr.Row():
        first_temperature = build_temperature(f"{task}-first-temperature", first, "Temperature", "first")
        last_temperature = build_temperature(f"{task}-last-temperature", last, "Final temperature", "last")
    with gr.Row():
        sampler = gr.Dropdown(
            [(name.capitalize(), name) for name in SAMPLERS],
            value=own["sampler"],
            label="Sampler",
            info="Annealed: the likeliest tokens in the second half of the steps",
            elem_id=f"{task}-sampler",
        )
        corrector_rounds = gr.Slider(
            0,
            MAX_CORRECTOR_ROUNDS,
            value=own["corrector_rounds"],
            step=1,
            label="Corrector rounds",
            info="Each redraws the least likely tokens and takes as long as two steps",
            elem_classes=low_high("corrector_rounds"),
            elem_id=f"{task}-corrector-rounds",
        )
    mask_by = gr.Dropdown(
        [(name.capitalize(), name) for name in MASK_BY],
        value=own["mask_by"],
        label="Masked by",
        info="Prompt: tokens that fit it least are redrawn",
        visible=task == IMAGE_TO_IMAGE,
        elem_id=f"{task}-mask-by",
    )
    return {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "first_temperature": first_temperature,
        "last_temperature": last_temperature,
        "sampler": sampler,
        "corrector_rounds": corrector_rounds,
        "mask_by": mask_by,
    }


def build_temperature(elem_id: str, value: float, label: str, step: str) -> gr.Slider:
    return gr.Slider(
        0.0,
        MAX_SLIDER_TEMPERATURE,
        value=value,
        step=0.1,
        label=label,
        info=f"Variety at the {step} step",
        elem_classes=low_high(f"{step}_temperature"),
        elem_id=elem_id,
    )


def model_note(runtime: Runtime, model: str) -> str:
    download = runtime.choice(model).download
    return f"Downloads {download} on first use" if download else "Ready, no download needed"


def adapter_choices(runtime: Runtime, model: str) -> list[tuple[str, str]]:
    return [("none", ""), *((name, name) for name in runtime.adapters_for(model))]
