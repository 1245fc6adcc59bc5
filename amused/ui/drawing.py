"""The image editor: an image, and the strokes painted over it."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import EditorData
from PIL import Image, ImageChops

from amused.errors import UserError
from amused.generation.images import load_image, upright
from amused.generation.pixel_masks import load_mask
from amused.limits import MAX_PICTURE_BYTES
from amused.serving import file_cache
from amused.ui.events import UI_ONLY
from amused.ui.inputs import NO_IMAGE, Raw
from amused.ui.latest import COUNT_JS

NOTHING_PAINTED = "Paint over the part to change first."

MIRROR_JS = """(change, drawing) => {
    const latest = (window.amusedMirrored ||= {});
    if (change < (latest["%s"] || 0)) return { __type__: "update" };
    latest["%s"] = change;
    return drawing;
}"""


@dataclass(frozen=True)
class Drawing:
    """An image and the layers painted over it, as uploaded."""

    background: Raw | None
    layers: tuple[Raw, ...]

    def image(self) -> Image.Image:
        if self.background is None:
            raise UserError(NO_IMAGE)
        return load_image(self.background)

    def painted(self, size: tuple[int, int]) -> Image.Image | None:
        """White where any layer is painted, by opacity whatever the colour; None if nothing is."""
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


class UploadedDrawings:
    """Drawings that the editor uploads layer by layer, keyed by its own id. Bounded, unlike Gradio's."""

    MAX_DRAWINGS, MAX_ID = 1000, 40
    BACKGROUND, LAYER = "background", re.compile("layer [0-7]")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawings: OrderedDict[str, dict[str, Path]] = OrderedDict()

    def put(self, drawing_id: str, layer: str, content: bytes) -> None:
        if not (layer == self.BACKGROUND or self.LAYER.fullmatch(layer)):
            return  # a composite, which is not needed
        if len(drawing_id) > self.MAX_ID or len(content) > MAX_PICTURE_BYTES:
            return  # not from an editor
        path = Path(file_cache.save(content, "drawn.png"))
        with self._lock:
            self._drawings.setdefault(drawing_id, {})[layer] = path
            self._drawings.move_to_end(drawing_id)
            while len(self._drawings) > self.MAX_DRAWINGS:
                self._drawings.popitem(last=False)

    def get(self, drawing_id: str) -> Drawing:
        with self._lock:
            files = dict(self._drawings.get(drawing_id, {}))
        background = files.pop(self.BACKGROUND, None)
        return Drawing(background, tuple(path for _, path in sorted(files.items())))


UPLOADED = UploadedDrawings()


class DrawingInput(gr.ImageEditor):
    """An image editor whose value is a Drawing."""

    is_template = True

    @server  # type: ignore[untyped-decorator]  # Gradio's has no type hints
    def accept_blobs(self, data: Any) -> None:
        drawing_id, kind, index = (str(data.data.get(key)) for key in ("id", "type", "index"))
        UPLOADED.put(drawing_id, f"layer {index}" if kind == "layer" else kind, data.files[0][1])

    def preprocess(self, payload: EditorData | None) -> Drawing:  # type: ignore[override]
        return to_drawing(payload)


class DrawingMirror(gr.JSON):
    """A copy of a drawing, made by `mirror_drawing`: events take this as input instead of the editor."""

    is_template = True
    data_model = EditorData
    drawing: DrawingInput

    @classmethod
    def of(cls, drawing: DrawingInput) -> DrawingMirror:
        mirror = cls(visible="hidden")  # no `__init__` of our own: arguments that it did not name would be lost
        mirror.drawing = drawing
        return mirror

    def preprocess(self, payload: EditorData | None) -> Drawing:  # type: ignore[override]
        return to_drawing(payload)


def to_drawing(payload: EditorData | None) -> Drawing:
    if payload is None:
        return Drawing(None, ())
    if payload.id is not None:
        return UPLOADED.get(payload.id)
    background = None if payload.background is None else Path(payload.background.path)
    return Drawing(background, tuple(Path(layer.path) for layer in payload.layers))


def build_drawing(label: str, height: int, elem_id: str, upload: bool) -> DrawingInput:
    """An editor with one layer and one fixed colour; with `upload`, visitors can give an image."""
    return DrawingInput(
        label=label,
        type="filepath",
        image_mode="RGBA",
        format="png",
        sources=["upload", "clipboard"] if upload else [],
        layers=False,
        transforms=(),
        brush=gr.Brush(colors=["#f43f5e"], color_mode="fixed", default_size=24),
        eraser=gr.Eraser(default_size=24),
        canvas_size=(512, 512),
        height=height,
        buttons=[],
        elem_id=elem_id,
    )


def editor_value(path: str) -> dict[str, Any]:
    """The value of an editor with this image and nothing painted."""
    return {"background": path, "layers": [], "composite": None}


def mirror_drawing(events: Sequence[Any], mirror: DrawingMirror) -> Any:
    """Copy the drawing to `mirror` at any of these events; returns the last event, for what comes `then`.

    Gradio (6.31) asks any input or output of a server event for its value again whenever a run yields, and an editor
    answers by uploading all of its images: some hundred times per generated image. So the editor is only an input of
    this event, which runs in the browser; see also `latest.hide_progress`.
    """
    change, drawing = gr.Number(0, visible="hidden"), mirror.drawing
    return gr.on(events, None, None, change, js=COUNT_JS, **UI_ONLY).then(
        None, [change, drawing], mirror, js=MIRROR_JS % (drawing.elem_id, drawing.elem_id), **UI_ONLY
    )
