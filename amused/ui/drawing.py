"""The mask editor: an image, and a mask painted over it. Its script is editor.html, its look is in page.css."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from PIL import Image, ImageChops

from amused.errors import UserError
from amused.generation.images import load_image, png_bytes, upright
from amused.generation.pixel_masks import load_mask
from amused.serving import file_cache
from amused.ui.inputs import NO_IMAGE, Raw, decode_data_url, encode_data_url

NOTHING_PAINTED = "First paint over the part to change."
MAX_SHOWN_SIDE = 768  # pixels: larger images are painted on as a reduced copy

SCRIPT = 'window.amusedEditor(element, props, watch, (file) => trigger("upload", file), upload)'
TEMPLATE = """
<p class="label" role="status">%s</p>
<div class="tools" role="toolbar" aria-label="Mask">
  <button type="button" data-tool="brush" aria-pressed="true">Brush</button>
  <button type="button" data-tool="erase" aria-pressed="false">Erase</button>
  <button type="button" data-tool="cells" aria-pressed="false">Cells</button>
  <button type="button" data-do="undo" title="Undo: Ctrl+Z" aria-label="Undo">↶</button>
  <button type="button" data-do="redo" title="Redo: Ctrl+Shift+Z" aria-label="Redo">↷</button>
  <input class="size" type="range" min="1" max="40" value="14" title="Brush size: [ and ]" aria-label="Brush size">
  <button type="button" data-do="clear">Clear mask</button>
  <button type="button" data-do="out" title="Zoom out" aria-label="Zoom out">−</button>
  <button type="button" data-do="in" title="Zoom in" aria-label="Zoom in">+</button>
  %s
</div>
<div class="view"><div class="stage">
  <img class="picture" alt="The image to paint on">
  <canvas class="mask"></canvas>
  <div class="grid" aria-hidden="true"></div>
  <span class="ring"></span>
</div></div>
%s
"""
REPLACE = '<button type="button" data-do="replace" aria-label="Replace image">Replace</button>'
EMPTY = """<label class="nothing"><input class="file" type="file" accept="image/*" aria-label="Your image">
  <span>Drop an image here, paste it, or <b>choose a file</b></span></label>"""


@dataclass(frozen=True)
class Drawing:
    """An image and the layers painted over it, as sent by a browser."""

    background: Raw | None
    layers: tuple[bytes, ...]

    def image(self, expected: str | None = None) -> Image.Image:
        if self.background is None:
            raise UserError(NO_IMAGE)
        return load_image(self.background, expected)

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


class MaskEditor(gr.HTML):
    """Handlers get a Drawing, and return one, or the path of an image on which nothing is painted.

    The prop `grid` is what `show_grid` gives.
    """

    is_template = True  # no `__init__` of our own: arguments that it did not name would be lost

    def preprocess(self, payload: Any) -> Drawing:  # type: ignore[override]
        source, mask = (payload.get(key) for key in ("source", "mask")) if isinstance(payload, dict) else (None, None)
        path = source.get("path") if isinstance(source, dict) else None
        return Drawing(
            Path(path) if isinstance(path, str) else None,
            (decode_data_url(mask),) if isinstance(mask, str) and mask else (),
        )

    def postprocess(self, value: str | Drawing | None) -> dict[str, Any] | None:  # type: ignore[override]
        if value is None:
            return None
        if not isinstance(value, Drawing):
            return show_drawing(Drawing(Path(value), ()))
        try:
            return show_drawing(value)
        except (UserError, OSError):  # the page opens without it
            return None


def show_drawing(drawing: Drawing) -> dict[str, Any]:
    """The editor's value. An image larger than `MAX_SHOWN_SIDE` is shown reduced."""
    shown = drawing.image()
    shown.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    path = file_cache.save(png_bytes(shown, compress_level=1), "shown.png")
    mask = encode_data_url(drawing.layers[0]) if drawing.layers else ""
    return {"source": file_data(str(drawing.background)), "image": file_data(path), "mask": mask}


def file_data(path: str) -> dict[str, Any]:
    return FileData(path=path).model_dump()


def build_editor(label: str, elem_id: str, upload: bool = False) -> MaskEditor:
    """With `upload`, visitors can give an image."""
    editor = MaskEditor(
        label=label,
        html_template=TEMPLATE % (label, *((REPLACE, EMPTY) if upload else ("", ""))),
        js_on_load=SCRIPT,
        apply_default_css=False,
        container=True,
        elem_id=elem_id,
        elem_classes="mask-editor",
        grid=None,
    )
    if upload:
        # Queued: Gradio (6.31) shows no error of an event that bypasses its queue.
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        editor.upload(take_upload, None, editor, **options)
    return editor


def take_upload(event: gr.EventData) -> str:
    """The path of an uploaded file; a file that is no image is refused, and the image that was there stays."""
    path = event._data.get("path") if isinstance(event._data, dict) else None
    if not isinstance(path, str):
        raise UserError(NO_IMAGE)
    load_image(Path(path))
    return path


def show_grid(size: tuple[int, int], box: Sequence[float], cells: np.ndarray) -> gr.HTML:
    """An update that shows the token grid over `box` (left, top, right, bottom) of an image; true cells are marked."""
    left, top, right, bottom = (edge / side for edge, side in zip(box, (*size, *size), strict=True))
    rows, columns = cells.shape
    marked = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(cells).tolist())
    lines = [f"M0 {row}h{columns}" for row in range(rows + 1)] + [
        f"M{column} 0v{rows}" for column in range(columns + 1)
    ]
    place = f"left:{left:%};top:{top:%};width:{right - left:%};height:{bottom - top:%}"
    svg = (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" style="{place}">'
        f'<path class="marked" d="{marked}"/><path class="lines" d="{"".join(lines)}"/></svg>'
    )
    edges = {"columns": np.linspace(left, right, columns + 1), "rows": np.linspace(top, bottom, rows + 1)}
    return gr.HTML(grid={"svg": svg, **{name: values.tolist() for name, values in edges.items()}})


def hide_grid() -> gr.HTML:
    return gr.HTML(grid=None)
