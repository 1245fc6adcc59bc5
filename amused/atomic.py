"""Folders on disk that are whole or absent, whatever interrupts their writing."""

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
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into beside `folder`, which takes its place when all has been written to the disk."""
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in beside.rglob("*"):
            sync(path)
        old = beside.with_suffix(".old")
        if folder.exists():
            os.rename(folder, old)
        os.rename(beside, folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what an interrupted `whole_folder` or `save_checkpoint` left; put back what was about to be replaced."""
    for old in folder.glob(".*.old"):
        target = folder / old.name[1:].rsplit(".", 2)[0]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
    for partial in (*folder.glob(".*.part"), *folder.glob(".model.*")):
        shutil.rmtree(partial, ignore_errors=True)
