"""What the page's event handlers take and give.

An event whose inputs are a *set* of components gives its handler one mapping, component to value. The handler returns
or yields a mapping of the components that change; if none does, it is empty or `NO_CHANGE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
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


# For UI-only events that are never refused: they bypass Gradio's queue, and with it (6.31) the message of an error.
UNQUEUED: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# For UI-only events that may be refused: the visitor sees the sentence.
REFUSABLE: dict[str, Any] = {**UNQUEUED, "queue": True, "concurrency_limit": None}

# For UI-only events that follow their inputs: a second one is answered after the first. Gradio drops it by default.
LATEST: dict[str, Any] = {**UNQUEUED, "trigger_mode": "always_last"}

# For events that use the model: the runtime decides who is next. Gradio would finish one run before it starts another.
SAMPLING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}


def hidden_number(value: int = -1, **options: Any) -> gr.Number:
    """What a script says to an event, or one event to another. Without a container Gradio builds no form around it."""
    return gr.Number(value, precision=0, visible="hidden", container=False, **options)


class SentNumber(gr.Number):
    """Hidden: an input whose value is that of a script's expression at the time of the event, see `send`."""

    is_template = True  # for Gradio a Number
    expression: str


def sent_number(expression: str) -> SentNumber:
    number = SentNumber(-1, precision=0, visible="hidden", container=False)
    number.expression = expression
    return number


def selected_index(gallery: gr.Gallery) -> SentNumber:
    """The index of its selected image as the visitor sees it, -1 if there is none.

    The server may not know of the last arrow key yet.
    """
    return sent_number(f"window.amusedSelected('{gallery.elem_id}')")


def send(inputs: AbstractSet[Block]) -> str:
    """The script of an event with these inputs, some of which are `SentNumber`s. Gradio sorts them by their ids."""
    blocks = sorted(inputs, key=lambda block: block._id)
    sent = [(place, block.expression) for place, block in enumerate(blocks) if isinstance(block, SentNumber)]
    return "(...values) => values" + "".join(f".toSpliced({place}, 1, {expression})" for place, expression in sent)


def on_select(
    gallery: gr.Gallery,
    index: SentNumber,
    handler: Callable[[Values], Updates],
    inputs: AbstractSet[Block],
    outputs: Sequence[Block],
    closing: bool = False,
    **options: Any,
) -> None:
    """Answer a selection; the handler finds the index in `index`.

    Arrow keys and clicks may be quicker than the answers. "always_last" (Gradio 6.31) then asks once more, but with the
    data of the event before: hence the index of what is selected by then.

    Args:
        closing: answer also when the open image is closed; the index is -1.
        options: of the event, instead of those of `LATEST`.
    """
    given = {index, *inputs}
    events = [gallery.select, gallery.preview_close] if closing else [gallery.select]
    gr.on(events, handler, given, outputs, js=send(given), **(LATEST | options))


# A frame later: by then it is there.
SHOW_JS = "() => { requestAnimationFrame(() => document.getElementById('%s')?.scrollIntoView({block: 'nearest'})); }"


def scroll_to(place: Block, event: Any) -> None:
    """After the event, bring what it opened into view; a page may be longer than the window."""
    event.then(None, None, None, js=SHOW_JS % place.elem_id, show_progress="hidden")
