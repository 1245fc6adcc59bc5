"""Help with the prompt: examples, a surprise, the words that a bundled model knows, and a hint.

The hint says how many images a sweep over prompts makes, and what a model draws that knows none of the words.
"""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.recipe.sweep import Sweep
from amused.recipe.words import LISTS, words
from amused.serving.runtime import Runtime
from amused.ui import prompts
from amused.ui.describe import note
from amused.ui.events import LATEST, UNQUEUED, Updates, Values
from amused.ui.latest import sync
from amused.ui.settings import Settings, draw_seeds
from amused.wording import plural

WILDCARDS = (
    "`{head}`, `{glasses}`, `{body}`, `{background}` and `{accessory}` in the prompt draw a word for each image."
)


class PromptHelp:
    """Components that depend on the model; `parts` are the dropdowns of words, by the part of a character."""

    def __init__(self, task: str, runtime: Runtime) -> None:
        traits = runtime.choice(runtime.default).traits
        samples = prompts.examples(task, runtime.default, traits)
        self.hint = gr.HTML(visible=False, padding=False, elem_id=f"{task}-hint")
        with gr.Row(elem_classes="ideas"):
            self.surprise = gr.Button("Surprise me", size="sm", scale=0, min_width=110, elem_id=f"{task}-surprise")
            self.examples = gr.Dataset(
                components=["textbox"],
                samples=[[example.prompt] for example in samples],
                sample_labels=[example.label for example in samples],
                type="index",
                show_label=False,
                container=False,
                scale=1,
                elem_id=f"{task}-examples",
            )
        with gr.Accordion("Words this model knows", open=False, visible=traits is not None) as self.words:
            with gr.Row():
                self.parts = {
                    part: gr.Dropdown(
                        choices=word_choices(part, traits),
                        value="",
                        label=part.capitalize(),
                        min_width=130,
                        elem_id=f"{task}-{part}",
                    )
                    for part in LISTS
                }
            gr.Markdown(WILDCARDS)

    def outputs(self) -> list[Any]:
        return [self.examples, self.words, *self.parts.values()]


def connect_prompt_help(prompt_help: PromptHelp, settings: Settings) -> None:
    """Surprises and words write the prompt; the hint follows it."""
    runtime, prompt, model = settings.runtime, settings.prompt, settings.model

    def surprise(name: str) -> str:
        return prompts.surprise(runtime.choice(name).traits, random.Random())

    def write_prompt(values: Values) -> Updates:
        return {prompt: prompts.sentence(**{part: values[dropdown] for part, dropdown in prompt_help.parts.items()})}

    def show_hint(values: Values) -> Updates:
        hint = describe_prompt(settings, values)
        return {prompt_help.hint: gr.HTML(value=note(hint), visible=bool(hint))}

    changing = [prompt, model, settings.count, settings.seeds, settings.random_seeds]
    sync(changing, show_hint, {*changing}, [prompt_help.hint])
    prompt_help.surprise.click(surprise, model, prompt, **UNQUEUED)
    chosen: list[Any] = [dropdown.input for dropdown in prompt_help.parts.values()]
    gr.on(chosen, write_prompt, {*prompt_help.parts.values()}, [prompt], **LATEST)


def describe_prompt(settings: Settings, values: Values) -> str:
    """The hint: the size of a sweep over prompts, or why there can be none, and what the model can draw."""
    model = values[settings.model]
    try:
        seeds = draw_seeds(values[settings.seeds], values[settings.count], values[settings.random_seeds])
    except UserError:  # half typed
        seeds = (0,)
    try:
        sweep = settings.sweep(Recipe(settings.task, values[settings.prompt], seeds, model=model))
    except UserError as error:
        return str(error)
    limits = prompts.hint(settings.runtime.choice(model).traits, sweep.recipes[0].prompt)
    return " ".join(sentence for sentence in (describe_sweep(sweep, len(seeds)), limits) if sentence)


def describe_sweep(sweep: Sweep, num_seeds: int) -> str:
    """How many images there will be, of which seeds; "" for a plain prompt."""
    if sweep.num_prompts > 1:
        seeds, images = plural(num_seeds, "seed"), plural(sweep.num_prompts * num_seeds, "image")
        return f"{sweep.num_prompts} prompts × {seeds} = {images}. Each prompt gets the same seeds."
    return "Each image draws its words by its seed." if sweep.labels else ""


def prompt_help_for(runtime: Runtime, prompt_help: PromptHelp, task: str, model: str) -> Updates:
    """Updates of the prompt help for a newly selected model."""
    traits = runtime.choice(model).traits
    samples = prompts.examples(task, model, traits)
    return {
        prompt_help.examples: gr.Dataset(
            samples=[[example.prompt] for example in samples], sample_labels=[example.label for example in samples]
        ),
        prompt_help.words: gr.Accordion(visible=traits is not None),
        **{
            dropdown: gr.Dropdown(choices=word_choices(part, traits), value="")
            for part, dropdown in prompt_help.parts.items()
        },
    }


def word_choices(part: str, traits: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [("any", ""), *((word, word) for word in sorted(words(traits or {}, part)))]
