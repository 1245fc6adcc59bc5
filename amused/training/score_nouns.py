"""Score a Nouns checkpoint on held-out characters: `python -m amused.training.score_nouns`.

Scores are those of `nouns/scores.py`: of each task, the share of images whose trait is the one asked for; of prompts
that leave out traits, how much the images look like whole characters, as a Markdown table. The characters have pairs of
head and glasses that training never shows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import amused
from amused.errors import UserError
from amused.generation.contact_sheet import sheet
from amused.recipe.recipe import MASK_BY, SAMPLERS
from amused.recipe.words import PARTS
from amused.training.finetune.options import positive_int
from amused.training.nouns.data import SCALE, SIZE, Noun, Nouns, Vocabulary, caption, fetch_assets
from amused.training.nouns.scores import coherence, difference, trait_scores

TASKS = ("text_to_image", "image_to_image", "inpaint")
COHERENCE = "coherence"
LEFT_OUT = [parts for count in (0, 1, 2, len(PARTS)) for parts in combinations(PARTS, count)]
SAMPLING = ("steps", "guidance_scale", "temperature", "sampler", "corrector_rounds", "mask_by")
COLUMNS = (*PARTS, "whole", "exact", "specks", "seeds differ", "seconds")


def main() -> None:
    try:
        score(parse_options())
    except UserError as error:
        sys.exit(f"{error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nouns", help="name or folder of a checkpoint")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "amused", help="for the trait images")
    parser.add_argument("--count", type=positive_int, default=256, help="images per task or row")
    parser.add_argument("--tasks", nargs="+", choices=(*TASKS, COHERENCE), default=(*TASKS, COHERENCE))
    parser.add_argument("--steps", type=int, help="as the following, by default the checkpoint's own")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--temperature", type=float, nargs=2)
    parser.add_argument("--sampler", choices=SAMPLERS)
    parser.add_argument("--corrector-rounds", type=int)
    parser.add_argument("--mask-by", choices=MASK_BY, help="of image to image")
    parser.add_argument("--strength", type=float, default=0.5, help="of image to image")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--quantize")
    parser.add_argument("--sheet", type=Path, help="save a contact sheet of the first images of each task")
    return parser.parse_args()


def score(options: argparse.Namespace) -> None:
    model = amused.load(options.model, dtype=options.dtype, quantize=options.quantize)
    if model.traits is None:
        raise UserError("This checkpoint has no traits.json to score.")
    nouns = Nouns(fetch_assets(options.cache))
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary(**model.traits)
    asked = vocabulary.evaluation(options.count)
    sampling = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    print(f"{options.count} held-out characters, {model.dtype}, {sampling or 'default settings'}")
    for task in options.tasks:
        if task == COHERENCE:
            print_coherence(model, nouns, vocabulary, options.count, sampling)
            continue
        start = time.monotonic()
        images = list(generate(model, nouns, vocabulary, asked, task, options.strength, sampling))
        seconds = (time.monotonic() - start) / len(images)
        scores = trait_scores(nouns, vocabulary, asked, np.stack([to_art(image) for image in images]))
        shares = {kind: round(share, 4) for kind, share in scores.items()}
        print(json.dumps({"task": task, **shares, "seconds_per_image": round(seconds, 3)}), flush=True)
        if options.sheet:
            labels = [caption(noun) for noun in asked]
            page = sheet(images[:32], labels[:32], columns=8)
            page.save(options.sheet.with_stem(f"{options.sheet.stem}-{task}"))


def print_coherence(
    model: amused.Amused, nouns: Nouns, vocabulary: Vocabulary, count: int, sampling: Mapping[str, Any]
) -> None:
    """A row for each set of traits that prompts leave out; each prompt gets two seeds."""
    print(f"| left out | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for parts in LEFT_OUT:
        start = time.monotonic()
        pairs = [
            model.text_to_image(caption(noun, parts), seeds=[2 * index, 2 * index + 1], **sampling)
            for index, noun in enumerate(vocabulary.evaluation(-(-count // 2)))
        ]
        seconds = (time.monotonic() - start) / (2 * len(pairs))
        one, other = (np.stack([to_art(pair[i]) for pair in pairs]) for i in (0, 1))
        scores = coherence(nouns, vocabulary, np.concatenate([one, other]))
        scores |= {"seeds differ": difference(one, other), "seconds": seconds}
        name = "all" if parts == PARTS else ", ".join(parts) or "none"
        print(f"| {name} | {' | '.join(f'{scores[column]:.2f}' for column in COLUMNS)} |", flush=True)


def generate(
    model: amused.Amused,
    nouns: Nouns,
    vocabulary: Vocabulary,
    asked: Sequence[Noun],
    task: str,
    strength: float,
    sampling: Mapping[str, Any],
) -> Iterator[Image.Image]:
    """One image per character. The image tasks start from it with other glasses, so only these should change."""
    rng = random.Random("sources")
    for seed, noun in enumerate(asked):
        prompt, options = caption(noun), {"seeds": [seed], **sampling}
        if task == "text_to_image":
            yield from model.text_to_image(prompt, **options)
            continue
        other = rng.choice([glasses for glasses in vocabulary.glasses if glasses != noun.glasses])
        source = upscale(nouns.render(replace(noun, glasses=other)))
        if task == "image_to_image":
            yield from model.image_to_image(prompt, source, strength=strength, **options)
        else:
            layers = (nouns.layers[noun.glasses] > 0) | (nouns.layers[other] > 0)
            mask = upscale(np.where(layers, 255, 0).astype(np.uint8))
            yield from model.inpaint(prompt, source, mask, **options)


def upscale(art: NDArray[np.uint8]) -> Image.Image:
    """Art pixels, (32, 32) or (32, 32, 3), to an image of 256x256."""
    return Image.fromarray(art).resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.NEAREST)


def to_art(image: Image.Image) -> NDArray[np.float32]:
    """An image to art resolution, (32, 32, 3) in [0, 1]."""
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


if __name__ == "__main__":
    main()
