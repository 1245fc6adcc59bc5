"""Lists and finds the adapters in the folder that the page's owner configures.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`, or the output folder of a finished
fine-tuning; its text encoder part is in a subfolder `text_encoder`. Reads no weights; cheap to import.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from amused.checkpoints.json_file import read_json
from amused.errors import CheckpointError, UserError
from amused.recipe.recipe import ADAPTER_NAME, Recipe, no_adapter

log = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRANSFORMER, TEXT_ENCODER = "transformer", "text_encoder"
FINISHED = "adapter"  # the subfolder of its output where fine-tuning writes one

MAX_ADAPTERS = 200
MAX_BYTES = 2_000_000_000


@dataclass(frozen=True)
class AdapterInfo:
    """An available adapter. `base`: the model it was trained on, if it says so."""

    name: str
    digest: str
    base: str | None


def list_adapters(folder: Path | None) -> list[AdapterInfo]:
    """The usable adapters of a folder, sorted by name; the log says why another subfolder is none."""
    if folder is None or not folder.is_dir():
        return []
    found = []
    paths = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in paths[:MAX_ADAPTERS]:
        try:
            place = usable_place(folder, path.name)
            found.append(AdapterInfo(path.name, digest_of(place), base_of(read_json(place, CONFIG))))
        except (UserError, OSError) as error:
            log_once(f"The adapter {path.name!r} is not offered. {error if isinstance(error, UserError) else ''}")
    if len(paths) > MAX_ADAPTERS:
        log_once(f"Only the first {MAX_ADAPTERS} adapters of the folder are offered.")
    return found


@lru_cache(maxsize=1000)
def log_once(sentence: str) -> None:
    """The folder is read each time that a page opens."""
    log.warning(sentence)


def find_adapter(folder: Path | None, name: str) -> Path:
    """The path of an adapter.

    Raises:
        UserError: the folder has no adapter of that name.
    """
    try:
        if folder is not None:
            return usable_place(folder, name)
    except CheckpointError:
        pass
    raise UserError(no_adapter(name))


def usable_place(folder: Path, name: str) -> Path:
    """The path of an adapter, which may be in a subfolder of that name. Raises CheckpointError: it cannot be used."""
    if not ADAPTER_NAME.fullmatch(name):
        raise CheckpointError("Its name may have letters, digits, spaces and .+-_() only, at most 64.")
    inside = folder.resolve()
    place = folder / name / FINISHED if (folder / name / FINISHED / CONFIG).is_file() else folder / name
    files = files_of(place)
    for file in (CONFIG, WEIGHTS):
        if place / file not in files:
            raise CheckpointError(f"{file} is missing.")
    for path in files:
        if not path.resolve().is_relative_to(inside):
            raise CheckpointError(f"{path.name} is a link to outside the folder of adapters.")
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path.name} is larger than {MAX_BYTES // 1_000_000_000} GB.")
    return place


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


def base_of(config: dict[str, Any]) -> str | None:
    """The name of the model that an adapter was trained on, without owner or path; None if it does not say."""
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str):
        return None
    name = Path(base).resolve().name if os.path.isdir(base) else re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return name if name.strip(".") and len(name) <= 100 else None


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
        raise UserError(f"The adapter {recipe.adapter} has changed since this recipe was made.")
    return replace(recipe, adapter_digest=found)
