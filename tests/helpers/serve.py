"""The page, served on a free port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amused.serving.runtime import Runtime
from amused.ui.page import build_page, launch_options


@contextmanager
def serve(runtime: Runtime, cache: Path, **options: Any) -> Iterator[str]:
    """Give the page's address. Uploads and results are in `cache`; `options` go to Gradio's `launch`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        page = build_page(runtime)
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **{**launch_options(runtime), **options})
        yield address
        page.close()
