"""Text drawn on images, in fonts that have its characters. What no font has is spelled out, never drawn as a box.

Pillow's own font has no accents, no Greek, no Cyrillic: installed fonts complete it. All work is linear in the text.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

from amused.wording import shorten

Font = ImageFont.FreeTypeFont
Ink = tuple[int, int, int]

SIZE = 15
SPACING = 4  # pixels between lines
MAX_LENGTH = 300  # characters of a text; longer ones end in an ellipsis
MAX_SEARCHES = 30  # characters that may be looked for in all fonts without success, per object
NOT_A_CHARACTER = "\U0010ffff"  # every font draws its box, or nothing, for this
NOT_REGULAR = re.compile(
    "bold|italic|oblique|black|light|thin|medium|condensed|mono|serif|math|lastresort", re.IGNORECASE
)
LATIN = re.compile(r"LATIN (?:CAPITAL|SMALL) LETTER (\w)(?: WITH .*)?")


class Lettering:
    """Measures, wraps and draws texts."""

    def __init__(self) -> None:
        self.default = default_font()
        self.line_height = sum(self.default.getmetrics()) + SPACING
        self._fonts: dict[str, Font | None] = {}
        self._widths: dict[str, float] = {}
        self._searches = 0

    def wrap(self, text: str, width: float) -> list[str]:
        """Lines of at most `width` pixels, broken at spaces where possible."""
        lines: list[str] = []
        line, used = "", 0.0
        for word in self.spell(text).split():
            length = self.width(word)
            if line and used + self.width(" ") + length <= width:
                line, used = f"{line} {word}", used + self.width(" ") + length
                continue
            if line:
                lines.append(line)
            *parts, line = self._pieces(word, width)
            lines += parts
            used = self.width(line)
        return [*lines, line] if line else lines

    def height(self, lines: Sequence[str]) -> int:
        return len(lines) * self.line_height

    def width(self, text: str) -> float:
        """An upper estimate: kerning and joined letters make it shorter."""
        return sum(self._width(char) for char in text)

    def draw(self, draw: ImageDraw.ImageDraw, corner: tuple[float, float], lines: Sequence[str], ink: Ink) -> None:
        left, top = corner
        baseline = top + self.default.getmetrics()[0]
        for number, line in enumerate(lines):
            x = left
            for font, run in self._runs(line):
                draw.text((x, baseline + number * self.line_height), run, ink, font, anchor="ls")
                x += font.getlength(run)

    def spell(self, text: str) -> str:
        """The text with characters that no font has replaced, and cut to `MAX_LENGTH`."""
        text = unicodedata.normalize("NFC", text[: 2 * MAX_LENGTH])
        spelled = "".join(
            char if self._is_drawable(char, base) else self._replacement(char)
            for base, char in zip((" ", *text), text[: MAX_LENGTH + 1])
        )
        return shorten(spelled, MAX_LENGTH)

    def _is_drawable(self, char: str, base: str) -> bool:
        """Not so: control and format characters, which may turn the text around, and marks that `base` cannot take."""
        kind = unicodedata.category(char)
        if char.isspace() or kind in ("Cc", "Cf"):
            return char.isspace()
        font = self._font(char)
        return font is not None and (kind != "Mn" or font is self._font(base))

    def _replacement(self, char: str) -> str:
        """An accented letter without its accent, a symbol by its name, anything else as an escape such as \\u72d0."""
        kind, name = unicodedata.category(char), unicodedata.name(char, "")
        if kind in ("Cf", "Mn", "Me"):  # invisible, or a mark on the character before
            return ""
        plain = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
        if plain != char and all(has(self.default, c) for c in plain):
            return plain
        if match := LATIN.fullmatch(name):
            return match[1] if kind == "Lu" else match[1].lower()
        if kind[0] == "S" and name:
            return f"[{name.lower()}]"
        return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"

    def _font(self, char: str) -> Font | None:
        if char not in self._fonts:
            self._fonts[char] = self.default if has(self.default, char) else self._search(char)
        return self._fonts[char]

    def _search(self, char: str) -> Font | None:
        joins = unicodedata.bidirectional(char) in ("R", "AL")
        if self._searches >= MAX_SEARCHES or (joins and not features.check("raqm")):  # raqm: from right to left
            return None
        used = dict.fromkeys(font for font in self._fonts.values() if font)  # first, as it is most likely among these
        for font in (*used, *(font for path in font_files() if (font := open_font(path)))):
            if has(font, char):
                return font
        self._searches += 1
        return None

    def _width(self, char: str) -> float:
        if char not in self._widths:
            self._widths[char] = (self._font(char) or self.default).getlength(char)
        return self._widths[char]

    def _pieces(self, word: str, width: float) -> Iterator[str]:
        """The word, broken wherever it gets wider than `width`."""
        start, used = 0, 0.0
        for end, char in enumerate(word):
            if end > start and used + self._width(char) > width:
                yield word[start:end]
                start, used = end, 0.0
            used += self._width(char)
        yield word[start:]

    def _runs(self, line: str) -> Iterator[tuple[Font, str]]:
        """Parts of a line with their fonts. A space or comma stays in the run before it, which keeps phrases whole."""
        fonts: list[Font] = []
        for char in line:
            shared = fonts and not char.isalnum() and has(fonts[-1], char)
            fonts.append(fonts[-1] if shared else self._font(char) or self.default)
        for font, pairs in groupby(zip(fonts, line, strict=True), key=lambda pair: pair[0]):
            yield font, "".join(char for _, char in pairs)


@cache
def default_font() -> Font:
    font = ImageFont.load_default(SIZE)
    assert isinstance(font, Font)  # given a size, Pillow uses FreeType or raises
    return font


@lru_cache(50_000)
def has(font: Font, char: str) -> bool:
    return char.isspace() or (any(glyph(font, char)[1]) and glyph(font, char) != glyph(font, NOT_A_CHARACTER))


@lru_cache(1000)
def glyph(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    try:
        mask = font.getmask(char)
    except ValueError:  # raqm cannot lay it out
        return (0, 0), b""
    return mask.size, bytes(mask)


@cache
def font_files() -> tuple[Path, ...]:
    """Regular fonts that are installed, sans serif first."""
    home = Path(os.environ.get("HOME") or "/nonexistent")
    folders = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]
    if sys.platform == "darwin":
        folders += [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        folders.append(Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts")
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "mpl-data/fonts/ttf")
    files = [file for folder in folders for file in folder.rglob("*.[ot]t[fc]") if not NOT_REGULAR.search(file.stem)]
    return tuple(sorted(files, key=lambda file: ("sans" not in file.stem.lower(), len(file.stem), file.stem)))


@cache
def open_font(path: Path) -> Font | None:
    try:
        return ImageFont.truetype(path, SIZE)
    except OSError:  # damaged, or of fixed sizes
        return None
