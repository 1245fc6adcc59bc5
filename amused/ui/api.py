"""HTTP API: one named endpoint per task, and one that replays a recipe. They share Recipe and queue with the page.

The components here are never shown: they give the parameters their types and defaults, and Gradio takes care of their
files.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.components.gallery import GalleryImage
from gradio.data_classes import GradioRootModel

from amused.errors import UserError
from amused.generation.images import load_image
from amused.generation.pixel_masks import load_mask
from amused.limits import MAX_SEEDS, MAX_STEPS
from amused.recipe.links import Shared
from amused.recipe.recipe import (
    IMAGE_TO_IMAGE,
    INPAINT,
    MASK_BY,
    MAX_ADAPTER_STRENGTH,
    MAX_CORRECTOR_ROUNDS,
    MAX_GUIDANCE_SCALE,
    MAX_TEMPERATURE,
    SAMPLERS,
    STRENGTHS,
    TEXT_TO_IMAGE,
    Recipe,
)
from amused.recipe.seeds import parse_seeds
from amused.serving.jobs import Request, Result
from amused.serving.runtime import Runtime
from amused.ui.events import SAMPLING
from amused.ui.explain import explain
from amused.ui.files import GeneratedImage, save_result
from amused.ui.inputs import NO_IMAGE, ImageInput, NameInput
from amused.ui.settings import own_settings
from amused.ui.sharing import from_text, replay_request
from amused.ui.status import describe_cut

NO_MASK = "There is no mask: send an image that is white where the image should be repainted."

ABOUT = {
    TEXT_TO_IMAGE: "Generate images from a prompt.",
    IMAGE_TO_IMAGE: "Redraw an image to match a prompt.",
    INPAINT: "Repaint a part of an image; pixels outside the mask stay unchanged.",
}
SOURCES = {TEXT_TO_IMAGE: (), IMAGE_TO_IMAGE: ("image", "strength"), INPAINT: ("image", "mask", "strength")}
PARAMETERS = {
    "image": "the image to start from.",
    "mask": "an image that is white where the image should be repainted, or opaque if it has transparency.",
    "strength": "above 0, which stays close to the image, to 1, which starts from scratch.",
    "prompt": "what to generate.",
    "seeds": f'one image each, as a list with ranges such as "8, 15, 100-115", at most {MAX_SEEDS} in all.',
    "negative_prompt": "what to keep out of the image.",
    "steps": f"sampling steps, 1 to {MAX_STEPS}; more is slower.",
    "guidance_scale": f"how closely to follow the prompt, 0 to {MAX_GUIDANCE_SCALE:g}.",
    "first_temperature": f"variety at the first step, 0 to {MAX_TEMPERATURE:g}.",
    "last_temperature": f"variety at the last step, 0 to {MAX_TEMPERATURE:g}.",
    "model": "the name of a model that the page offers.",
    "adapter": 'the name of an adapter that the page offers for the model; "" for none.',
    "adapter_strength": f"scale of the adapter's change, 0 to {MAX_ADAPTER_STRENGTH:g}.",
    "sampler": f"how tokens are drawn: {' or '.join(SAMPLERS)}.",
    "corrector_rounds": f"how often the least likely tokens are drawn again, 0 to {MAX_CORRECTOR_ROUNDS}.",
    "mask_by": f"which part of the image is redrawn first: {' or '.join(MASK_BY)}.",
}
REQUIRED = ("prompt", "image", "mask")
OWN = ("steps", "guidance_scale", "first_temperature", "last_temperature", "sampler", "corrector_rounds", "mask_by")
"""Parameters that take the model's own setting if they are not given."""
IMAGES = 'PNG files in the order of the seeds, each with its recipe; "note" says if a prompt is too long for the model.'
REPLAY = "Replay a recipe, and report whether the images are identical to those it came from."
REPLAY_PARAMETERS = {
    "recipe": "a link that was copied from the page, its query, or the JSON in a PNG file made here.",
    "image": "the image that the recipe starts from; none for text to image.",
    "mask": "the mask, for inpainting.",
}
REPLAYED = (
    "The images, and for each of them its seed, the digest of its pixels, a query that generates it again, and "
    '"same": whether its digest is that of the recipe, or null where that has none; "cut": the prompts that are longer '
    "than the model reads."
)

CANCEL_SECONDS = 0.5  # a client that has gone is noticed within this time and a step

Arguments = Mapping[str, Any]


class Tile(GalleryImage):
    """`note` is the one field that Gradio's tiles do not have."""

    note: str | None = None


class Tiles(GradioRootModel):
    root: list[Tile]


class ResultGallery(gr.Gallery):
    is_template = True

    def postprocess(self, value: list[GeneratedImage] | None) -> Tiles:  # type: ignore[override]
        images = value or []
        tiles = super().postprocess([image.tile for image in images]).root
        notes = [describe_cut(image.cut) if image.cut else None for image in images]
        return Tiles(root=[Tile(**tile.model_dump(), note=note) for tile, note in zip(tiles, notes, strict=True)])


def build(runtime: Runtime) -> None:
    with gr.Column(visible=False):
        trigger = gr.Button()
        components = build_parameters(runtime)
        strengths = {task: gr.Number(value=value, label="strength") for task, value in STRENGTHS.items()}
        images = ResultGallery(format="png", label="images")
        results = gr.JSON(label="results")

    def connect(name: str, function: Callable[..., Iterator[Any]], outputs: list[Component]) -> None:
        offered = {**components, "strength": strengths[name]} if name in strengths else components
        inputs = [offered[parameter] for parameter in inspect.signature(function).parameters]
        trigger.click(function, inputs, outputs, api_name=name, **SAMPLING)

    def replay(arguments: Arguments) -> Iterator[Any]:
        shared: Shared | None = None

        def read() -> Request:
            nonlocal shared
            shared = from_text(arguments["recipe"])
            return read_replay(runtime, shared, arguments)

        for finished in run(runtime, read):
            expected = None if shared is None else shared.digest
            yield finished, [describe(image, expected) for image in finished]

    others = [name for name in PARAMETERS if name not in ("prompt", *SOURCES[INPAINT])]
    for task, about in ABOUT.items():
        names = [name for name in ("prompt", *SOURCES[task], *others) if name != "mask_by" or task == IMAGE_TO_IMAGE]
        parameters = {name: PARAMETERS[name] for name in names}
        connect(task, named(partial(generate, runtime, task), about, parameters, IMAGES, REQUIRED), [images])
    function = named(replay, REPLAY, REPLAY_PARAMETERS, REPLAYED, ("recipe",))
    connect("recipe", function, [images, results])


def build_parameters(runtime: Runtime) -> dict[str, Component]:
    """The components of all parameters but strength, whose default depends on the task."""
    components: dict[str, Component] = {
        "prompt": gr.Textbox(value=""),
        "seeds": gr.Textbox(value="0"),
        "negative_prompt": gr.Textbox(value=Recipe.negative_prompt),
        "steps": gr.Number(),
        "guidance_scale": gr.Number(),
        "first_temperature": gr.Number(),
        "last_temperature": gr.Number(),
        "sampler": gr.Textbox(),
        "corrector_rounds": gr.Number(),
        "mask_by": gr.Textbox(),
        "model": NameInput([choice.name for choice in runtime.models], value=runtime.default),
        "adapter": gr.Textbox(value=""),
        "adapter_strength": gr.Number(value=Recipe.adapter_strength),
        "image": ImageInput(),
        "mask": ImageInput(),
        "recipe": gr.Textbox(),
    }
    for name, component in components.items():
        component.label = name
    return components


def named(
    generate: Callable[[Arguments], Iterator[Any]],
    about: str,
    parameters: Mapping[str, str],
    returns: str,
    required: tuple[str, ...],
) -> Callable[..., Iterator[Any]]:
    """`generate` with these parameters: Gradio takes names, defaults and documentation from the function."""

    def endpoint(*arguments: Any) -> Iterator[Any]:
        yield from generate(dict(zip(parameters, arguments, strict=True)))

    described = "\n".join(f"    {name}: {text}" for name, text in parameters.items())
    endpoint.__doc__ = f"{about}\n\nArgs:\n{described}\n\nReturns:\n    {returns}\n"
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=empty if name in required else None) for name in parameters]
    )
    return endpoint


def generate(runtime: Runtime, task: str, arguments: Arguments) -> Iterator[list[GeneratedImage]]:
    return run(runtime, lambda: read_task(runtime, task, arguments))


def read_task(runtime: Runtime, task: str, arguments: Arguments) -> Request:
    values = own_settings(runtime, arguments["model"])
    values |= {name: value for name in OWN if (value := arguments.get(name)) is not None}
    recipe = Recipe(
        task=task,
        prompt=arguments["prompt"],
        seeds=parse_seeds(arguments["seeds"]),
        model=arguments["model"],
        negative_prompt=arguments["negative_prompt"],
        temperature=(values.pop("first_temperature"), values.pop("last_temperature")),
        strength=arguments.get("strength"),
        adapter=arguments["adapter"],
        adapter_strength=arguments["adapter_strength"],
        **values,
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


def read_replay(runtime: Runtime, shared: Shared, arguments: Arguments) -> Request:
    runtime.choice(shared.recipe.model)
    if shared.ignored:
        raise UserError(f"The recipe has unknown or invalid parts: {', '.join(shared.ignored)}.")
    image = None if arguments["image"] is None else load_image(arguments["image"], shared.recipe.first.image)
    mask = None if image is None or arguments["mask"] is None else load_mask(arguments["mask"], image.size)
    return replay_request(shared, image, mask)


def run(runtime: Runtime, read: Callable[[], Request]) -> Iterator[list[GeneratedImage]]:
    """The finished images of a run: after each of them, and often enough in between, where a client can cancel."""
    finished: dict[int, GeneratedImage] = {}  # by index: workers finish them in any order
    sentence, sent = None, 0.0
    try:
        for event in runtime.run(read):
            if isinstance(event, Result):
                finished[event.index] = save_result(event, write_metadata=True)
            elif time.monotonic() - sent < CANCEL_SECONDS:
                continue  # Gradio prepares all images again each time: more work than the step of a small model
            yield [finished[index] for index in sorted(finished)]
            sent = time.monotonic()
    except Exception as error:
        sentence = explain(error)
    if sentence is not None:  # outside of `except`, where the error and all that it refers to would live on
        raise gr.Error(sentence, print_exception=False)


def describe(image: GeneratedImage, expected: str | None) -> dict[str, Any]:
    return {
        "seed": image.seed,
        "digest": image.digest,
        "query": image.query,
        "same": None if expected is None else image.digest == expected,
        "cut": list(image.cut),
    }
