"""The Gradio page."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from amused.memory import paused_collection


def import_gradio() -> None:
    """Import Gradio, but write no type stubs.

    Gradio (6.31) compares the source of every component with a stub beside it, which takes half of its import. It does
    without where there is no source file, so none is found meanwhile.
    """
    getfile = inspect.getfile
    inspect.getfile = no_file
    try:
        with paused_collection():
            from gradio import component_meta
    finally:
        inspect.getfile = getfile
    component_meta.create_or_modify_pyi = lambda *arguments: None  # for our own components


def no_file(object: Any) -> NoReturn:
    raise FileNotFoundError


import_gradio()
