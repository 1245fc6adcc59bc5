"""The folder of a batch: its manifest, and shards that are there as a whole or not at all.

    job.json
    00000/000000.png ...    --format png
    00000.tar               --format webdataset: 000000.png, 000000.json, 000000.txt, ...

A shard is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from amused.atomic import atomic_dir, atomic_file, sweep, write_json
from amused.batch.job import Job, differences
from amused.errors import UserError
from amused.generation.images import digest, png_bytes, strip_metadata
from amused.recipe.links import Shared
from amused.recipe.metadata import from_png_file, png_info, to_json
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Result

MANIFEST = "job.json"
WEBDATASET = "webdataset"


class Folder:
    """The shards of a job. `begin` writes its manifest.

    Entering it keeps other processes out.

    Raises:
        UserError: on entering: the folder has another job, other files, or another process writes into it.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job

    def __enter__(self) -> Folder:
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(self.path))
            sweep(self.path)
            self._check()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _check(self) -> None:
        if (self.path / MANIFEST).is_file():
            before, now = read_manifest(self.path), self.job.manifest()
            if before["digest"] != now["digest"]:
                what = "; ".join(differences(before, now)) or "its manifest was changed"
                raise UserError(f"{self.path} has another job: {what}. Choose another --output, or the same arguments.")
        elif any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise UserError(f"{self.path} has other files: choose an empty folder for --output.")

    def begin(self) -> None:
        if not (self.path / MANIFEST).is_file():
            with atomic_file(self.path / MANIFEST) as part:
                write_json(part, self.job.manifest())

    def missing(self) -> list[int]:
        """The shards that are still to be made."""
        return [number for number in range(self.job.num_shards) if not self.shard(number).exists()]

    def shard(self, number: int) -> Path:
        return shard_path(self.path, self.job.format, number)

    def fingerprint(self) -> str | None:
        """What made the first image, None if there is none yet."""
        for number in range(self.job.num_shards):
            if self.shard(number).exists():
                for _, data in read_shard(self.shard(number)):
                    shared = from_png_file(data)
                    return None if shared is None else shared.fingerprint
        return None


@dataclass(frozen=True)
class EncodedImage:
    """An image of a batch as the bytes of its files."""

    index: int
    png: bytes
    about: bytes
    prompt: bytes


def encode(result: Result) -> EncodedImage:
    """Takes 50 ms at 512x512, most of it in zlib: threads can do it at the same time."""
    pixels = strip_metadata(result.image)
    pixels_digest = digest(pixels)
    png = png_bytes(pixels, png_info(result.recipe, pixels_digest, result.fingerprint))
    about = {**to_json(result.recipe), "digest": pixels_digest, "made": result.fingerprint}
    text = json.dumps(about, ensure_ascii=False).encode()
    return EncodedImage(result.index, png, text, result.recipe.prompt.encode())


class ShardWriter:
    """Takes the images of a shard in any order; the last one makes it appear. `discard` drops an unfinished one."""

    def __init__(self, folder: Folder, number: int) -> None:
        self._left = set(folder.job.shard(number))
        self._next = min(self._left)
        self._waiting: dict[int, EncodedImage] = {}  # of a tar file, whose order is fixed
        self._stack = contextlib.ExitStack()
        target = folder.shard(number)
        self._tar: tarfile.TarFile | None = None
        if folder.job.format == WEBDATASET:
            self._part = self._stack.enter_context(atomic_file(target))
            tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self._tar = self._stack.enter_context(tar)
        else:
            self._part = self._stack.enter_context(atomic_dir(target))

    def add(self, image: EncodedImage) -> bool:
        """Write an image; True if it was the last one."""
        self._left.remove(image.index)
        if self._tar is None:
            (self._part / f"{image.index:06d}.png").write_bytes(image.png)
        else:
            self._waiting[image.index] = image
            while self._next in self._waiting:
                self._append(self._tar, self._waiting.pop(self._next))
        if not self._left:
            self._stack.close()
        return not self._left

    def _append(self, tar: tarfile.TarFile, image: EncodedImage) -> None:
        for kind, content in (("png", image.png), ("json", image.about), ("txt", image.prompt)):
            entry = tarfile.TarInfo(f"{self._next:06d}.{kind}")  # of 1970 and nobody: the same bytes in every run
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        self._next += 1

    def discard(self) -> None:
        with contextlib.suppress(StoppedWritingError):
            self._stack.__exit__(StoppedWritingError, StoppedWritingError(), None)


class StoppedWritingError(Exception):
    """Tells the writer of a file or folder not to keep it."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep others from writing into a folder.

    Raises:
        UserError: another process does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another process is writing into {path}: wait for it, or stop it.") from error
        yield


def shard_path(folder: Path, format: str, number: int) -> Path:
    return folder / f"{number:05d}{'.tar' if format == WEBDATASET else ''}"


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {**manifest, "digest": manifest["digest"], "num_images": int(manifest["num_images"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no {MANIFEST} that can be read: it is not the folder of a batch.") from error


def read(folder: str | Path) -> Iterator[tuple[Recipe, Image.Image]]:
    """The recipes and images of a batch, in the order of its prompts and seeds; those of shards that are complete.

    Raises:
        UserError: it is not the folder of a batch.
    """
    for _, shared, image in read_images(Path(folder)):
        yield shared.recipe, image


def read_images(folder: Path) -> Iterator[tuple[int, Shared, Image.Image]]:
    """Also the number of each image, and what made it."""
    manifest = read_manifest(folder)
    for number in range(-(-manifest["num_images"] // manifest["shard_size"])):
        shard = shard_path(folder, manifest["format"], number)
        if not shard.exists():
            continue
        for name, data in read_shard(shard):
            shared = from_png_file(data)
            if shared is None:
                raise UserError(f"{shard.name}, {name}: this image carries no recipe.")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
            yield int(name.removesuffix(".png")), shared, image


def read_shard(shard: Path) -> Iterator[tuple[str, bytes]]:
    """The PNG files of a shard, in order."""
    if shard.is_dir():
        for path in sorted(shard.glob("*.png"), key=lambda path: int(path.stem)):
            yield path.name, path.read_bytes()
        return
    with tarfile.open(shard) as tar:
        for entry in tar:
            if entry.name.endswith(".png") and (file := tar.extractfile(entry)) is not None:
                yield entry.name, file.read()
