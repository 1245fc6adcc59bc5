"""Gradio's picture inputs without their own decoding: the bytes a visitor sends are judged by `images` alone.

Gradio opens pictures before a handler runs, goes by the file's name, and answers a bad one with a traceback.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import EditorData
from gradio.data_classes import ImageData
from PIL import Image, ImageChops

from amused.errors import UserError
from amused.generation.images import load_image, upright
from amused.generation.masks import load_mask
from amused.limits import MAX_PICTURE_BYTES
from amused.serving import file_cache

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
        return load_image(self.background)

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


class Sent:
    """Drawings that editors send by themselves after a change, picture by picture, under a name that they make up.

    Gradio would keep them in memory, as many as anybody sends, until an event asks for them; once.
    """

    MOST, NAME = 1000, 40
    BACKGROUND, LAYER = "background", re.compile("layer [0-7]")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawings: OrderedDict[str, dict[str, Path]] = OrderedDict()

    def put(self, name: str, layer: str, content: bytes) -> None:
        if not (layer == self.BACKGROUND or self.LAYER.fullmatch(layer)):
            return  # a composite, which nobody needs
        if len(name) > self.NAME or len(content) > MAX_PICTURE_BYTES:
            return  # no editor sends it
        path = Path(file_cache.save(content, "drawn.png"))
        with self._lock:
            self._drawings.setdefault(name, {})[layer] = path
            self._drawings.move_to_end(name)
            while len(self._drawings) > self.MOST:
                self._drawings.popitem(last=False)

    def get(self, name: str) -> Drawing:
        with self._lock:
            pictures = dict(self._drawings.get(name, {}))
        background = pictures.pop(self.BACKGROUND, None)
        return Drawing(background, tuple(path for _, path in sorted(pictures.items())))


SENT = Sent()


class DrawingInput(gr.ImageEditor):
    """An image editor whose value is a Drawing."""

    is_template = True

    @server
    def accept_blobs(self, data: Any) -> None:
        name, kind, index = (str(data.data.get(key)) for key in ("id", "type", "index"))
        SENT.put(name, f"layer {index}" if kind == "layer" else kind, data.files[0][1])

    def preprocess(self, payload: EditorData | None) -> Drawing:  # type: ignore[override]
        return to_drawing(payload)


def to_drawing(payload: EditorData | None) -> Drawing:
    if payload is None:
        return Drawing(None, ())
    if payload.id is not None:
        return SENT.get(payload.id)
    background = None if payload.background is None else Path(payload.background.path)
    return Drawing(background, tuple(Path(layer.path) for layer in payload.layers))


class Carried(gr.JSON):
    """What a drawing was when `following.carry` last asked for it: stands for it as the input of events."""

    is_template = True
    data_model = EditorData
    drawing: DrawingInput

    @classmethod
    def of(cls, drawing: DrawingInput) -> Carried:
        carried = cls(visible="hidden")  # no `__init__` of our own: what it did not name would not reach the browser
        carried.drawing = drawing
        return carried

    def preprocess(self, payload: EditorData | None) -> Drawing:  # type: ignore[override]
        return to_drawing(payload)


def from_data_address(address: str) -> bytes:
    """The bytes of a "data:" address; of anything else none, so that it is refused as an empty file."""
    head, _, body = address.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        return b""
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return b""
