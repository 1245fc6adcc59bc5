"""The words that the bundled model was trained on, by the part of the image: its traits, as prompts name them."""

from __future__ import annotations

from typing import Any

PARTS = ("glasses", "head", "body", "background")
LISTS = {"glasses": "glasses", "head": "heads", "body": "bodies", "background": "backgrounds"}


def words(traits: dict[str, Any], part: str) -> list[str]:
    """The words a model knows for a part of the image: "cow" for the trait "head-cow"."""
    names = traits.get(LISTS[part], [])
    if part == "background":
        return list(names)
    plain = traits.get("words", {})
    return [plain.get(name) or name.partition("-")[2].replace("-", " ") or name for name in names]


def known_words(traits: dict[str, Any] | None) -> dict[str, list[str]]:
    """The words a model knows, by the part of the image; none for a model that draws anything."""
    return {} if traits is None else {part: words(traits, part) for part in PARTS}
