"""The shapes of images that the page offers, as sizes of a model."""

from __future__ import annotations

from amused.errors import UserError
from amused.serving.runtime import scaled_sides

SQUARE = "Square"
SHAPES = {
    SQUARE: (1, 1),
    "Landscape 4:3": (4, 3),
    "Portrait 3:4": (3, 4),
    "Landscape 3:2": (3, 2),
    "Portrait 2:3": (2, 3),
    "Landscape 16:9": (16, 9),
    "Portrait 9:16": (9, 16),
}
OWN_SHAPE = "Original"
"""That of the input image."""


def sides(shape: str, size: int, multiple: int) -> tuple[int | None, int | None]:
    """Width and height of a shape at a model's native size; (None, None) for the image's own shape."""
    if shape == OWN_SHAPE:
        return None, None
    if shape not in SHAPES:
        raise UserError(f"Choose a shape: {', '.join(SHAPES)}.")
    return scaled_sides(SHAPES[shape], size, multiple)


def shape_of(width: int | None, height: int | None, size: int, multiple: int) -> str | None:
    """The shape that has these sides, or None."""
    return next((shape for shape in SHAPES if sides(shape, size, multiple) == (width, height)), None)
