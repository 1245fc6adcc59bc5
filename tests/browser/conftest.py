from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake import Turnstile, fake_runtime
from helpers.browser import CHROMIUM, FLAGS
from helpers.serve import serve
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from amused.serving.runtime import Runtime
from amused.ui import live_runs


@pytest.fixture(scope="package", autouse=True)
def runs_left_behind() -> Iterator[None]:
    """A run that a test leaves behind ends soon, as the next test has the same model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_runs, "AWAY_SECONDS", 20)
        yield


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all tests of this package. It must be closed behind them: while it is open, no asyncio loop can run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page on the bundled checkpoint is served."""
    with serve(Runtime(default="nouns"), tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture(scope="module")
def turnstile() -> Turnstile:
    """Holds the steps of `runtime`, for tests that watch a run half done."""
    return Turnstile()


@pytest.fixture(autouse=True)
def released(turnstile: Turnstile) -> Iterator[None]:
    """A test that fails while it holds the steps does not hold those of the next ones."""
    yield
    turnstile.reset()


@pytest.fixture(scope="module")
def runtime(turnstile: Turnstile) -> Runtime:
    """On a fake model; `address` is that of the bundled one unless a module serves this."""
    return fake_runtime(before_step=turnstile)


@pytest.fixture(scope="package")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph's worst case, in which every pixel differs from its neighbours."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(pixels).save(path)
    return path
