"""Requests for more images like one: variations, touch-ups, improvements, and the next seeds of its sweep."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from PIL import Image

from amused.errors import UserError
from amused.generation.pixel_masks import Box, crop_mask, load_mask, square_around, touched_cells
from amused.limits import MAX_SEEDS
from amused.recipe.recipe import IMPROVE, MAX_SEED, Recipe, whole
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.files import GeneratedImage, open_image
from amused.ui.results import MORE
from amused.ui.settings import RANDOM_SEEDS

NOTHING_TO_CONTINUE = "There are no images to continue: press Generate."
OF_AN_INPUT = ("strength", "width", "height", "fit", "feather", "only_masked", "image", "mask", "mask_by")
"""Fields that variations do not inherit: they say how an input image is used."""


def derive_request(image: GeneratedImage, task: str, count: float, **changes: Any) -> Request:
    """New images from the tokens of one, with random seeds."""
    recipe = derive_recipe(image.recipe, task, count, **changes)
    return Request((recipe,), *given_images(image))


def continue_request(images: Sequence[GeneratedImage]) -> Request:
    """The next unused seeds of the last image's sweep; the first seed follows the last one.

    Improved images are passed over: they hardly depend on their seed.
    """
    last = next((image for image in reversed(images) if image.recipe.task != IMPROVE), None)
    if last is None:
        raise UserError(NOTHING_TO_CONTINUE)
    used = {image.seed for image in images if image.recipe.with_seeds(last.recipe.seeds) == last.recipe}
    following = (seed % (MAX_SEED + 1) for seed in itertools.count(last.seed + 1))
    seeds = [*itertools.islice((seed for seed in following if seed not in used), MORE)]
    return Request((last.recipe.with_seeds(seeds),), *given_images(last), (last.label,))


def given_images(image: GeneratedImage) -> tuple[Image.Image | None, Image.Image | None]:
    """The image and the mask that its recipe, or the first of its parents, started from."""
    given, mask = (None if path is None else open_image(path) for path in (image.image, image.mask))
    return given, mask


def derive_recipe(parent: Recipe, task: str, count: float, **changes: Any) -> Recipe:
    first = secrets.randbelow(RANDOM_SEEDS)
    seeds = range(first, first + whole("number of images", count, 1, MAX_SEEDS))
    reset = {field.name: field.default for field in fields(Recipe) if field.name in (*OF_AN_INPUT, "share", "cells")}
    return replace(parent, **{**reset, "task": task, "seeds": tuple(seeds), "parent": parent, **changes})


def painted_cells(runtime: Runtime, mask: Image.Image, image: GeneratedImage) -> tuple[Box, np.ndarray]:
    """Where the token grid of an image lies on it, and which of its cells the mask touches."""
    model = image.recipe.model
    box = (0, 0, *image.size)
    if image.recipe.first.only_masked:
        assert image.mask is not None
        size, _ = runtime.native_size(model)
        box = square_around(load_mask(open_image(image.mask), image.size), size)
        mask = crop_mask(mask, box, size)
    return box, touched_cells(mask, runtime.pixels_per_token(model))
