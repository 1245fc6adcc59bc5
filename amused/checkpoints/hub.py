"""Finds a checkpoint: bundled with this package, in a folder, or in a repository on the Hugging Face Hub.

Handles the Hub's client, its cache and failed downloads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from amused.checkpoints import catalog
from amused.checkpoints.catalog import PUBLISHED, Published, bundled_names
from amused.checkpoints.config import REQUIRED_FILES, SMALL_FILES, TOKENIZER
from amused.checkpoints.weights import Checkpoint, read_checkpoint
from amused.errors import CheckpointError, UserError, chain

LEFTOVER_SECONDS = 3600

DownloadProgress = Callable[[str, int, int], None]
"""Called during a download with a file's name inside the checkpoint, bytes so far and total bytes."""


def locate(
    name_or_path: str | Path, progress: DownloadProgress | None = None, revision: str | None = None
) -> Checkpoint:
    """Find a checkpoint and validate its configurations. Reads no weights.

    Args:
        name_or_path: the name of a bundled ("nouns") or published ("amused-256") checkpoint, a folder, or the name
            of a repository on the Hub ("owner/name").
        progress: called during downloads, from the downloading thread.
        revision: branch, tag or commit of a repository, in place of its default.
    """
    if isinstance(name_or_path, Path):
        if not name_or_path.is_dir():
            raise UserError("The model folder does not exist.")
        return read_checkpoint(name_or_path, name_or_path.resolve().name)
    name = name_or_path
    if not isinstance(name, str):
        raise UserError("Choose a model by its name.")
    if re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) and (catalog.BUNDLED / name).is_dir():
        return read_checkpoint(catalog.BUNDLED / name, name)
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return fetch_checkpoint(name, replace(published, revision=revision or published.revision), progress)
    if name and os.path.isdir(name):
        return read_checkpoint(Path(name), Path(name).resolve().name)
    if re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name, re.ASCII):
        return fetch_checkpoint(name, Published(name, revision=revision or "main"), progress)
    raise UserError(f"There is no such model, choose one of: {', '.join([*bundled_names(), *PUBLISHED])}.")


def fetch_checkpoint(name: str, source: Published, progress: DownloadProgress | None) -> Checkpoint:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=list(SMALL_FILES)))
    except Exception as error:  # network, disk and Hub errors of all kinds
        raise explain_download(error, name, source.download, missing_file(source)) from error
    # The folder is named by its commit: weights come from the same commit as configurations even if the branch moves.
    pinned = replace(source, revision=folder.name)
    # Offline, the Hub client may give a folder with whatever of it is here: ask for the rest by name.
    for file in REQUIRED_FILES:
        if not (folder / file).is_file() and not download_file(file, name, pinned, progress):
            raise CheckpointError(f"The model {name} cannot be used: {file} is missing from its repository.")
    clear_leftovers(folder.parent.parent / "blobs")
    return read_checkpoint(folder, name, fetch=lambda file: download_file(file, name, pinned, progress))


def missing_file(source: Published) -> str | None:
    """What is missing of a model of which only a part is on this machine; None if nothing is."""
    from huggingface_hub import try_to_load_from_cache

    needed = (*REQUIRED_FILES, *TOKENIZER[:2])
    found = [try_to_load_from_cache(source.repo, file, revision=source.revision) for file in needed]
    missing = [file for file, path in zip(needed, found) if not isinstance(path, str)]
    return None if len(missing) == len(needed) else (*missing, "A file")[0]


def clear_leftovers(blobs: Path) -> None:
    """Remove what killed downloads left behind. The Hub client never resumes it, and it can be gigabytes."""
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:  # nobody is still writing to it
                file.unlink()


def download_file(file: str, name: str, source: Published, progress: DownloadProgress | None) -> bool:
    """Download a file into the checkpoint's folder; False if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    bar = progress_bar(file, progress) if progress else None
    try:
        hf_hub_download(source.repo, file, revision=source.revision, tqdm_class=bar)
    except RemoteEntryNotFoundError:
        return False
    except Exception as error:
        raise explain_download(error, name, source.download, file) from error
    return True


def progress_bar(file: str, progress: DownloadProgress) -> type:
    """A tqdm class, the Hub client's only way to report progress, that draws nothing and calls `progress`."""
    from tqdm import tqdm

    class Nowhere:
        def write(self, text: str) -> None: ...

        def flush(self) -> None: ...

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no hints
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": Nowhere(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            result: bool | None = super().update(n)
            progress(file, int(self.n), int(self.total or 0))
            return result

        # With these two the client does not open a second bar for transferred bytes.
        def update_transfer(self, n: float | None = 1) -> None: ...

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None: ...

    return Bar


def explain_download(error: BaseException, name: str, download: str | None, file: str | None = None) -> UserError:
    """The error of a failed download as a sentence that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = chain(error)
    statuses = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    errnos = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UserError(f"Accept the terms of {name} on huggingface.co first.")
    if any(isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)) for cause in causes):
        return UserError(f"The Hub has no model {name}: check the spelling.")
    if 429 in statuses:
        return UserError("The Hub is refusing downloads for now: try again in a few minutes.")
    if errno.ENOSPC in errnos or errno.EDQUOT in errnos:
        space = f"about {download}" if download else "some space"
        return UserError(f"The disk is full: free {space} for the model {name} and try again.")
    if errnos & {errno.EACCES, errno.EPERM, errno.EROFS}:
        return UserError(
            f"The model {name} cannot be saved in the download folder: set HF_HOME to a folder that can be written."
        )
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        what = f"The model {name}" if file is None else f"{file} of the model {name}"
        why, remedy = "the Hub cannot be reached", "check the connection and try again"
        if constants.HF_HUB_OFFLINE:
            why, remedy = "HF_HUB_OFFLINE forbids downloads", "unset it and try again"
        return UserError(
            f"{what} is not on this machine and {why}: {remedy}, or choose a model that comes with this program."
        )
    return UserError(f"The download of {name} failed: try again. Finished files are kept.")
