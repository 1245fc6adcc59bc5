"""Images and captions to fine-tune on: from a folder, a single file, or a Hub dataset. Opens no image."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amused.errors import UserError
from amused.generation.images import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Example:
    """An image with its caption.

    Attributes:
        name: identifies the image in messages.
        open: returns the image, or the path of its file.
        digest: identifies the content of the image.
    """

    name: str
    caption: str
    open: Callable[[], Source]
    digest: str


def read_examples(options: argparse.Namespace) -> list[Example]:
    """The examples that the options ask for.

    Raises:
        UserError: there are none, or a caption is missing.
    """
    if options.instance_data_dir is not None:
        return read_folder(options.instance_data_dir, options.prompt_prefix, options.prompt_key)
    if options.instance_data_image is not None:
        path: Path = options.instance_data_image
        if not path.is_file():
            raise UserError(f"There is no image {path}.")
        return [example_of(path, options.prompt_prefix + path.stem)]
    return read_dataset(options.instance_data_dataset, options.image_key, options.prompt_key, options.prompt_prefix)


def read_folder(folder: Path, prefix: str = "", key: str | None = None) -> list[Example]:
    """The images of a folder, by name. Captions: metadata.jsonl, else NAME.txt next to NAME.png, else the file name.

    Args:
        prefix: prepended to every caption.
        key: of the captions in metadata.jsonl, "text" by default.

    Raises:
        UserError: no such folder, no images in it, or a line of metadata.jsonl is invalid.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"There are no images in {folder}: it may hold {', '.join(s[1:] for s in SUFFIXES)} files.")
    captions = read_metadata(folder / METADATA, key or "text")
    return [
        example_of(path, prefix + (captions.get(path.name) or read_caption_file(path) or path.stem)) for path in paths
    ]


def read_metadata(path: Path, key: str) -> dict[str, str]:
    """Captions by file name, from lines such as {"file_name": "cat.png", "text": "a cat"}."""
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[Path(row["file_name"]).name] = str(row[key])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f'Line {number} of {path.name} is not {{"file_name": ..., "{key}": ...}}.') from error
    return captions


def read_caption_file(image: Path) -> str:
    """The text of NAME.txt next to NAME.png, "" if there is none."""
    path = image.with_suffix(".txt")
    return path.read_text("utf-8").strip() if path.is_file() else ""


def example_of(path: Path, caption: str) -> Example:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Example(path.name, caption, lambda: path, digest)


def read_dataset(name: str, image_key: str, prompt_key: str, prefix: str = "") -> list[Example]:
    """The rows of the "train" split of a dataset, read by `datasets`.

    Raises:
        UserError: the library is missing, the dataset cannot be read, or it lacks a column or a caption.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("--instance_data_dataset needs the package datasets: pip install datasets") from error
    try:
        table = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library, the network and the dataset's own files raise all kinds
        raise UserError(f"The dataset {name} cannot be read: check its name and the connection.") from error
    for column in (image_key, prompt_key):
        if column not in table.column_names:
            raise UserError(f"The dataset {name} has no column {column}, only {', '.join(table.column_names)}.")
    captions = table[prompt_key]
    missing = [i for i, caption in enumerate(captions) if not isinstance(caption, str)]
    if missing:
        raise UserError(f"Row {missing[0]} of the dataset {name} has no caption.")
    version = getattr(table, "_fingerprint", name)
    return [
        Example(f"row {i}", prefix + caption, partial(read_image, table, i, image_key), f"{version} {i}")
        for i, caption in enumerate(captions)
    ]


def read_image(table: Any, row: int, key: str) -> Source:
    return table[row][key]
