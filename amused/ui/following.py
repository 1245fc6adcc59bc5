"""Outputs that follow inputs as they change, such as a preview: the answer to the latest change is the one that stays.

Gradio's `trigger_mode="always_last"` alone does not promise this. Between a change and its request lies the gathering
of the inputs, which for a picture editor uploads the picture; changes within that time all start requests of their own,
and these are answered in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .settings import AT_ONCE

COUNT_JS = "() => (window.amusedChanges = (window.amusedChanges || 0) + 1)"


@dataclass
class Newest:
    """The number of the latest change that a request came for: the same object for all events of a page."""

    change: float = 0


def follow(changes: Sequence[Any], answer: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Keep `outputs` at `answer(*inputs)`, one value an output (one alone is given bare), at any of these changes."""
    change, newest = gr.Number(0, visible="hidden"), gr.State(Newest())
    outdated = gr.skip() if len(outputs) == 1 else [gr.skip()] * len(outputs)

    def answer_latest(number: float, newest: Newest, *values: Any) -> Any:
        if number < newest.change:
            return outdated
        newest.change = number
        answered = answer(*values)
        return answered if newest.change == number else outdated

    # The number is read when the gathering begins, so a higher one comes with values that are at least as new.
    gr.on(changes, None, None, change, js=COUNT_JS, **AT_ONCE).then(
        answer_latest, [change, newest, *inputs], list(outputs), trigger_mode="always_last", **AT_ONCE
    )
