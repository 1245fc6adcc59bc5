"""The folder of pictures that are sent and made: kept for a while and up to a size. Gradio alone would fill the disk.

Every file in it was made by this page or sent to it; nothing else is ever put there.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Collection
from pathlib import Path

import gradio as gr
from gradio import utils

from amused.limits import CACHE_BYTES, CACHE_SECONDS

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60
YOUNG_SECONDS = 300  # files that may still be in use: not even a full cache takes them away


def choose_folder() -> None:
    """Use a folder of our own, unless the owner names one: other programs' pictures are not ours to sweep."""
    if not os.environ.get("GRADIO_TEMP_DIR"):
        folder = Path(tempfile.gettempdir()).resolve() / f"amused-{getpass.getuser()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != getattr(os, "getuid", lambda: found.st_uid)():
            folder = Path(tempfile.mkdtemp(prefix="amused-"))  # somebody else has made that one
        os.environ["GRADIO_TEMP_DIR"] = str(folder)


def save(content: bytes, name: str) -> str:
    """The path of a new file of that name. It is there as a whole or not at all, whatever happens meanwhile."""
    folder = Path(utils.get_upload_folder())
    path = folder / hashlib.sha256(content).hexdigest() / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False) as part:
        part.write(content)
    os.chmod(part.name, 0o644)
    try:
        for _ in range(3):  # the folder can be swept away under our hands
            path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return str(Path(part.name).replace(path).resolve())
    finally:
        Path(part.name).unlink(missing_ok=True)
    raise OSError("the cache cannot be written")


def sweep_behind(page: gr.Blocks) -> None:
    """Sweep now and then for as long as the page lives."""
    reference, folder = weakref.ref(page), Path(utils.get_upload_folder())

    def work() -> None:
        while (alive := reference()) is not None:
            keep = {file for block in alive.blocks.values() for file in getattr(block, "keep_in_cache", ())}
            del alive
            try:
                sweep(folder, keep, CACHE_SECONDS, CACHE_BYTES)
            except OSError as error:
                log.warning("the cache could not be swept: %s", error)
            time.sleep(SWEEP_SECONDS)

    threading.Thread(target=work, name="cache", daemon=True).start()


def sweep(folder: Path, keep: Collection[str], seconds: float, size: int, now: float | None = None) -> int:
    """Remove files older than so many seconds, then the oldest until the rest is within `size` bytes; how many."""
    now = time.time() if now is None else now
    found: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or str(path) in keep:
            continue
        details = path.stat()
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
        if path.parent != folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
    return removed
