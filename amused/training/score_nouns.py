"""Score a nouns checkpoint on characters kept back from training: `python -m amused.training.score_nouns`.

Each score is the share of pictures whose trait is the one asked for: of all renderings that differ from the asked
character in that trait alone, the asked one is the nearest by mean squared error at art resolution. Every evaluation
character has a pair of head and glasses that training never shows.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import amused
from amused.training.nouns.data import SCALE, SIZE, Noun, Nouns, Vocabulary, caption, fetch_assets
from amused.training.nouns.scores import trait_scores

TASKS = ("text_to_image", "image_to_image", "inpaint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nouns", help="a checkpoint's name or folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "amused", help="for the trait images")
    parser.add_argument("--count", type=int, default=256, help="characters a task")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance-scale", type=float, default=10.0)
    parser.add_argument("--temperature", type=float, nargs=2, default=(2.0, 0.0))
    parser.add_argument("--strength", type=float, default=0.7, help="of image to image")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--quantize")
    parser.add_argument("--sheet", type=Path, help="save the first pictures as one")
    options = parser.parse_args()

    model = amused.load(options.model, dtype=options.dtype, quantize=options.quantize)
    if model.traits is None:
        parser.error("this checkpoint has no traits.json to score")
    nouns = Nouns(fetch_assets(options.cache))
    known = Vocabulary(**model.traits)
    asked = known.evaluation(options.count)
    sampling = {"steps": options.steps, "guidance_scale": options.guidance_scale, "temperature": options.temperature}
    print(f"{options.count} held-out characters, {model.dtype}, {sampling}")
    for task in options.tasks:
        started = time.monotonic()
        pictures = list(generate(model, nouns, known, asked, task, options.strength, sampling))
        seconds = (time.monotonic() - started) / len(pictures)
        scores = trait_scores(nouns, known, asked, np.stack([art(picture) for picture in pictures]))
        shares = {kind: round(sum(right) / len(right), 4) for kind, right in scores.items()}
        print(json.dumps({"task": task, **shares, "seconds_a_picture": round(seconds, 3)}), flush=True)
        if options.sheet:
            contact_sheet(pictures[:32]).save(options.sheet.with_stem(f"{options.sheet.stem}-{task}"))


def generate(
    model: amused.Amused, nouns: Nouns, known: Vocabulary, asked: list[Noun], task: str, strength: float, sampling: dict
) -> Iterator[Image.Image]:
    """One picture of each character. The image tasks start from it with other glasses: only these should change."""
    rng = random.Random("sources")
    for seed, noun in enumerate(asked):
        prompt, options = caption(noun), {"seeds": [seed], **sampling}
        if task == "text_to_image":
            yield from model.text_to_image(prompt, **options)
            continue
        other = rng.choice([glasses for glasses in known.glasses if glasses != noun.glasses])
        source = upscale(nouns.render(replace(noun, glasses=other)))
        if task == "image_to_image":
            yield from model.image_to_image(prompt, source, strength=strength, **options)
        else:
            layers = (nouns.layers[noun.glasses] > 0) | (nouns.layers[other] > 0)
            mask = upscale(np.where(layers, 255, 0).astype(np.uint8))
            yield from model.inpaint(prompt, source, mask, **options)


def upscale(art: np.ndarray) -> Image.Image:
    return Image.fromarray(art).resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.NEAREST)


def art(picture: Image.Image) -> np.ndarray:
    """A picture back at art resolution, (32, 32, 3) in [0, 1]."""
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255


def contact_sheet(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (8 * width // 2, -(-len(pictures) // 8) * height // 2))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width // 2, height // 2)), (i % 8 * width // 2, i // 8 * height // 2))
    return sheet


if __name__ == "__main__":
    main()
