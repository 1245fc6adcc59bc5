"""Contact sheets and grids of labelled images, and ZIP files of images with a manifest."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from amused.generation.lettering import Lettering

MARGIN = 12
INK, PAPER = (30, 30, 36), (250, 250, 252)


def sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int, header: str = "") -> Image.Image:
    """Images in rows of `columns`, each above its label."""
    letters = Lettering()
    width, height = largest(images)
    captions = [letters.wrap(label, width) for label in labels]
    title = letters.wrap(header, columns * (width + MARGIN) - MARGIN)
    top = MARGIN + (letters.height(title) + MARGIN if title else 0)
    row_height = height + max(letters.height(lines) for lines in captions) + MARGIN // 2 + MARGIN
    page, draw = blank(MARGIN + columns * (width + MARGIN), top + -(-len(images) // columns) * row_height)
    letters.draw(draw, (MARGIN, MARGIN), title, INK)
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = MARGIN + i % columns * (width + MARGIN), top + i // columns * row_height
        page.paste(image, (x + (width - image.width) // 2, y))
        letters.draw(draw, (x, y + height + MARGIN // 4), lines, INK)
    return page


def grid(
    images: Sequence[Image.Image | None], across: Sequence[str], down: Sequence[str], header: str = ""
) -> Image.Image:
    """Images row by row, None where one is missing, with a label above each column and to the left of each row."""
    letters = Lettering()
    width, height = largest([image for image in images if image is not None])
    tops, sides = [letters.wrap(label, width) for label in across], [letters.wrap(label, width // 2) for label in down]
    title = letters.wrap(header, len(across) * width + width // 2)
    left = 2 * MARGIN + max((round(letters.width(line)) for lines in sides for line in lines), default=0)
    above = MARGIN + (letters.height(title) + MARGIN if title else 0)
    top = above + max(letters.height(lines) for lines in tops) + MARGIN
    row_height = max([height, *(letters.height(lines) for lines in sides)]) + MARGIN
    page, draw = blank(left + len(across) * (width + MARGIN), top + len(down) * row_height)
    letters.draw(draw, (MARGIN, MARGIN), title, INK)
    for column, lines in enumerate(tops):
        letters.draw(draw, (left + column * (width + MARGIN), above), lines, INK)
    for row, lines in enumerate(sides):
        letters.draw(draw, (MARGIN, top + row * row_height), lines, INK)
    for i, image in enumerate(images):
        row, column = divmod(i, len(across))
        if image is not None:
            page.paste(image, (left + column * (width + MARGIN), top + row * row_height))
    return page


def largest(images: Sequence[Image.Image]) -> tuple[int, int]:
    return max(image.width for image in images), max(image.height for image in images)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), PAPER)
    return page, ImageDraw.Draw(page)


def bundle(files: Sequence[tuple[str, bytes]], manifest: Sequence[dict[str, Any]]) -> bytes:
    """A ZIP file of (name, content) files and manifest.json. Not compressed: PNG does not get smaller."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(list(manifest), indent=2, ensure_ascii=False))
    return buffer.getvalue()
