"""Untrusted pictures and masks: reading, fitting, putting together, and the way to tensors and back.

What a file is, its content decides, never its name. It knows no models beyond the side in pixels of one token.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from amused.errors import UserError
from amused.limits import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS

if TYPE_CHECKING:  # torch takes a second to import: the page must not wait for it
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")

ACCEPTED = "PNG, JPEG, WebP, GIF, TIFF or BMP"
TOO_MANY_BYTES = f"The picture is too large: at most {MAX_PICTURE_BYTES // 1_000_000} MB are read."
TOO_MANY_PIXELS = f"The picture is too large: at most {MAX_PICTURE_PIXELS // 1_000_000} megapixels are read."
NOT_A_PICTURE = f"This is not a picture that can be read: choose a {ACCEPTED} file."
BROKEN = "The picture is damaged and cannot be read: save it anew and try again."
EMPTY_MASK = "The mask is empty: paint the part to repaint."

Source = Image.Image | str | Path | bytes


def load_picture(source: Source) -> Image.Image:
    """Read the first frame of a picture as upright RGB, what is transparent on white.

    Args:
        source: a picture in memory, the path of a file, or the bytes of one.
    """
    image = upright(source)
    if has_transparency(image):
        image = converted(image, "RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return converted(image, "RGB")


def upright(source: Source) -> Image.Image:
    """Read the first frame, turned as its EXIF data says, with 8 bits a channel but otherwise in its own mode."""
    image = source if isinstance(source, Image.Image) else open_picture(source)
    check_pixels(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF data and the like, which nobody here could act on
            image.load()
    except Exception as error:  # Pillow's decoders raise what they happen to raise on broken data
        raise UserError(BROKEN) from error
    return to_8_bits(turned(image))


def turned(image: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # the picture is whole, only what its camera noted is not
        return image


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Open without decoding: only the header has been read."""
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    if len(data) > MAX_PICTURE_BYTES:
        raise UserError(TOO_MANY_BYTES)
    if not data:
        raise UserError("The picture is an empty file: choose another.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(TOO_MANY_PIXELS) from error
    except Exception as error:
        raise UserError(NOT_A_PICTURE) from error


def read_bytes(path: Path) -> bytes:
    """What a regular file holds; a named pipe, on which a read would wait for its writer, is refused at once."""
    try:
        with open(path, "rb", opener=open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError("not a regular file")
            return stream.read(MAX_PICTURE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise UserError("The picture cannot be opened: choose another.") from error


def open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag, and no such pipes


def check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UserError(NOT_A_PICTURE)
    if width * height > MAX_PICTURE_PIXELS:
        raise UserError(TOO_MANY_PIXELS)


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deeper channels down to 8 bits, where Pillow would clip them."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        lowest, highest = min(0.0, values.min()), values.max()
        if lowest == 0.0 and highest <= 1.0:
            highest = 1.0  # the usual range of float pictures, kept so that a dark one stays dark
        elif lowest == 0.0 and highest <= 255.0:
            highest = 255.0
    else:
        lowest, highest = min(0.0, values.min()), 65535.0
        if values.max() > highest:
            highest = 2.0**32 - 1 if values.max() >= 2.0**31 else 2.0**31 - 1
    scaled = (values - lowest) / max(highest - lowest, 1e-12) * 255.0
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def converted(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except Exception as error:  # colour spaces that Pillow reads but does not convert, palettes that are not whole
        raise UserError("The colours of the picture cannot be read: save it as RGB and try again.") from error


def has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def fit(image: Image.Image, width: int, height: int, mode: str = "crop") -> Image.Image:
    """Resize to RGB of exactly this size: cut what stands over ("crop"), fill up with white ("pad") or "stretch"."""
    image = image.convert("RGB")
    if mode == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if mode == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="white")
    raise UserError('A picture can be fitted by "crop", "pad" or "stretch".')


def load_mask(source: Source, size: tuple[int, int]) -> Image.Image:
    """Read a mask as greys of this size, in which white is repainted and black is kept.

    Where parts of the picture are transparent its opacity is the mask, as for the strokes of a drawing tool. Made
    smaller, no stroke vanishes however thin.
    """
    image = upright(source)
    mask = converted(image, "RGBA").getchannel("A") if has_transparency(image) else None
    if mask is None or mask.getextrema() == (255, 255):  # opaque everywhere: a black and white picture saved as RGBA
        mask = converted(converted(image, "RGB"), "L")
    mask = resize_mask(mask, size)
    if mask.getbbox() is None:
        raise UserError(EMPTY_MASK)
    return mask


def resize_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Each pixel becomes the strongest of those that it stands for."""
    if mask.size == size:
        return mask
    width, height = size
    import torch

    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    # Adaptive pooling lets no source pixel fall between two cells; where the mask grows it repeats the nearest.
    values = torch.nn.functional.adaptive_max_pool2d(values, (height, width))
    return Image.fromarray(values[0, 0].numpy().astype(np.uint8))


def fit_mask(mask: Image.Image, width: int, height: int, mode: str) -> Image.Image:
    """Resize a mask as `fit` resizes its picture; no stroke vanishes but what is cut off."""
    if mode == "pad":
        across, down = max(mask.width, mask.height * width / height), max(mask.height, mask.width * height / width)
        padded = Image.new("L", (round(across), round(down)))
        padded.paste(mask, ((padded.width - mask.width) // 2, (padded.height - mask.height) // 2))
        mask = padded
    if mode == "crop":
        across, down = min(mask.width, mask.height * width / height), min(mask.height, mask.width * height / width)
        left, top = (mask.width - across) / 2, (mask.height - down) / 2
        mask = mask.crop((math.floor(left), math.floor(top), math.ceil(left + across), math.ceil(top + down)))
    return resize_mask(mask, (width, height))


def token_mask(mask: Image.Image, scale_factor: int) -> Tensor:
    """The tokens (height, width) that a mask touches, even by a single pixel of the faintest grey."""
    import torch

    values = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32))[None, None]
    return torch.nn.functional.max_pool2d(values, scale_factor, ceil_mode=True)[0, 0] > 0


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """Let a mask fade in over about so many pixels within its edge; outside it stays black."""
    if pixels == 0:
        return mask
    blurred = np.array(mask.filter(ImageFilter.GaussianBlur(pixels / 2)), dtype=np.float32) / 255
    inside = np.array(mask, dtype=np.float32) * np.clip(2 * blurred - 1, 0, 1)
    return Image.fromarray(inside.round().astype(np.uint8))


def square_around(mask: Image.Image, size: int) -> tuple[int, int, int, int]:
    """A square box (left, top, right, bottom) around what a mask paints, half as large again.

    It is at least half as wide as `size`, the side in pixels at which it will be worked on.
    It stays within the picture, whose shorter side bounds it; a mask that is longer than that gets the longer side too.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    wanted = max(math.ceil(1.5 * max(right - left, bottom - top)), size // 2)
    width, height = min(wanted, mask.width), min(wanted, mask.height)
    x = min(max((left + right - width) // 2, 0), mask.width - width)
    y = min(max((top + bottom - height) // 2, 0), mask.height - height)
    return x, y, x + width, y + height


def composite(original: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """The generated picture where the mask is white, the original, bit by bit, where it is black, blends between."""
    return Image.composite(generated.convert("RGB"), original.convert("RGB"), mask.convert("L"))


def digest(image: Image.Image) -> str:
    """16 hexadecimal digits that tell a picture's pixels, whatever file they came in."""
    described = f"{image.mode} {image.width}x{image.height} ".encode()
    return hashlib.sha256(described + image.tobytes()).hexdigest()[:16]


def to_tensor(image: Image.Image) -> Tensor:
    """A picture to (1, 3, height, width) in [0, 1]."""
    import torch

    values = np.array(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """(3, height, width), meant for [0, 1], to a picture."""
    values = pixels.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((values * 255).round().astype(np.uint8))
