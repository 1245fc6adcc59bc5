"""A grid of recipes along two axes, such as steps by guidance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from amused.errors import UserError
from amused.limits import MAX_SEEDS
from amused.recipe.recipe import STRENGTHS, Recipe, text
from amused.recipe.seeds import parse_seeds

NONE = "nothing"
SEPARATORS = str.maketrans("，、،；؛", ",,,;;")  # of Chinese, Japanese and Arabic keyboards
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff]"
"""A letter or digit of a script that puts spaces between words, unlike Thai, Chinese or Japanese."""


@dataclass(frozen=True)
class Point:
    """One value of an axis."""

    label: str
    apply: Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Grid:
    """Recipes of one seed each, row by row."""

    across: tuple[str, ...]
    down: tuple[str, ...]
    recipes: tuple[Recipe, ...]


Change = Callable[[Recipe, Any], Recipe]


def point(label: str, change: Change, value: object) -> Point:
    return Point(label, lambda recipe: change(recipe, value))


def seeds(text: str) -> list[Point]:
    return [point(f"seed {seed}", Recipe.with_seeds, (seed,)) for seed in parse_seeds(text)]


def numbers(name: str, change: Change) -> Callable[[str], list[Point]]:
    def parse(text: str) -> list[Point]:
        try:
            values = [float(part) for part in split_numbers(text)]
        except ValueError:
            raise UserError(f'Give the values of {name} as numbers, for example "2, 5, 10" or "0.3; 0.5".') from None
        return [point(f"{name} {value:g}", change, value) for value in values]

    return parse


def split_numbers(text: str) -> list[str]:
    """The numbers of a list. Between semicolons a comma is a decimal one; elsewhere it separates.

    Raises:
        ValueError: a comma may be either, as in "0,3 0,5".
    """
    if ";" in text:
        return [part.strip().replace(",", ".") for part in text.split(";") if part.strip()]
    parts = text.split()
    if len(parts) > 1 and any("," in part.strip(",") for part in parts):
        raise ValueError
    return text.replace(",", " ").split()


def wordings(text: str) -> list[Point]:
    """The first wording is a part of the prompt, which the others replace: "cow, fox, owl"."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [point(word, lambda recipe, word: reword(recipe, words[0], word), word) for word in words]


def reword(recipe: Recipe, old: str, new: str) -> Recipe:
    """The recipe with `old` replaced where it stands as a word of its own: "fox" is none in "foxboy"."""
    start = rf"(?<!{LETTER})" if re.match(LETTER, old) else ""
    end = rf"(?!{LETTER})" if re.match(LETTER, old[-1]) else ""
    prompt, count = re.subn(f"{start}{re.escape(old)}{end}", lambda _: new, recipe.prompt)
    if not count:
        raise UserError(f'The prompt does not contain "{old[:60]}": start the list with words of the prompt.')
    return replace(recipe, prompt=prompt)


AXES: Mapping[str, Callable[[str], list[Point]]] = MappingProxyType(
    {
        NONE: lambda _: [Point("", lambda recipe: recipe)],
        "seed": seeds,
        "steps": numbers("steps", lambda recipe, value: replace(recipe, steps=value)),
        "guidance": numbers("guidance", lambda recipe, value: replace(recipe, guidance_scale=value)),
        "temperature": numbers(
            "temperature", lambda recipe, value: replace(recipe, temperature=(value, recipe.temperature[1]))
        ),
        "strength": numbers("strength", lambda recipe, value: replace(recipe, strength=value)),
        "prompt wording": wordings,
    }
)
"""What an axis can vary, by its name on the page."""


def parse(axis: str, values: str) -> list[Point]:
    return AXES[axis](text(f"list of {axis}", values).translate(SEPARATORS))


def expand(recipe: Recipe, across: str, across_values: str, down: str, down_values: str) -> Grid:
    """The recipes of a grid: `recipe`, with its first seed, at every pair of values.

    Raises:
        UserError: an axis is unknown, empty, given twice, makes no sense for the task, or there are over 64 images.
    """
    for axis in (across, down):
        if not isinstance(axis, str) or axis not in AXES:
            raise UserError(f"Choose an axis: {', '.join(AXES)}.")
        if axis == "strength" and recipe.task not in STRENGTHS:
            raise UserError("Text to image has no strength: choose another axis.")
    if across == down != NONE:
        raise UserError("Choose two different axes.")
    columns, rows = parse(across, across_values), parse(down, down_values)
    for axis, points in ((across, columns), (down, rows)):
        if not points:
            raise UserError(f'Enter values for "{axis}".')
    if len(columns) * len(rows) > MAX_SEEDS:
        raise UserError(f"That makes {len(columns) * len(rows)} images: ask for at most {MAX_SEEDS}.")
    start = replace(recipe, seeds=recipe.seeds[:1])
    return Grid(
        across=tuple(point.label for point in columns),
        down=tuple(point.label for point in rows),
        recipes=tuple(column.apply(row.apply(start)) for row in rows for column in columns),
    )
