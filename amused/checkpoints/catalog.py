"""Models available by name, bundled or published. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amused.checkpoints.json_file import read_json
from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import IMAGE_TO_IMAGE, OF_A_MODEL, Recipe

BUNDLED = Path(__file__).parent

INDEX = "model_index.json"  # marks a folder as a checkpoint
TRAITS = "traits.json"  # the words a model was trained on
FORMER = "former"  # the folder of an earlier version of a checkpoint
GENERATION_CONFIG = "generation_config.json"  # a model's own settings


@dataclass(frozen=True)
class Published:
    """A repository on the Hub.

    Attributes:
        download: its approximate size, for people; None if unknown.
        size, multiple: in pixels, as of `CheckpointConfig`, known before the download.
    """

    repo: str
    revision: str = "main"
    download: str | None = None
    size: int = 256
    multiple: int = 32


# TODO: pin each revision to a commit hash, so that the weights cannot change.
PUBLISHED = {
    "amused-256": Published("amused/amused-256", download="1.6 GB", size=256, multiple=16),
    "amused-512": Published("amused/amused-512", download="1.6 GB", size=512, multiple=32),
}


def bundled_names() -> list[str]:
    return sorted(path.name for path in BUNDLED.iterdir() if (path / INDEX).is_file())


def read_sizes(folder: Path) -> tuple[int, int, int]:
    """`size`, `multiple` and `pixels_per_token` of a bundled model, as of `CheckpointConfig`, without its networks."""
    vqgan, transformer = (read_json(folder, f"{part}/config.json") for part in ("vqvae", "transformer"))
    token = 1 << (len(vqgan["block_out_channels"]) - 1)
    multiple = 2 * token if transformer["downsample"] else token
    return token * transformer["sample_size"], multiple, token


def read_defaults(folder: Path) -> dict[str, Any]:
    """A model's own settings, by field of a recipe; those of `Recipe` where it states none.

    Raises:
        CheckpointError: a setting is unknown or invalid.
    """
    stated = read_json(folder, GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else {}
    for name in stated:
        if name not in OF_A_MODEL:
            raise CheckpointError(f"{GENERATION_CONFIG}: {name[:40]!r} is not one of {', '.join(OF_A_MODEL)}.")
    try:
        recipe = Recipe(IMAGE_TO_IMAGE, "", (0,), **stated)
    except UserError as error:
        raise CheckpointError(f"{GENERATION_CONFIG}: {error}") from error
    return {name: getattr(recipe, name) for name in OF_A_MODEL}
