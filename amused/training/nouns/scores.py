"""How often images show the traits that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amused.training.nouns.data import Noun, Nouns, Vocabulary

Style = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def trait_scores(
    nouns: Nouns,
    vocabulary: Vocabulary,
    asked: Sequence[Noun],
    art: NDArray[np.floating[Any]],
    style: Style | None = None,
) -> dict[str, float]:
    """Share of images whose trait is the one asked for, 0 to 1, by kind of trait.

    An image is compared with all renderings that differ from the asked character in that trait alone. It is right if
    none has a smaller mean squared error than the asked one; renderings that look the same count as one.

    Args:
        asked: the characters, one per image.
        art: (batch, 32, 32, 3) in [0, 1].
        style: applied to the renderings, (32, 32, 3) uint8.
    """
    choices = {
        "glasses": vocabulary.glasses,
        "head": vocabulary.heads,
        "body": vocabulary.bodies,
        "background": list(vocabulary.backgrounds),
    }
    right = dict.fromkeys(choices, 0)
    for noun, image in zip(asked, art):
        for kind, names in choices.items():
            renderings = [nouns.render(replace(noun, **{kind: name})) for name in names]
            if style is not None:
                renderings = [style(rendering) for rendering in renderings]
            errors = ((np.stack(renderings) / 255.0 - image) ** 2).mean(axis=(1, 2, 3))
            right[kind] += bool(errors[names.index(getattr(noun, kind))] <= errors.min())
    return {kind: count / len(asked) for kind, count in right.items()}
