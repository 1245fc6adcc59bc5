"""The page: heading, tabs, sharing, HTTP API; and how it is launched."""

from __future__ import annotations

import os
import weakref
from copy import copy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from amused.limits import MAX_PICTURE_BYTES, QUEUE_LENGTH, RUNS_AT_ONCE, SESSIONS
from amused.memory import paused_collection
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE
from amused.serving import file_cache, metrics
from amused.serving.runtime import Runtime
from amused.ui import api, gallery_actions, kept_images, restore, results, runs, setting_examples
from amused.ui.events import NO_CHANGE, UNQUEUED, Updates
from amused.ui.history import HistoryView
from amused.ui.latest import hide_progress
from amused.ui.model_choice import connect_adapters, connect_models
from amused.ui.ready import ready_images
from amused.ui.reopen import Reopening, VisitView
from amused.ui.tab import Tab
from amused.ui.tabs import image as image_tab
from amused.ui.tabs import inpaint as inpaint_tab
from amused.ui.tabs import text as text_tab
from amused.ui.theme import theme
from amused.ui.uploads import GatedBlocks
from amused.ui.visits import Visits

HERE = Path(__file__).parent
OTHER_THREADS = 40  # for all events that are not runs

TASKS = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT)
HEADING = "# aMUSEd\nImages from text, many tokens at a time."


class AmusedBlocks(GatedBlocks):
    """The page. `reopening` restores the states of pages that stay open for long."""

    reopening: Reopening | None = None

    async def process_api(self, *args: Any, **more: Any) -> dict[str, Any]:
        if self.reopening is not None and (states := more.get("state")) is not None:
            self.reopening.restore_states(states, more.get("session_hash"))
        return await super().process_api(*args, **more)

    def queue(self, **options: Any) -> AmusedBlocks:
        """Gradio calls this once itself; to call it again would create the server application again.

        The runtime admits or refuses runs; `max_size` bounds runs still waiting for a thread.
        """
        return super().queue(**{"max_size": RUNS_AT_ONCE + QUEUE_LENGTH, **options})

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Skip the outputs that a handler leaves unchanged: Gradio (6.31) rebuilds these too, with their schemas."""
        updates = updates_of(predictions)
        if updates is None:
            return await super().postprocess_data(block_fn, predictions, state)
        changing = copy(block_fn)
        changing.outputs = [block for block in block_fn.outputs if block in updates]
        changed = iter(await super().postprocess_data(changing, updates, state) if updates else [])
        return [next(changed) if block in updates else NO_CHANGE for block in block_fn.outputs]


def updates_of(answer: Any) -> Updates | None:
    """What a handler answers, if that is a mapping of components, empty if none changes; None if it is a value."""
    if not isinstance(answer, dict):
        return None
    if answer == NO_CHANGE:
        return {}
    return answer if all(isinstance(key, Block) for key in answer) else None


def build_page(runtime: Runtime) -> gr.Blocks:
    """Build the page. Loads no model: the runtime's choices say what it offers."""
    file_cache.choose_folder()
    # After each event Gradio builds an unused table of this many past events.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    with paused_collection(), AmusedBlocks(title="aMUSEd", analytics_enabled=False) as page:
        gr.Markdown(HEADING, elem_classes="heading")
        card = restore.Card(TASKS)
        with gr.Row(elem_classes="bench"):
            controls = gr.Column(scale=5, min_width=320, elem_classes="controls")
            result = build_result(runtime)
        with controls, gr.Tabs() as tab_bar:
            tabs: list[Tab] = [build(runtime, result) for build in (text_tab.build, image_tab.build, inpaint_tab.build)]
        runs.connect_result(runtime, result)
        connect_models(runtime, tabs)
        connect_adapters(runtime, tabs, page)
        tray_view = kept_images.KeptImagesView()
        kept_images.connect_kept_images(tray_view, result)
        gallery_actions.connect_actions(runtime, result, tabs, tab_bar, tray_view)
        history_view = HistoryView()
        filler = restore.PageFiller(runtime, tabs, tab_bar, card)
        section = restore.RestoreSection()
        lists = section.storage.shared
        reopening = Reopening(Visits(), VisitView(), result, tabs, tab_bar, tray_view, history_view, lists)
        restore.connect_restore(page, filler, section, tray_view, reopening)
        page.reopening = reopening
        api.build(runtime)
        note = gr.Markdown(elem_classes="status-note")
        page.load(runtime.compile_status, None, note, **UNQUEUED)
        hide_progress(page)
    file_cache.sweep_while(partial(files_in_use, weakref.ref(page)))
    return page


def build_result(runtime: Runtime) -> results.ResultView:
    """Shows the ready images of the model that the page starts with."""
    ready = ready_images(runtime.default)
    hint = "Examples. Press Generate to make your own" if ready else "Images appear here, one by one"
    return results.ResultView(TASKS, hint, ready)


def files_in_use(page: weakref.ref[gr.Blocks]) -> set[str] | None:
    """Files of the page itself, such as examples; None once the page is gone."""
    blocks = page()
    if blocks is None:
        return None
    return {file for block in blocks.blocks.values() for file in getattr(block, "keep_in_cache", ())}


def launch_options(runtime: Runtime | None = None) -> dict[str, Any]:
    """Arguments of `launch` except host and port; with a runtime, the owner's metrics if the environment asks for them.

    Raises:
        UserError: the environment asks for metrics in an unsafe way.
    """
    return {
        "app_kwargs": {"routes": metrics.routes(runtime.metrics)} if runtime is not None else None,
        "theme": theme(),
        "css_paths": [HERE / "page.css"],
        "css": setting_examples.style(),
        "head_paths": [HERE / "page.html", HERE / "editor.html"],
        "favicon_path": HERE / "favicon.png",
        "footer_links": ["api", "gradio"],
        "mcp_server": find_spec("mcp") is not None,  # with the extra gradio[mcp]
        "max_file_size": MAX_PICTURE_BYTES,
        "max_threads": RUNS_AT_ONCE + QUEUE_LENGTH + OTHER_THREADS,  # a queued run may block a thread
        "state_session_capacity": SESSIONS,  # Gradio copies the page's configuration for each
        "allowed_paths": [],
        "ssr_mode": False,
        "run_history": False,
        "show_error": False,
        "enable_monitoring": False,
    }
