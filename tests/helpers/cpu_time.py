"""A guard against work that grows faster than its input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fail if this thread computes for longer. Not a measurement: what it guards against takes ten times as long.

    Other processes do not count, so a busy machine does not fail it.
    """
    began = time.thread_time()
    yield
    assert time.thread_time() - began < seconds
