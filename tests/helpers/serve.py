"""The page, served on a free port of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from amused.serving.runtime import Runtime
from amused.ui.page import build_page, launch_options

PAGES: dict[str, gr.Blocks] = {}  # by address


def forget_sessions(address: str) -> None:
    """As Gradio does with those that were used the longest ago."""
    PAGES[address].app.state_holder.session_data.clear()


@contextmanager
def serve(runtime: Runtime, cache: Path, **options: Any) -> Iterator[str]:
    """Give the page's address. Uploads and results are in `cache`; `options` go to Gradio's `launch`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        page = build_page(runtime)
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **{**launch_options(runtime), **options})
        PAGES[address] = page
        yield address
        page.close()


def answers(
    client: httpx.Client,
    event: dict[str, Any],
    sent: list[list[Any]],
    session: str,
    event_data: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What an event of the page (from its configuration) answers to each of these inputs: "data", or "error".

    Those of an event that Gradio queues are all sent before the first answer is read.
    """
    common = {"fn_index": event["id"], "session_hash": session, "event_data": event_data}
    bodies = [{**common, "data": data} for data in sent]
    if not event["queue"]:
        return [client.post("gradio_api/run/predict", json=body).json() for body in bodies]
    joined = [client.post("gradio_api/queue/join", json=body).json()["event_id"] for body in bodies]
    done: dict[str, dict[str, Any]] = {}
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}, timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line else {}
            if message.get("msg") == "process_completed":
                done[message["event_id"]] = message["output"]
            if len(done) == len(joined):
                break
    return [done[one] for one in joined]
