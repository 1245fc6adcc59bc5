"""The mask of an inpainting run: strokes, a mask file and a box combined; and the cells it repaints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from amused.errors import UserError
from amused.generation.pixel_masks import crop_mask, fit_mask, fitted_sides, load_mask, square_around, touched_cells
from amused.recipe.recipe import Recipe, number
from amused.ui.drawing import Drawing
from amused.ui.inputs import Raw

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


def repainted_cells(
    recipe: Recipe, mask: Image.Image | None, image_size: tuple[int, int], size: int, pixels_per_token: int
) -> tuple[tuple[float, float, float, float], np.ndarray] | None:
    """Where the token grid lies on the image (left, top, right, bottom in pixels), and which cells are repainted.

    `size` is the model's; the recipe has a width and a height (`Runtime.with_default_size`) unless it is `only_masked`:
    then the grid lies around the mask, and without a mask there is none.
    """
    if recipe.only_masked:
        if mask is None:
            return None
        box = square_around(mask, size)
        return box, touched_cells(crop_mask(mask, box, size), pixels_per_token)
    assert recipe.width is not None and recipe.height is not None
    across, down = fitted_sides(image_size, recipe.width, recipe.height, recipe.fit)
    left, top = (image_size[0] - across) / 2, (image_size[1] - down) / 2
    seen = fit_mask(mask or Image.new("L", image_size), recipe.width, recipe.height, recipe.fit)
    return (left, top, left + across, top + down), touched_cells(seen, pixels_per_token)
