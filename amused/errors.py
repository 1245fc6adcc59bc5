"""Errors whose message is meant for people."""

from __future__ import annotations

import errno


class UserError(ValueError):
    """One plain sentence that says what to do. Safe to show: no path, no token, no traceback."""


class CheckpointError(UserError):
    """A checkpoint cannot be used. Names the file (as it is called inside the checkpoint) and the key."""


def chain(error: BaseException) -> list[BaseException]:
    """An error, and all that caused it."""
    errors: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in errors:
        errors.append(cause)
        cause = cause.__cause__ or cause.__context__
    return errors


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
