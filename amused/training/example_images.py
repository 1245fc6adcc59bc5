"""Makes the images in examples/ that the bundled model made again: `python -m amused.training.example_images`.

They are those of the page's start (with the prompts and seeds that they have), of the hints at its numbers and of the
README. Run it after new weights, and look at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

import amused
from amused.generation.images import digest, png_bytes
from amused.recipe.metadata import from_png_file, png_info
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.ui import setting_examples
from amused.ui.prompts import FOLDER

OPEN_PROMPT = "a pixel art character"
SWEEP_PROMPT = "a pixel art character with red glasses on a blue background"
COLUMNS = 8
STEP_MILLISECONDS, END_MILLISECONDS = 250, 2750


def main() -> None:
    model = amused.load("nouns", device="cpu", dtype="float32")
    for path in sorted((FOLDER / "ready").glob("*.png")):
        remake(model, path)
    setting_examples.make(model)
    images = model.text_to_image(OPEN_PROMPT, seeds=range(4 * COLUMNS))
    mosaic(images, side=128).save(FOLDER / "readme.png", optimize=True)
    sweep(model, seeds=range(2 * COLUMNS))


def remake(model: amused.Amused, path: Path) -> None:
    """Make an image with a recipe again, with this model's settings."""
    shared = from_png_file(path.read_bytes())
    assert shared is not None
    recipe = Recipe(TEXT_TO_IMAGE, shared.recipe.prompt, shared.recipe.seeds, **model.defaults)
    *_, picture = model.generate(recipe)
    assert isinstance(picture, amused.Picture)
    info = png_info(recipe, digest(picture.image), model.fingerprint)
    path.write_bytes(png_bytes(picture.image, info))


def sweep(model: amused.Amused, seeds: Iterable[int]) -> None:
    """An animation of many seeds, step by step."""
    reveals = [reveal(model, seed) for seed in seeds]
    frames = [mosaic(images, side=96).quantize(dither=Image.Dither.NONE) for images in zip(*reveals)]
    duration = [STEP_MILLISECONDS] * (len(frames) - 1) + [END_MILLISECONDS]
    frames[0].save(
        FOLDER / "sweep.gif", save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=True
    )


def reveal(model: amused.Amused, seed: int) -> list[Image.Image]:
    """An image after each of its steps."""
    *steps, picture = model.generate(Recipe(TEXT_TO_IMAGE, SWEEP_PROMPT, (seed,), **model.defaults))
    assert isinstance(picture, amused.Picture)
    previews = [model.preview(step.tokens, step.masked) for step in steps[:-1] if isinstance(step, amused.Step)]
    return [*previews, picture.image]


def mosaic(images: Sequence[Image.Image], side: int) -> Image.Image:
    """Images of `side` pixels next to each other."""
    whole = Image.new("RGB", (COLUMNS * side, len(images) // COLUMNS * side))
    for index, image in enumerate(images):
        row, column = divmod(index, COLUMNS)
        whole.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
    return whole


if __name__ == "__main__":
    main()
