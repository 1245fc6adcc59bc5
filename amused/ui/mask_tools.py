"""The mask of an inpainting run: strokes, a mask file and a box combined; and a preview of the cells it repaints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from amused.errors import UserError
from amused.generation.images import fit
from amused.generation.pixel_masks import Box, crop_mask, fit_mask, load_mask, square_around, touched_cells
from amused.recipe.recipe import Recipe, number
from amused.ui.drawing import Drawing
from amused.ui.inputs import Raw

LONGEST = 512  # side in pixels of what is shown
REPAINTED, LINES, FRAME = (244, 63, 94, 150), (255, 255, 255, 90), (244, 63, 94, 255)
NO_MASK = "Paint over the part to change, or upload a mask."
NOTHING_LEFT = 'The whole image is painted: paint less, or untick "Invert the mask".'


def build_mask(
    size: tuple[int, int], drawing: Drawing, file: Raw | None, box: Sequence[float], inverted: bool
) -> Image.Image:
    """White where painted, white in the file or within the box (left, top, width, height in percent)."""
    parts = [drawing.painted(size), None if file is None else load_mask(file, size), draw_box(size, box)]
    mask: Image.Image | None = None
    for part in parts:
        if part is not None:
            mask = part if mask is None else ImageChops.lighter(mask, part)
    if mask is None:
        raise UserError(NO_MASK)
    if inverted:
        mask = ImageChops.invert(mask)
        if mask.getbbox() is None:
            raise UserError(NOTHING_LEFT)
    return mask


def draw_box(size: tuple[int, int], box: Sequence[float]) -> Image.Image | None:
    names = ("left of the box", "top of the box", "width of the box", "height of the box")
    left, top, across, down = (number(name, value, 0, 100) / 100 for name, value in zip(names, box, strict=True))
    if not across or not down:
        return None
    width, height = size
    # A box at the edge has at least one pixel, and one that extends beyond it ends there.
    x, y = min(int(left * width), width - 1), min(int(top * height), height - 1)
    corner = max(x, round((left + across) * width) - 1), max(y, round((top + down) * height) - 1)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(((x, y), corner), fill=255)
    return mask


def preview_cells(
    recipe: Recipe, image: Image.Image, mask: Image.Image, size: int, pixels_per_token: int
) -> tuple[Image.Image, int, int]:
    """The image with its token grid, the repainted cells marked; how many they are; the number of all cells.

    `size` is the model's; the recipe has a width and a height (`Runtime.with_default_size`) unless it is `only_masked`.
    """
    if recipe.only_masked:
        box = square_around(mask, size)
        mask = crop_mask(mask, box, size)
    else:
        assert recipe.width is not None and recipe.height is not None
        image = fit(image, recipe.width, recipe.height, recipe.fit)
        mask = fit_mask(mask, recipe.width, recipe.height, recipe.fit)
        box = (0, 0, *image.size)
    cells = touched_cells(mask, pixels_per_token)
    return draw_cells(image, box, cells), int(cells.sum()), cells.size


def draw_cells(image: Image.Image, box: Box, cells: np.ndarray) -> Image.Image:
    """An image with a grid of cells (rows, columns) over `box`; the true cells are marked."""
    scale = LONGEST / max(image.size)
    shown = image.resize([max(1, round(side * scale)) for side in image.size])
    left, top, right, bottom = (value * scale for value in box)
    rows, columns = cells.shape
    across, down = (right - left) / columns, (bottom - top) / rows
    veil = Image.new("RGBA", shown.size)
    pen = ImageDraw.Draw(veil)
    for row, column in np.argwhere(cells).tolist():
        corner = left + column * across, top + row * down
        pen.rectangle((corner, (corner[0] + across, corner[1] + down)), fill=REPAINTED)
    for column in range(1, columns):
        pen.line((left + column * across, top, left + column * across, bottom), fill=LINES)
    for row in range(1, rows):
        pen.line((left, top + row * down, right, top + row * down), fill=LINES)
    if box != (0, 0, *image.size):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
    return Image.alpha_composite(shown.convert("RGBA"), veil).convert("RGB")
