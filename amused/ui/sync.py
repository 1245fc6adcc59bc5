"""What follows something as it changes: of what the changes bring about, that of the latest stays.

Gradio's `trigger_mode="always_last"` alone does not promise this. Between a change and its request lies the gathering
of the inputs, which for a picture editor uploads the picture; changes within that time all start requests of their own,
and these are answered in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from amused.ui.inputs import Carried
from amused.ui.settings import AT_ONCE

COUNT_JS = "() => (window.amusedChanges = (window.amusedChanges || 0) + 1)"
CARRY_JS = """(change, drawing) => {
    const latest = (window.amusedCarried ||= {});
    if (change < (latest["%s"] || 0)) return { __type__: "update" };
    latest["%s"] = change;
    return drawing;
}"""


def carry(events: Sequence[Any], carried: Carried) -> Any:
    """Bring what is drawn to `carried`, at any of these events; gives the last event of this, for what comes `then`.

    Gradio (6.31) asks whatever has been an input or an output of an event of the server for its value again, at each
    news of each run, and a picture editor answers by sending all of its pictures there: some hundred times while one
    picture is made. So it is only an input of this, which the browser does by itself; see also `keep_quiet`.
    """
    change, drawing = gr.Number(0, visible="hidden"), carried.drawing
    return gr.on(events, None, None, change, js=COUNT_JS, **AT_ONCE).then(
        None, [change, drawing], carried, js=CARRY_JS % (drawing.elem_id, drawing.elem_id), **AT_ONCE
    )


def keep_quiet(page: gr.Blocks) -> None:
    """Show no progress on outputs, which AT_ONCE hides in any case: those would be asked too (see `carry`)."""
    with page:
        nowhere = gr.HTML(visible=False)
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [nowhere]


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
