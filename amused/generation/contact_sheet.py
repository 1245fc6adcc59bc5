"""Contact sheets and grids of labelled images, and ZIP files of images with a manifest."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
FONT_SIZE = 15
INK, PAPER = (30, 30, 36), (250, 250, 252)


def sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int, header: str = "") -> Image.Image:
    """Images in rows of `columns`, each above its label."""
    font = load_font()
    width, height = max(one.width for one in images), max(one.height for one in images)
    wrapped = [wrap(label, font, width) for label in labels]
    caption = max(lines_height(text, font) for text in wrapped) + MARGIN // 2
    rows = -(-len(images) // columns)
    title = wrap(header, font, columns * (width + MARGIN) - MARGIN)
    top = MARGIN + (lines_height(title, font) + MARGIN if header else 0)
    page = Image.new("RGB", (MARGIN + columns * (width + MARGIN), top + rows * (height + caption + MARGIN)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.multiline_text((MARGIN, MARGIN), title, INK, font)
    for i, (image, text) in enumerate(zip(images, wrapped)):
        x, y = MARGIN + i % columns * (width + MARGIN), top + i // columns * (height + caption + MARGIN)
        page.paste(image, (x + (width - image.width) // 2, y))
        draw.multiline_text((x, y + height + MARGIN // 4), text, INK, font)
    return page


def grid(images: Sequence[Image.Image], across: Sequence[str], down: Sequence[str], header: str = "") -> Image.Image:
    """Images row by row, with a label above each column and to the left of each row."""
    font = load_font()
    width, height = max(one.width for one in images), max(one.height for one in images)
    tops, sides = [wrap(label, font, width) for label in across], [wrap(label, font, width // 2) for label in down]
    title = wrap(header, font, len(across) * width + width // 2)
    left = (
        MARGIN + max((round(font.getlength(line)) for side in sides for line in side.split("\n")), default=0) + MARGIN
    )
    title_height = lines_height(title, font) + MARGIN if header else 0
    top = MARGIN + title_height + max(lines_height(text, font) for text in tops) + MARGIN
    page = Image.new("RGB", (left + len(across) * (width + MARGIN), top + len(down) * (height + MARGIN)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.multiline_text((MARGIN, MARGIN), title, INK, font)
    for column, text in enumerate(tops):
        draw.multiline_text((left + column * (width + MARGIN), MARGIN + title_height), text, INK, font)
    for row, text in enumerate(sides):
        draw.multiline_text((MARGIN, top + row * (height + MARGIN)), text, INK, font)
    for i, image in enumerate(images):
        row, column = divmod(i, len(across))
        page.paste(image, (left + column * (width + MARGIN), top + row * (height + MARGIN)))
    return page


def load_font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # given a size, Pillow uses FreeType or raises
    return font


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Break a text into lines of at most `width` pixels, at spaces where possible."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines += [line, word[:cut]] if line else [word[:cut]]
            line, word = "", word[cut:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
        else:
            lines.append(line)
            line = word
    return "\n".join([*lines, line]) if line or lines else ""


def lines_height(text: str, font: ImageFont.FreeTypeFont) -> int:
    return (text.count("\n") + 1) * (sum(font.getmetrics()) + 4) if text else 0


def bundle(files: Sequence[tuple[str, bytes]], manifest: Sequence[dict[str, Any]]) -> bytes:
    """A ZIP file of (name, content) files and manifest.json. Not compressed: PNG does not get smaller."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(list(manifest), indent=2, ensure_ascii=False))
    return buffer.getvalue()
