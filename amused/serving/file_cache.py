"""The folder of uploaded and generated images. Limits their age and size; Gradio alone would fill the disk.

Only the page and its visitors put files there. Gradio and this module find it in `GRADIO_TEMP_DIR`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from amused.limits import CACHE_BYTES, CACHE_SECONDS

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "GRADIO_TEMP_DIR"
SWEEP_SECONDS = 60
YOUNG_SECONDS = 300  # younger files may be in use: even a full cache keeps them


def choose_folder() -> None:
    """Use a folder of our own unless the owner names one, so that `sweep` deletes only our files."""
    if not os.environ.get(FOLDER_VARIABLE):
        user = os.getuid() if hasattr(os, "getuid") else "page"  # by number: it need not have a name
        folder = Path(tempfile.gettempdir()).resolve() / f"amused-{user}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != getattr(os, "getuid", lambda: found.st_uid)():
            folder = Path(tempfile.mkdtemp(prefix="amused-"))  # another user owns it
        os.environ[FOLDER_VARIABLE] = str(folder)


def upload_folder() -> Path:
    choose_folder()
    return Path(os.environ[FOLDER_VARIABLE])


def save(content: bytes, name: str) -> str:
    """Write a new file of that name atomically and return its path."""
    folder = upload_folder()
    path = folder / hashlib.sha256(content).hexdigest() / name
    folder.mkdir(parents=True, exist_ok=True)
    part = tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False)  # noqa: SIM115
    try:
        with part:
            part.write(content)
        os.chmod(part.name, 0o644)
        for _ in range(3):  # a sweep may remove the folder meanwhile
            path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return str(Path(part.name).replace(path).resolve())
    finally:
        Path(part.name).unlink(missing_ok=True)
    raise OSError("the cache cannot be written")


def sweep_while(in_use: Callable[[], Collection[str] | None]) -> None:
    """Sweep every minute in a thread, until `in_use` returns None; the files it names are kept."""
    folder = upload_folder()

    def work() -> None:
        while (keep := in_use()) is not None:
            try:
                sweep(folder, keep, CACHE_SECONDS, CACHE_BYTES)
            except OSError as error:
                log.warning("the cache could not be swept: %s", error)
            time.sleep(SWEEP_SECONDS)

    threading.Thread(target=work, name="cache", daemon=True).start()


def sweep(folder: Path, keep: Collection[str], seconds: float, size: int, now: float | None = None) -> int:
    """Remove files older than `seconds`, then the oldest until the rest fits `size` bytes. Returns how many."""
    now = time.time() if now is None else now
    kept = {Path(file).resolve() for file in keep}
    found: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            details = path.lstat()
            if stat.S_ISREG(details.st_mode) and path.resolve() not in kept:
                found.append((details.st_mtime, details.st_size, path))
    found.sort()
    total, removed = sum(bytes_ for _, bytes_, _ in found), 0
    for changed, bytes_, path in found:
        age = now - changed
        if age <= seconds and (total <= size or age < YOUNG_SECONDS):
            break
        path.unlink(missing_ok=True)
        total -= bytes_
        removed += 1
        if path.parent != folder:
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()
    return removed
