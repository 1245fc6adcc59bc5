"""Recipes that leave the page in a link, and recipes that come from outside, in a link, a PNG file or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.components import Component
from PIL import Image

from amused.errors import UserError
from amused.generation.images import check_digest, read_bytes
from amused.recipe.links import MAX_QUERY, Shared, from_query
from amused.recipe.metadata import from_png_file, parse_json
from amused.serving.jobs import Request
from amused.ui.events import UI_ONLY, Updates
from amused.ui.files import GeneratedImage

NO_RECIPE = "There is no recipe in this text: paste a link copied from this page."
NO_RECIPE_IN_FILE = "There is no recipe in this file: choose a PNG downloaded from this page."

COPY_LINK = "Copy link"
COPY_JS = "(query) => window.amusedCopyLink(query)"


# Out


@dataclass(frozen=True)
class CopyLink:
    """A button that copies `query` behind the page's address, which only the browser knows.

    Where the browser forbids copying, `query` is shown with the whole link, to be copied by hand.
    """

    query: gr.Textbox
    button: gr.Button

    @property
    def outputs(self) -> list[Component]:
        return [self.query, self.button]

    def show(self, image: GeneratedImage) -> Updates:
        return {self.query: gr.Textbox(value=f"?{image.query}", visible=False), self.button: gr.Button(COPY_LINK)}


def build_copy_link(elem_id: str) -> CopyLink:
    button = gr.Button(COPY_LINK, size="sm", min_width=110, elem_id=f"{elem_id}-copy-link")
    query = gr.Textbox(label="Link", visible=False, interactive=False, buttons=["copy"], elem_id=f"{elem_id}-link")
    button.click(None, query, [button, query], js=COPY_JS, **UI_ONLY)
    return CopyLink(query, button)


# In


def from_request(request: gr.Request) -> Shared | None:
    """The recipe in the address of the page, if there is one."""
    return from_query(without_gradio_parameters(request.request.url.query)) if request.request else None


def from_text(text: str) -> Shared:
    """The recipe in pasted text: a link, its query, or JSON; raises UserError."""
    text = text.strip() if isinstance(text, str) else ""
    if text.startswith("{"):
        return parse_json(text)
    address, _, query = text.partition("?")
    # One character over the limit is enough to be refused.
    shared = from_query(without_gradio_parameters((query or address).partition("#")[0][: MAX_QUERY + 1]))
    if shared is None:
        raise UserError(NO_RECIPE)
    return shared


def from_file(path: str) -> Shared:
    """The recipe in a PNG file; raises UserError."""
    shared = from_png_file(read_bytes(Path(path)))
    if shared is None:
        raise UserError(NO_RECIPE_IN_FILE)
    return shared


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
        return "The same image, bit for bit."
    if shared.fingerprint is None:
        return "Not identical. The recipe does not say which device made the original."
    if shared.fingerprint != image.fingerprint:
        return f"Not identical. Original: {shared.fingerprint}; this machine: {image.fingerprint}."
    return "Not identical. The original was made on another CPU or GPU, or the link was edited."
