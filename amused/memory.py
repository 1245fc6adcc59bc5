"""How the program's memory is got from the system. Knows no model."""

from __future__ import annotations

import ctypes

ARENAS, TRIM_THRESHOLD, MMAP_THRESHOLD = -8, -1, -3  # of glibc's mallopt
KEPT_BYTES = 600_000_000


def keep_freed_memory() -> None:
    """Have the C library keep what the layers of a picture free for the layers of the next.

    glibc gives blocks of 32 MB or more back at once, and to get them anew, zeroed page by page, takes a tenth of the
    time of a picture of 512 x 512. A thread's own arena could hold no more than 64 MB, hence one for all. Call it
    before there are threads; with another C library it does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((ARENAS, 1), (MMAP_THRESHOLD, KEPT_BYTES // 2), (TRIM_THRESHOLD, KEPT_BYTES)):
        mallopt(option, value)
