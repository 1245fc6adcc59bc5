"""Image files, ordinary and odd, and files that are no image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def odd_images() -> dict[str, bytes]:
    """Real images of unusual kinds."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    turned = Image.new("RGB", (8, 4), "red")
    orientation = turned.getexif()
    orientation[0x0112] = 6
    return {
        "CMYK": saved(Image.new("CMYK", (8, 8)), "JPEG"),
        "16 bits": saved(grey, "PNG"),
        "palette with alpha": saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)).quantize(), "PNG"),
        "L": saved(Image.new("L", (8, 8)), "PNG"),
        "LA": saved(Image.new("LA", (8, 8)), "PNG"),
        "float": saved(Image.new("F", (8, 8), 0.5), "TIFF"),
        "turned": saved(turned, "JPEG", exif=orientation),
        "animated": saved(Image.new("P", (8, 8)), "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 1)]),
    }


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "truncated PNG": png(Image.new("RGB", (64, 64), "red"))[:60],
    "truncated JPEG": saved(Image.new("RGB", (64, 64), "red"), "JPEG")[:200],
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "HTML": b"<html></html>",
    "PDF": b"%PDF-1.7\n",
}
