"""Batch runs: what is in the folder, that it can be stopped at any moment, and that nothing is mixed up."""

from __future__ import annotations

import errno
import hashlib
import itertools
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake import FakeModel, load_fake
from PIL import Image

import amused.batch
from amused.batch import __main__ as batch
from amused.batch.job import Job, Row, read_job
from amused.batch.shards import EncodedImage, Folder, ShardWriter, encode
from amused.checkpoints.catalog import BUNDLED, read_defaults
from amused.errors import UserError
from amused.generation.images import digest
from amused.recipe.metadata import from_png_file
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Result
from amused.serving.model import Model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the command with a fake model: `run(prompts, *arguments)`, into the folder that it returns."""
    monkeypatch.setattr(batch, "load_model", lambda name, report, **options: load_fake(name, report))

    def call(prompts: str, *arguments: str, output: str = "out", name: str = "prompts.txt") -> Path:
        (tmp_path / name).write_text(prompts, "utf-8")
        command = ["--prompts", str(tmp_path / name), "--output", str(tmp_path / output), *arguments]
        batch.run(batch.parse_options(command))
        return tmp_path / output

    return call


def expected(recipe: Recipe) -> bytes:
    *_, image = FakeModel(recipe.model).generate(recipe)
    return image.image.tobytes()


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_all_prompts_with_all_seeds(run: Callable[..., Path], format: str) -> None:
    folder = run("a cow\n\na {red|blue} fox\n", "--seeds", "3-5", "--shard-size", "4", "--format", format)
    made = list(amused.batch.read(folder))
    prompts = ["a cow", "a red fox", "a blue fox"]
    assert [(recipe.prompt, recipe.seeds) for recipe, _ in made] == [
        (prompt, (seed,)) for prompt in prompts for seed in (3, 4, 5)
    ]
    assert [image.tobytes() for _, image in made] == [expected(recipe) for recipe, _ in made]
    settings = read_defaults(BUNDLED / "nouns")
    assert made[0][0] == Recipe(TEXT_TO_IMAGE, "a cow", (3,), **settings)
    shards = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    end = ".tar" if format == "webdataset" else ""
    assert shards == [f"0000{number}{end}" for number in range(3)] + ["job.json"]


def test_images_carry_recipe_digest_and_what_made_them(run: Callable[..., Path]) -> None:
    folder = run("a cow", "--seeds", "7")
    shared = from_png_file((folder / "00000" / "000000.png").read_bytes())
    assert shared is not None and shared.recipe.seeds == (7,) and shared.fingerprint == FakeModel.fingerprint
    with Image.open(folder / "00000" / "000000.png") as image:
        assert shared.digest == digest(image) and "parameters" in image.info


def test_a_webdataset_has_samples_of_three_files_in_order(run: Callable[..., Path]) -> None:
    folder = run("a cow", "--seeds", "0-2", "--format", "webdataset")
    with tarfile.open(folder / "00000.tar") as tar:
        names = tar.getnames()
        text = tar.extractfile("000001.txt")
        assert text is not None and text.read() == b"a cow"
    assert names == [f"00000{number}.{kind}" for number in range(3) for kind in ("png", "json", "txt")]


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_two_runs_give_the_same_bytes(run: Callable[..., Path], format: str) -> None:
    arguments = ("a cow\na {head}", "--seeds", "0-4", "--shard-size", "3", "--format", format, "--sheets")
    assert tree(run(*arguments, output="one")) == tree(run(*arguments, output="two"))


def test_a_finished_job_is_left_as_it_is(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(run("a cow", "--seeds", "0-4"))
    monkeypatch.setattr(batch, "make", None)
    assert tree(run("a cow", "--seeds", "0-4")) == before


@pytest.mark.parametrize(
    ("prompts", "arguments", "what"),
    [
        ("a cow\na fox", ("--seeds", "0-5"), "seeds of prompt 1 was '0-4' and is now '0-5'"),
        ("a cow\na fox", ("--seeds", "0-4", "--shard-size", "2"), "--shard-size was 3 and is now 2"),
        ("a cow\na fox", ("--seeds", "0-4", "--format", "webdataset"), "--format was png and is now webdataset"),
        ("a cow\na hen", ("--seeds", "0-4"), "prompt of prompt 2 was 'a fox' and is now 'a hen'"),
        ("a cow", ("--seeds", "0-4"), "there were 2 prompts and are now 1"),
        ("a cow\na fox", ("--seeds", "0-4", "--model", "amused-256"), "--model was nouns and is now amused-256"),
    ],
)
def test_another_job_is_refused_with_what_differs(
    run: Callable[..., Path], prompts: str, arguments: tuple[str, ...], what: str
) -> None:
    before = tree(run("a cow\na fox", "--seeds", "0-4", "--shard-size", "3"))
    arguments = arguments if "--shard-size" in arguments else (*arguments, "--shard-size", "3")
    with pytest.raises(UserError) as refusal:
        run(prompts, *arguments)
    assert what in str(refusal.value)
    assert tree(run("a cow\na fox", "--seeds", "0-4", "--shard-size", "3")) == before


def test_other_files_are_not_written_over(run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        run("a cow")


def test_bad_lines_are_named_before_anything_is_made(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        run("a cow\n\na {fox\nfine\na {nothing} here\n")
    assert [line.partition(":")[0].strip() for line in str(refusal.value).splitlines()[1:]] == ["line 3", "line 5"]
    table = 'prompt,steps,width\na cow,12,\n"two\nlines",4,256\na fox,many,\na hen,12,250\na pig,500,\n'
    with pytest.raises(UserError) as refusal:
        run(table, name="prompts.csv")
    named = [line.partition(":")[0].strip() for line in str(refusal.value).splitlines()[1:]]
    assert named == ["line 5", "line 6", "line 7"]
    for text, what in (("words\na cow\n", "prompt"), ("prompt,speed\na,1\n", "speed"), ("prompt,steps\na\n", "line 2")):
        with pytest.raises(UserError, match=what):
            run(text, name="prompts.csv")
    (tmp_path / "prompts.bin").write_bytes(b"a cow\n\xff\xfe\n")
    with pytest.raises(UserError, match="line 2"):
        read_job(tmp_path / "prompts.bin", "0", {}, {}, "png", 10)
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_model_cannot_make_is_named_before_anything_is_made(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="line 3"):
        run("prompt,width,height\na cow,256,256\na fox,272,256\n", name="prompts.csv")
    assert not (tmp_path / "out" / "job.json").exists()


def test_a_row_of_a_table_has_its_own_settings(run: Callable[..., Path]) -> None:
    table = 'prompt,steps,temperature,seeds,negative_prompt\na cow,3,"2,0",,\na fox,,,8-9,blurry\n'
    made = [recipe for recipe, _ in amused.batch.read(run(table, "--seeds", "1", name="prompts.csv"))]
    assert [(recipe.prompt, recipe.seeds) for recipe in made] == [("a cow", (1,)), ("a fox", (8,)), ("a fox", (9,))]
    assert made[0].steps == 3 and made[0].temperature == (2, 0) and made[1].negative_prompt == "blurry"
    assert made[1].steps == read_defaults(BUNDLED / "nouns")["steps"]


def test_wildcards_are_drawn_by_seed(run: Callable[..., Path]) -> None:
    made = [recipe for recipe, _ in amused.batch.read(run("a {head}", "--seeds", "0-7"))]
    assert [recipe.seeds[0] for recipe in made] == list(range(8))
    assert len({recipe.prompt for recipe in made}) > 3


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_an_interrupted_job_goes_on_where_it_stopped(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    arguments = ("a cow\na fox", "--seeds", "0-9", "--shard-size", "6", "--format", format)
    whole = tree(run(*arguments, output="whole"))
    add, added = ShardWriter.add, 0

    def interrupt(self: ShardWriter, image: EncodedImage) -> bool:
        nonlocal added
        added += 1
        if added == 15:
            raise KeyboardInterrupt
        return add(self, image)

    monkeypatch.setattr(ShardWriter, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    assert not unfinished(tmp_path / "out") and len(list((tmp_path / "out").glob("0*"))) == 2
    assert tree(run(*arguments)) == whole
    assert added == 15 + 8  # two shards were there


def test_a_full_disk_is_named_and_leaves_the_complete_shards(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--seeds", "0-4", "--shard-size", "2")
    whole = tree(run("a cow", *arguments, output="whole"))
    written, write = itertools.count(), Path.write_bytes

    def write_three(path: Path, data: bytes) -> int:
        if path.suffix == ".png" and next(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    command = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out"), *arguments]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_three)
        patch.setattr(sys, "argv", ["amused.batch", *command])
        patch.setattr(signal, "signal", lambda *handler: None)
        with pytest.raises(SystemExit, match="The disk is full"):
            batch.main()
    kept = tree(tmp_path / "out")
    assert sorted(kept) == [".lock", "00000/000000.png", "00000/000001.png", "job.json"]
    assert kept.items() <= whole.items()
    assert tree(run("a cow", *arguments)) == whole


def test_the_order_of_finishing_does_not_change_a_shard(tmp_path: Path) -> None:
    recipe = Recipe(TEXT_TO_IMAGE, "a cow", (0,))
    trees = []
    for number, order in enumerate(([0, 1, 2, 3, 4], [4, 2, 3, 0, 1])):
        job = Job((Row(recipe, tuple(range(5)), 1),), "webdataset", 5)
        folder = Folder(tmp_path / str(number), job)
        folder.path.mkdir()
        writer = ShardWriter(folder, 0)
        for index in order:
            *_, made = FakeModel("nouns").generate(job.recipe(index))
            one = job.recipe(index)
            writer.add(encode(Result(index, index, one, made.image, made.tokens, FakeModel.fingerprint)))
        trees.append(tree(folder.path))
    assert trees[0] == trees[1] and "00000.tar" in trees[0]


def test_a_folder_keeps_to_one_kind_of_device(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_other(name: str, report: Any, **options: Any) -> Model:
        model = FakeModel(name)
        model.fingerprint = "cuda float16 amused-0.5.0 torch-2.13.0 cuda-13.0 batch-4 NVIDIA L4"
        return model

    folder = run("a cow", "--seeds", "0-9", "--shard-size", "5")
    missing = folder / "00001"
    for path in missing.iterdir():
        path.unlink()
    missing.rmdir()
    monkeypatch.setattr(batch, "load_model", load_other)
    with pytest.raises(UserError, match="NVIDIA L4"):
        run("a cow", "--seeds", "0-9", "--shard-size", "5")


def test_two_processes_do_not_write_into_one_folder(run: Callable[..., Path]) -> None:
    path = run("a cow", "--seeds", "0-3")
    job = read_job(path.parent / "prompts.txt", "0-3", {**read_defaults(BUNDLED / "nouns")}, {}, "png", 1000)
    with Folder(path, job), pytest.raises(UserError, match="Another process"), Folder(path, job):
        pass


def test_a_sheet_for_each_line(run: Callable[..., Path]) -> None:
    folder = run("a {red|blue} cow\na fox", "--seeds", "0-3", "--shard-size", "3", "--sheets")
    sheets = sorted((folder / "sheets").iterdir())
    assert [path.name for path in sheets] == ["000001.png", "000002.png"]
    with Image.open(sheets[0]) as first, Image.open(sheets[1]) as second:
        assert first.width > second.width > 2 * 256


def test_what_is_no_batch_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.json"):
        list(amused.batch.read(tmp_path))


COMMAND = """import functools, sys
sys.path.insert(0, "tests")
from fake import load_fake
from amused.batch import __main__ as batch
batch.load_model = lambda name, report, **options: load_fake(name, report, 0.001)
batch.main()"""


@pytest.mark.slow
def test_a_job_that_is_killed_at_any_moment_goes_on(run: Callable[..., Path], tmp_path: Path) -> None:
    """The command with a fake model, killed at random, against a run in peace."""
    arguments = ("--seeds", "0-99", "--shard-size", "8")
    whole = run("a cow\na fox", *arguments, output="whole")
    output, chance, kills = tmp_path / "killed", random.Random(2), 0
    command = [sys.executable, "-c", COMMAND, "--prompts", str(tmp_path / "prompts.txt"), "--output", str(output)]
    while True:
        process = subprocess.Popen([*command, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
        seen = len(list(output.glob("0*")))
        while process.poll() is None and len(list(output.glob("0*"))) == seen:
            time.sleep(0.001)
        if kills == 4:
            break
        time.sleep(chance.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait() == 0
    assert tree(output) == tree(whole)
    assert not unfinished(output)
