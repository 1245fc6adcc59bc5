"""Gradio's picture inputs without their own decoding: the bytes a visitor sends are judged by `amused.images` alone.

Gradio opens pictures before a handler runs, goes by the file's name, and answers a bad one with a traceback.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, ImageData
from PIL import Image, ImageChops

from ..errors import UserError
from ..images import load_mask, load_picture, upright

Raw = Path | bytes

NO_PICTURE = "There is no picture yet: upload one first."
NOTHING_PAINTED = "Nothing to repaint: paint over the part of the picture that should change."


class PictureInput(gr.Image):
    """Gives the handler the file as it was sent, as a path or bytes."""

    is_template = True

    def preprocess(self, payload: ImageData | None) -> Raw | None:  # type: ignore[override]
        if payload is None:
            return None
        if payload.path is not None:
            return Path(payload.path)
        return from_data_address(payload.url or "")


class NameInput(gr.Dropdown):
    """Gives the handler the name as it was sent: Gradio's own refusal repeats it, at any length, and in the log."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


@dataclass(frozen=True)
class Drawing:
    """A picture and the layers painted over it, as they were sent."""

    background: Raw | None
    layers: tuple[Raw, ...]

    def picture(self) -> Image.Image:
        if self.background is None:
            raise UserError(NO_PICTURE)
        return load_picture(self.background)

    def painted(self, size: tuple[int, int]) -> Image.Image | None:
        """White where any layer was painted on, by its opacity whatever its colour; None if none was."""
        painted: Image.Image | None = None
        for layer in self.layers:
            opacity = upright(layer).convert("RGBA").getchannel("A")
            if painted is not None and painted.size == opacity.size:
                opacity = ImageChops.lighter(painted, opacity)
            painted = opacity
        return None if painted is None or painted.getbbox() is None else load_mask(painted, size)

    def mask(self, size: tuple[int, int]) -> Image.Image:
        mask = self.painted(size)
        if mask is None:
            raise UserError(NOTHING_PAINTED)
        return mask


class DrawingInput(gr.ImageEditor):
    """An image editor whose value is a Drawing."""

    is_template = True

    def convert_and_format_image(  # type: ignore[override]
        self, file: FileData | bytes | None, flatten_on_white: bool = False
    ) -> Raw | None:
        if file is None:
            return None
        if isinstance(file, FileData):
            return Path(file.path)
        return bytes(file)

    def preprocess(self, payload: Any) -> Drawing:  # type: ignore[override]
        value = super().preprocess(payload) or {}
        return Drawing(value.get("background"), tuple(value.get("layers") or ()))


def from_data_address(address: str) -> bytes:
    """The bytes of a "data:" address; of anything else none, so that it is refused as an empty file."""
    head, _, body = address.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        return b""
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return b""
