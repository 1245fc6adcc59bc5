"""When Python looks for garbage."""

from __future__ import annotations

import gc

import pytest

from amused.memory import paused_collection


def test_a_pause_ends_also_with_an_error() -> None:
    with pytest.raises(KeyError), paused_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_pause_within_a_pause_does_not_end_it() -> None:
    with paused_collection():
        with paused_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
