"""What a number does, in two tiny images: low and high, made by the bundled model."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from amused.recipe.recipe import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, VARY, Recipe
from amused.ui.prompts import FOLDER

if TYPE_CHECKING:
    from amused.generation.pipeline import Amused

PROMPT = "a pixel art character with red glasses and a whale-shaped head"
OTHER = "a pixel art character with blue glasses and a fox-shaped head"
# Without the sampler and the corrector that suit the model, which hide what other settings do.
PLAIN: dict[str, Any] = {"steps": 8, "guidance_scale": 2.0, "temperature": (4.0, 1.0)}
SIDE = 64


@dataclass(frozen=True)
class Pair:
    """Two values of a field of Recipe; with `index`, of one of its parts."""

    task: str
    field: str
    low: Any
    high: Any
    index: int | None = None


PAIRS = {
    "steps": Pair(TEXT_TO_IMAGE, "steps", 1, 12),
    "guidance_scale": Pair(TEXT_TO_IMAGE, "guidance_scale", 0.0, 6.0),
    "first_temperature": Pair(TEXT_TO_IMAGE, "temperature", 0.0, 10.0, 0),
    "last_temperature": Pair(TEXT_TO_IMAGE, "temperature", 0.0, 10.0, 1),
    "corrector_rounds": Pair(TEXT_TO_IMAGE, "corrector_rounds", 0, 4),
    "strength": Pair(IMAGE_TO_IMAGE, "strength", 0.3, 0.9),
    "mask_ratio": Pair(VARY, "share", 0.1, 0.9),
}


def low_high(name: str) -> str:
    """The class of the slider that sets this."""
    return f"low-high-{name.replace('_', '-')}"


def style() -> str:
    """Shows the images of a slider on hover and on focus. They come with the repository only, a kilobyte each."""
    rules = []
    for name, pair in PAIRS.items():
        files = [FOLDER / "settings" / f"{name}-{end}.webp" for end in ("low", "high")]
        if all(file.is_file() for file in files):
            low, high = (
                f"url(data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()})" for file in files
            )
            content = f'"{pair.low:g} " {low} " " {high} " {pair.high:g}" / ""'
            rules.append(f".{low_high(name)}:is(:hover, :focus-within) .info-text::after {{ content: {content}; }}")
    return "\n".join(rules)


def make(model: Amused) -> None:
    """Make the images again, in examples/settings."""
    from amused.generation.pipeline import Picture

    first = Recipe(TEXT_TO_IMAGE, PROMPT, (8,), **PLAIN, model_version=model.defaults["model_version"])
    (given,) = model.text_to_image(PROMPT, seeds=[8])
    (FOLDER / "settings").mkdir(exist_ok=True)
    for name, pair in PAIRS.items():
        for end, value in (("low", pair.low), ("high", pair.high)):
            changes: dict[str, Any] = {"task": pair.task, pair.field: value}
            if pair.task == IMAGE_TO_IMAGE:
                changes["prompt"] = OTHER
            elif pair.task == VARY:
                changes |= {"prompt": OTHER, "parent": first}
            elif pair.index is not None:
                parts = list(getattr(first, pair.field))
                parts[pair.index] = value
                changes[pair.field] = tuple(parts)
            recipe = replace(first, **changes)
            *_, picture = model.generate(recipe, image=given if pair.task == IMAGE_TO_IMAGE else None)
            assert isinstance(picture, Picture)
            image = picture.image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            image.save(FOLDER / "settings" / f"{name}-{end}.webp", lossless=True)
