"""Gradio inputs without Gradio's own decoding: `generation.images` alone checks what a visitor sends.

Gradio would open images before a handler runs, trust the file's name, and answer a bad file with a traceback.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

Raw = Path | bytes

NO_IMAGE = "Upload an image first."


class ImageInput(gr.Image):
    """Gives the handler the file as it was sent, as a path or bytes."""

    is_template = True

    def preprocess(self, payload: ImageData | None) -> Raw | None:  # type: ignore[override]
        if payload is None:
            return None
        if payload.path is not None:
            return Path(payload.path)
        return decode_data_url(payload.url or "")


class NameInput(gr.Dropdown):
    """Gives the handler the name as it was sent: Gradio repeats a wrong one, of any length, in its error and log."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


def decode_data_url(url: str) -> bytes:
    """The bytes of a "data:" URL; of any other none, which is then refused as an empty file."""
    head, _, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        return b""
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return b""


def encode_data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
