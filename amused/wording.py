"""Parts of the sentences and labels that people read."""

from __future__ import annotations


def plural(count: float, noun: str) -> str:
    """The count and the noun: 1 image, 2 images."""
    return f"{count:.0f} {noun}{'' if count == 1 else 's'}"


def shorten(text: str, limit: int) -> str:
    """The text in at most `limit` characters; an ellipsis stands for the rest."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
