"""Atomic writes: after an interruption, a file or folder is either complete or as before."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which replaces `folder` once everything is on disk."""
    part = part_of(folder)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.rglob("*"):
            fsync(path)
        replace_dir(part, folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A new file to write, which replaces `path` once it is on disk."""
    part = part_of(path)
    try:
        yield part
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """A name next to `path` for what is being written; `sweep` knows it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def replace_dir(part: Path, folder: Path) -> None:
    """Move `part` to `folder`; what was there comes back if that fails."""
    old = part.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(part, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Clean up after interrupted writes in a folder: restore what was being replaced, remove what was being written."""
    for old in folder.glob(".*.old"):
        target = folder / old.name[1:].rsplit(".", 2)[0]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
    for part in folder.glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
