"""Settings as other tools write them: the text "parameters" of a PNG file, in the form of A1111's web UI.

    a fox in the snow
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x512, Model: "a, b"

We write it next to our own recipe, so that image viewers show the settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from amused.errors import UserError
from amused.recipe.links import Shared
from amused.recipe.recipe import Recipe

PARAMETERS_KEY = "parameters"
NEGATIVE = "Negative prompt:"
SETTINGS = re.compile(r"^Steps: *[0-9]", re.MULTILINE)  # begins the line of settings
# Commas in quotes do not separate, also in quotes without an end: without going back (++), the time is linear.
SETTING = re.compile(r'(?:"(?:[^"\\]|\\.)*+"?|[^",\n])++', re.DOTALL)
NAME = re.compile(r"\s*([A-Za-z][\w /-]{0,39}):\s*")
MAX_SETTINGS = 100


@dataclass(frozen=True)
class Parameters:
    """What such a text says. `settings` are by the text's own names, such as "CFG scale"."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]

    def fill(self, base: Recipe, accept: Callable[[Recipe], bool]) -> Shared:
        """`base` with these texts and settings. Those that it lacks or that are not accepted are named as ignored.

        Raises:
            UserError: a text is too long.
        """
        recipe = replace(base, prompt=self.prompt, negative_prompt=self.negative_prompt)
        ignored = []
        for name, value in self.settings.items():
            try:
                changed = replace(recipe, **FIELDS[name](value))
            except (KeyError, ValueError, UserError):
                changed = None
            if changed is None or not accept(changed):
                ignored.append(name)
            else:
                recipe = changed
        return Shared(recipe, ignored=tuple(ignored))


def parse_size(text: str) -> dict[str, Any]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": lambda text: {"steps": int(text)},
    "Sampler": lambda text: {"sampler": text.lower()},
    "CFG scale": lambda text: {"guidance_scale": float(text)},
    "Seed": lambda text: {"seeds": (int(text),)},
    "Size": parse_size,
    "Model": lambda text: {"model": text},
}
"""The settings that a recipe has, as changes to its fields; others are ignored."""


def parse_parameters(text: str) -> Parameters | None:
    """What the text says, in time linear in its length, or None if it has no line of settings."""
    text = text.replace("\r\n", "\n")
    # The last such line: the prompt may have one too.
    start = max((match.start() for match in SETTINGS.finditer(text)), default=None)
    if start is None:
        return None
    prompt, _, negative = f"\n{text[:start]}".partition(f"\n{NEGATIVE}")
    settings: dict[str, str] = {}
    for match in islice(SETTING.finditer(text, start), MAX_SETTINGS):
        if name := NAME.match(match[0]):
            settings.setdefault(name[1], unquote(match[0][name.end() :].strip()))
    return Parameters(prompt.strip(), negative.strip(), settings)


def format_parameters(recipe: Recipe) -> str:
    """The text for a recipe, of its first seed. Each prompt is one line, so that none reads as settings."""
    settings = {
        "Steps": recipe.steps,
        "Sampler": recipe.sampler,
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seeds[0],
        "Size": f"{recipe.width}x{recipe.height}" if recipe.width and recipe.height else None,
        "Model": recipe.model,
        "Denoising strength": None if recipe.strength is None else f"{recipe.strength:g}",
    }
    lines = [" ".join(recipe.prompt.split())]
    if recipe.negative_prompt:
        lines.append(f"{NEGATIVE} {' '.join(recipe.negative_prompt.split())}")
    lines.append(", ".join(f"{name}: {quote(str(value))}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def unquote(value: str) -> str:
    """A quoted value without its quotes; one that is not quoted properly stays as it is."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
