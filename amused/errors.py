"""Errors whose message is meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """One plain sentence that says what to do. Safe to show: no path, no token, no traceback."""


class CheckpointError(UserError):
    """A checkpoint cannot be used. Names the file (as it is called inside the checkpoint) and the key."""
