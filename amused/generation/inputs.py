"""A recipe and its images, checked and fitted: what sampling starts from and where its result goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops

from amused.errors import UserError
from amused.generation.images import NO_IMAGE, Source, check_digest, composite, fit, load_image
from amused.generation.pixel_masks import (
    EMPTY_MASK,
    Box,
    cells_at,
    crop_mask,
    feather,
    fit_mask,
    load_mask,
    mask_of_cells,
    square_around,
    touched_cells,
)
from amused.limits import MAX_PIXELS
from amused.recipe.recipe import INPAINT, TEXT_TO_IMAGE, Recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """The image that a result is composited into: it stays as it is where `mask` is black.

    Attributes:
        mask: of the image's size, feathered.
        box: the part of the image that was worked on, None for all of it.
    """

    image: Image.Image
    mask: Image.Image
    box: Box | None = None

    def composite_result(self, result: Image.Image) -> Image.Image:
        return composite(self.image, self._place(result, self.image, Image.Resampling.LANCZOS), self.mask)

    def open_cells(self, cells: np.ndarray, pixels_per_token: int) -> Frame:
        """The frame with these cells (rows, columns) of the result let through, too."""
        black = Image.new("L", self.mask.size)
        opened = self._place(mask_of_cells(cells, pixels_per_token), black, Image.Resampling.NEAREST)
        return replace(self, mask=ImageChops.lighter(self.mask, opened))

    def _place(self, part: Image.Image, onto: Image.Image, resampling: Image.Resampling) -> Image.Image:
        if self.box is None:
            return part
        left, top, right, bottom = self.box
        whole = onto.copy()
        whole.paste(part.resize((right - left, bottom - top), resampling), (left, top))
        return whole


@dataclass(frozen=True)
class Inputs:
    """What sampling starts from.

    Attributes:
        width, height: of the result in pixels, before it is composited.
        image: fitted to that size, to be encoded; None if there are `tokens`, or for text to image.
        tokens: (h, w), of the parent.
        initial_mask: bool (h, w), the cells that are masked at first; None for random ones.
        editable_mask: bool (h, w), the cells that random masking may touch; None for all.
        frame: what to composite the result into, if anything.
    """

    width: int
    height: int
    image: Image.Image | None = None
    tokens: Tensor | None = None
    initial_mask: np.ndarray | None = None
    editable_mask: np.ndarray | None = None
    frame: Frame | None = None

    @property
    def editable(self) -> np.ndarray | None:
        """Bool (h, w), the cells that the task may change; None for all."""
        return self.editable_mask if self.initial_mask is None else self.initial_mask


@dataclass(frozen=True)
class InputReader:
    """Reads the inputs of one model's recipes.

    Attributes:
        model: its name, for error messages.
        size: the side in pixels of the images that the model was trained on.
        multiple: width and height are multiples of it, in pixels.
        pixels_per_token: the side of a cell.
        parent_tokens: gives the tokens (h, w) of a parent recipe and its images.
    """

    model: str
    size: int
    multiple: int
    pixels_per_token: int
    parent_tokens: Callable[[Recipe, Source | None, Source | None], Tensor]

    def read(self, recipe: Recipe, image: Source | None, mask: Source | None) -> Inputs:
        """Check and fit everything.

        Raises:
            UserError: an image or mask is missing, unreadable, too large or too small, or not the one that the recipe
                names; or the model cannot make this size.
        """
        if recipe.parent is not None:
            return self._inputs_from_parent(recipe, recipe.parent, image, mask)
        if recipe.task == TEXT_TO_IMAGE:
            width, height = recipe.width or self.size, recipe.height or self.size
            self._check_size(width, height)
            return Inputs(width, height)
        if image is None:
            raise UserError(NO_IMAGE)
        image = load_image(image, recipe.image)
        check_digest(image, recipe.image, "image")
        if recipe.task != INPAINT:
            return self._fit(recipe, image)
        if mask is None:
            raise UserError(EMPTY_MASK)
        mask = load_mask(mask, image.size)
        check_digest(mask, recipe.mask, "mask")
        return self._crop(recipe, image, mask) if recipe.only_masked else self._fit(recipe, image, mask)

    def _inputs_from_parent(self, recipe: Recipe, parent: Recipe, image: Source | None, mask: Source | None) -> Inputs:
        """The inputs of a task on tokens.

        If the chain starts with inpainting, what inpainting kept stays as it is, except for cells that a recipe of the
        chain touches up.
        """
        tokens = self.parent_tokens(parent, image, mask)
        shape = (tokens.shape[0], tokens.shape[1])
        initial_mask, first = self._touched_up(recipe, shape), recipe.first
        if first.task != INPAINT or not (first.composite and recipe.composite):
            height, width = (side * self.pixels_per_token for side in shape)
            return Inputs(width, height, tokens=tokens, initial_mask=initial_mask)
        inputs = self.read(first, image, mask)
        frame = inputs.frame
        while recipe.parent is not None:
            cells = self._touched_up(recipe, shape)
            if cells is not None and frame is not None:
                frame = frame.open_cells(cells, self.pixels_per_token)
            recipe = recipe.parent
        return replace(
            inputs,
            image=None,
            tokens=tokens,
            initial_mask=initial_mask,
            editable_mask=inputs.initial_mask,
            frame=frame,
        )

    def _touched_up(self, recipe: Recipe, shape: tuple[int, int]) -> np.ndarray | None:
        """The cells that a recipe touches up, or None if it varies the whole image."""
        if recipe.cells is None:
            return None
        count = shape[0] * shape[1]
        if recipe.cells[-1] >= count:
            raise UserError(f"The cells must be below {count}.")
        return cells_at(recipe.cells, shape)

    def _crop(self, recipe: Recipe, image: Image.Image, mask: Image.Image) -> Inputs:
        """Work on a square around the mask, at the model's own size."""
        box = square_around(mask, self.size)
        return Inputs(
            self.size,
            self.size,
            image=fit(image.crop(box), self.size, self.size, "stretch"),
            initial_mask=touched_cells(crop_mask(mask, box, self.size), self.pixels_per_token),
            frame=Frame(image, feather(mask, recipe.feather), box),
        )

    def _fit(self, recipe: Recipe, image: Image.Image, mask: Image.Image | None = None) -> Inputs:
        width, height = self._fitting_size(recipe, image)
        # An image that keeps its size loses less than a token; like the reference, stretch it.
        mode = recipe.fit if recipe.width or recipe.height else "stretch"
        image = fit(image, width, height, mode)
        if mask is None:
            return Inputs(width, height, image=image)
        mask = fit_mask(mask, width, height, mode)
        if mask.getbbox() is None:
            raise UserError("The painted part is cropped away: paint closer to the middle.")
        return Inputs(
            width,
            height,
            image=image,
            initial_mask=touched_cells(mask, self.pixels_per_token),
            frame=Frame(image, feather(mask, recipe.feather)) if recipe.composite else None,
        )

    def _fitting_size(self, recipe: Recipe, image: Image.Image) -> tuple[int, int]:
        width = recipe.width or image.width // self.multiple * self.multiple
        height = recipe.height or image.height // self.multiple * self.multiple
        if width * height > MAX_PIXELS:
            raise UserError(f"The image is too large: width times height must be at most {MAX_PIXELS}.")
        if not width or not height:
            raise UserError(f"The image is too small: it must be at least {self.multiple} pixels wide and high.")
        self._check_size(width, height)
        return width, height

    def _check_size(self, width: int, height: int) -> None:
        if width % self.multiple or height % self.multiple:
            raise UserError(
                f"{self.model} makes images whose width and height are multiples of {self.multiple} pixels."
            )
