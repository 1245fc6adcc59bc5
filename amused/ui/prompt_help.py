"""Help with the prompt: examples, a surprise, the words that a bundled model knows, and a hint where it knows none."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from amused.serving.runtime import Runtime
from amused.ui import prompts
from amused.ui.describe import note
from amused.ui.events import UI_ONLY, Updates, Values
from amused.ui.latest import sync


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
        with gr.Accordion("Words this model knows", open=False, visible=traits is not None) as self.words, gr.Row():
            self.parts = {
                part: gr.Dropdown(
                    choices=word_choices(part, traits),
                    value="",
                    label=part.capitalize(),
                    min_width=130,
                    elem_id=f"{task}-{part}",
                )
                for part in prompts.PARTS
            }

    def outputs(self) -> list[Any]:
        return [self.examples, self.words, *self.parts.values()]


def connect_prompt_help(runtime: Runtime, prompt_help: PromptHelp, prompt: gr.Textbox, model: gr.Dropdown) -> None:
    """Surprises and words write the prompt; the hint follows it."""

    def surprise(name: str) -> str:
        return prompts.surprise(runtime.choice(name).traits, random.Random())

    def write_prompt(values: Values) -> Updates:
        return {prompt: prompts.sentence(**{part: values[dropdown] for part, dropdown in prompt_help.parts.items()})}

    def show_hint(values: Values) -> Updates:
        hint = prompts.hint(runtime.choice(values[model]).traits, values[prompt])
        return {prompt_help.hint: gr.HTML(value=note(hint), visible=bool(hint))}

    sync([prompt, model], show_hint, {prompt, model}, [prompt_help.hint])
    prompt_help.surprise.click(surprise, model, prompt, **UI_ONLY)
    for dropdown in prompt_help.parts.values():
        dropdown.input(write_prompt, set(prompt_help.parts.values()), [prompt], **UI_ONLY)


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
    return [("any", ""), *((word, word) for word in prompts.words(traits or {}, part))]
