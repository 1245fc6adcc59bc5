"""A recipe as text: the query of a link, and the metadata of a PNG. Both carry the version of their format.

Reading is strict about values and lenient about the rest: a field is taken only if it is known and valid, and what was
passed over is named, so that a person sees it. Nothing that is read here loads a model, a file or an address.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from amused.errors import UserError
from amused.recipe.recipe import INPAINT, MAX_CELLS, MAX_DEPTH, Recipe, parse_seeds

VERSION = 2
"""Of version 1 a varied or touched up picture does not keep what its inpainted parent kept: it says so when read."""
PNG_KEY = "amused"
MAX_QUERY = 20_000
MAX_METADATA = 100_000
MAX_CHUNKS = 1000
MAX_NESTING = MAX_DEPTH + 8

NAMES = {
    "task": "task",
    "prompt": "prompt",
    "negative_prompt": "negative",
    "seeds": "seeds",
    "model": "model",
    "steps": "steps",
    "guidance_scale": "guidance",
    "temperature": "temperature",
    "strength": "strength",
    "aesthetic_score": "aesthetic",
    "crop": "crop",
    "width": "width",
    "height": "height",
    "fit": "fit",
    "composite": "composite",
    "feather": "feather",
    "only_masked": "only_masked",
    "image": "image",
    "mask": "mask",
    "share": "share",
    "cells": "cells",
    "adapter": "adapter",
    "adapter_digest": "adapter_digest",
    "adapter_strength": "adapter_strength",
    "parent": "from",
}
"""The fields of a recipe and their names in a link."""

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a link or a picture holds: a recipe, the digest of the picture that it gave, and what was passed over.

    `made` says on what kind of device, in which precision and with which versions the picture was made.
    """

    recipe: Recipe
    digest: str | None = None
    ignored: tuple[str, ...] = ()
    made: str | None = None


def to_query(recipe: Recipe, digest: str | None = None, made: str | None = None) -> str:
    """The query of a link, without its question mark: short, readable, only what differs from the defaults."""
    pairs = [("v", str(VERSION))]
    for field, name in NAMES.items():
        value = getattr(recipe, field)
        if value != DEFAULTS[field]:
            pairs.append((name, write(field, value)))
    if digest is not None:
        pairs.append(("digest", digest))
    if made is not None:
        pairs.append(("made", made))
    return urlencode(pairs)


def write(field: str, value: object) -> str:
    if field == "parent":
        return to_query(value)
    if field in ("seeds", "cells"):
        return join_ranges(value)
    if isinstance(value, tuple):
        return ",".join(write(field, part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def from_query(query: str) -> Shared | None:
    """The recipe of a link's query, or None if it holds none.

    Raises:
        UserError: the link is of a later version, too long, or lacks a valid task or prompt.
    """
    if len(query) > MAX_QUERY:
        raise UserError("The link is too long to be one of ours: open the page without it.")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100, errors="strict")
    except (ValueError, UnicodeError) as error:
        raise UserError("The link is damaged: copy it anew.") from error
    fields = {name: field for field, name in NAMES.items()}
    if not any(name in fields for name, _ in pairs):
        return None
    found: dict[str, object] = {}
    ignored: list[str] = []
    version, digest, made = VERSION, None, None
    for name, text in pairs:
        if name == "v":
            version = text
        elif name == "digest":
            digest = text if is_digest(text) else None
        elif name == "made":
            made = text if is_made(text) else None
        elif name not in fields or fields[name] in found:
            ignored.append(name[:40])
        else:
            try:
                found[fields[name]] = read(fields[name], text)
            except (ValueError, UserError):
                ignored.append(name)
    return assemble(found, digest, ignored, made, read_version(version))


def read(field: str, text: str) -> object:
    if field == "parent":
        shared = from_query(text)
        if shared is None or shared.ignored:
            raise UserError("The link is damaged: copy it anew.")
        return shared.recipe
    if field == "seeds":
        return parse_seeds(text)
    if field == "cells":
        return split_ranges(text)
    if field in ("crop", "temperature"):
        kind = int if field == "crop" else float
        return tuple(kind(part) for part in text.split(","))
    if field in ("composite", "only_masked"):
        return {"yes": True, "no": False}.get(text, text)
    if field in ("steps", "width", "height", "feather"):
        return int(text)
    if field in ("guidance_scale", "strength", "aesthetic_score", "share", "adapter_strength"):
        return float(text)
    return text


def to_json(recipe: Recipe) -> dict:
    """A recipe as JSON: every field that differs from its default, by its own name, and the version."""
    data: dict[str, object] = {"version": VERSION}
    for field in NAMES:
        value = getattr(recipe, field)
        if value != DEFAULTS[field]:
            data[field] = to_json(value) if field == "parent" else value
    return data


def from_json(data: object) -> Shared:
    """The inverse of `to_json`.

    Raises:
        UserError: it is no recipe, or one of a later version.
    """
    if not isinstance(data, Mapping):
        raise UserError("This holds no recipe of aMUSEd.")
    version = read_version(data.get("version"))
    found = {key: value for key, value in data.items() if key in NAMES}
    ignored = [str(key)[:40] for key in data if key not in NAMES and key not in ("version", "digest", "made")]
    if found.get("parent") is not None:
        found["parent"] = from_json(found["parent"]).recipe
    for key, value in found.items():
        if isinstance(value, list):
            found[key] = tuple(value)
    digest, made = data.get("digest"), data.get("made")
    return assemble(found, digest if is_digest(digest) else None, ignored, made if is_made(made) else None, version)


def assemble(
    found: dict[str, object], digest: str | None, ignored: list[str], made: str | None, version: int
) -> Shared:
    """A recipe of the fields found; a field that is out of its range is passed over."""
    if "task" not in found or "prompt" not in found:
        raise UserError("The recipe is damaged: its task or its prompt is missing.")
    found.setdefault("seeds", (0,))
    for field in [field for field in found if field not in ("task", "prompt", "seeds", "parent", "share", "cells")]:
        try:
            Recipe(**{**needed(found), field: found[field]})
        except UserError:
            del found[field]
            ignored.append(field)
    # Not the picture of what is left of the recipe, unless all that was passed over means nothing here.
    changed = any(name in NAMES or name in NAMES.values() for name in ignored)
    recipe = Recipe(**found)
    if version == 1 and recipe.parent is not None and recipe.first.task == INPAINT:
        recipe = dataclasses.replace(recipe, composite=False)
    return Shared(recipe, None if changed else digest, tuple(ignored), made)


def needed(found: Mapping[str, object]) -> dict[str, object]:
    """The least that makes a recipe of this task valid, to try one other field on."""
    keys = ("task", "prompt", "seeds", "parent", "share", "cells")
    least = {key: found[key] for key in keys if key in found}
    if isinstance(least.get("parent"), Recipe):
        least["model"] = least["parent"].model
    return least


def read_version(version: object) -> int:
    """Raises UserError: it is not among those known here."""
    if str(version) not in {str(known) for known in range(1, VERSION + 1)}:
        raise UserError("The recipe was made by another version of this program: update it and try again.")
    return int(str(version))


def is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 16 and all(char in "0123456789abcdef" for char in value)


def is_made(value: object) -> bool:
    """For example "cpu float32 amused-0.1.0 torch-2.13.0"."""
    pattern = r"[a-z]{2,10} (float32|float16|bfloat16)( int8)? amused-[0-9a-z.]{1,20} torch-[0-9a-z.]{1,20}"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def png_info(recipe: Recipe, digest: str, made: str | None = None) -> PngInfo:
    """Metadata for `Image.save`: the recipe of one picture, the digest of its pixels, and on what it was made."""
    data = {**to_json(recipe), "digest": digest}
    if made is not None:
        data["made"] = made
    info = PngInfo()
    info.add_itxt(PNG_KEY, json.dumps(data, ensure_ascii=False))
    return info


def from_png(image: Image.Image) -> Shared | None:
    """The recipe that a picture carries, or None."""
    text = image.info.get(PNG_KEY)
    if not isinstance(text, str):
        return None
    return parse_json(text)


def from_png_file(data: bytes) -> Shared | None:
    """The recipe in the bytes of a PNG file, or None. Its pixels are not decoded, nor the texts of other programs.

    Raises:
        UserError: it is no PNG file, or its recipe is damaged.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError("Only PNG files carry recipes: choose one that was downloaded from here.")
    position = 8
    head = PNG_KEY.encode() + b"\0\0\0\0\0"  # not compressed, in no language, the keyword not translated
    for _ in range(MAX_CHUNKS):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if len(kind) < 4 or kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"iTXt" and data.startswith(head, position + 8):
            text = data[position + 8 + len(head) : position + 8 + min(length, 4 * MAX_METADATA)]
            try:
                return parse_json(text.decode())
            except UnicodeDecodeError as error:
                raise UserError("The recipe is damaged.") from error
        position += 12 + length
    raise UserError("The picture holds more than a picture: choose one that was downloaded from here.")


def parse_json(text: str) -> Shared:
    """The recipe of a JSON text from anywhere; it is measured before it is parsed."""
    if len(text) > MAX_METADATA:
        raise UserError("The recipe is too long to be one of ours.")
    if nesting(text) > MAX_NESTING:
        raise UserError("The recipe is damaged.")
    try:
        return from_json(json.loads(text))
    except UserError:
        raise
    except ValueError as error:
        raise UserError("The recipe is damaged.") from error


def nesting(text: str) -> int:
    """How deep the brackets of a JSON text go, those within strings apart."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        if bracket in ("{", "["):
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ("}", "]"):
            depth -= 1
    return deepest


def join_ranges(numbers: tuple[int, ...]) -> str:
    """1, 2, 3, 8 to "1-3,8", in the given order."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def split_ranges(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        if len(numbers) + stop - start >= MAX_CELLS:
            raise ValueError("more than any picture has")
        numbers.extend(range(start, stop + 1))
    return tuple(numbers)
