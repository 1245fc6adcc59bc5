"""The geometry of masks: pixels to token cells and back.

A mask is a greyscale image ("L"): white is repainted, black is kept. Cells are a bool array (rows, columns), one per
token. Imports no torch, so that the page can use it.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from amused.errors import UserError
from amused.generation.images import Source, convert_mode, has_transparency, upright

EMPTY_MASK = "Paint over the part to change, or upload a mask."

WHITE_RULE = "white is repainted"
STROKES_RULE = "everything opaque is repainted, whatever its colour"
STROKES_TRANSPARENT = 0.01  # of a file of strokes, at least
STROKES_WHITE = 0.05  # of the transparent area, at most

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def load_mask(source: Source, size: tuple[int, int]) -> Image.Image:
    """Read a mask and resize it to `size` (width, height). `mask_rule` says which pixels it marks.

    No stroke vanishes when the mask gets smaller, however thin.

    Raises:
        UserError: the image cannot be read, or the mask is black all over.
    """
    colors, opacity = colors_and_opacity(source)
    mask = opacity if is_strokes(colors, opacity) else ImageChops.multiply(colors.convert("L"), opacity)
    mask = resize_mask(mask, size)
    if mask.getbbox() is None:
        raise UserError(EMPTY_MASK)
    return mask


def mask_rule(source: Source) -> str:
    """How `load_mask` reads a file, in words for people.

    White is repainted; black and transparent parts are kept. But a file of strokes (at least 1 % transparent, with
    hardly any visible white) is read by its opacity, whatever the colour of the strokes.
    """
    return STROKES_RULE if is_strokes(*colors_and_opacity(source)) else WHITE_RULE


def colors_and_opacity(source: Source) -> tuple[Image.Image, Image.Image]:
    """The colours (RGB) and the opacity (L) of a mask file."""
    image = upright(source)
    if not has_transparency(image):
        return convert_mode(image, "RGB"), Image.new("L", image.size, 255)
    image = convert_mode(image, "RGBA")
    return image.convert("RGB"), image.getchannel("A")


def is_strokes(colors: Image.Image, opacity: Image.Image) -> bool:
    if opacity.getextrema() == (255, 255):
        return False
    visible = np.asarray(opacity) >= 128
    darkest, brightest = np.asarray(colors).min(axis=-1), np.asarray(colors).max(axis=-1)
    white = visible & (brightest >= 128) & (brightest - darkest <= 64)
    transparent = visible.size - int(visible.sum())
    # Counted, so that a few pixels do not turn the meaning of a file round.
    return transparent >= STROKES_TRANSPARENT * visible.size and int(white.sum()) < STROKES_WHITE * transparent


def resize_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Adaptive max pooling: each pixel becomes the brightest of those that it covers."""
    if mask.size == size:
        return mask
    width, height = size
    return Image.fromarray(pool_rows(pool_rows(np.asarray(mask), height).T, width).T.copy())


def pool_rows(values: np.ndarray, count: int) -> np.ndarray:
    """The maxima of `count` windows of rows that cover (rows, columns), overlapping where they must."""
    rows = len(values)
    index = np.arange(count)
    starts, ends = index * rows // count, -(-(index + 1) * rows // count)
    padded = np.concatenate([values, np.zeros_like(values[:1])])  # the last window ends within it
    return np.maximum.reduceat(padded, np.stack([starts, ends], axis=1).ravel(), axis=0)[::2]


def fit_mask(mask: Image.Image, width: int, height: int, mode: str) -> Image.Image:
    """Resize a mask as `images.fit` resizes its image. Strokes vanish only where they are cut off.

    `mode` is "crop", "pad" or "stretch".
    """
    across, down = fitted_sides(mask.size, width, height, mode)
    if mode == "pad":
        padded = Image.new("L", (round(across), round(down)))
        padded.paste(mask, ((padded.width - mask.width) // 2, (padded.height - mask.height) // 2))
        mask = padded
    if mode == "crop":
        left, top = (mask.width - across) / 2, (mask.height - down) / 2
        mask = mask.crop((math.floor(left), math.floor(top), math.ceil(left + across), math.ceil(top + down)))
    return resize_mask(mask, (width, height))


def fitted_sides(size: tuple[int, int], width: int, height: int, mode: str) -> tuple[float, float]:
    """Sides in pixels of the part of an image, around its middle, that `fit` makes width x height; more if padded."""
    if mode == "stretch":
        return size
    limit = max if mode == "pad" else min
    return limit(size[0], size[1] * width / height), limit(size[1], size[0] * height / width)


def touched_cells(mask: Image.Image, pixels_per_token: int) -> np.ndarray:
    """The cells that a mask touches, even with one pixel of the faintest grey: bool, (rows, columns)."""
    touched = np.asarray(mask.convert("L")) > 0
    rows, columns = (-(-side // pixels_per_token) for side in touched.shape)
    whole = np.zeros((rows * pixels_per_token, columns * pixels_per_token), dtype=bool)
    whole[: touched.shape[0], : touched.shape[1]] = touched
    return whole.reshape(rows, pixels_per_token, columns, pixels_per_token).max(axis=(1, 3))


def token_indices(cells: np.ndarray) -> tuple[int, ...]:
    """The true cells as indices, counted row by row from 0."""
    return tuple(np.flatnonzero(cells).tolist())


def cells_at(indices: tuple[int, ...], shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `token_indices`: bool, `shape` (rows, columns)."""
    cells = np.zeros(shape, dtype=bool)
    cells.flat[list(indices)] = True
    return cells


def to_pixels(cells: np.ndarray, pixels_per_token: int) -> np.ndarray:
    """(rows, columns, ...) to (height, width, ...): each value becomes a flat square of pixels."""
    return cells.repeat(pixels_per_token, axis=0).repeat(pixels_per_token, axis=1)


def mask_of_cells(cells: np.ndarray, pixels_per_token: int) -> Image.Image:
    """A mask that is white in the true cells."""
    return Image.fromarray(to_pixels(cells, pixels_per_token).astype(np.uint8) * 255)


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """Fade a mask in over about `pixels` within its edge; outside the mask stays black."""
    if pixels == 0:
        return mask
    blurred = np.array(mask.filter(ImageFilter.GaussianBlur(pixels / 2)), dtype=np.float32) / 255
    inside = np.array(mask, dtype=np.float32) * np.clip(2 * blurred - 1, 0, 1)
    return Image.fromarray(inside.round().astype(np.uint8))


def square_around(mask: Image.Image, size: int) -> Box:
    """A square around what a mask paints, 1.5 times its longer side and at least `size` / 2 pixels wide.

    It stays within the image; if the square is longer than the image's shorter side, it becomes a rectangle. `size` is
    the side in pixels at which the part is worked on.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    wanted = max(math.ceil(1.5 * max(right - left, bottom - top)), size // 2)
    width, height = min(wanted, mask.width), min(wanted, mask.height)
    x = min(max((left + right - width) // 2, 0), mask.width - width)
    y = min(max((top + bottom - height) // 2, 0), mask.height - height)
    return x, y, x + width, y + height


def crop_mask(mask: Image.Image, box: Box, size: int) -> Image.Image:
    """The part of a mask within a box, stretched to `size` x `size` pixels."""
    return fit_mask(mask.crop(box), size, size, "stretch")
