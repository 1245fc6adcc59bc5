"""Whether pictures show the traits that were asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from amused.training.nouns.data import Noun, Nouns, Vocabulary


def trait_scores(nouns: Nouns, vocabulary: Vocabulary, asked: list[Noun], art: np.ndarray) -> dict[str, list[bool]]:
    """For each picture and kind of trait: is the asked one the nearest?

    The nearest, by mean squared error over the whole picture, of all renderings that differ from the asked character
    in that one trait only. `art` is (batch, 32, 32, 3) in [0, 1].
    """
    choices = {
        "glasses": vocabulary.glasses,
        "head": vocabulary.heads,
        "body": vocabulary.bodies,
        "background": list(vocabulary.backgrounds),
    }
    scores: dict[str, list[bool]] = {kind: [] for kind in choices}
    for noun, picture in zip(asked, art):
        for kind, names in choices.items():
            renderings = np.stack([nouns.render(replace(noun, **{kind: name})) for name in names]) / 255.0
            errors = ((renderings - picture) ** 2).mean(axis=(1, 2, 3))
            scores[kind].append(names[int(errors.argmin())] == getattr(noun, kind))
    return scores
