"""The words that the bundled model was trained on, by the part of the image: its traits, as prompts name them."""

from __future__ import annotations

from typing import Any

PARTS = ("glasses", "head", "body", "background")
LISTS = {
    "glasses": "glasses",
    "head": "heads",
    "body": "bodies",
    "background": "backgrounds",
    "accessory": "accessories",
}
"""The lists of `traits.json`, by what the words in them name: a part, or an accessory, which few characters wear."""


def words(traits: dict[str, Any], part: str) -> list[str]:
    """The words a model knows for a part of the image, as people say them: "burger" for "head-burger-dollarmenu"."""
    names = traits.get(LISTS[part], [])
    if part == "background":
        return list(names)
    plain = traits.get("words", {})
    return [plain.get(name, file_words(name)) for name in names]


def file_words(name: str) -> str:
    """The words of a trait's name: "burger dollarmenu" for "head-burger-dollarmenu". Captions have these too."""
    return (name.partition("-")[2].replace("-", " ") or name).lower()


def known_words(traits: dict[str, Any] | None) -> dict[str, list[str]]:
    """The words a model knows, by the part of the image; none for a model that draws anything."""
    return {} if traits is None else {part: known for part in LISTS if (known := words(traits, part))}


def single_words(traits: dict[str, Any]) -> set[str]:
    """All words that captions name traits by, but for the shortest, as in "peachy a": they say nothing."""
    names = [name for part in PARTS for name in traits.get(LISTS[part], [])]
    texts = [*map(file_words, names), *(word for part in PARTS for word in words(traits, part))]
    return {word for text in texts for word in text.split() if len(word) > 2}
