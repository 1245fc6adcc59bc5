"""Words for visitors: prompts made of what a model was trained on, so that nobody has to guess them."""

from __future__ import annotations

import random
from typing import Any

PARTS = ("glasses", "head", "body", "background")
LISTS = {"glasses": "glasses", "head": "heads", "body": "bodies", "background": "backgrounds"}

ANY_MODEL = (
    "a red fox in fresh snow, golden light",
    "a lighthouse in a storm, oil painting",
    "a cosy reading room full of plants, watercolour",
    "a hot air balloon over green hills at dawn",
    "a bowl of ramen, studio photograph",
    "an astronaut riding a horse in a meadow",
)


def words(traits: dict[str, Any], part: str) -> list[str]:
    """The words a model knows for a part: "glasses-square-red" is called "square red"."""
    names = traits.get(LISTS[part], [])
    if part == "background":
        return list(names)
    return [name.partition("-")[2].replace("-", " ") or name for name in names]


def sentence(glasses: str | None, head: str | None, body: str | None, background: str | None) -> str:
    """A prompt in the form the bundled model was trained on; what is left out is left open."""
    traits = []
    if glasses:
        traits.append(f"{glasses} glasses")
    if head:
        traits.append(f"a {head}-shaped head")
    if body:
        traits.append(f"a {body}-colored body")
    text = "a pixel art character"
    if traits:
        text += " with " + (traits[0] if len(traits) == 1 else ", ".join(traits[:-1]) + " and " + traits[-1])
    if background:
        text += f" on a {background} background"
    return text


def surprise(traits: dict[str, Any] | None, chance: random.Random) -> str:
    if traits is None:
        return chance.choice(ANY_MODEL)
    return sentence(*(chance.choice(words(traits, part)) for part in PARTS))


def examples(traits: dict[str, Any] | None, count: int = 3) -> list[str]:
    """The same few prompts at each start; with traits, each of them shows a different word of every kind."""
    if traits is None:
        return list(ANY_MODEL[:count])
    chance = random.Random(8)
    columns = []
    for part in PARTS:
        known = words(traits, part)
        chance.shuffle(known)
        columns.append([known[index % len(known)] for index in range(count)])
    return [sentence(*row) for row in zip(*columns, strict=True)]


def short(prompt: str) -> str:
    """A label for an example: its head, or what stands before the first comma."""
    for part in prompt.split(" a "):
        if "-shaped head" in part:
            return part.partition("-shaped")[0] + " head"
    return prompt.partition(",")[0]
