"""The Gradio page."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from amused.memory import paused_collection


def import_gradio() -> None:
    """Import Gradio without generating type stubs.

    On import, Gradio (6.31) generates a .pyi stub for each component and compares it with the file on disk: half of the
    import time. It skips a class that has no source file, so `inspect.getfile` finds none during the import.
    """
    getfile = inspect.getfile
    inspect.getfile = no_file
    try:
        with paused_collection():
            from gradio import blocks_events, component_meta
    finally:
        inspect.getfile = getfile
    # Our own components and Blocks are defined later.
    component_meta.create_or_modify_pyi = lambda *arguments: None
    blocks_events.create_or_modify_pyi = lambda *arguments: None  # type: ignore[attr-defined]


def no_file(object: Any) -> NoReturn:
    raise FileNotFoundError


import_gradio()
