"""A recipe described for visitors."""

from __future__ import annotations

import html
from typing import Any

from amused.recipe.links import Shared
from amused.recipe.recipe import IMAGE_TO_IMAGE, IMPROVE, INPAINT, TEXT_TO_IMAGE, TOUCH_UP, VARY, Recipe
from amused.ui.files import GeneratedImage

TITLES = {
    TEXT_TO_IMAGE: "Text to image",
    IMAGE_TO_IMAGE: "Image to image",
    INPAINT: "Inpaint",
    VARY: "Variation",
    TOUCH_UP: "Touch-up",
    IMPROVE: "Improvement",
}
LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "seeds": "Seed",
    "model": "Model",
    "model_version": "Model version",
    "adapter": "Adapter",
    "adapter_strength": "Adapter strength",
    "adapter_digest": "Adapter digest",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "temperature": "Temperature",
    "sampler": "Sampler",
    "corrector_rounds": "Corrector rounds",
    "strength": "Strength",
    "mask_by": "Masked by",
    "share": "Resampled",
    "cells": "Repainted",
    "aesthetic_score": "Aesthetic score",
    "crop": "Crop",
    "fit": "Fit",
    "composite": "Outside the mask unchanged",
    "feather": "Feather",
    "only_masked": "Full resolution",
    "image": "Input image",
    "mask": "Input mask",
}
ALWAYS = ("prompt", "seeds", "model", "steps", "guidance_scale", "temperature")


def describe_origin(shared: Shared) -> str:
    """Digests and versions of a recipe from outside, collapsed; "" if it names none."""
    first = shared.recipe.first
    rows = {
        "Digest": shared.digest,
        "Input image": first.image,
        "Input mask": first.mask,
        "Made on": shared.fingerprint,
        "Model version": None if shared.recipe.model_version == 1 else f"{shared.recipe.model_version}",
    }
    found = [f"<dt>{label}</dt><dd>{html.escape(value)}</dd>" for label, value in rows.items() if value]
    return f"<details class='info'><summary>Info</summary><dl>{''.join(found)}</dl></details>" if found else ""


def describe_image(image: GeneratedImage) -> str:
    width, height = image.size
    head = f"<h2>Seed {image.seed}</h2><p>{TITLES[image.recipe.task]}, {width} × {height}</p>"
    origin = "" if image.fingerprint is None else f"<dt>Made on</dt><dd>{html.escape(image.fingerprint)}</dd>"
    rows = f"{describe_recipe(image.recipe)}<dl><dt>Digest</dt><dd>{image.digest}</dd>{origin}</dl>"
    info = f"<details class='info'><summary>Info</summary>{rows}</details>"
    return f'<div class="facts">{head}{info}</div>'


def describe_recipe(recipe: Recipe) -> str:
    """Fields that differ from their default; parents are collapsed."""
    rows = []
    for field, label in LABELS.items():
        value = getattr(recipe, field)
        if field in ALWAYS or value != Recipe.__dataclass_fields__[field].default:
            rows.append(f"<dt>{label}</dt><dd>{html.escape(describe_value(field, value))}</dd>")
    text = f"<dl>{''.join(rows)}</dl>"
    if recipe.parent is not None:
        summary = f"From seed {recipe.parent.seeds[0]}, {TITLES[recipe.parent.task]}"
        text += f"<details><summary>{summary}</summary>{describe_recipe(recipe.parent)}</details>"
    return text


def describe_value(field: str, value: Any) -> str:
    if field == "cells":
        return f"{len(value)} cells of the token grid"
    if field == "share":
        return f"{value:.0%} of the tokens"
    if field == "temperature":
        return f"{value[0]:g} to {value[1]:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def note(text: str) -> str:
    """A line of feedback; screen readers announce it."""
    return f'<p class="note" role="status">{html.escape(text)}</p>'
