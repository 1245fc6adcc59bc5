"""Generate many images into a folder: each prompt of a file with each of the seeds.

The same command goes on where it was stopped, at whatever moment; a finished job is left as it is. Prompts are one a
line, with `{fox|cow}` and `{head}` as on the page; or a CSV file with a column "prompt" and settings of each row.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from amused.atomic import atomic_file
from amused.batch.job import FORMATS, Job, read_job
from amused.batch.shards import EncodedImage, Folder, ShardWriter, encode, read_images
from amused.checkpoints.adapters import with_digests
from amused.errors import UserError, is_disk_full
from amused.generation.contact_sheet import sheet
from amused.memory import keep_freed_memory
from amused.recipe.words import known_words
from amused.serving.jobs import Result
from amused.serving.ray_workers import RayWorkers, check_workers
from amused.serving.runtime import choice_of, choices, load_model
from amused.serving.worker import Engine, Loaded, LoadModel
from amused.serving.workers import InProcess, WorkerPool

ENCODERS = os.cpu_count() or 1
SHEET_IMAGES = 256
SHEET_SIDE = 256


def main() -> None:
    keep_freed_memory()
    options = parse_options()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options)
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        sys.exit("The disk is full. The shards that are complete are kept: free space and run the same command again.")
    except KeyboardInterrupt:
        sys.exit("Stopped. The shards that are complete are kept; the same command goes on from there.")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m amused.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nouns", help='"nouns", "amused-256", "amused-512", a folder, "owner/name"')
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line, or .csv")
    parser.add_argument("--seeds", default="0", help='of each prompt, for example "0-63" (default: 0)')
    parser.add_argument("--output", type=Path, required=True, help="folder for the images")
    parser.add_argument("--format", choices=FORMATS, default="png", help="folders of PNG files, or tar files")
    parser.add_argument("--shard-size", type=int, default=1000, help="images per folder or tar file (default: 1000)")
    parser.add_argument("--sheets", action="store_true", help="also a contact sheet for each line of the prompts")
    parser.add_argument("--adapters", type=Path, help='folder of adapters, for a column "adapter"')
    parser.add_argument("--quantize", help='"int8", as for app.py')
    parser.add_argument("--workers", metavar="{auto,N}", help="processes, as for app.py; needs Ray")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="an existing Ray cluster")
    options = parser.parse_args(arguments)
    if options.shard_size < 1:
        parser.error("--shard-size must be at least 1.")
    return options


def run(options: argparse.Namespace) -> None:
    """Make what is missing of a job.

    Raises:
        UserError: a sentence, or one for each bad line.
    """
    offered = {choice.name: choice for choice in choices()}
    choice = offered.get(options.model) or choice_of(options.model, offered)
    settings = {"model": choice.name, **choice.defaults}
    freeze = partial(with_digests, options.adapters)
    job = read_job(
        options.prompts, options.seeds, settings, known_words(choice.traits), options.format, options.shard_size, freeze
    )
    load = partial(load_model, quantize=options.quantize, adapters=options.adapters, compile="graph")
    engine = make_engine(options, load)
    with Folder(options.output, job) as folder:
        if missing := folder.missing():
            make(folder, missing, engine, choice.name, choice.source or choice.name)
        else:
            print(f"Nothing to do: all {job.num_images} images are there.", file=sys.stderr)
        if options.sheets:
            write_sheets(folder)


def make_engine(options: argparse.Namespace, load: LoadModel) -> Engine:
    if options.workers is None and options.ray_address is None:
        return InProcess(load)
    return RayWorkers(load, check_workers(options.workers, options.ray_address), options.ray_address)


def make(folder: Folder, missing: Sequence[int], engine: Engine, model: str, source: str) -> None:
    """Make the missing shards: workers get images in order, whatever shard they are of."""
    job, writers, before = folder.job, dict[int, ShardWriter](), folder.fingerprint()
    images = ((index, job.recipe(index)) for number in missing for index in job.shard(number))
    progress = Progress(job, missing)
    loaded: list[Loaded] = []
    pool = WorkerPool(engine, model, lambda name: source, lambda name, model: loaded.append(model))

    def write(image: EncodedImage) -> None:
        number = image.index // job.shard_size
        if number not in writers:
            writers[number] = ShardWriter(folder, number)
        if writers[number].add(image):
            del writers[number]

    try:
        with pool, pool.enter(model, previews=False) as run, ThreadPoolExecutor(ENCODERS) as encoders:
            for status in run.wait_for_model():
                progress.say(status.text)
            check_sizes(job, loaded[-1].multiple)
            folder.begin()
            encoded: deque[Future[EncodedImage]] = deque()
            with contextlib.closing(run.sample(images)) as events:
                for event in events:
                    if isinstance(event, Result):
                        check_kind(before, event.fingerprint, folder.path)
                        before = before or event.fingerprint
                        encoded.append(encoders.submit(encode, event))
                    while encoded and (encoded[0].done() or len(encoded) > 2 * ENCODERS):
                        write(encoded.popleft().result())
                    progress.note(isinstance(event, Result), bool(getattr(event, "cut", ())), run.num_moved)
            for image in encoded:
                write(image.result())
    finally:
        for writer in writers.values():
            writer.discard()
        progress.end()


def check_kind(before: str | None, now: str, path: Path) -> None:
    """Refuse to mix images of different kinds of workers: the same job would give other bytes another time."""
    if before is not None and before != now:
        raise UserError(
            f"{path} has images made by {before}, and this is {now}: their bits differ. Go on with the former, or "
            "choose another --output."
        )


def check_sizes(job: Job, multiple: int) -> None:
    """Raises UserError: the model cannot make images of such a size."""
    for row in job.rows:
        if any((side or 0) % multiple for side in (row.recipe.width, row.recipe.height)):
            raise UserError(f"line {row.line}: width and height must be multiples of {multiple}; nothing was made.")


class Progress:
    """A line on the terminal, or one a minute in a log: images, rate and time left."""

    def __init__(self, job: Job, missing: Sequence[int]) -> None:
        self._total = job.num_images
        self._there = self._total - sum(len(job.shard(number)) for number in missing)
        self._made = self._cut = self._moved = 0
        self._began: float | None = None
        self._said = -1e9
        self._tty = sys.stderr.isatty()

    def say(self, text: str, now: bool = False) -> None:
        if not now and time.monotonic() - self._said < (0.5 if self._tty else 60):
            return
        self._said = time.monotonic()
        print(f"\r\033[K{text}" if self._tty else text, end="" if self._tty else "\n", file=sys.stderr, flush=True)

    def note(self, is_image: bool, is_cut: bool, moved: int) -> None:
        self._began = self._began or time.monotonic()
        self._made += is_image
        self._cut += is_cut
        self._moved = moved
        self.say(self._text())

    def _text(self) -> str:
        seconds = time.monotonic() - (self._began or time.monotonic())
        text = f"{self._there + self._made} of {self._total} images"
        if self._made > 1 and seconds > 0:
            rate = self._made / seconds
            left = (self._total - self._there - self._made) / rate
            pace = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
            text += f", {pace}, {describe_time(left)} left"
        if self._moved:
            text += f", {self._moved} moved from lost workers"
        return text

    def end(self) -> None:
        self.say(self._text(), now=True)
        if self._tty:
            print(file=sys.stderr)
        if self._cut:
            print(f"{self._cut} images have a prompt that is longer than the model can read.", file=sys.stderr)


def describe_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def write_sheets(folder: Folder) -> None:
    """A contact sheet of the first images of each line of the prompts, unless it is there."""
    job = folder.job
    for line, made in itertools.groupby(read_images(folder.path), lambda one: job.rows[job.row_of(one[0])].line):
        path = folder.path / "sheets" / f"{line:06d}.png"
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        recipes, images = [], []
        for _, shared, image in itertools.islice(made, SHEET_IMAGES):
            image.thumbnail((SHEET_SIDE, SHEET_SIDE))  # small enough to be held together
            recipes.append(shared.recipe)
            images.append(image)
        prompts = {recipe.prompt for recipe in recipes}
        labels = [
            f"seed {recipe.seeds[0]}" if len(prompts) == 1 else f"{recipe.prompt} · seed {recipe.seeds[0]}"
            for recipe in recipes
        ]
        columns = min(8, max(1, round(len(images) ** 0.5)))
        page = sheet(images, labels, columns, recipes[0].prompt if len(prompts) == 1 else "")
        with atomic_file(path) as part:
            page.save(part, "PNG")


if __name__ == "__main__":
    main()
