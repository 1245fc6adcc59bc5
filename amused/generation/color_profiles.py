"""Converts images with an embedded colour profile to sRGB, which the models and browsers expect."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4_000_000  # bytes; larger than those of any printer
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
"""The modes that a profile can describe, and what it then calls its colour space."""
SAME = 2  # levels by which a profile may differ from sRGB and still be one: those of phones and browsers are rounded


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image in the colours that its profile means; unchanged if that is sRGB, does not fit it or is broken."""
    if image.mode in ("RGBA", "LA"):
        colors = to_srgb(image.convert(image.mode[:-1]), profile).convert("RGB")
        colors.putalpha(image.getchannel("A"))
        return colors
    if image.mode not in SPACES or len(profile) > MAX_PROFILE:
        return image
    try:
        transform = transform_of(profile, image.mode)
        return image if transform is None else transform.apply(image)
    except Exception:  # Pillow and LittleCMS raise exceptions of many kinds on broken profiles
        return image


@functools.lru_cache(maxsize=8)
def transform_of(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space != SPACES[mode]:
        return None
    transform = ImageCms.ImageCmsTransform(
        source,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return None if is_identity(transform, mode) else transform


def is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    samples = (
        np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    )
    image = Image.fromarray(samples)
    converted = np.asarray(transform.apply(image)).astype(int)
    return int(np.abs(converted - np.asarray(image.convert("RGB"))).max()) <= SAME
