"""Images shown when the page opens: made by the bundled model, each with its recipe, so all actions work on them."""

from __future__ import annotations

from amused.recipe.metadata import from_png
from amused.serving import file_cache
from amused.ui.files import GeneratedImage, open_image
from amused.ui.prompts import FOLDER


def ready_images(model: str) -> tuple[GeneratedImage, ...]:
    """Those of a model, copied to where the page may serve them from; they come with the repository only."""
    found = []
    for file in sorted((FOLDER / "ready").glob("*.png")):
        image = open_image(str(file))
        shared = from_png(image)
        if shared is not None and shared.digest is not None and shared.recipe.model == model:
            recipe, seed = shared.recipe, shared.recipe.seeds[0]
            path = file_cache.save(file.read_bytes(), f"amused-seed-{seed}.png")
            found.append(GeneratedImage(path, seed, recipe, shared.digest, image.size, fingerprint=shared.fingerprint))
    return tuple(found)
