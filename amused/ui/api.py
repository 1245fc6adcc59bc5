"""HTTP API: one named endpoint per task, and one that replays a recipe. They share Recipe and queue with the page.

The components here are never shown: they give the parameters their types and defaults, and Gradio takes care of their
files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from amused.errors import UserError
from amused.generation.images import load_image
from amused.generation.pixel_masks import load_mask
from amused.limits import MAX_SEEDS, MAX_STEPS
from amused.recipe.links import to_query
from amused.recipe.recipe import (
    IMAGE_TO_IMAGE,
    INPAINT,
    MAX_ADAPTER_STRENGTH,
    MAX_GUIDANCE_SCALE,
    MAX_TEMPERATURE,
    STRENGTHS,
    TEXT_TO_IMAGE,
    Recipe,
)
from amused.recipe.seeds import parse_seeds
from amused.serving.jobs import Request, Result, Started
from amused.serving.runtime import Runtime
from amused.ui.events import SAMPLING
from amused.ui.inputs import NO_IMAGE, ImageInput, NameInput
from amused.ui.results import GeneratedImage, explain, save_result
from amused.ui.sharing import ReplayRequest, from_text, replay_request

NO_MASK = "There is no mask: send an image that is white where the image should be repainted."
ABOUT = {
    TEXT_TO_IMAGE: "Generate images from a prompt.",
    IMAGE_TO_IMAGE: "Redraw an image after a prompt.",
    INPAINT: "Repaint a part of an image; outside the mask no bit of it changes.",
}
SOURCES = {TEXT_TO_IMAGE: (), IMAGE_TO_IMAGE: ("image", "strength"), INPAINT: ("image", "mask", "strength")}
SETTINGS = (
    "seeds",
    "negative_prompt",
    "steps",
    "guidance_scale",
    "first_temperature",
    "last_temperature",
    "model",
    "adapter",
    "adapter_strength",
)
IMAGES = "PNG files in the order of the seeds. Each carries its recipe."
REPLAY = "Generate exactly the images of a recipe, and say whether they are the same, bit for bit."
REPLAYED = (
    "The images, and for each of them its seed, the digest of its pixels, a query that generates it again, and "
    '"same": whether its digest is that of the recipe, or null where that has none.'
)

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of an endpoint: its component has its type and default, `about` is its documentation."""

    component: Component
    about: str
    is_optional: bool = False  # although its component has no value


def build(runtime: Runtime) -> None:
    with gr.Column(visible=False):
        settings = build_settings(runtime)
        sources = build_sources()
        strengths = {task: build_strength(value) for task, value in STRENGTHS.items()}
        replayed = build_replayed(sources)
        images = gr.Gallery(format="png", label="images")
        results = gr.JSON(label="results")
        trigger = gr.Button()

    def connect(
        name: str,
        about: str,
        parameters: Mapping[str, Parameter],
        returns: str,
        generate: Callable[[Arguments], Iterator[Any]],
        outputs: list[Component],
    ) -> None:
        function = documented(about, parameters, returns, generate)
        inputs = [parameter.component for parameter in parameters.values()]
        trigger.click(function, inputs, outputs, api_name=name, **SAMPLING)

    def generate_task(task: str) -> Callable[[Arguments], Iterator[Any]]:
        def generate(arguments: Arguments) -> Iterator[Any]:
            for _, finished in run(runtime, lambda: read_task(task, arguments)):
                yield tiles(finished)

        return generate

    def generate_replay(arguments: Arguments) -> Iterator[Any]:
        for request, finished in run(runtime, lambda: read_replay(runtime, arguments)):
            expected = request.digest if isinstance(request, ReplayRequest) else None
            yield tiles(finished), [describe(image, expected) for image in finished]

    for task, about in ABOUT.items():
        offered = {**settings, **sources}
        if task in strengths:
            offered["strength"] = strengths[task]
        parameters = {name: offered[name] for name in ("prompt", *SOURCES[task], *SETTINGS)}
        connect(task, about, parameters, IMAGES, generate_task(task), [images])
    connect("recipe", REPLAY, replayed, REPLAYED, generate_replay, [images, results])


def build_settings(runtime: Runtime) -> dict[str, Parameter]:
    first, last = Recipe.temperature
    models = [choice.name for choice in runtime.models]
    return {
        "prompt": Parameter(gr.Textbox(value="", label="prompt"), "what to generate."),
        "seeds": Parameter(
            gr.Textbox(value="0", label="seeds"),
            f'one image each, as a list with ranges such as "8, 15, 100-115", at most {MAX_SEEDS} in all.',
        ),
        "negative_prompt": Parameter(
            gr.Textbox(value=Recipe.negative_prompt, label="negative_prompt"), "what to keep out of the image."
        ),
        "steps": Parameter(
            gr.Number(value=Recipe.steps, label="steps"), f"sampling steps, 1 to {MAX_STEPS}; more is slower."
        ),
        "guidance_scale": Parameter(
            gr.Number(value=Recipe.guidance_scale, label="guidance_scale"),
            f"how closely to follow the prompt, 0 to {MAX_GUIDANCE_SCALE:g}.",
        ),
        "first_temperature": Parameter(
            gr.Number(value=first, label="first_temperature"), f"variety at the first step, 0 to {MAX_TEMPERATURE:g}."
        ),
        "last_temperature": Parameter(
            gr.Number(value=last, label="last_temperature"), f"variety at the last step, 0 to {MAX_TEMPERATURE:g}."
        ),
        "model": Parameter(
            NameInput(models, value=runtime.default, label="model"), "the name of a model that the page offers."
        ),
        "adapter": Parameter(
            gr.Textbox(value="", label="adapter"),
            'the name of an adapter that the page offers for the model; "" for none.',
        ),
        "adapter_strength": Parameter(
            gr.Number(value=Recipe.adapter_strength, label="adapter_strength"),
            f"scale of the adapter's change, 0 to {MAX_ADAPTER_STRENGTH:g}.",
        ),
    }


def build_sources() -> dict[str, Parameter]:
    return {
        "image": Parameter(ImageInput(label="image"), "the image to start from."),
        "mask": Parameter(
            ImageInput(label="mask"),
            "an image that is white where the image should be repainted, or opaque if it has transparency.",
        ),
    }


def build_strength(value: float) -> Parameter:
    return Parameter(
        gr.Number(value=value, label="strength"),
        "above 0, which stays close to the image, to 1, which starts from scratch.",
    )


def build_replayed(sources: Mapping[str, Parameter]) -> dict[str, Parameter]:
    return {
        "recipe": Parameter(
            gr.Textbox(label="recipe"),
            "a link that was copied from the page, its query, or the JSON in a PNG file made here.",
        ),
        "image": Parameter(
            sources["image"].component, "the image that the recipe starts from; none for text to image.", True
        ),
        "mask": Parameter(sources["mask"].component, "the mask, for inpainting.", True),
    }


def documented(
    about: str,
    parameters: Mapping[str, Parameter],
    returns: str,
    generate: Callable[[Arguments], Iterator[Any]],
) -> Callable[..., Iterator[Any]]:
    """`generate` with these named parameters: Gradio takes names, defaults and documentation from the function."""

    def endpoint(*arguments: Any) -> Iterator[Any]:
        yield from generate(dict(zip(parameters, arguments, strict=True)))

    described = "\n".join(f"    {name}: {parameter.about}" for name, parameter in parameters.items())
    endpoint.__doc__ = f"{about}\n\nArgs:\n{described}\n\nReturns:\n    {returns}\n"
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if parameter.is_optional else inspect.Parameter.empty,
            )
            for name, parameter in parameters.items()
        ]
    )
    return endpoint


def read_task(task: str, arguments: Arguments) -> Request:
    """Raises UserError: the arguments make no valid recipe, or an input is missing or cannot be read."""
    recipe = Recipe(
        task=task,
        prompt=arguments["prompt"],
        seeds=parse_seeds(arguments["seeds"]),
        model=arguments["model"],
        negative_prompt=arguments["negative_prompt"],
        steps=arguments["steps"],
        guidance_scale=arguments["guidance_scale"],
        temperature=(arguments["first_temperature"], arguments["last_temperature"]),
        strength=arguments.get("strength"),
        adapter=arguments["adapter"],
        adapter_strength=arguments["adapter_strength"],
    )
    image = mask = None
    if "image" in arguments:
        if arguments["image"] is None:
            raise UserError(NO_IMAGE)
        image = load_image(arguments["image"])
        if "mask" in arguments:
            if arguments["mask"] is None:
                raise UserError(NO_MASK)
            mask = load_mask(arguments["mask"], image.size)
    return Request((recipe,), image, mask)


def read_replay(runtime: Runtime, arguments: Arguments) -> ReplayRequest:
    """Raises UserError: there is no recipe, not all of it is understood, or it needs other inputs."""
    shared = from_text(arguments["recipe"])
    runtime.choice(shared.recipe.model)
    if shared.ignored:
        raise UserError(f"The recipe has unknown or invalid parts: {', '.join(shared.ignored)}.")
    image = None if arguments["image"] is None else load_image(arguments["image"], shared.recipe.first.image)
    mask = None if image is None or arguments["mask"] is None else load_mask(arguments["mask"], image.size)
    return replay_request(shared, image, mask)


def run(runtime: Runtime, read: Callable[[], Request]) -> Iterator[tuple[Request | None, list[GeneratedImage]]]:
    """After each event of a run, its request and the images that are finished.

    Raises:
        gr.Error: with the sentence for the caller.
    """
    request: Request | None = None
    images: list[GeneratedImage] = []
    sentence = None
    try:
        for event in runtime.run(read):
            if isinstance(event, Started):
                request = event.request
            elif isinstance(event, Result):
                images = [*images, save_result(event, write_metadata=True)]
            yield request, images
    except Exception as error:
        sentence = explain(error)
    if sentence is not None:  # outside of `except`, where the error and all that it refers to would live on
        raise gr.Error(sentence, print_exception=False)


def tiles(images: list[GeneratedImage]) -> list[tuple[str, str]]:
    return [(image.path, f"seed {image.seed}") for image in images]


def describe(image: GeneratedImage, expected: str | None) -> dict[str, Any]:
    return {
        "seed": image.seed,
        "digest": image.digest,
        "query": to_query(image.recipe, image.digest, image.fingerprint),
        "same": None if expected is None else image.digest == expected,
    }
