"""What the owner of a page decides and sees: limits, the cache, `/metrics`, and the launch's defaults."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake import fake_runtime, numbers, sampled
from helpers.serve import serve
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families as parsed

from amused.errors import UserError
from amused.generation.images import png_bytes
from amused.limits import MAX_PICTURE_BYTES, QUEUE_LENGTH, RUNS_AT_ONCE
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving import metrics
from amused.serving.file_cache import YOUNG_SECONDS, choose_folder, save, sweep
from amused.serving.runtime import Runtime
from amused.ui.page import build_page, launch_options

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-owner"


# Limits


ROWS = re.findall(
    r"^\| `(AMUSED_\w+)` \| .* \| ([\d,]+) \| ([\d,]+) to ([\d,]+) \|$",
    (ROOT / "amused" / "serving" / "README.md").read_text("utf-8"),
    re.M,
)
LIMITS = {name: tuple(int(number.replace(",", "")) for number in numbers) for name, *numbers in ROWS}
"""By variable, as the documentation has it: default, lowest and highest value."""


def read_limits(**environment: str) -> dict[str, int]:
    with pytest.MonkeyPatch.context() as patch:
        for name in LIMITS:
            patch.setenv(name, environment.get(name, " "))
        values = runpy.run_path(str(ROOT / "amused" / "limits.py"))
    return {name: value for name, value in values.items() if name.isupper()}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["-1", "many", "1e3", "NaN", "9" * 40, "1.5", "٣", "0x10"])
def test_a_limit_that_is_none_is_refused_in_a_sentence(name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=rf"^{name} must be a whole number from \d+ to \d+\.$"):
        read_limits(**{name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_as_the_readme_says(name: str) -> None:
    default, low, high = LIMITS[name]
    assert read_limits(**{name: str(default)}) == read_limits()
    assert low == default or read_limits(**{name: str(low)}) != read_limits()
    with pytest.raises(SystemExit, match=rf"from {low} to {high}\."):
        read_limits(**{name: str(high + 1)})


def test_every_limit_stands_in_the_readme() -> None:
    assert list(LIMITS) == re.findall(r'limit\("(\w+)"', (ROOT / "amused" / "limits.py").read_text("utf-8"))


def test_limits_are_obeyed_and_a_bad_one_ends_the_program() -> None:
    """In a process of its own, as they are read once."""
    code = """
from amused.recipe.recipe import Recipe
from amused.recipe.seeds import parse_seeds
from amused.errors import UserError
for bad in (dict(steps=21), dict(prompt="a" * 101), dict(seeds=range(5)), dict(width=1024, height=512)):
    try:
        print(Recipe(**{"task": "text_to_image", "prompt": "a", "seeds": (0,), **bad}))
    except UserError as error:
        print(error)
"""
    chosen = {"MAX_STEPS": "20", "MAX_PROMPT": "100", "MAX_PICTURES": "4", "MAX_PIXELS": str(512 * 512)}
    environment = {**os.environ, **{f"AMUSED_{name}": value for name, value in chosen.items()}}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        "The number of steps must be from 1 to 20.",
        "The prompt is too long: give at most 100 characters.",
        "Give 1 to 4 seeds.",
        "Width times height must be at most 262144 pixels.",
    ], run.stderr
    environment = {**os.environ, "AMUSED_QUEUE": "long"}
    run = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr == "AMUSED_QUEUE must be a whole number from 0 to 1000.\n"


# The cache


def old_file(path: Path, size: int, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_cache_forgets_what_is_old_and_then_what_is_oldest(tmp_path: Path) -> None:
    old = old_file(tmp_path / "a" / "old.png", 10, 5000)
    kept = old_file(tmp_path / "b" / "an example.png", 10, 5000)
    older, newer = old_file(tmp_path / "c" / "1.png", 600, 900), old_file(tmp_path / "c" / "2.png", 600, 800)
    young = old_file(tmp_path / "d" / "young.png", 5000, YOUNG_SECONDS - 1)
    outside = old_file(tmp_path.parent / f"{tmp_path.name}-outside.png", 10, 5000)
    (tmp_path / "link.png").symlink_to(outside)
    assert sweep(tmp_path, {str(kept)}, 3600, 5700, now=1_000_000) == 2
    assert not old.parent.exists() and not older.exists()
    assert newer.exists() and young.exists() and kept.exists() and outside.exists()
    assert sweep(tmp_path, {str(kept)}, 3600, 100, now=1_000_000) == 1  # what is in use stays however full it is
    assert young.exists() and not newer.exists()
    assert sweep(tmp_path / "nowhere", set(), 3600, 100) == 0


def test_a_sweep_survives_files_that_go_and_knows_kept_ones_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "real"
    kept, old = (old_file(folder / name / "1.png", 10, 5000) for name in ("a", "b"))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setattr(Path, "rglob", lambda *_: iter([folder / "gone.png", kept, old]))
    assert sweep(folder, {str(tmp_path / "link" / "a" / "1.png")}, 3600, 5700, now=1_000_000) == 1
    assert kept.exists() and not old.exists()


def test_the_cache_is_a_folder_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    choose_folder()
    chosen = Path(os.environ["GRADIO_TEMP_DIR"])
    assert chosen.parent == tmp_path and chosen.stat().st_mode & 0o077 == 0
    chosen.rmdir()
    (tmp_path / "elsewhere").mkdir()
    chosen.symlink_to(tmp_path / "elsewhere")  # by somebody who would like to see the pictures
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    choose_folder()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).resolve() not in (chosen, tmp_path / "elsewhere")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "mine"))
    choose_folder()
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "mine")


def test_a_user_without_a_name_has_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often run under a number that no passwd entry names."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    choose_folder()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).parent == tmp_path


def test_a_killed_page_leaves_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for attempt in range(10):
        before = len(list(tmp_path.glob("*/*.png")))
        child = os.fork()
        if child == 0:
            for number in itertools.count():
                noise[0, 0] = attempt, number % 256, number // 256
                save(png_bytes(Image.fromarray(noise), compress_level=0), "picture.png")
        while len(list(tmp_path.glob("*/*.png"))) < before + 3:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    files = list(tmp_path.glob("*/*.png"))
    assert len(files) >= 30
    for file in files:
        Image.open(file).load()
        assert Image.open(file).size == (300, 300)
    assert sweep(tmp_path, set(), -1, 0) >= len(files) and not list(tmp_path.iterdir())


# The owner's page


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return fake_runtime()


@pytest.fixture(scope="module")
def address(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(metrics.TOKEN_VARIABLE, TOKEN)
        with serve(runtime, tmp_path_factory.mktemp("cache")) as address:
            yield address


def test_counters_are_shown_to_the_owner(address: str, runtime: Runtime) -> None:
    list(sampled(runtime, Recipe(TEXT_TO_IMAGE, "a secret fox", (1, 2))))
    answer = httpx.get(f"{address}metrics", auth=("whoever", TOKEN))
    shown = {sample.name: sample.value for family in parsed(answer.text) for sample in family.samples}
    assert numbers(runtime)['amused_requests_total{outcome="done"}'] == 1 and shown["amused_pictures_total"] == 2
    assert set(shown) == {
        "amused_requests_total", "amused_pictures_total", "amused_waiting_seconds_total",
        "amused_working_seconds_total", "amused_uptime_seconds", "amused_runs", "amused_runs_waiting",
        "amused_memory_bytes", "amused_memory_peak_bytes",
    }  # fmt: skip
    assert "secret" not in answer.text and answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("header", [None, "Basic", "Basic !!", "Basic Og==", f"Bearer {TOKEN}", "Basic bWU6d3Jvbmc="])
def test_nobody_else_sees_them(address: str, header: str | None) -> None:
    answer = httpx.get(f"{address}metrics", headers={} if header is None else {"authorization": header})
    assert answer.status_code == 401 and "amused_" not in answer.text
    assert "realm=" in answer.headers["www-authenticate"]
    assert httpx.get(f"{address}metrics?token={TOKEN}").status_code == 401


def test_without_a_token_there_is_no_such_page(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.TOKEN_VARIABLE, raising=False)
    assert launch_options(runtime)["app_kwargs"] == {"routes": []}
    monkeypatch.setenv(metrics.TOKEN_VARIABLE, "short")
    with pytest.raises(UserError, match="at least 16 characters"):
        launch_options(runtime)


# The launch


def test_the_launch_serves_this_machine_alone_and_nothing_but_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    import app

    for name in ("AMUSED_HOST", "AMUSED_PORT", "AMUSED_SHARE", "AMUSED_MODEL", metrics.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    flags = app.parse_flags([])
    assert (flags.host, flags.port, flags.share, flags.model) == (None, None, False, None)
    options = launch_options()
    assert options["allowed_paths"] == [] and options["show_error"] is False and options["run_history"] is False
    assert options["enable_monitoring"] is False and options["state_session_capacity"] == 1000
    assert options["max_file_size"] == MAX_PICTURE_BYTES
    assert not {"share", "auth", "server_name", "debug", "strict_cors"} & set(options)
    page = build_page(fake_runtime())
    assert page.analytics_enabled is False
    assert page._queue.max_size == QUEUE_LENGTH + RUNS_AT_ONCE
