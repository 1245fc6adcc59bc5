"""Recipes that leave the page in a link, and recipes that come from outside, in a link, a PNG file or JSON."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
from gradio.components import Component
from PIL import Image

from amused.errors import UserError
from amused.generation.images import check_digest, read_bytes
from amused.recipe.links import MAX_QUERY, Shared, from_query
from amused.recipe.metadata import from_png_file, parameters_from_png_file, parse_json
from amused.recipe.parameters import Parameters
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.events import UNQUEUED, Updates
from amused.ui.files import GeneratedImage
from amused.ui.shapes import shape_of

NO_RECIPE = "There is no recipe in this text: paste a link copied from this page."
NO_RECIPE_IN_FILE = "There is no recipe in this file: choose a PNG downloaded from this page."

PASTED_AROUND = " \t\r\n\ufeff\u200b\u00a0<>()[]\"'`"  # by messages and editors; a query that we write has none of it

COPY_LINK = "Copy link"
COPY_JS = "(query) => window.amusedCopyLink(query)"


class NoRecipe(UserError):
    """There is no recipe, not even a damaged one, in what was given."""


# Out


class CopyLink:
    """A button that copies `query` behind the page's address, which only the browser knows.

    Where the browser forbids copying, `query` is shown with the whole link, to be copied by hand.
    """

    def __init__(self) -> None:
        self.button = gr.Button(COPY_LINK, size="sm", min_width=110, elem_id="result-copy-link")
        self.query = gr.Textbox(label="Link", visible=False, interactive=False, buttons=["copy"], elem_id="result-link")
        self.button.click(None, self.query, [self.button, self.query], js=COPY_JS, **UNQUEUED)

    @property
    def outputs(self) -> list[Component]:
        return [self.query, self.button]

    def show(self, image: GeneratedImage) -> Updates:
        return {self.query: gr.Textbox(value=f"?{image.query}", visible=False), self.button: gr.Button(COPY_LINK)}


# In


def from_request(request: gr.Request) -> Shared | None:
    """The recipe in the address of the page, if there is one."""
    return from_query(without_gradio_parameters(request.request.url.query)) if request.request else None


def from_text(text: str) -> Shared:
    """The recipe in pasted text: a link, alone or within a message, its query, or JSON."""
    if not isinstance(text, str):
        raise NoRecipe(NO_RECIPE)
    text = text.strip(PASTED_AROUND)
    if text.startswith("{"):
        return parse_json(text)
    # One character over the limit is enough to be refused.
    address, _, query = find_link(text).partition("?")
    query = (query or address).partition("#")[0].rstrip(PASTED_AROUND)[: MAX_QUERY + 1]
    shared = from_query(without_gradio_parameters(query.replace("&amp;", "&")))
    if shared is None:
        raise NoRecipe(NO_RECIPE)
    return shared


def find_link(text: str) -> str:
    """The link in a message. A link or query that begins the text is all of it: its values may have spaces."""
    text = text.partition("](http")[0]  # of a Markdown link
    first, *words = text[: 2 * MAX_QUERY].split() or [""]
    if "=" in first:
        return text
    link = next((word for word in words if "://" in word and "?" in word), text)
    return re.split(r"[<>()\[\]\"]", link.lstrip(PASTED_AROUND))[0] if link != text else text


def from_file(path: str, runtime: Runtime, model: str) -> Shared:
    """The recipe in a PNG file. Settings of another tool become a recipe for `model`, unless they name one of ours.

    Raises:
        UserError: there is none, or it is damaged.
    """
    data = read_bytes(Path(path))
    shared = from_png_file(data)
    if shared is not None:
        return shared
    parameters = parameters_from_png_file(data)
    if parameters is None:
        raise NoRecipe(NO_RECIPE_IN_FILE)
    return from_parameters(parameters, runtime, model)


def from_parameters(parameters: Parameters, runtime: Runtime, model: str) -> Shared:
    """What these settings do not say is the model's own. A size is taken only if it is a shape of the model."""

    def accept(recipe: Recipe) -> bool:
        return recipe.model == model and (
            recipe.width is None or shape_of(recipe.width, recipe.height, *size) is not None
        )

    named = parameters.settings.get("Model")
    model = named if named in [choice.name for choice in runtime.models] else model
    size = runtime.native_size(model)
    return parameters.fill(Recipe(TEXT_TO_IMAGE, "", (0,), model, **runtime.choice(model).defaults), accept)


def without_gradio_parameters(query: str) -> str:
    """A query without the parameters of Gradio and Spaces, which start with two underscores."""
    return "&".join(part for part in query.split("&") if not part.startswith("__"))


# Replay


def replay_request(shared: Shared, image: Image.Image | None, mask: Image.Image | None) -> Request:
    """A run of exactly this recipe; raises UserError unless the inputs are those that it names."""
    first = shared.recipe.first
    check_digest(image, first.image, "image")
    check_digest(mask, first.mask, "mask")
    return Request((shared.recipe,), image, mask)


def verdict(shared: Shared, image: GeneratedImage) -> str:
    """Whether a replay gave the image that the recipe came with, and if not, why."""
    if shared.digest is None:
        return "This recipe has no digest, so the result cannot be checked."
    if image.digest == shared.digest:
        return "✓ The same, bit for bit."
    if shared.fingerprint is None:
        return "Not identical. The recipe does not say which device made the original."
    if shared.fingerprint != image.fingerprint:
        return "Not identical. The original was made with another device or version: see Info."
    return "Not identical. The original was made on another CPU or GPU, or the link was edited."
