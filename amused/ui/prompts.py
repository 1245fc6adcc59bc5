"""Prompts to start from: sentences of words that a model was trained on, and tested examples."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE
from amused.recipe.words import PARTS, known_words, single_words, words

FOLDER = Path(__file__).parents[2] / "examples"
COUNT = 3

ANY_MODEL = (
    "a red fox in fresh snow, golden light",
    "a lighthouse in a storm, oil painting",
    "a cosy reading room full of plants, watercolour",
    "a hot air balloon over green hills at dawn",
    "a bowl of ramen, studio photograph",
    "an astronaut riding a horse in a meadow",
)


@dataclass(frozen=True)
class Example:
    """What a click fills a tab with. `image` and `mask` are files in `FOLDER`; without them the visitor's stay."""

    task: str
    model: str
    label: str
    prompt: str
    seeds: str = "0"
    strength: float | None = None
    image: str | None = None
    mask: str | None = None


# Prompts and seeds of the published models' authors; on the image tabs the visitor brings the image.
PUBLISHED = (
    Example(TEXT_TO_IMAGE, "amused-256", "cowboy", "cowboy", "8"),
    Example(TEXT_TO_IMAGE, "amused-512", "summer in the mountains", "summer in the mountains", "2"),
    Example(IMAGE_TO_IMAGE, "amused-256", "apple watercolor", "apple watercolor", "3", 0.7),
    Example(IMAGE_TO_IMAGE, "amused-512", "winter mountains", "winter mountains", "15"),
    Example(INPAINT, "amused-256", "a man with glasses", "a man with glasses", "0-19"),
    Example(INPAINT, "amused-512", "fall mountains", "fall mountains", "0"),
)


def sentence(
    glasses: str | None, head: str | None, body: str | None, background: str | None, accessory: str | None = None
) -> str:
    """A prompt in the form that the bundled model was trained on; any part can be left out."""
    traits = []
    if glasses:
        traits.append(f"{glasses} glasses")
    if head:
        traits.append(f"a {head}-shaped head")
    if body:
        traits.append(f"a {body}-colored body")
    if accessory:
        traits.append(f"a {accessory} accessory")
    text = "a pixel art character"
    if traits:
        text += " with " + (traits[0] if len(traits) == 1 else ", ".join(traits[:-1]) + " and " + traits[-1])
    if background:
        text += f" on a {background} background"
    return text


def hint(traits: dict[str, Any] | None, prompt: str) -> str:
    """What a model of few words can draw, if the prompt has none of them; else ""."""
    if traits is None:
        return ""
    known = known_words(traits)
    said = {*re.findall(r"\w+", prompt.lower())}
    if not said or "character" in prompt.lower() or not single_words(traits).isdisjoint(said):
        return ""
    head, glasses, body = (known[part][0] for part in ("head", "glasses", "body"))
    known_ones = f"heads such as {head}, glasses such as {glasses}, bodies such as {body}"
    return f"This model draws pixel-art characters: {known_ones} and more."


def surprise(traits: dict[str, Any] | None, rng: random.Random) -> str:
    if traits is None:
        return rng.choice(ANY_MODEL)
    return sentence(*(rng.choice(words(traits, part)) for part in PARTS))


def examples(task: str, model: str, traits: dict[str, Any] | None) -> list[Example]:
    """The examples of a tab for a model: tried ones where there are any. The same at each start."""
    tried = [example for example in PUBLISHED if (example.task, example.model) == (task, model)]
    if traits is not None:
        tried += [example for example in from_folder() if (example.task, example.model) == (task, model)]
    if tried and (task != TEXT_TO_IMAGE or traits is not None):
        return tried
    texts = ANY_MODEL if traits is None else sentences(traits)
    return [*tried, *(Example(task, model, short(text), text) for text in texts)][:COUNT]


@cache
def from_folder() -> tuple[Example, ...]:
    """The bundled model's examples, which come with the repository but not with the installed package."""
    file = FOLDER / "examples.json"
    if not file.is_file():
        return ()
    return tuple(Example(model="nouns", **entry) for entry in json.loads(file.read_text("utf-8")))


def sentences(traits: dict[str, Any]) -> list[str]:
    """Prompts that share no word for any part."""
    rng = random.Random(8)
    columns = []
    for part in PARTS:
        known = words(traits, part)
        rng.shuffle(known)
        columns.append([known[index % len(known)] for index in range(COUNT)])
    return [sentence(*row) for row in zip(*columns, strict=True)]


def short(prompt: str) -> str:
    """A label for a prompt: its head, or the text before the first comma."""
    for part in prompt.split(" a "):
        if "-shaped head" in part:
            return part.partition("-shaped")[0] + " head"
    return prompt.partition(",")[0]
