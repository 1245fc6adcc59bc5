"""All limits that a visitor can hit, each an environment variable set by the owner of the page.

They are read once, at import; a value that is not a whole number in its range ends the program with a sentence.
`serving/README.md` says what each one limits.
"""

from __future__ import annotations

import os


def limit(variable: str, default: int, low: int, high: int) -> int:
    """The value of an environment variable, a whole number from `low` to `high`; the default if it is empty."""
    text = os.environ.get(variable, "").strip().replace("_", "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and low <= int(text[:20]) <= high):
        raise SystemExit(f"{variable} must be a whole number from {low} to {high}.")
    return int(text)


def switched_on(variable: str) -> bool:
    """Whether an environment variable is "1", "true", "yes" or "on"."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


COMPILE_MODES = ("auto", "off", "graph", "inductor")

MAX_PICTURE_PIXELS = limit("AMUSED_MAX_PICTURE_PIXELS", 40_000_000, 1_000_000, 80_000_000)
MAX_PICTURE_BYTES = limit("AMUSED_MAX_PICTURE_BYTES", 25_000_000, 1_000_000, 100_000_000)
MAX_PROMPT = limit("AMUSED_MAX_PROMPT", 10_000, 100, 10_000)
MAX_STEPS = limit("AMUSED_MAX_STEPS", 100, 12, 100)
MAX_SEEDS = limit("AMUSED_MAX_PICTURES", 64, 4, 64)
MAX_PIXELS = limit("AMUSED_MAX_PIXELS", 1024 * 1024, 512 * 512, 1024 * 1024)
MAX_BATCH = limit("AMUSED_BATCH", 4, 1, 32)
RUNS_AT_ONCE = limit("AMUSED_RUNS_AT_ONCE", 16, 1, 64)
QUEUE_LENGTH = limit("AMUSED_QUEUE", 40, 0, 1000)
REQUEST_SECONDS = limit("AMUSED_REQUEST_SECONDS", 3600, 10, 86_400)
AWAY_SECONDS = limit("AMUSED_AWAY_SECONDS", 300, 0, 86_400)
WORKER_SECONDS = limit("AMUSED_WORKER_SECONDS", 120, 5, 3600)
SESSIONS = limit("AMUSED_SESSIONS", 1000, 50, 10_000)
CACHE_SECONDS = 3600 * limit("AMUSED_CACHE_HOURS", 24, 1, 720)
CACHE_BYTES = 1_000_000 * limit("AMUSED_CACHE_MEGABYTES", 5000, 50, 1_000_000)
