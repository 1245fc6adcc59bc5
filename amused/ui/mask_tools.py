"""Where a picture is repainted: strokes, a mask from a file and a box put together, and drawn as cells for a person.

Knows masks, pictures and the side of a token in pixels. Knows no components and no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw

from amused.errors import UserError
from amused.generation.images import fit, fit_mask, load_mask, square_around, token_mask
from amused.recipe.recipe import SIDE_MULTIPLE, Recipe, number
from amused.ui.drawing import NOTHING_PAINTED, Drawing
from amused.ui.inputs import Raw

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 512  # side in pixels of what is shown
REPAINTED, LINES, FRAME = (244, 63, 94, 150), (255, 255, 255, 90), (244, 63, 94, 255)
NOTHING_LEFT = "Everything is painted, so that nothing is left beside it: paint less, or repaint what is painted."


def build_mask(
    size: tuple[int, int], drawing: Drawing, file: Raw | None, box: Sequence[float], inverted: bool
) -> Image.Image:
    """What is painted, white in the file or within the box (left, top, width and height in percent), or the rest."""
    parts = [drawing.painted(size), None if file is None else load_mask(file, size), draw_box(size, box)]
    mask: Image.Image | None = None
    for part in parts:
        if part is not None:
            mask = part if mask is None else ImageChops.lighter(mask, part)
    if mask is None:
        raise UserError(NOTHING_PAINTED)
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
    # A box at the very edge is one pixel at least, and one that reaches over it ends there.
    x, y = min(int(left * width), width - 1), min(int(top * height), height - 1)
    corner = max(x, round((left + across) * width) - 1), max(y, round((top + down) * height) - 1)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(((x, y), corner), fill=255)
    return mask


def preview(recipe: Recipe, picture: Image.Image, mask: Image.Image, size: int) -> tuple[Image.Image, int, int]:
    """The picture under its cells, those marked that the recipe repaints; how many these are, and of how many.

    `size` is that of the model; the recipe is one with its width and height (`Runtime.sized`).
    """
    if recipe.only_masked:
        box = square_around(mask, size)
        cells = token_mask(fit_mask(mask.crop(box), size, size, "stretch"), SIDE_MULTIPLE)
    else:
        picture = fit(picture, recipe.width, recipe.height, recipe.fit)
        cells = token_mask(fit_mask(mask, recipe.width, recipe.height, recipe.fit), SIDE_MULTIPLE)
        box = (0, 0, *picture.size)
    return draw_cells(picture, box, cells), int(cells.sum()), cells.numel()


def draw_cells(picture: Image.Image, box: tuple[int, int, int, int], cells: Tensor) -> Image.Image:
    """A picture with a grid of cells (rows, columns) over the part of it that is within `box`."""
    scale = LONGEST / max(picture.size)
    shown = picture.resize([max(1, round(side * scale)) for side in picture.size])
    left, top, right, bottom = (value * scale for value in box)
    rows, columns = cells.shape
    across, down = (right - left) / columns, (bottom - top) / rows
    veil = Image.new("RGBA", shown.size)
    pen = ImageDraw.Draw(veil)
    for row, column in cells.nonzero().tolist():
        corner = left + column * across, top + row * down
        pen.rectangle((corner, (corner[0] + across, corner[1] + down)), fill=REPAINTED)
    for column in range(1, columns):
        pen.line((left + column * across, top, left + column * across, bottom), fill=LINES)
    for row in range(1, rows):
        pen.line((left, top + row * down, right, top + row * down), fill=LINES)
    if box != (0, 0, *picture.size):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
    return Image.alpha_composite(shown.convert("RGBA"), veil).convert("RGB")
