"""A recipe as JSON, and as the metadata of a PNG file, with the version of its format."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo, PngStream

from amused.errors import UserError
from amused.recipe.links import DEFAULTS, NAMES, Shared, assemble, check_version, version_of
from amused.recipe.parameters import PARAMETERS_KEY, Parameters, format_parameters, parse_parameters
from amused.recipe.recipe import MAX_DEPTH, Recipe

PNG_KEY = "amused"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_HEADER = PNG_KEY.encode() + b"\0\0\0\0\0"  # not compressed, no language, no translated keyword
MAX_METADATA = 100_000
MAX_CHUNKS = 1000
MAX_NESTING = MAX_DEPTH + 8

DAMAGED = "The recipe is damaged."
TOO_LONG = "The recipe is too long."
DAMAGED_FILE = "This PNG file cannot be read: choose one downloaded from this page."


def to_json(recipe: Recipe) -> dict[str, object]:
    """A recipe as JSON: the version, and every field that differs from its default under its own name."""
    data: dict[str, object] = {"version": version_of(recipe)}
    for field in NAMES:
        value = getattr(recipe, field)
        if value != DEFAULTS[field]:
            data[field] = to_json(value) if isinstance(value, Recipe) else value
    return data


def from_json(data: object) -> Shared:
    """The inverse of `to_json`.

    Raises:
        UserError: it is no recipe, or one of a later version.
    """
    if not isinstance(data, Mapping):
        raise UserError("This is not an aMUSEd recipe.")
    version = check_version(data.get("version"))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in NAMES}
    ignored = [str(key)[:40] for key in data if key not in NAMES and key not in ("version", "digest", "made")]
    if values.get("parent") is not None:
        values["parent"] = from_json(values["parent"]).recipe
    return assemble(values, data.get("digest"), ignored, data.get("made"), version)


def parse_json(text: str) -> Shared:
    """The recipe in JSON from anywhere; its length and nesting are bounded before it is parsed.

    Raises:
        UserError: there is no valid recipe in it.
    """
    if len(text) > MAX_METADATA:
        raise UserError(TOO_LONG)
    if nesting(text) > MAX_NESTING:
        raise UserError(DAMAGED)
    try:
        return from_json(json.loads(text))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(DAMAGED) from error


def nesting(text: str) -> int:
    """How deeply the brackets of a JSON text are nested, not counting those in strings."""
    depth = deepest = 0
    # Strings are taken whole, also one without an end: without going back (*+), the time is linear.
    for bracket in re.findall(r'(?s)"(?:[^"\\]|\\.)*+"?|[\[\]{}]', text):
        if bracket in ("{", "["):
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ("}", "]"):
            depth -= 1
    return deepest


def png_info(recipe: Recipe, digest: str, fingerprint: str | None = None) -> PngInfo:
    """Metadata for `Image.save`: the recipe of one image, the digest of its pixels, and what made it.

    The same settings follow in the form that image viewers know.
    """
    data = {**to_json(recipe), "digest": digest}
    if fingerprint is not None:
        data["made"] = fingerprint
    info = PngInfo()
    info.add_itxt(PNG_KEY, json.dumps(data, ensure_ascii=False))
    info.add_text(PARAMETERS_KEY, format_parameters(recipe))
    return info


def from_png(image: Image.Image) -> Shared | None:
    """The recipe that an image carries, or None."""
    text = image.info.get(PNG_KEY)
    return parse_json(text) if isinstance(text, str) else None


def from_png_file(data: bytes) -> Shared | None:
    """The recipe in the bytes of a PNG file, or None. Neither pixels nor the text of other programs are decoded.

    Raises:
        UserError: it is no PNG file, or its recipe is damaged.
    """
    text = find_text(data, PNG_KEY, {b"iTXt": TEXT_HEADER})
    return None if text is None else parse_json(text)


def parameters_from_png_file(data: bytes) -> Parameters | None:
    """What another tool wrote about an image into its PNG file, or None.

    Raises:
        UserError: it is no PNG file, or is damaged, or has too much of this text.
    """
    header = PARAMETERS_KEY.encode() + b"\0"
    text = find_text(data, PARAMETERS_KEY, dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), header))
    return None if text is None else parse_parameters(text)


def find_text(data: bytes, key: str, headers: Mapping[bytes, bytes]) -> str | None:
    """The text of the first chunk before the pixels that begins as `headers` says for its kind; "" if it is damaged."""
    if not data.startswith(SIGNATURE):
        raise UserError("Only PNG files carry recipes: choose one downloaded from this page.")
    file = io.BytesIO(data)
    file.seek(len(SIGNATURE))
    # Chunk by chunk, as `Image.open` decompresses whatever text and colour profile it meets.
    with PngStream(file) as chunks:
        for _ in range(MAX_CHUNKS):
            try:
                kind, position, length = chunks.read()
                if kind in (b"IDAT", b"IEND"):
                    return None
                if kind in headers and data.startswith(headers[kind], position):
                    if length > len(headers[kind]) + 4 * MAX_METADATA:
                        raise UserError(TOO_LONG)
                    chunks.call(kind, position, length)
                    text = chunks.im_text.get(key, "")
                    if len(text) > MAX_METADATA:
                        raise UserError(TOO_LONG)
                    return text
            except (OSError, SyntaxError, struct.error) as error:
                raise UserError(DAMAGED_FILE) from error
            except UserError:
                raise
            except ValueError as error:  # Pillow decompresses at most 1 MB
                raise UserError(TOO_LONG) from error
            file.seek(position + length + 4)
    raise UserError(DAMAGED_FILE)
