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
    """Pause garbage collection, for imports of large libraries and for building the page.

    Nearly all objects made there are kept, yet Python scans them all each time their number has grown by a quarter, up
    to a fifth of the import time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
