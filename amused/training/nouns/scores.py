"""How often images show the traits that were asked for, and whether they show whole characters at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from amused.recipe.words import PARTS
from amused.training.nouns.data import NO_ACCESSORY, Noun, Nouns, Vocabulary

Style = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
Art = NDArray[np.floating[Any]]

LOOKS_RIGHT = 0.2
"""An art pixel looks right if every channel is this close to that of the real one; the range is 1."""

IS_EXACT = 10 / 255
SHARE_OF_TRAIT, SHARE_OF_WHOLE = 0.9, 0.98
"""Share of a real trait's visible art pixels, or of all of a character's, that must look right."""


def trait_scores(
    nouns: Nouns, vocabulary: Vocabulary, asked: Sequence[Noun], art: Art, style: Style | None = None
) -> dict[str, float]:
    """Share of images whose trait is the one asked for, 0 to 1, by kind of trait.

    An image is compared with all renderings that differ from the asked character in that trait alone. It is right if
    none has a smaller mean squared error than the asked one; renderings that look the same count as one.

    Args:
        asked: the characters, one per image.
        art: (batch, 32, 32, 3) in [0, 1].
        style: applied to the renderings, (32, 32, 3) uint8.
    """
    right = dict.fromkeys(PARTS, 0)
    for noun, image in zip(asked, art):
        for kind, names in vocabulary.choices.items():
            renderings = nouns.variants(noun, kind, names)
            if style is not None:
                renderings = np.stack([style(rendering) for rendering in renderings])
            errors = ((renderings / 255.0 - image) ** 2).mean(axis=(1, 2, 3))
            right[kind] += bool(errors[names.index(getattr(noun, kind))] <= errors.min())
    return {kind: count / len(asked) for kind, count in right.items()}


def coherence(nouns: Nouns, vocabulary: Vocabulary, art: Art) -> dict[str, float]:
    """How much images look like real characters, whichever these are, on average over images.

    Each image is compared with the real character that fits it best.

    Args:
        art: (batch, 32, 32, 3) in [0, 1].

    Returns:
        By kind of trait the share of images in which it is a real one; "whole", the share that are a real character;
        "exact", the share of art pixels that have the real colour; "specks", wrong art pixels among right ones, per
        image.
    """
    rows = [compare(nouns, best_fit(nouns, vocabulary, image), image) for image in art]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def compare(nouns: Nouns, real: Noun, image: Art) -> dict[str, float]:
    distance = distances(nouns.render(real), image)
    right, kinds = distance <= LOOKS_RIGHT, visible_kinds(nouns, real)
    visible = {kind: right[kinds == kind] for kind in PARTS}
    around = sliding_window_view(np.pad(~right, 1), (3, 3)).sum(axis=(-2, -1))
    return {
        **{kind: not shown.size or shown.mean() >= SHARE_OF_TRAIT for kind, shown in visible.items()},
        "whole": right.mean() >= SHARE_OF_WHOLE,
        "exact": (distance <= IS_EXACT).mean(),
        "specks": int((~right & (around == 1)).sum()),
    }


def distances(one: NDArray[Any], other: Art) -> NDArray[np.floating[Any]]:
    """The largest difference of a channel at each art pixel. `one` is uint8, `other` in [0, 1]."""
    return np.abs(one / 255.0 - other).max(axis=-1)


def visible_kinds(nouns: Nouns, noun: Noun) -> NDArray[Any]:
    """(32, 32) names: the part that shows at each art pixel."""
    kinds = np.full(nouns.layers[noun.body].shape, "background", dtype="<U10")
    for kind in ("body", "accessory", "head", "glasses"):
        kinds[nouns.layers[getattr(noun, kind)] > 0] = kind
    return kinds


def best_fit(nouns: Nouns, vocabulary: Vocabulary, image: Art) -> Noun:
    """The real character closest to an image (32, 32, 3): trait by trait, until no other trait is closer.

    A wrong pixel counts the same however wrong it is, so that a speck does not outweigh a trait.
    """
    offered = {**vocabulary.choices, "accessory": [NO_ACCESSORY, *vocabulary.accessories]}
    noun = Noun(**{kind: names[0] for kind, names in offered.items()})

    while True:
        before = noun
        for kind, names in offered.items():
            errors = distances(nouns.variants(noun, kind, names), image).clip(max=LOOKS_RIGHT).mean(axis=(1, 2))
            noun = replace(noun, **{kind: names[int(errors.argmin())]})
        if noun == before:
            return noun


def difference(one: Art, other: Art) -> float:
    """Share of art pixels that look different in two batches of images."""
    return float((np.abs(one - other).max(axis=-1) > LOOKS_RIGHT).mean())
