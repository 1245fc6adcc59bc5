"""A style learnt from a few pictures, or from one, by the bundled model: `python -m amused.training.style_example`.

Draws the pictures itself (characters of the kind that the model knows, in four colours), fine-tunes an adapter on them,
and tells by figures what was learnt and what was kept, on characters that no model has seen in training:

- colours: how far a pixel is from the nearest of the four, 0 to 255;
- glasses, head, body, background: whether the asked trait is the nearest (`score_nouns`), judged on renderings in the
  style when the adapter is on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import amused
from amused.training.finetune import train as finetune
from amused.training.finetune.options import arguments
from amused.training.nouns.data import Noun, Nouns, Vocabulary, caption, fetch_assets
from amused.training.score_nouns import art, upscale

COLOURS = ("2b2834", "9f21a0", "fd8b5b", "f5e08c")
"""Of the style "dusk", from dark to light."""

RECIPES = {  # of several pictures, and of one
    "few": {"pictures": 16, "max_train_steps": 200, "learning_rate": 1e-3, "train_batch_size": 8},
    "one": {"pictures": 1, "max_train_steps": 100, "learning_rate": 1e-3, "train_batch_size": 8},
}
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "kv_mapper", "proj"),
    *("channelwise_linear_1", "channelwise_linear_2", "project_from_hidden"),
)
SHOWN = 6
SAMPLING = {"guidance_scale": 2.0, "temperature": (1.0, 0.0)}  # strong guidance exaggerates what few steps have taught


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("style"), help="for the pictures and the adapters")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "amused", help="for the trait images")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--count", type=int, default=32, help="characters to score")
    parser.add_argument("--strip", type=Path, help="save a picture of all this")
    options = parser.parse_args()

    nouns = Nouns(fetch_assets(options.cache))
    model = amused.load("nouns", dtype="float32", adapters=options.output)
    known = Vocabulary(**model.traits)
    asked = known.evaluation(options.count)
    rows = [report(model, nouns, known, asked, None)]
    examples: list[Image.Image] = []
    for name in options.recipes:
        recipe = dict(RECIPES[name])
        drawn = draw(nouns, known, options.output / f"{name}-pictures", recipe.pop("pictures"))
        examples = examples or drawn
        began = time.monotonic()
        train(options.output / f"{name}-pictures", options.output / f"dusk-{name}", recipe)
        print(json.dumps({"adapter": f"dusk-{name}", "minutes": round((time.monotonic() - began) / 60, 1)}))
        rows.append(report(model, nouns, known, asked, f"dusk-{name}"))
    if options.strip:
        contact_sheet([examples[:SHOWN], *(row[:SHOWN] for row in rows)]).save(options.strip, optimize=True)


def in_style(picture: np.ndarray) -> np.ndarray:
    """The four colours by brightness: (..., 3) to (..., 3), 0 to 255."""
    colours = np.array([tuple(bytes.fromhex(colour)) for colour in COLOURS], dtype=np.uint8)
    brightness = picture @ np.array([0.299, 0.587, 0.114])
    return colours[(brightness / 256 * len(colours)).astype(int)]


def draw(nouns: Nouns, known: Vocabulary, folder: Path, count: int) -> list[Image.Image]:
    """Characters in the style, each in a file that its caption names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random("style")
    pictures = []
    for _ in range(count):
        noun = known.sample(rng, accessories=0.0)
        pictures.append(upscale(in_style(nouns.render(noun))))
        pictures[-1].save(folder / f"{caption(noun)}.png")
    return pictures


def train(pictures: Path, output: Path, recipe: dict[str, float]) -> None:
    (first, *others) = sorted(pictures.glob("*.png"))
    source = ["--instance_data_dir", pictures] if others else ["--instance_data_image", first]
    given = ["--pretrained_model_name_or_path", "nouns", "--use_lora", "--output_dir", output, "--seed", 0, *source]
    given += ["--lora_target_modules", *TARGETS, "--report_to", "none", "--mixed_precision", "no"]
    given += ["--cond_dropout_prob", 0.2]  # guidance compares with no caption, which has to learn the style too
    for name, value in recipe.items():
        given += [f"--{name}", value]
    finetune.train(arguments([str(word) for word in given]))


def report(
    model: amused.Amused, nouns: Nouns, known: Vocabulary, asked: Sequence[Noun], adapter: str | None
) -> list[Image.Image]:
    """Make the asked characters, print their scores as a line of JSON."""
    pictures = [
        picture
        for seed, noun in enumerate(asked)
        for picture in model.text_to_image(caption(noun), seeds=[seed], adapter=adapter, **SAMPLING)
    ]
    looks = np.stack([art(picture) for picture in pictures]) * 255
    scores = trait_shares(nouns, known, asked, looks, in_style if adapter else np.asarray)
    print(json.dumps({"adapter": adapter, "colours": round(colour_distance(looks), 1), **scores}), flush=True)
    return pictures


def colour_distance(looks: np.ndarray) -> float:
    """Mean distance of a pixel to the nearest of the style's colours."""
    colours = np.array([tuple(bytes.fromhex(colour)) for colour in COLOURS], dtype=np.float32)
    return float(np.sqrt(((looks[..., None, :] - colours) ** 2).mean(-1)).min(-1).mean())


def trait_shares(
    nouns: Nouns,
    known: Vocabulary,
    asked: Sequence[Noun],
    looks: np.ndarray,
    style: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """For each trait the share of pictures nearest to it; traits that look the same in the style count as one."""
    choices = {"glasses": known.glasses, "head": known.heads, "body": known.bodies, "background": known.backgrounds}
    shares = {}
    for kind, names in choices.items():
        right = 0
        for noun, look in zip(asked, looks):
            errors = {name: ((style(nouns.render(replace(noun, **{kind: name}))) - look) ** 2).mean() for name in names}
            right += errors[getattr(noun, kind)] <= min(errors.values()) + 1e-6
        shares[kind] = round(float(right) / len(asked), 3)
    return shares


def contact_sheet(rows: Sequence[Sequence[Image.Image]], side: int = 128) -> Image.Image:
    sheet = Image.new("RGB", (max(map(len, rows)) * side, len(rows) * side), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), Image.Resampling.BOX), (x * side, y * side))
    return sheet


if __name__ == "__main__":
    main()
