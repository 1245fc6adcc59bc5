"""Teach the bundled model a style from a few images, or from one: `python -m amused.training.style_example`.

Draws characters at dusk, fine-tunes an adapter on them, and scores it on held-out characters. Prints per model:

- sky: share of the pixels around the characters that have the colour of the evening sky at their height;
- glasses, head, body: share of images with the right trait (see `score_nouns`). With an adapter they are compared with
  renderings in the style.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import amused
from amused.errors import UserError
from amused.generation.contact_sheet import grid
from amused.training.finetune import train as finetune
from amused.training.finetune.options import parse_options as finetune_options
from amused.training.finetune.options import positive_int
from amused.training.nouns.data import Noun, Nouns, Vocabulary, caption, fetch_assets
from amused.training.nouns.scores import trait_scores
from amused.training.score_nouns import to_art, upscale

COLOURS = np.array([list(bytes.fromhex(colour)) for colour in ("2b2834", "9f21a0", "fd8b5b", "f5e08c")], np.uint8)
"""The style "dusk": an evening sky behind the character, from top to bottom: (4, 3)."""

NUM_IMAGES = {"few": 16, "one": 1}
STEPS = {"few": 60, "one": 20}
LEARNING_RATE = 2e-3
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "kv_mapper", "proj"),
    *("channelwise_linear_1", "channelwise_linear_2", "project_from_hidden"),
)
SAMPLING: dict[str, Any] = {"guidance_scale": 2.0, "temperature": (1.0, 0.0)}
"""Strong guidance exaggerates what so few steps have taught."""

TOLERANCE = 24
"""Of a pixel's colour, 0 to 255."""

SHOWN = 6
SHOWN_SIZE = (128, 128)


def main() -> None:
    try:
        run(parse_options())
    except UserError as error:
        sys.exit(f"{error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("style"), help="folder for the images and the adapters")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "amused", help="for the trait images")
    parser.add_argument("--recipes", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--count", type=positive_int, default=32, help="characters to score")
    parser.add_argument("--strip", type=Path, help="save a grid of images of every model")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    nouns = Nouns(fetch_assets(options.cache))
    if options.strip:
        options.strip.parent.mkdir(parents=True, exist_ok=True)
    model = amused.load("nouns", dtype="float32", adapters=options.output)
    vocabulary = Vocabulary(**(model.traits or {}))
    asked = vocabulary.evaluation(options.count)
    rows = {"examples": [image for _, image in draw_examples(nouns, vocabulary, SHOWN)]}
    rows["nouns"] = report(model, nouns, vocabulary, asked, None)
    for name in options.recipes:
        folder, adapter = options.output / f"{name}-pictures", f"dusk-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for text, image in draw_examples(nouns, vocabulary, NUM_IMAGES[name]):
            image.save(folder / f"{text}.png")
        shutil.rmtree(options.output / adapter, ignore_errors=True)  # of an earlier run of this example
        start = time.monotonic()
        train(folder, options.output / adapter, STEPS[name])
        print(json.dumps({"adapter": adapter, "minutes": round((time.monotonic() - start) / 60, 1)}))
        rows[adapter] = report(model, nouns, vocabulary, asked, adapter)
    if options.strip:
        columns = min(SHOWN, options.count)
        images = [image.resize(SHOWN_SIZE, Image.Resampling.BOX) for row in rows.values() for image in row[:columns]]
        grid(images, across=[""] * columns, down=list(rows)).save(options.strip, optimize=True)


def in_style(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The evening sky in place of the plain background: (..., height, width, 3), which is kept, 0 to 255."""
    return np.where(is_sky(image)[..., None], evening_sky(image.shape[-3]), image)


def evening_sky(height: int) -> NDArray[np.uint8]:
    """The four colours, a stripe each: (height, 1, 3)."""
    return COLOURS[np.arange(height) * len(COLOURS) // height][:, None]


def is_sky(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a rendering shows its background, the colour of its corner: (..., height, width)."""
    return (image == image[..., :1, :1, :]).all(-1)


def draw_examples(nouns: Nouns, vocabulary: Vocabulary, count: int) -> list[tuple[str, Image.Image]]:
    """Random characters in the style, with their captions; the same ones in every call."""
    rng = random.Random("style")
    characters = [vocabulary.sample(rng, accessories=0.0) for _ in range(count)]
    return [(caption(noun), upscale(in_style(nouns.render(noun)))) for noun in characters]


def train(images: Path, output: Path, steps: int) -> None:
    """Fine-tune an adapter on the images of a folder."""
    first, *others = sorted(images.glob("*.png"))
    source = ["--instance_data_dir", images] if others else ["--instance_data_image", first]
    arguments = ["--pretrained_model_name_or_path", "nouns", "--use_lora", "--output_dir", output, "--seed", 0, *source]
    arguments += ["--lora_target_modules", *TARGETS, "--report_to", "none", "--mixed_precision", "no"]
    arguments += ["--cond_dropout_prob", 0.2]  # the unconditional prediction of guidance has to learn the style too
    arguments += ["--max_train_steps", steps, "--learning_rate", LEARNING_RATE, "--train_batch_size", 8]
    finetune.train(finetune_options([str(argument) for argument in arguments]))


def report(
    model: amused.Amused, nouns: Nouns, vocabulary: Vocabulary, asked: Sequence[Noun], adapter: str | None
) -> list[Image.Image]:
    """Generate an image per character and print the scores as a line of JSON."""
    images = [
        image
        for seed, noun in enumerate(asked)
        for image in model.text_to_image(caption(noun), seeds=[seed], adapter=adapter, **SAMPLING)
    ]
    art = np.stack([to_art(image) for image in images])
    scores = trait_scores(nouns, vocabulary, asked, art, in_style if adapter else None)
    shares = {kind: round(scores[kind], 3) for kind in ("glasses", "head", "body")}
    sky = sky_share(art * 255, np.stack([nouns.render(noun) for noun in asked]))
    print(json.dumps({"adapter": adapter, "sky": round(sky, 3), **shares}), flush=True)
    return images


def sky_share(pixels: NDArray[np.float32], plain: NDArray[np.uint8]) -> float:
    """Share of the sky's pixels that have its colour, in images of characters whose renderings are `plain`.

    Args:
        pixels, plain: (images, height, width, 3), from 0 to 255.
    """
    distance = np.abs(pixels - evening_sky(pixels.shape[1])).max(-1)
    return float((distance <= TOLERANCE)[is_sky(plain)].mean())


if __name__ == "__main__":
    main()
