"""The runs of a page that wait: a list, in which each can be dropped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from amused.ui.live_runs import LiveRun

DROP_JS = """element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) trigger("click", { run: Number(button.dataset.run) });
});"""


def show_waiting(runs: Sequence[LiveRun]) -> str:
    """The first run is not behind another: the status says what it waits for."""
    waiting = [run for run in runs[1:] if not run.has_started and not run.is_dropped]
    if not waiting:
        return ""
    entries = "".join(
        f'<li><span>{html.escape(run.name)}</span> <button type="button" data-run="{run.number}" '
        f'aria-label="Drop {html.escape(run.name)}">Drop</button></li>'
        for run in waiting
    )
    return f'<div class="waiting"><p>Waiting</p><ol>{entries}</ol></div>'


def drop(runs: Sequence[LiveRun], number: object) -> None:
    """Cancel the run of this number if it still waits."""
    for run in runs:
        if run.number == number and not run.has_started:
            run.is_dropped = True
