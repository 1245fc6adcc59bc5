"""The words that the bundled model was trained on, by the part of the image: its traits, as prompts name them."""

from __future__ import annotations

from typing import Any

PARTS = ("glasses", "head", "body", "background")
LISTS = {"glasses": "glasses", "head": "heads", "body": "bodies", "background": "backgrounds"}


def words(traits: dict[str, Any], part: str) -> list[str]:
    """The words a model knows for a part of the image: "burger dollarmenu" for the trait "head-burger-dollarmenu"."""
    names = traits.get(LISTS[part], [])
    if part == "background":
        return list(names)
    return [name.partition("-")[2].replace("-", " ") or name for name in names]


def plain_words(traits: dict[str, Any], part: str) -> list[str]:
    """The same words as people say them: "burger"."""
    plain = traits.get("words", {})
    names = traits.get(LISTS[part], [])
    return [plain.get(name, word) for name, word in zip(names, words(traits, part), strict=True)]


def known_words(traits: dict[str, Any] | None) -> dict[str, list[str]]:
    """The words a model knows, by the part of the image; none for a model that draws anything."""
    return {} if traits is None else {part: words(traits, part) for part in PARTS}
