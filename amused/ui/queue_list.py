"""The runs of a tab that wait: a list, in which each can be dropped."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr

from amused.ui.live_runs import LiveRun

DROP_JS = """element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) trigger("click", { run: Number(button.dataset.run) });
});"""


class QueueList:
    """Below Generate while a run goes on: "Queue another", and what waits. `another` does what Generate does."""

    def __init__(self, task: str) -> None:
        with gr.Column(elem_classes="queue", elem_id=f"{task}-queue"):
            self.another = gr.Button("Queue another", size="sm", elem_id=f"{task}-queue-another")
            self.list = gr.HTML(padding=False, js_on_load=DROP_JS, elem_id=f"{task}-waiting")


def show_waiting(runs: Sequence[LiveRun]) -> str:
    """The first run of a tab is not behind another: the status says what it waits for."""
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
