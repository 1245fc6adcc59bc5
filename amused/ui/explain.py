"""An error as a sentence for the visitor."""

from __future__ import annotations

import logging

import gradio as gr

from amused.errors import UserError, is_disk_full
from amused.serving.queue import forget_frames

log = logging.getLogger(__name__)

FAILED = "Something went wrong on our side. Your settings are kept: please try again."
OUT_OF_MEMORY = "The machine ran out of memory: choose a smaller model, or try again later."
DISK_FULL = "The disk of this page is full, so the image could not be saved: try again later."


def explain(error: BaseException) -> str:
    """The sentence for a visitor; details go to the log."""
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        log.error("the disk is full: %s", error)
        return DISK_FULL
    if isinstance(error, MemoryError) or "outofmemory" in str(error).lower().replace(" ", ""):
        log.error("out of memory", exc_info=error)
        forget_frames(error)
        return OUT_OF_MEMORY
    if isinstance(error, gr.Error):  # from `spaces`, about the visitor's quota on a shared GPU
        return str(error.message)
    log.error("a run failed", exc_info=error)
    return FAILED
