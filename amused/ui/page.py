"""The page: its heading, the three tabs, the programs' way in, and how it is launched."""

from __future__ import annotations

import os
import weakref
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from amused.limits import MAX_PICTURE_BYTES, QUEUE_LENGTH, RUNS_AT_ONCE, SESSIONS
from amused.serving import file_cache, metrics
from amused.serving.runtime import Runtime
from amused.ui import api, gallery_actions, sharing
from amused.ui.settings import follow_adapters, follow_model
from amused.ui.sync import keep_quiet
from amused.ui.tabs import image as image_tab
from amused.ui.tabs import inpaint as inpaint_tab
from amused.ui.tabs import text as text_tab
from amused.ui.uploads import GatedBlocks

HERE = Path(__file__).parent
OTHER_THREADS = 40  # for all that is not a run

HEADING = "# aMUSEd\nPictures from words, many tokens at a time."


def build_page(runtime: Runtime) -> gr.Blocks:
    """The whole page. Loads no model: what it offers is known from the runtime's choices."""
    file_cache.choose_folder()
    # Gradio makes a table of so many past events after each one, which nobody looks at.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    with GatedBlocks(title="aMUSEd", analytics_enabled=False) as page:
        gr.Markdown(HEADING, elem_classes="heading")
        card = sharing.build_card()
        with gr.Tabs() as tabs:
            panels = [text_tab.build(runtime), image_tab.build(runtime), inpaint_tab.build(runtime)]
        follow_model(runtime, panels)
        follow_adapters(runtime, panels, page)
        kept = gallery_actions.build(runtime, tabs, panels)
        sharing.wire(runtime, page, panels, tabs, card, sharing.build_restore(), kept.tray, kept.gallery)
        api.build(runtime)
    keep_quiet(page)
    file_cache.sweep_while(partial(files_in_use, weakref.ref(page)))
    # The runtime lets in or refuses; this is a bound for what gets no thread to ask it.
    return page.queue(max_size=RUNS_AT_ONCE + QUEUE_LENGTH)


def files_in_use(page: weakref.ref[gr.Blocks]) -> set[str] | None:
    """Files that the page itself offers, such as examples; None once the page is gone."""
    blocks = page()
    if blocks is None:
        return None
    return {file for block in blocks.blocks.values() for file in getattr(block, "keep_in_cache", ())}


def launch_options(runtime: Runtime | None = None) -> dict[str, Any]:
    """How the page looks and what it may serve; host and port are the caller's.

    With a runtime there is the owner's page, too, if the environment asks for it.

    Raises:
        UserError: it does so in a way that is not safe.
    """
    return {
        "app_kwargs": {"routes": metrics.routes(runtime.metrics)} if runtime is not None else None,
        "theme": theme(),
        "css_paths": [HERE / "page.css"],
        "head_paths": [HERE / "page.html"],
        "footer_links": ["api", "gradio"],
        "mcp_server": find_spec("mcp") is not None,  # with the extra gradio[mcp]
        "max_file_size": MAX_PICTURE_BYTES,
        "max_threads": RUNS_AT_ONCE + QUEUE_LENGTH + OTHER_THREADS,  # a run that waits blocks one now and then
        "state_session_capacity": SESSIONS,  # Gradio keeps a copy of the page's configuration for each
        "allowed_paths": [],
        "ssr_mode": False,
        "run_history": False,
        "show_error": False,
        "enable_monitoring": False,
    }


def theme() -> gr.themes.Base:
    # Fonts of the visitor's own system: nothing to fetch, from here or elsewhere.
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # A step darker than the theme's own, for 4.5:1 against what is behind them.
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
