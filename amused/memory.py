"""Tunes how the C library gets memory from the system, and when Python looks for garbage."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

ARENAS, TRIM_THRESHOLD, MMAP_THRESHOLD = -8, -1, -3  # of glibc's mallopt
KEPT_BYTES = 600_000_000


def keep_freed_memory() -> None:
    """Let the C library reuse the memory that the layers free, from one image to the next.

    By default glibc returns blocks of 32 MB or more to the system at once; getting them back, zeroed page by page,
    takes a tenth of the time of a 512x512 image. The arena of a thread holds at most 64 MB, so all threads share one.
    Call it before starting threads. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((ARENAS, 1), (MMAP_THRESHOLD, KEPT_BYTES // 2), (TRIM_THRESHOLD, KEPT_BYTES)):
        mallopt(option, value)


@contextmanager
def paused_collection() -> Iterator[None]:
    """Do not look for garbage while large libraries are imported.

    All that they make stays, and Python would walk all of it each time it has grown by a quarter: up to a fifth of an
    import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
