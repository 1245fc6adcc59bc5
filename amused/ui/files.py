"""The image files that the page serves: results, previews, and inputs kept for later."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from amused.serving import file_cache


def save_file(content: bytes, name: str) -> str:
    return file_cache.save(content, name)


def save_preview(image: Image.Image) -> str:
    """Small and lossy: there are many previews, and each is seen for a moment."""
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    return save_file(buffer.getvalue(), "preview.webp")


def save_input(image: Image.Image | None, name: str = "given.png") -> str | None:
    """An input image or mask, for those who go on from a result of it."""
    return None if image is None else save_file(png_bytes(image, compress_level=1), name)


def open_image(path: str) -> Image.Image:
    """One of our own files, so that nothing needs to be checked."""
    with Image.open(path) as image:
        image.load()
    return image


def png_bytes(image: Image.Image, info: PngInfo | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def strip_metadata(image: Image.Image) -> Image.Image:
    """The pixels alone, as RGB: `Image.info` would be written to files, a visitor's own metadata included."""
    return Image.fromarray(np.asarray(image.convert("RGB")))
