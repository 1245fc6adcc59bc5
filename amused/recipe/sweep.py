r"""A sweep over prompts: one typed text stands for several prompts, each of which gets a recipe of its own.

`{fox|cow} in {red|blue} glasses` is all combinations; `{head}` draws a word that the model knows, by the image's seed;
each line is a prompt of its own. `\{`, `\}`, `\|`, `\\` and a backslash before a line break stand for the character
itself. Recipes hold plain prompts: only what is typed is expanded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random

from amused.errors import UserError
from amused.limits import MAX_SEEDS
from amused.recipe.recipe import Recipe
from amused.wording import plural, shorten

TOKEN = re.compile(r"\\[\\{}|\r\n]|[{}|\n]|\\|[^\\{}|\n]+")
SPECIAL = re.compile(r"\\(?=[\\{}|\r\n])|[{}\r\n]")

UNCLOSED = r"A { has no } on its line: close it, or write \{ for a plain brace."
UNOPENED = r"A } has no { before it: open it, or write \} for a plain brace."
NESTED = "Braces cannot be nested: list all alternatives in one pair, as in {red fox|blue fox|cow}."
EMPTY = r"An alternative in braces is empty: fill it in, or write \{ and \} for plain braces."

MAX_LABEL = 40
MAX_COUNT = 9999  # a refusal gives larger numbers as this one: they may have hundreds of digits

Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Wildcard:
    """A part of the image, such as "head"."""

    name: str


Part = str | Wildcard | tuple[str, ...]  # a tuple: alternatives


@dataclass(frozen=True)
class Sweep:
    """The recipes of a typed prompt, and what tells their prompts apart: no labels if it is a plain prompt.

    `recipe.seeds` are those of each prompt. Recipes with a wildcard have one seed each.
    """

    num_prompts: int
    recipes: tuple[Recipe, ...]
    labels: tuple[str, ...] = ()


def expand(recipe: Recipe, words: Words) -> Sweep:
    """The sweep of a recipe whose prompt is as typed; each of its prompts gets all of its seeds.

    Args:
        words: what the model knows for each part of the image, by its name; empty if it has no such list.

    Raises:
        UserError: the braces are unbalanced, nested, empty or unknown, or there are over 64 images.
    """
    lines = parse(recipe.prompt, words)
    num_prompts = count_prompts(lines)
    if num_prompts * len(recipe.seeds) > MAX_SEEDS:
        raise UserError(too_many(num_prompts, len(recipe.seeds)))
    recipes, labels = [], []
    for line in lines:
        for prompt, choices, seeds in prompts_of(line, words, recipe.seeds):
            recipes.append(replace(recipe, prompt=prompt, seeds=seeds))
            label = prompt if len(lines) > 1 else ", ".join(choices)
            labels.append(shorten(" ".join(label.split()), MAX_LABEL))
    if len(lines) == 1 and all(isinstance(part, str) for part in lines[0]):
        labels = []
    return Sweep(num_prompts, tuple(recipes), tuple(labels))


def escape(prompt: str) -> str:
    """The text to type for exactly this prompt."""
    return SPECIAL.sub(lambda match: "\\" + match[0], prompt)


def parse(typed: str, words: Words) -> list[list[Part]]:
    """The lines of a text, blank ones left out. Linear in its length."""
    lines: list[list[Part]] = [[]]
    options: list[list[str]] | None = None  # of the open brace
    for token in TOKEN.findall(typed):
        if token == "{":
            if options is not None:
                raise UserError(NESTED)
            options = [[]]
        elif token == "}":
            if options is None:
                raise UserError(UNOPENED)
            lines[-1].append(choice(["".join(option).strip() for option in options], words))
            options = None
        elif token == "\n":
            if options is not None:
                raise UserError(UNCLOSED)
            lines.append([])
        elif token == "|" and options is not None:
            options.append([])
        else:
            text = token[1:] if len(token) > 1 and token[0] == "\\" else token
            (lines[-1] if options is None else options[-1]).append(text)
    if options is not None:
        raise UserError(UNCLOSED)
    return [line for line in lines if any(not isinstance(part, str) or part.strip() for part in line)] or lines[:1]


def choice(options: list[str], words: Words) -> Part:
    """What a pair of braces stands for."""
    if not all(options):
        raise UserError(EMPTY)
    if len(options) > 1:
        return tuple(options)
    name = options[0]
    if name in words:
        return Wildcard(name)
    known = ", one of " + ", ".join(f"{{{word}}}" for word in words) if words else ""
    here = "" if words else " with this model"
    raise UserError(
        f"{{{shorten(name, MAX_LABEL)}}} cannot be filled in{here}: write alternatives, as in {{fox|cow}}{known}, "
        r"or \{ for a plain brace."
    )


def count_prompts(lines: list[list[Part]]) -> int:
    return sum(math.prod(len(part) for part in line if isinstance(part, tuple)) for line in lines)


def too_many(num_prompts: int, num_seeds: int) -> str:
    if num_prompts > MAX_COUNT:
        return f"More than {MAX_COUNT} prompts: make at most {MAX_SEEDS} images at once."
    count = f"{num_prompts} prompts × {plural(num_seeds, 'seed')} = {num_prompts * num_seeds} images"
    return f"{count}: make at most {MAX_SEEDS} at once."


def prompts_of(
    line: list[Part], words: Words, seeds: tuple[int, ...]
) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """Each prompt of a line, with what was chosen in its braces and the seeds that it is for."""
    draws = any(isinstance(part, Wildcard) for part in line)
    for combination in product(*(part if isinstance(part, tuple) else (part,) for part in line)):
        for group in [(seed,) for seed in seeds] if draws else [seeds]:
            texts = fill(combination, words, group[0])
            choices = [text for text, part in zip(texts, line, strict=True) if not isinstance(part, str)]
            yield "".join(texts), choices, group


def fill(parts: Sequence[str | Wildcard], words: Words, seed: int) -> list[str]:
    """Each wildcard drawn by the seed, its part, and how often that was drawn before: whatever else the prompt says."""
    texts, drawn = [], dict.fromkeys(words, 0)
    for part in parts:
        if isinstance(part, Wildcard):
            known = words[part.name]
            # A text as seed, and `random`, give the same in every version of Python.
            texts.append(known[int(Random(f"{seed} {part.name} {drawn[part.name]}").random() * len(known))])
            drawn[part.name] += 1
        else:
            texts.append(part)
    return texts
