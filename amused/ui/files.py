"""The image files that the page serves: generated images, previews, and inputs kept for later."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from amused.errors import UserError
from amused.generation.images import digest, png_bytes, strip_metadata
from amused.recipe.links import to_query
from amused.recipe.metadata import png_info
from amused.recipe.recipe import Recipe
from amused.serving import file_cache
from amused.serving.jobs import Result

GONE = "The file of this image is not kept any longer: generate it again."


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image: its file and its single-seed recipe.

    Attributes:
        digest: of the pixels.
        image, mask: files of the inputs that the recipe, or the first of its parents, started from.
        fingerprint, cut: as in `jobs.Result`.
        label: what tells its prompt from the others of its run; "" if there was one prompt.
    """

    path: str
    seed: int
    recipe: Recipe
    digest: str
    size: tuple[int, int]
    image: str | None = None
    mask: str | None = None
    fingerprint: str | None = None
    cut: tuple[str, ...] = ()
    label: str = ""

    @property
    def query(self) -> str:
        """The query of its link."""
        return to_query(self.recipe, self.digest, self.fingerprint)

    @property
    def tile(self) -> tuple[str, str]:
        """The file and caption in a gallery."""
        return self.path, caption(self.label, self.seed)


def caption(label: str, seed: int) -> str:
    return f"{label} · seed {seed}" if label else f"seed {seed}"


def save_result(
    result: Result, write_metadata: bool, image: str | None = None, mask: str | None = None, label: str = ""
) -> GeneratedImage:
    """Write a finished image to its file; `image` and `mask` are files of its inputs."""
    pixels = strip_metadata(result.image)
    pixels_digest = digest(pixels)
    info = png_info(result.recipe, pixels_digest, result.fingerprint) if write_metadata else None
    path = file_cache.save(png_bytes(pixels, info), f"amused-seed-{result.seed}.png")
    return GeneratedImage(
        path, result.seed, result.recipe, pixels_digest, pixels.size, image, mask, result.fingerprint, result.cut, label
    )


def save_preview(image: Image.Image) -> str:
    """Small and lossy: there are many previews, and each is seen for a moment."""
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    return file_cache.save(buffer.getvalue(), "preview.webp")


def save_input(image: Image.Image | None, name: str = "given.png") -> str | None:
    """Keep an input so that its result can be varied or replayed."""
    return None if image is None else file_cache.save(png_bytes(image, compress_level=1), name)


def open_image(path: str) -> Image.Image:
    """An image from one of our own files, which needs no check.

    Raises:
        UserError: old files were deleted meanwhile.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise UserError(GONE) from error
    return image
