"""What the page's event handlers take and give.

An event whose inputs are a *set* of components gives its handler one mapping, component to value. The handler returns
or yields a mapping of the components that change; `NO_CHANGE` means that none does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import Block

Values = Mapping[Block, Any]
Updates = dict[Block, Any]
NO_CHANGE: Updates = gr.skip()


def merge(updates: Sequence[Updates]) -> Updates:
    """One update that does what these do one after another."""
    if len(updates) == 1:
        return updates[0]
    changed: dict[Block, dict[str, Any]] = {}
    for update in updates:
        for component, value in update.items():
            is_plain = not isinstance(value, Block)
            changed.setdefault(component, {}).update({"value": value} if is_plain else value.constructor_args)
    # Not `gr.update`, of which Gradio (6.31) drops what is None.
    return {
        component: properties["value"] if set(properties) == {"value"} else type(component)(**properties)
        for component, properties in changed.items()
    }


# For UI-only events: they bypass the generation queue.
UI_ONLY: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# For events that use the model: the runtime decides who is next. Gradio would finish one run before it starts another.
SAMPLING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}

SHOW_JS = "() => { document.getElementById('%s')?.scrollIntoView({block: 'nearest'}); }"


def scroll_to(place: Block, event: Any) -> None:
    """After the event, bring what it opened into view; a page may be longer than the window."""
    event.then(None, None, None, js=SHOW_JS % place.elem_id, show_progress="hidden")
