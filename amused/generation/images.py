"""Untrusted images: reading, fitting, compositing, digests, and conversion to tensors and back.

A file's content decides its format, never its name. Torch is imported only where a tensor is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from amused.errors import UserError
from amused.generation.color_profiles import to_srgb
from amused.generation.image_files import without_metadata
from amused.limits import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS

if TYPE_CHECKING:  # importing torch takes a second, and the page does not need it
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")

ACCEPTED = "PNG, JPEG, WebP, GIF, TIFF or BMP"
TOO_MANY_BYTES = f"The image is too large: the limit is {MAX_PICTURE_BYTES // 1_000_000} MB."
TOO_MANY_PIXELS = f"The image is too large: the limit is {MAX_PICTURE_PIXELS // 1_000_000} megapixels."
NOT_AN_IMAGE = f"This is not an image that can be read: choose a {ACCEPTED} file."
NO_IMAGE = "Upload an image first."
DAMAGED = "The image is damaged and cannot be read: save it again, or choose another."

Source = Image.Image | str | Path | bytes


def load_image(source: Source, expected: str | None = None) -> Image.Image:
    """Read the first frame as upright sRGB; transparent parts become white. Nothing but the pixels is kept.

    Args:
        source: a PIL image, the path of a file, or its bytes.
        expected: the digest in a recipe. Before version 0.5 colour profiles were ignored: an image that has this digest
            only without its profile is read without it.

    Raises:
        UserError: the image cannot be read, or is larger than the limits allow.
    """
    image = upright(source)
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return on_white(image)
    managed = on_white(to_srgb(with_alpha(image), profile))
    if expected is not None and digest(managed) != expected and digest(unmanaged := on_white(image)) == expected:
        return unmanaged
    return managed


def on_white(image: Image.Image) -> Image.Image:
    """RGB, without metadata, and white where the image is transparent."""
    if has_transparency(image):
        image = convert_mode(image, "RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = convert_mode(image, "RGB")
    image.info = {}
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    """An image whose colours are values, not a palette, and whose transparency, if any, is a channel."""
    if has_transparency(image):
        return image if image.mode == "LA" else convert_mode(image, "RGBA")
    return convert_mode(image, "RGB") if image.mode == "P" else image


def upright(source: Source) -> Image.Image:
    """Read the first frame, oriented by its EXIF data, in its own mode but with 8 bits per channel."""
    image = source if isinstance(source, Image.Image) else open_image(source)
    width, height = image.size
    if width < 1 or height < 1:
        raise UserError(NOT_AN_IMAGE)
    if width * height > MAX_PICTURE_PIXELS:
        raise UserError(TOO_MANY_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF data and the like: harmless
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise exceptions of any kind on broken data
            raise UserError(DAMAGED) from error
        with contextlib.suppress(Exception):  # broken EXIF data; the pixels are fine
            image = ImageOps.exif_transpose(image)
    return to_8_bits(image)


def open_image(source: str | Path | bytes) -> Image.Image:
    """Open without decoding: reads only the header."""
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    if len(data) > MAX_PICTURE_BYTES:
        raise UserError(TOO_MANY_BYTES)
    if not data:
        raise UserError("The image file is empty: choose another.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(TOO_MANY_PIXELS) from error
    except Exception as error:
        raise UserError(NOT_AN_IMAGE) from error
    if image.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = in_8_bits(image.info["transparency"], depth=data[24])
    return image


def in_8_bits(transparency: Any, depth: int) -> Any:
    """The transparent colour of a PNG file in the values of its pixels: Pillow scales those to 8 bits, not this."""
    if depth in (2, 4) and isinstance(transparency, int):
        return transparency * (255 // (2**depth - 1))
    if depth == 16 and isinstance(transparency, tuple):
        return tuple(value >> 8 for value in transparency)
    return transparency


def read_bytes(path: Path) -> bytes:
    """What a regular file holds; a named pipe, on which a read would wait for its writer, is refused at once."""
    try:
        # Windows has no such flag, and no such pipes.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError("not a regular file")
            return stream.read(MAX_PICTURE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise UserError("The image cannot be opened: choose another.") from error


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deeper channels to 8 bits, where Pillow would clip them."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        lowest, highest = min(0.0, values.min()), values.max()
        if lowest == 0.0 and highest <= 1.0:
            highest = 1.0  # the usual range of float images: a dark one stays dark
        elif lowest == 0.0 and highest <= 255.0:
            highest = 255.0
    else:
        lowest, highest = min(0.0, values.min()), 65535.0
        if values.max() > highest:
            highest = 2.0**32 - 1 if values.max() >= 2.0**31 else 2.0**31 - 1
    scaled = (values - lowest) / max(highest - lowest, 1e-12) * 255.0
    grey = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return grey


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except Exception as error:  # colour spaces that Pillow cannot convert, incomplete palettes
        raise UserError("The colours of the image cannot be read: save it as RGB and try again.") from error


def has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def fit(image: Image.Image, width: int, height: int, mode: str = "crop") -> Image.Image:
    """Resize to RGB of this size in pixels: cut off the excess ("crop"), fill up with white ("pad") or "stretch"."""
    image = image.convert("RGB")
    if mode == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="white")
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def composite(original: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """The generated image where the mask is white, the unchanged original where it is black, a blend in between."""
    return Image.composite(generated.convert("RGB"), original.convert("RGB"), mask.convert("L"))


def digest(image: Image.Image) -> str:
    """16 hexadecimal digits of the SHA-256 of mode, size and pixels: the same in any file format."""
    described = f"{image.mode} {image.width}x{image.height} ".encode()
    return hashlib.sha256(described + image.tobytes()).hexdigest()[:16]


def check_digest(image: Image.Image | None, expected: str | None, name: str) -> None:
    """Refuse an image other than the one a recipe names; `expected` None accepts any.

    Raises:
        UserError: the image, called `name` in the sentence, is missing or another one.
    """
    if expected is not None and image is None:
        raise UserError(f"The recipe needs the {name} that it was made with: upload it first.")
    if expected is not None and image is not None and digest(image) != expected:
        raise UserError(f"The recipe was made with another {name}: choose the original.")


def png_bytes(image: Image.Image, info: PngInfo | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def strip_metadata(image: Image.Image) -> Image.Image:
    """The pixels alone, as RGB. Pillow would write `Image.info` to files, the visitor's own metadata included."""
    return Image.fromarray(np.asarray(image.convert("RGB")))


def to_tensor(image: Image.Image) -> Tensor:
    """An image to (1, 3, height, width) float32 in [0, 1]."""
    import torch

    values = np.array(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """(3, height, width) to an RGB image; values are clipped to [0, 1]."""
    values = pixels.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((values * 255).round().astype(np.uint8))
