"""All limits that a visitor can hit, each an environment variable set by the owner of the page.

They are read once, at import; a value that is not a whole number in its range ends the program with a sentence.
`serving/README.md` has the same table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from amused.errors import UserError


@dataclass(frozen=True)
class Limit:
    """A whole number between `least` and `most`."""

    variable: str
    value: int
    least: int
    most: int
    about: str

    def read(self, environment: Mapping[str, str]) -> int:
        """The value set in this environment, or the default.

        Raises:
            UserError: the variable is set to anything but a whole number in the range.
        """
        text = environment.get(self.variable, "").strip().replace("_", "")
        if not text:
            return self.value
        if not (text.isascii() and text.isdigit() and self.least <= int(text[:20]) <= self.most):
            raise UserError(f"{self.variable} must be a whole number from {self.least} to {self.most}.")
        return int(text)


LIMITS = {
    limit.variable: limit
    for limit in (
        Limit("AMUSED_MAX_PICTURE_PIXELS", 40_000_000, 1_000_000, 80_000_000, "pixels of an uploaded image"),
        Limit("AMUSED_MAX_PICTURE_BYTES", 25_000_000, 1_000_000, 100_000_000, "bytes of an uploaded image"),
        Limit("AMUSED_MAX_PROMPT", 10_000, 100, 10_000, "characters of a prompt"),
        Limit("AMUSED_MAX_STEPS", 100, 12, 100, "sampling steps"),
        Limit("AMUSED_MAX_PICTURES", 64, 4, 64, "images per run"),
        Limit("AMUSED_MAX_PIXELS", 1024 * 1024, 512 * 512, 1024 * 1024, "pixels of a generated image"),
        Limit("AMUSED_RUNS_AT_ONCE", 16, 1, 64, "runs that share the model, image by image"),
        Limit("AMUSED_QUEUE", 40, 0, 1000, "further runs that may wait; later ones are refused at once"),
        Limit("AMUSED_REQUEST_SECONDS", 3600, 10, 86_400, "seconds of model time per run"),
        Limit("AMUSED_SESSIONS", 1000, 50, 10_000, "sessions (tabs and clients) kept in memory, 0.6 MB each"),
        Limit("AMUSED_CACHE_HOURS", 24, 1, 720, "hours that images are kept"),
        Limit("AMUSED_CACHE_MEGABYTES", 5000, 50, 1_000_000, "megabytes of images that are kept"),
    )
}


def setting(variable: str) -> int:
    try:
        return LIMITS[variable].read(os.environ)
    except UserError as error:  # raised during import, where no caller could report it
        raise SystemExit(str(error)) from None


def switched_on(variable: str) -> bool:
    """Whether an environment variable is "1", "true", "yes" or "on"."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


MAX_PICTURE_PIXELS = setting("AMUSED_MAX_PICTURE_PIXELS")
MAX_PICTURE_BYTES = setting("AMUSED_MAX_PICTURE_BYTES")
MAX_PROMPT = setting("AMUSED_MAX_PROMPT")
MAX_STEPS = setting("AMUSED_MAX_STEPS")
MAX_SEEDS = setting("AMUSED_MAX_PICTURES")
MAX_PIXELS = setting("AMUSED_MAX_PIXELS")
RUNS_AT_ONCE = setting("AMUSED_RUNS_AT_ONCE")
QUEUE_LENGTH = setting("AMUSED_QUEUE")
REQUEST_SECONDS = setting("AMUSED_REQUEST_SECONDS")
SESSIONS = setting("AMUSED_SESSIONS")
CACHE_SECONDS = 3600 * setting("AMUSED_CACHE_HOURS")
CACHE_BYTES = 1_000_000 * setting("AMUSED_CACHE_MEGABYTES")
