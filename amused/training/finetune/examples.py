"""Images and captions to fine-tune on: from a folder, a single file, or a Hub dataset. Decodes no image.

Folders come from other programs and systems: names in another case or Unicode form, byte order marks, files that are no
images. What is unambiguous is used; everything else is refused or logged before training.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import hashlib
import io
import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amused.errors import UserError
from amused.generation.images import Source

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
SUPPORTED = f"Supported: {', '.join(suffix[1:] for suffix in SUFFIXES)}."
LISTED = 5


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
    """The examples that the options ask for."""
    if options.instance_data_dir is not None:
        return read_folder(options.instance_data_dir, options.prompt_prefix, options.prompt_key)
    if options.instance_data_image is not None:
        path: Path = options.instance_data_image
        if not path.is_file():
            raise UserError(f"There is no image {path}.")
        return examples_of({path: path.stem}, options.prompt_prefix)
    return read_dataset(options.instance_data_dataset, options.image_key, options.prompt_key, options.prompt_prefix)


# A folder


def read_folder(folder: Path, prefix: str = "", key: str | None = None) -> list[Example]:
    """The images of a folder, by name.

    Captions: metadata.jsonl or metadata.csv, else NAME.txt or NAME.caption next to NAME.png, else the file name.

    Args:
        prefix: prepended to every caption.
        key: of the captions in metadata.jsonl, "text" by default.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"There is no folder {folder} that can be read.") from error
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"There are no images in {folder}, not counting its subfolders. {SUPPORTED}")
    texts = [path for path in paths if path.suffix.lower() in CAPTION_SUFFIXES]
    metadata = [path for path in paths if path.name.lower() in METADATA]
    unused = {*paths} - {*images, *texts, *metadata}
    if names := sorted(path.name for path in unused if path.name.lower() not in SYSTEM_FILES):
        log.warning("Ignored: %s. %s", listed(names), SUPPORTED)
    captions = read_caption_files(texts, images) | read_metadata(metadata, images, key or "text")
    if missing := [image.name for image in images if image not in captions]:
        counts = f"{len(missing)} of {len(images)}"
        log.warning("%s images have no caption, so their file names are used: %s.", counts, listed(missing))
    return examples_of({image: captions.get(image, image.stem) for image in images}, prefix)


def examples_of(captions: Mapping[Path, str], prefix: str) -> list[Example]:
    """An example per image file; all files that cannot be read are refused in one sentence."""
    examples, broken = [], []
    for path, caption in captions.items():
        try:
            path.name.encode()
            if path.exists() and not path.is_file():  # opening a named pipe would wait
                raise UserError("it is not a file.")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            examples.append(Example(path.name, prefix + caption, partial(Path, path), digest))
        except UnicodeEncodeError:
            broken.append(f"{printable(path.name)}: its name is not UTF-8, rename it.")
        except OSError as error:
            broken.append(f"{printable(path.name)}: it cannot be read ({error.strerror}).")
        except UserError as error:
            broken.append(f"{printable(path.name)}: {error}")
    refuse(broken, len(captions), "images")
    return examples


def read_caption_files(files: Sequence[Path], images: Sequence[Path]) -> dict[Path, str]:
    """Captions by image, from files such as cat.txt, cat.caption or cat.png.txt for cat.png."""
    captions: dict[Path, str] = {}
    broken, find = [], image_finder(images)
    for file in files:
        if not (found := find(file.stem)):
            continue
        try:
            text = read_text(file).strip()
        except UserError as error:
            broken.append(str(error))
        else:
            add_caption(captions, found, text)
    refuse(broken, len(files), "caption files")
    return captions


def read_metadata(files: Sequence[Path], images: Sequence[Path], key: str) -> dict[Path, str]:
    """Captions by image, from lines such as {"file_name": "cat.png", "text": "cat"}, or from these columns."""
    captions: dict[Path, str] = {}
    find, rows, unknown = image_finder(images), 0, []
    for file in files:
        for number, row in read_rows(file):
            try:
                name, text = row["file_name"], row[key] or ""
                text.encode()
                found = [] if is_elsewhere(file.parent, name) else find(name)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                keys = f" It has {', '.join(map(str, row))}; --prompt_key names the caption." if row else ""
                raise UserError(
                    f'Line {number} of {file.name} is not {{"file_name": ..., "{key}": ...}}.{keys}'
                ) from error
            rows += 1
            if found:
                add_caption(captions, found, text.strip())
            else:
                unknown.append(name)
    if unknown:
        log.warning("%d of %d captions name no image in the folder: %s.", len(unknown), rows, listed(unknown))
    return captions


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of JSON lines, which end at newlines only, not at U+2028 and the like, or of a CSV file."""
    text = read_text(file)
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise UserError(f"Line {reader.line_num} of {file.name} is not valid CSV.") from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"Line {number} of {file.name} is not valid JSON.") from error
            yield number, row if isinstance(row, dict) else {}


def add_caption(captions: dict[Path, str], images: Iterable[Path], text: str) -> None:
    for image in images:
        if text and captions.setdefault(image, text) != text:
            raise UserError(f"There are two different captions for {image.name}: keep one.")


def image_finder(images: Sequence[Path]) -> Callable[[str], list[Path]]:
    """A function from a name, with or without suffix or folders, to its images; none if it is ambiguous.

    Case and Unicode form count only if names differ by nothing else.
    """
    exact: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        exact[image.stem].append(image)
    exact |= {image.name: [image] for image in images}
    similar: dict[str, set[str]] = defaultdict(set)
    for name in exact:
        similar[fold(name)].add(name)

    def find(name: str) -> list[Path]:
        base = name.replace("\\", "/").rpartition("/")[2]
        folded = similar.get(fold(base), set())
        return exact.get(name) or exact.get(base) or (exact[next(iter(folded))] if len(folded) == 1 else [])

    return find


def is_elsewhere(folder: Path, name: str) -> bool:
    """Whether a name with folders is that of an existing file outside this folder, whose images are not read."""
    path = folder / name
    return os.path.exists(path) and path.resolve().parent != folder.resolve()


def fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{printable(path.name)} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8, but full of them
        raise UserError(f"{printable(path.name)} is not UTF-8 text: save it as UTF-8.")
    return text


# A dataset


def read_dataset(name: str, image_key: str, prompt_key: str, prefix: str = "") -> list[Example]:
    """The rows of the "train" split of a dataset, read by `datasets`."""
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
    missing = [f"row {i}" for i, caption in enumerate(captions) if not isinstance(caption, str)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(captions)} rows of the dataset {name} have no caption: {listed(missing)}."
        )
    if empty := [f"row {i}" for i, caption in enumerate(captions) if not caption.strip()]:
        log.warning("%d of %d captions are empty: %s.", len(empty), len(captions), listed(empty))
    version = getattr(table, "_fingerprint", name)
    return [
        Example(f"row {i}", prefix + caption, partial(read_image, table, i, image_key), f"{version} {i}")
        for i, caption in enumerate(captions)
    ]


def read_image(table: Any, row: int, key: str) -> Source:
    return table[row][key]


# Messages


def refuse(broken: Sequence[str], total: int, what: str) -> None:
    """Raise an error that lists what cannot be used, if there is any."""
    if broken:
        lines = [*broken[:LISTED], *([f"and {len(broken) - LISTED} more"] if len(broken) > LISTED else [])]
        raise UserError(
            f"{len(broken)} of {total} {what} cannot be used: replace or remove them."
            + "".join(f"\n- {line}" for line in lines)
        )


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(printable, names[:LISTED])) + more


def printable(name: str) -> str:
    """A file name that is not UTF-8, or holds line breaks, as one that can be written."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)
