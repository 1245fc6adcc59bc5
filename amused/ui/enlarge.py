"""Downloads of an image at a multiple of its size."""

from __future__ import annotations

from PIL import Image

from amused.generation.images import png_bytes, strip_metadata
from amused.recipe.metadata import png_info
from amused.serving import file_cache
from amused.serving.runtime import Choice
from amused.ui.files import GeneratedImage, open_image

FACTORS = (2, 4)


def enlarge(image: Image.Image, factor: int, is_pixel_art: bool) -> Image.Image:
    """Pixel art by nearest neighbour, which adds no colour; other images by Pillow's Lanczos filter."""
    resample = Image.Resampling.NEAREST if is_pixel_art else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), resample)


def is_pixel_art(choice: Choice) -> bool:
    """A checkpoint that lists traits draws pixel-art characters of these."""
    return choice.traits is not None


def write_enlarged(image: GeneratedImage, factor: int, choice: Choice, write_metadata: bool) -> str:
    """The recipe in the file, and its digest, are those of the image in its own size."""
    pixels = enlarge(strip_metadata(open_image(image.path)), factor, is_pixel_art(choice))
    info = png_info(image.recipe, image.digest, image.fingerprint) if write_metadata else None
    return file_cache.save(png_bytes(pixels, info), f"amused-seed-{image.seed}-x{factor}.png")
