"""The Gradio page."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from amused.memory import paused_collection


def import_gradio() -> None:
    """Import Gradio without its type stubs.

    Gradio (6.31) makes a stub of every component as it is imported, to compare it with the one beside the source, which
    takes half of the time. It does without where there is no source file, so none is found meanwhile.
    """
    getfile = inspect.getfile
    inspect.getfile = no_file
    try:
        with paused_collection():
            from gradio import blocks_events, component_meta
    finally:
        inspect.getfile = getfile
    # Our own components and blocks pass through these.
    component_meta.create_or_modify_pyi = lambda *arguments: None
    blocks_events.create_or_modify_pyi = lambda *arguments: None  # type: ignore[attr-defined]


def no_file(object: Any) -> NoReturn:
    raise FileNotFoundError


import_gradio()
