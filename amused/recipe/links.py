"""The query of a link that carries a recipe, with the version of its format.

Reading is strict about values and lenient about the rest: a field is taken only if it is known and valid, and what was
ignored is listed, so that the page can show it. Nothing read here loads a model, a file or an address.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TypeGuard
from urllib.parse import parse_qsl, urlencode

from amused.errors import UserError
from amused.recipe.recipe import INPAINT, Recipe
from amused.recipe.seeds import format_ranges, parse_cells, parse_seeds

VERSION = 2
"""In version 1 a varied or touched up image does not keep what its inpainted parent kept; version 2 states it."""
MAX_QUERY = 20_000
DAMAGED = "The link is damaged: please copy it again."

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


ESSENTIAL = ("task", "prompt", "seeds", "parent", "share", "cells")


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a link or a PNG file holds.

    Attributes:
        digest: of the image that the recipe gave.
        ignored: names of what was unknown or invalid.
        fingerprint: the kind of device, the precision and the versions that made the image.
    """

    recipe: Recipe
    digest: str | None = None
    ignored: tuple[str, ...] = ()
    fingerprint: str | None = None


def to_query(recipe: Recipe, digest: str | None = None, fingerprint: str | None = None) -> str:
    """The query of a link, without its question mark: short, readable, only what differs from the defaults."""
    pairs = [("v", str(VERSION))]
    for field, name in NAMES.items():
        value = getattr(recipe, field)
        if value != DEFAULTS[field]:
            pairs.append((name, format_value(field, value)))
    if digest is not None:
        pairs.append(("digest", digest))
    if fingerprint is not None:
        pairs.append(("made", fingerprint))
    return urlencode(pairs)


def format_value(field: str, value: object) -> str:
    if isinstance(value, Recipe):
        return to_query(value)
    if isinstance(value, tuple):
        if field in ("seeds", "cells"):
            return format_ranges(value)
        return ",".join(format_value(field, part) for part in value)
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
        raise UserError(DAMAGED) from error
    fields = {name: field for field, name in NAMES.items()}
    if not any(name in fields for name, _ in pairs):
        return None
    values: dict[str, object] = {}
    ignored: list[str] = []
    more: dict[str, str] = {}
    for name, text in pairs:
        if name in ("v", "digest", "made"):
            more[name] = text
        elif name not in fields or fields[name] in values:
            ignored.append(name[:40])
        else:
            try:
                values[fields[name]] = PARSERS.get(fields[name], str)(text)
            except (ValueError, UserError):
                ignored.append(name)
    version = check_version(more.get("v", VERSION))
    return assemble(values, more.get("digest"), ignored, more.get("made"), version)


def parse_parent(query: str) -> Recipe:
    shared = from_query(query)
    if shared is None or shared.ignored:
        raise UserError(DAMAGED)
    return shared.recipe


def parse_each(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: tuple(parse(part) for part in text.split(","))


def parse_bool(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(text)
    return text == "yes"


PARSERS: dict[str, Callable[[str], object]] = {
    "seeds": parse_seeds,
    "cells": parse_cells,
    "parent": parse_parent,
    "crop": parse_each(int),
    "temperature": parse_each(float),
    **dict.fromkeys(("composite", "only_masked"), parse_bool),
    **dict.fromkeys(("steps", "width", "height", "feather"), int),
    **dict.fromkeys(("guidance_scale", "strength", "aesthetic_score", "share", "adapter_strength"), float),
}
"""How the text of a field is read; the other fields are text."""


def assemble(
    values: dict[str, object], digest: object, ignored: list[str], fingerprint: object, version: int
) -> Shared:
    """A recipe of these values; a field that is out of its range is ignored.

    Raises:
        UserError: task or prompt are missing, or the recipe is invalid as a whole.
    """
    if "task" not in values or "prompt" not in values:
        raise UserError("The recipe is damaged: its task or its prompt is missing.")
    values.setdefault("seeds", (0,))
    for field in [field for field in values if field not in ESSENTIAL]:
        try:
            Recipe(**{**essential(values), field: values[field]})  # type: ignore[arg-type]
        except UserError:
            del values[field]
            ignored.append(field)
    # The digest is not that of what is left of the recipe, unless all that was ignored is of no meaning here.
    is_changed = any(name in NAMES or name in NAMES.values() for name in ignored)
    recipe = Recipe(**values)  # type: ignore[arg-type]
    if version == 1 and recipe.parent is not None and recipe.first.task == INPAINT:
        recipe = dataclasses.replace(recipe, composite=False)
    return Shared(
        recipe,
        digest if is_digest(digest) and not is_changed else None,
        tuple(ignored),
        fingerprint if is_fingerprint(fingerprint) else None,
    )


def essential(values: Mapping[str, object]) -> dict[str, object]:
    """The least that makes a recipe of this task valid, to try one other field on."""
    least = {key: values[key] for key in ESSENTIAL if key in values}
    if isinstance(parent := least.get("parent"), Recipe):
        least["model"] = parent.model
    return least


def check_version(version: object) -> int:
    """Raises UserError: the version is not known here."""
    if str(version) not in {str(known) for known in range(1, VERSION + 1)}:
        raise UserError("The recipe was made by another version of this program: update it and try again.")
    return int(str(version))


def is_digest(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def is_fingerprint(value: object) -> TypeGuard[str]:
    """For example "cpu float32 amused-0.1.0 torch-2.13.0", on a GPU with " cuda-13.0 NVIDIA L4" at its end."""
    pattern = r"[a-z]{2,10} (float32|float16|bfloat16)( int8)? amused-[0-9a-z.]{1,20} torch-[0-9a-z.]{1,20}"
    pattern += r"( (cuda|rocm)-[0-9a-z.]{1,20} [\w .()/-]{1,80})?"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
