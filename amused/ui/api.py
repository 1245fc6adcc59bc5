"""The programs' way in: one named endpoint a task, through the same Recipe and the same queue as the page.

The components here are never shown: they give the endpoints their types and defaults, and their files Gradio's care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..errors import UserError
from ..images import load_mask, load_picture
from ..recipe import IMAGE_TO_IMAGE, INPAINT, STRENGTHS, TEXT_TO_IMAGE, Recipe, parse_seeds
from ..runtime import Finished, Runtime
from .inputs import NO_PICTURE, PictureInput, Raw
from .run import SAMPLING, Request, explain, save_picture

Tiles = list[tuple[str, str]]  # a file and its caption, "seed 8"


def build(runtime: Runtime) -> None:
    def stream(read: Callable[[], Request]) -> Iterator[Tiles]:
        tiles: Tiles = []
        try:
            recipe, image, mask = read()
            for _ in runtime.loading(recipe.model):
                yield tiles
            recipe = runtime.sized(recipe, image)
            for event in runtime.generate(recipe, image, mask):
                if isinstance(event, Finished):
                    tiles = [*tiles, (save_picture(event), f"seed {event.seed}")]
                yield tiles
        except Exception as error:
            raise gr.Error(explain(error), print_exception=False) from None

    def text_to_image(
        prompt: str,
        seeds: str,
        negative_prompt: str,
        steps: int,
        guidance_scale: float,
        first_temperature: float,
        last_temperature: float,
        model: str,
    ) -> Iterator[Tiles]:
        """Make pictures from a prompt: one for each seed of a list such as "8, 15, 100-115", at most 64 in all."""
        settings = (seeds, negative_prompt, steps, guidance_scale, first_temperature, last_temperature, model)
        yield from stream(lambda: (recipe_of(TEXT_TO_IMAGE, prompt, None, *settings), None, None))

    def image_to_image(
        prompt: str,
        image: Raw | None,
        strength: float,
        seeds: str,
        negative_prompt: str,
        steps: int,
        guidance_scale: float,
        first_temperature: float,
        last_temperature: float,
        model: str,
    ) -> Iterator[Tiles]:
        """Redraw a picture after a prompt. A low strength stays close to the picture, 1 starts afresh."""
        settings = (seeds, negative_prompt, steps, guidance_scale, first_temperature, last_temperature, model)
        yield from stream(lambda: (recipe_of(IMAGE_TO_IMAGE, prompt, strength, *settings), open_picture(image), None))

    def inpaint(
        prompt: str,
        image: Raw | None,
        mask: Raw | None,
        strength: float,
        seeds: str,
        negative_prompt: str,
        steps: int,
        guidance_scale: float,
        first_temperature: float,
        last_temperature: float,
        model: str,
    ) -> Iterator[Tiles]:
        """Redraw the part of a picture where the mask is white (or opaque, where it has transparency)."""

        def read() -> Request:
            recipe = recipe_of(
                INPAINT, prompt, strength, seeds, negative_prompt, steps, guidance_scale, first_temperature,
                last_temperature, model,
            )  # fmt: skip
            picture = open_picture(image)
            if mask is None:
                raise UserError("There is no mask: send a picture that is white where the other should be redrawn.")
            return recipe, picture, load_mask(mask, picture.size)

        yield from stream(read)

    with gr.Column(visible=False):
        prompt = gr.Textbox(value="", label="prompt")
        image, mask = PictureInput(label="image"), PictureInput(label="mask")
        strengths = {task: gr.Number(value=strength, label="strength") for task, strength in STRENGTHS.items()}
        first, last = Recipe.temperature
        settings: list[Any] = [
            gr.Textbox(value="0", label="seeds"),
            gr.Textbox(value=Recipe.negative_prompt, label="negative_prompt"),
            gr.Number(value=Recipe.steps, label="steps"),
            gr.Number(value=Recipe.guidance_scale, label="guidance_scale"),
            gr.Number(value=first, label="first_temperature"),
            gr.Number(value=last, label="last_temperature"),
            gr.Dropdown([choice.name for choice in runtime.models], value=runtime.default, label="model"),
        ]
        pictures = gr.Gallery(format="png", label="pictures")
        trigger = gr.Button()
    for endpoint, inputs in (
        (text_to_image, [prompt, *settings]),
        (image_to_image, [prompt, image, strengths[IMAGE_TO_IMAGE], *settings]),
        (inpaint, [prompt, image, mask, strengths[INPAINT], *settings]),
    ):
        trigger.click(endpoint, inputs, pictures, api_name=endpoint.__name__, **SAMPLING)


def recipe_of(
    task: str,
    prompt: str,
    strength: float | None,
    seeds: str,
    negative_prompt: str,
    steps: int,
    guidance_scale: float,
    first_temperature: float,
    last_temperature: float,
    model: str,
) -> Recipe:
    return Recipe(
        task=task,
        prompt=prompt,
        seeds=parse_seeds(seeds),
        model=model,
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        temperature=(first_temperature, last_temperature),
        strength=strength,
    )


def open_picture(image: Raw | None) -> Any:
    if image is None:
        raise UserError(NO_PICTURE)
    return load_picture(image)
