"""Lists and finds the adapters in the folder that the page's owner configures.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`, or the output folder of a finished
fine-tuning; its text encoder part is in a subfolder `text_encoder`. Reads no weights; cheap to import.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import ADAPTER_NAME, Recipe

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRANSFORMER, TEXT_ENCODER = PARTS = ("transformer", "text_encoder")
FINISHED = "adapter"  # the subfolder of its output where fine-tuning writes one

MAX_ADAPTERS = 200
MAX_CONFIG_BYTES = 1_000_000
MAX_BYTES = 2_000_000_000


@dataclass(frozen=True)
class AdapterInfo:
    """An available adapter. `base`: the model it was trained on, if it says so."""

    name: str
    digest: str
    base: str | None

    def fits(self, model: str) -> bool:
        """Whether it was trained on this model or does not say. Only the last part of a path or "owner/name" counts."""
        return self.base is None or self.base.rstrip("/").rpartition("/")[2] == model.rstrip("/").rpartition("/")[2]


def list_adapters(folder: Path | None) -> list[AdapterInfo]:
    """The usable adapters of a folder, sorted by name; everything else is ignored."""
    if folder is None or not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir())[:MAX_ADAPTERS]:
        try:
            place = find_adapter(folder, path.name)
            found.append(AdapterInfo(path.name, digest_of(place), base_of(read_config(place))))
        except (UserError, OSError):
            continue
    return found


def find_adapter(folder: Path | None, name: str) -> Path:
    """The path of an adapter.

    Raises:
        UserError: the folder has no adapter of that name.
    """
    if folder is not None and ADAPTER_NAME.fullmatch(name):
        inside = folder.resolve()
        for place in (folder / name, folder / name / FINISHED):
            files = files_of(place)
            if set(files[:2]) == {place / CONFIG, place / WEIGHTS} and all(
                file.resolve().is_relative_to(inside) and file.stat().st_size <= MAX_BYTES for file in files
            ):
                return place
    raise UserError(f"There is no adapter {name} here: choose one from the list.")


def files_of(place: Path) -> list[Path]:
    files = [part / file for part in (place, place / TEXT_ENCODER) for file in (CONFIG, WEIGHTS)]
    return [file for file in files if file.is_file()]


def digest_of(place: Path) -> str:
    """16 hexadecimal digits that depend on all files of an adapter."""
    digest = hashlib.sha256()
    for file in files_of(place):
        about = file.stat()
        digest.update(file_digest(file, about.st_size, about.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=4 * MAX_ADAPTERS)
def file_digest(file: Path, size: int, changed: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def read_config(place: Path) -> dict[str, Any]:
    path = place / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{CONFIG} is larger than {MAX_CONFIG_BYTES // 1_000_000} MB.")
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{CONFIG} cannot be read.") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG} is not valid JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{CONFIG} is not a JSON object.")
    return config


def base_of(config: dict[str, Any]) -> str | None:
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and len(base) <= 100 else None


def with_digests(folder: Path | None, recipe: Recipe) -> Recipe:
    """The recipe with the digest of its adapter, and those of its parents.

    Raises:
        UserError: an adapter is missing, or differs from the one the recipe was made with.
    """
    if recipe.parent is not None:
        recipe = replace(recipe, parent=with_digests(folder, recipe.parent))
    if recipe.adapter is None:
        return recipe
    found = digest_of(find_adapter(folder, recipe.adapter))
    if recipe.adapter_digest not in (None, found):
        raise UserError(f"The adapter {recipe.adapter} differs from the one this recipe was made with: get that one.")
    return replace(recipe, adapter_digest=found)
