"""The programs' way in: one named endpoint a task, through the same Recipe and the same queue as the page.

The components here are never shown: they give the endpoints their types and defaults, and their files Gradio's care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from amused.errors import UserError
from amused.generation.images import load_image
from amused.generation.masks import load_mask
from amused.recipe.links import Shared, to_query
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, STRENGTHS, TEXT_TO_IMAGE, Recipe
from amused.recipe.seeds import parse_seeds
from amused.serving.jobs import Result
from amused.serving.runtime import Runtime
from amused.ui.inputs import NO_PICTURE, NameInput, PictureInput, Raw
from amused.ui.run import SAMPLING, Request, Shot, as_request, explain, finished
from amused.ui.sharing import checked, from_text

Tiles = list[tuple[str, str]]  # a file and its caption, "seed 8"


def build(runtime: Runtime) -> None:
    def sampled(read: Callable[[], Request]) -> Iterator[list[Shot]]:
        shots: list[Shot] = []
        sentence = None
        try:
            for event in runtime.run(lambda: as_request(read())):
                if isinstance(event, Result):
                    shots = [*shots, finished(event, True)]
                yield shots
        except Exception as error:
            sentence = explain(error)
        if sentence is not None:
            raise gr.Error(sentence, print_exception=False)

    def stream(read: Callable[[], Request]) -> Iterator[Tiles]:
        for shots in sampled(read):
            yield [(shot.path, f"seed {shot.seed}") for shot in shots]

    def text_to_image(
        prompt: str,
        seeds: str,
        negative_prompt: str,
        steps: int,
        guidance_scale: float,
        first_temperature: float,
        last_temperature: float,
        model: str,
        adapter: str = "",
        adapter_strength: float = 1.0,
    ) -> Iterator[Tiles]:
        """Make pictures from a prompt.

        Args:
            prompt: what to draw.
            seeds: one picture each, as a list with ranges such as "8, 15, 100-115", at most 64 in all.
            negative_prompt: what should stay out of the picture.
            steps: sampling steps, 1 to 100; more is slower.
            guidance_scale: how closely to follow the prompt, 0 to 30.
            first_temperature: variety at the first step, 0 to 20.
            last_temperature: variety at the last step, 0 to 20.
            model: one of those that the page offers.
            adapter: one of those that the page offers for the model; "" for none.
            adapter_strength: how much of the adapter's change is made, 0 to 2.

        Returns:
            PNG files in the order of the seeds. Each carries its recipe.
        """
        temperature = (first_temperature, last_temperature)
        settings = (seeds, negative_prompt, steps, guidance_scale, *temperature, model, adapter, adapter_strength)
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
        adapter: str = "",
        adapter_strength: float = 1.0,
    ) -> Iterator[Tiles]:
        """Redraw a picture after a prompt.

        Args:
            prompt: what to draw.
            image: the picture to start from.
            strength: above 0, which stays close to the picture, to 1, which starts afresh.
            seeds: one picture each, as a list with ranges such as "8, 15, 100-115", at most 64 in all.
            negative_prompt: what should stay out of the picture.
            steps: sampling steps, 1 to 100; more is slower.
            guidance_scale: how closely to follow the prompt, 0 to 30.
            first_temperature: variety at the first step, 0 to 20.
            last_temperature: variety at the last step, 0 to 20.
            model: one of those that the page offers.
            adapter: one of those that the page offers for the model; "" for none.
            adapter_strength: how much of the adapter's change is made, 0 to 2.

        Returns:
            PNG files in the order of the seeds. Each carries its recipe.
        """
        temperature = (first_temperature, last_temperature)
        settings = (seeds, negative_prompt, steps, guidance_scale, *temperature, model, adapter, adapter_strength)
        yield from stream(lambda: (recipe_of(IMAGE_TO_IMAGE, prompt, strength, *settings), open_image(image), None))

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
        adapter: str = "",
        adapter_strength: float = 1.0,
    ) -> Iterator[Tiles]:
        """Redraw a part of a picture; outside the mask it stays, bit by bit.

        Args:
            prompt: what to draw.
            image: the picture to start from.
            mask: a picture that is white, or opaque where it has transparency, where the other is to be redrawn.
            strength: above 0, which stays close to the picture, to 1, which starts afresh.
            seeds: one picture each, as a list with ranges such as "8, 15, 100-115", at most 64 in all.
            negative_prompt: what should stay out of the picture.
            steps: sampling steps, 1 to 100; more is slower.
            guidance_scale: how closely to follow the prompt, 0 to 30.
            first_temperature: variety at the first step, 0 to 20.
            last_temperature: variety at the last step, 0 to 20.
            model: one of those that the page offers.
            adapter: one of those that the page offers for the model; "" for none.
            adapter_strength: how much of the adapter's change is made, 0 to 2.

        Returns:
            PNG files in the order of the seeds. Each carries its recipe.
        """

        def read() -> Request:
            recipe = recipe_of(
                INPAINT, prompt, strength, seeds, negative_prompt, steps, guidance_scale, first_temperature,
                last_temperature, model, adapter, adapter_strength,
            )  # fmt: skip
            picture = open_image(image)
            if mask is None:
                raise UserError("There is no mask: send a picture that is white where the other should be redrawn.")
            return recipe, picture, load_mask(mask, picture.size)

        yield from stream(read)

    def recipe(
        recipe: str, image: Raw | None = None, mask: Raw | None = None
    ) -> Iterator[tuple[Tiles, list[dict[str, Any]]]]:
        """Make exactly the pictures of a recipe, and tell whether they are the same, bit for bit.

        Args:
            recipe: a link that was copied from the page, its query, or JSON as it stands in a PNG file made here.
            image: the picture that the recipe starts from; none for text to image.
            mask: the mask, for inpainting.

        Returns:
            The pictures, and for each of them its seed, the digest of its pixels, a query that makes it again, and
            "same": whether its digest is the recipe's, or null where that has none.
        """
        shared: Shared | None = None

        def read() -> Request:
            nonlocal shared
            shared = from_text(recipe)
            runtime.choice(shared.recipe.model)
            if shared.ignored:
                raise UserError(f"The recipe holds what is not known or not valid: {', '.join(shared.ignored)}.")
            picture = None if image is None else load_image(image)
            return checked(shared.recipe, picture, load_mask(mask, picture.size) if mask and picture else None)

        for shots in sampled(read):
            yield (
                [(shot.path, f"seed {shot.seed}") for shot in shots],
                [describe(shot, shared.digest) for shot in shots],
            )

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
            NameInput([choice.name for choice in runtime.models], value=runtime.default, label="model"),
            gr.Textbox(value="", label="adapter"),
            gr.Number(value=Recipe.adapter_strength, label="adapter_strength"),
        ]
        pictures = gr.Gallery(format="png", label="pictures")
        source = gr.Textbox(label="recipe")
        results = gr.JSON(label="results")
        trigger = gr.Button()
    for endpoint, inputs in (
        (text_to_image, [prompt, *settings]),
        (image_to_image, [prompt, image, strengths[IMAGE_TO_IMAGE], *settings]),
        (inpaint, [prompt, image, mask, strengths[INPAINT], *settings]),
    ):
        trigger.click(endpoint, inputs, pictures, api_name=endpoint.__name__, **SAMPLING)
    trigger.click(recipe, [source, image, mask], [pictures, results], api_name="recipe", **SAMPLING)


def describe(shot: Shot, wanted: str | None) -> dict[str, Any]:
    return {
        "seed": shot.seed,
        "digest": shot.digest,
        "query": to_query(shot.recipe, shot.digest, shot.made),
        "same": None if wanted is None else shot.digest == wanted,
    }


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
    adapter: str,
    adapter_strength: float,
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
        adapter=adapter,
        adapter_strength=adapter_strength,
    )


def open_image(image: Raw | None) -> Any:
    if image is None:
        raise UserError(NO_PICTURE)
    return load_image(image)
