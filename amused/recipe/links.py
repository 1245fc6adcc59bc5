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

VERSION = 3
"""Version 1: a variation of an inpainted image ignored its mask. Version 3 added the fields `ADDED`. A recipe
that uses none of them is written as version 2, so that older versions of the program read it."""
ADDED = ("sampler", "corrector_rounds", "mask_by", "model_version")
MAX_QUERY = 20_000
DAMAGED = "The link is damaged: please copy it again."

RENAMED = {
    "negative_prompt": "negative",
    "guidance_scale": "guidance",
    "aesthetic_score": "aesthetic",
    "parent": "from",
}
FIELDS = [field.name for field in dataclasses.fields(Recipe) if field.name != "parent"]
NAMES = {name: RENAMED.get(name, name) for name in ("task", "prompt", "negative_prompt", *FIELDS, "parent")}
"""The fields of a recipe and their names in a link, in the order of a link: it identifies a recipe that is kept."""

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
    pairs = [("v", str(version_of(recipe)))]
    for field, name in NAMES.items():
        value = getattr(recipe, field)
        if value != DEFAULTS[field]:
            pairs.append((name, format_value(field, value)))
    if digest is not None:
        pairs.append(("digest", digest))
    if fingerprint is not None:
        pairs.append(("made", fingerprint))
    return urlencode(pairs)


def version_of(recipe: Recipe) -> int:
    """The oldest version of the format that has all of a recipe."""
    is_new = any(getattr(recipe, field) != DEFAULTS[field] for field in ADDED)
    return VERSION if is_new else 2 if recipe.parent is None else version_of(recipe.parent)


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
        raise UserError("The link is too long: copy it again.")
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
    **dict.fromkeys(("steps", "width", "height", "feather", "corrector_rounds", "model_version"), int),
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
    if isinstance(model := values.get("model"), str):
        values["model"] = without_path(model)
    for field in [field for field in values if field not in ESSENTIAL]:
        try:
            Recipe(**{**essential(values), field: values[field]})  # type: ignore[arg-type]
        except UserError:
            del values[field]
            ignored.append(field)
    # Keep the digest only if no known field was ignored.
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


def without_path(model: str) -> str:
    """The name of a model's folder: before version 0.5 a folder was named by its path."""
    if model.startswith(("/", "~", ".")) or "\\" in model or model.count("/") > 1:
        return re.split(r"[/\\]", model.rstrip("/\\"))[-1] or model
    return model


def essential(values: Mapping[str, object]) -> dict[str, object]:
    """The minimal valid recipe of the task, for testing one field at a time."""
    least = {key: values[key] for key in ESSENTIAL if key in values}
    if isinstance(parent := least.get("parent"), Recipe):
        least |= {"model": parent.model, "model_version": parent.model_version}
    return least


def check_version(version: object) -> int:
    """Raises UserError: there is no version, or not one that is known here."""
    if version is None:
        raise UserError(f'The recipe has no version: add "version": {VERSION}.')
    if str(version) not in {str(known) for known in range(1, VERSION + 1)}:
        raise UserError("This recipe needs a newer version of aMUSEd.")
    return int(str(version))


def is_digest(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def is_fingerprint(value: object) -> TypeGuard[str]:
    """For example "cpu float32 amused-0.1.0 torch-2.13.0".

    On a GPU with " cuda-13.0 batch-4 NVIDIA L4" at its end, before it " inductor" if the network ran compiled.
    """
    pattern = r"[a-z]{2,10} (float32|float16|bfloat16)( int8)? amused-[0-9a-z.]{1,20} torch-[0-9a-z.]{1,20}( inductor)?"
    pattern += r"( (cuda|rocm)-[0-9a-z.]{1,20} batch-[0-9]{1,3} [\w .()/-]{1,80})?"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
