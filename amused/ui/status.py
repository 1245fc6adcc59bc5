"""The line below the gallery: what a run is doing, and how it ended."""

from __future__ import annotations

import html
from collections.abc import Sequence

from amused.serving.jobs import Progress, Summary
from amused.wording import plural


def status_line(*sentences: str) -> str:
    """A state that lasts; screen readers announce it."""
    paragraphs = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="status" role="status">{paragraphs}</div>'


def busy_line(text: str, share: float | None = None) -> str:
    """What is being done, above a progress bar. Not announced, as it changes with every step."""
    value = "" if share is None else f'max="1" value="{share:.3f}"'
    progress = f'<progress {value} aria-label="Progress"></progress>'
    return f'<div class="status" aria-live="off"><p>{html.escape(text)}</p>{progress}</div>'


def describe_progress(event: Progress) -> str:
    if event.num_done is None:
        text = f"Image {event.index + 1} of {event.num_images}, step {event.step} of {event.steps}"
    else:
        text = f"{event.num_done} of {plural(event.num_images, 'image')} finished"
    if event.seconds_left is None or event.seconds_left < 0.5:
        return text
    return f"{text}, about {describe_seconds(event.seconds_left)} left"


def describe_summary(event: Summary, num_dropped: int = 0) -> str:
    """How a run ended; `num_dropped` queued runs of its page were cancelled with it."""
    if event.stopped:
        note = f"Stopped after {event.num_done} of {event.num_images}" if event.num_done else "Stopped"
        return f"{note}. Cancelled {plural(num_dropped, 'queued run')}" if num_dropped else note
    note = f"{plural(event.num_done, 'image')} in {describe_seconds(event.seconds)}"
    if event.num_moved:
        note += f". A worker was lost: another one made {plural(event.num_moved, 'image')}"
    return f"{note}. {describe_cut(event.cut)}" if event.cut else note


def describe_cut(cut: Sequence[str]) -> str:
    """Which of the texts ("prompt", "negative prompt") the model did not read to the end."""
    if len(cut) == 1:
        return f"The {cut[0]} is longer than the model can read: its end was ignored"
    return f"The {' and the '.join(cut)} are longer than the model can read: their ends were ignored"


def describe_seconds(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"
