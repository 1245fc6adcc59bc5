"""What a batch makes: prompts times seeds, as rows of recipes; and the manifest by which a folder knows its job."""

from __future__ import annotations

import bisect
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from amused.errors import UserError
from amused.recipe.links import PARSERS
from amused.recipe.metadata import to_json
from amused.recipe.recipe import MAX_SEED, TEXT_TO_IMAGE, Recipe
from amused.recipe.seeds import format_ranges, parse_ranges
from amused.recipe.sweep import Words, count_prompts, parse, prompts_of

VERSION = 1
MAX_IMAGES = 10_000_000
MAX_LISTED = 20  # bad lines in an error
FORMATS = ("png", "webdataset")
COLUMNS = (
    "prompt",
    "seeds",
    "negative_prompt",
    "steps",
    "guidance_scale",
    "temperature",
    "aesthetic_score",
    "crop",
    "width",
    "height",
    "adapter",
    "adapter_strength",
    "sampler",
    "corrector_rounds",
    "model_version",
)

Line = tuple[int, dict[str, str]]  # its number, and its cells by the names of their columns


@dataclass(frozen=True)
class Row:
    """One prompt and its seeds.

    Attributes:
        recipe: of its first seed.
        line: of the file that it comes from.
    """

    recipe: Recipe
    seeds: tuple[int, ...]
    line: int

    def to_json(self) -> dict[str, Any]:
        return {**to_json(self.recipe), "seeds": format_ranges(self.seeds)}


@dataclass(frozen=True)
class Job:
    """All images of a batch, counted row by row; shard k has the images from k times `shard_size`."""

    rows: tuple[Row, ...]
    format: str
    shard_size: int

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(row.seeds) for row in self.rows))

    @property
    def num_images(self) -> int:
        return self._ends[-1]

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def shard(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.num_images))

    def row_of(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def recipe(self, index: int) -> Recipe:
        """The recipe of one image."""
        number = self.row_of(index)
        row = self.rows[number]
        return row.recipe.with_seeds([row.seeds[index - self._ends[number] + len(row.seeds)]])

    def manifest(self) -> dict[str, Any]:
        """The whole job as JSON, with its digest."""
        content = {
            "version": VERSION,
            "model": self.rows[0].recipe.model,
            "format": self.format,
            "shard_size": self.shard_size,
            "num_images": self.num_images,
            "rows": [row.to_json() for row in self.rows],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return {"digest": hashlib.sha256(text.encode()).hexdigest(), **json.loads(text)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests, for people; of the rows only the first that differs."""
    if old.get("version") != new["version"]:
        return ["another version of aMUSEd began it"]
    found = [
        f"--{name.replace('_', '-')} was {old.get(name)} and is now {new[name]}"
        for name in ("model", "format", "shard_size")
        if old.get(name) != new[name]
    ]
    before, now = old.get("rows", []), new["rows"]
    for number, (one, other) in enumerate(zip(before, now, strict=False), 1):
        for name in sorted({*one, *other} - {"model", "version"}):
            if one.get(name) != other.get(name):
                found.append(
                    f"{name} of prompt {number} was {one.get(name, 'the default')!r} "
                    f"and is now {other.get(name, 'the default')!r}"
                )
        if one != other:
            break
    if len(before) != len(now):
        found.append(f"there were {len(before)} prompts and are now {len(now)}")
    return found


def read_job(
    prompts: Path,
    seeds: str,
    settings: Mapping[str, Any],
    words: Words,
    format: str,
    shard_size: int,
    freeze: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> Job:
    """The job of a file of prompts, one a line, or of a CSV file with a header and settings of each row.

    Args:
        seeds: of each prompt, as "0-63"; a column of a CSV file may name others.
        settings: the model, and what it states itself.
        words: what the model knows, for `{head}` in a prompt.
        freeze: adds what a replay needs to a recipe, or raises UserError.

    Raises:
        UserError: names all bad lines with their numbers.
    """
    common = parse_seeds(seeds)
    rows: list[Row] = []
    errors: list[str] = []
    num_images = 0
    for number, cells in read_lines(prompts):
        try:
            own = parse_seeds(cells["seeds"]) if cells.get("seeds") else common
            values = {name: parse_cell(name, text) for name, text in cells.items() if name not in ("prompt", "seeds")}
            base = Recipe(TEXT_TO_IMAGE, cells["prompt"], own[:1], **{**settings, **values})
            parts = parse(base.prompt, words)
            num_images += count_prompts(parts) * len(own)
            if num_images > MAX_IMAGES:
                raise UserError(f"up to here there are over {MAX_IMAGES} images")
            base = freeze(base)
            for part in parts:
                for prompt, _, chosen in prompts_of(part, words, own):
                    rows.append(Row(replace(base, prompt=prompt, seeds=chosen[:1]), chosen, number))
        except UserError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"\n  and {len(errors) - MAX_LISTED} more" if len(errors) > MAX_LISTED else ""
        listed = "\n  ".join(errors[:MAX_LISTED])
        raise UserError(f"{prompts.name} has bad lines; nothing was made.\n  {listed}{more}")
    if not rows:
        raise UserError(f"{prompts.name} has no prompts.")
    return Job(tuple(rows), format, shard_size)


def parse_seeds(text: str) -> tuple[int, ...]:
    return parse_ranges(text, "seed", MAX_SEED, MAX_IMAGES // 10)


def parse_cell(name: str, text: str) -> Any:
    try:
        return PARSERS.get(name, str)(text)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} cannot be {text!r}.") from error


def read_lines(path: Path) -> list[Line]:
    """The lines that are not blank; of a CSV file the cells that are not empty.

    Raises:
        UserError: the file cannot be read, or its header is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--prompts {path}: {error.strerror}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path.name}, line {number}: this is not UTF-8 text; nothing was made.") from error
    if path.suffix.lower() == ".csv":
        return list(read_csv(path.name, text))
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, {"prompt": line.strip()}) for number, line in enumerate(lines, 1) if line.strip()]


def read_csv(name: str, text: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: Sequence[str] = []
    last = 0
    try:
        for cells in reader:
            number, last = last + 1, reader.line_num  # where a row begins that has line breaks in quotes
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                check_header(name, header)
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{name}, line {number}: it has {len(cells)} cells, the header {len(header)}; nothing was made."
                )
            row = {column: cell.strip() for column, cell in zip(header, cells, strict=True) if cell.strip()}
            yield number, {"prompt": "", **row}
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}; nothing was made.") from error


def check_header(name: str, header: Sequence[str]) -> None:
    unknown = [column for column in header if column not in COLUMNS]
    if "prompt" not in header or unknown or len(set(header)) < len(header):
        what = f"unknown columns {', '.join(unknown)}" if unknown else 'no column "prompt", or one twice'
        raise UserError(f"{name}: its first line has {what}. Columns are {', '.join(COLUMNS)}.")
