"""A recipe from outside fills the page and waits for a click; nothing is loaded or downloaded by itself.

A link to one image that needs no upload and no download is replayed as the page opens.

Its content is shown as text only. A reload restores what the browser remembers in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from amused.checkpoints.adapters import with_digests
from amused.errors import UserError
from amused.recipe.links import Shared, from_query
from amused.recipe.recipe import INPAINT, STRENGTHS, TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.browser_storage import build_browser_storage, connect_browser_storage, label, restore_settings
from amused.ui.describe import TITLES, describe_origin
from amused.ui.events import (
    LATEST,
    NO_CHANGE,
    REFUSABLE,
    UNQUEUED,
    Updates,
    Values,
    hidden_number,
    on_select,
    scroll_to,
)
from amused.ui.explain import explain
from amused.ui.files import GeneratedImage
from amused.ui.kept_images import KeptImagesView
from amused.ui.model_choice import use_model
from amused.ui.reopen import Reopening, VisitClaim, recipe_of
from amused.ui.runs import RunAction, connect
from amused.ui.sharing import NO_RECIPE, NoRecipe, from_file, from_request, from_text, replay_request, verdict
from amused.ui.status import status_line
from amused.ui.tab import Tab
from amused.wording import plural

RESTORED_JS = "() => window.amusedStart()"
FORGET_LINK_JS = "() => window.amusedForgetLink()"


class Card:
    """Above the tabs: a description of a recipe from outside, and a Replay button per task.

    `shared` is the State of a Shared or None; a change of `opened` replays it.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.shared, self.opened = gr.State(None), hidden_number(0)
        with gr.Column(visible=False, elem_classes="card", elem_id="shared") as self.place:
            self.text = gr.HTML(padding=False, elem_id="shared-text", elem_classes="status-box")
            with gr.Row(elem_classes="card-buttons"):
                self.replay = {
                    task: gr.Button("Replay", size="sm", scale=0, min_width=120, elem_id=f"{task}-replay")
                    for task in tasks
                }
                close = gr.Button("Close", size="sm", scale=0, min_width=90, elem_id="shared-close")
        close.click(lambda: gr.Column(visible=False), None, self.place, js=FORGET_LINK_JS, **UNQUEUED)

    @property
    def outputs(self) -> list[Block]:
        return [self.place, self.text, *self.replay.values(), self.shared, self.opened]

    def show(self, sentences: Sequence[str], shared: Shared | None = None) -> Updates:
        task = None if shared is None else shared.recipe.first.task
        return {
            self.place: gr.Column(visible=True),
            self.text: status_line(*sentences) + ("" if shared is None else describe_origin(shared)),
            self.shared: shared,
            **{button: gr.Button(visible=name == task) for name, button in self.replay.items()},
        }


def is_quick(runtime: Runtime, recipe: Recipe) -> bool:
    """Whether a link may be replayed as the page opens: it costs one image."""
    is_here = not runtime.choice(recipe.model).download or runtime.is_loaded(recipe.model)
    return recipe.first.task == TEXT_TO_IMAGE and len(recipe.seeds) == 1 and is_here


def describe_shared(runtime: Runtime, shared: Shared, is_filled: bool = False) -> list[str]:
    """What the recipe generates, what it needs, and which parts of it were ignored.

    Args:
        is_filled: its settings are filled in, and it waits for Replay.
    """
    recipe, first = shared.recipe, shared.recipe.first
    changed = "" if recipe.parent is None else ", varied or touched up"
    what = f"{TITLES[first.task]} with {recipe.model}, {plural(len(recipe.seeds), 'image')}{changed}."
    if first.task in STRENGTHS:
        needed = "image and mask" if first.task == INPAINT else "image"
        sentences = [
            f"{what} Its settings are filled in." if is_filled else f"From a link: {what}",
            f"It needs the original {needed}: upload below, then press Replay.",
        ]
    elif is_filled:
        sentences = [f"{what} Its settings are filled in: press Replay."]
    else:
        sentences = [f"From a link: {what}"]
    download = runtime.choice(recipe.model).download
    if download and not runtime.is_loaded(recipe.model):
        sentences.append(f"Replay downloads {recipe.model} first ({download}).")
    if shared.ignored:
        sentences.append(f"Ignored (unknown or invalid): {', '.join(shared.ignored)}.")
    return sentences


class RestoreSection:
    """Below the tabs: remembered recipes, and inputs for a file or a link.

    `dropped` is hidden by the style sheet; page.html gives it the file that is dropped on the page.
    """

    def __init__(self) -> None:
        with gr.Accordion("Recent recipes, or restore from an image or link", open=False, elem_id="restore"):
            picker = gr.Dropdown(
                [],
                value=None,
                label="Recent and kept recipes",
                info="Remembered by this browser",
                filterable=False,
                elem_id="restore-recent",
            )
            with gr.Row():
                self.file = gr.File(label="A PNG file made here", height=140, elem_id="restore-file")
                with gr.Column():
                    self.text = gr.Textbox(
                        label="A link or recipe", placeholder="Paste it here", max_lines=3, elem_id="restore-link"
                    )
                    self.button = gr.Button("Restore", size="sm", elem_id="restore-open")
        self.dropped = gr.UploadButton("Dropped file", elem_id="dropped-file")
        self.storage = build_browser_storage(picker)


@dataclass(frozen=True)
class PageFiller:
    """Fills the page with a recipe and shows it on the card."""

    runtime: Runtime
    tabs: Sequence[Tab]
    tab_bar: gr.Tabs
    card: Card

    @property
    def outputs(self) -> list[Block]:
        return [*self.card.outputs, self.tab_bar, *(part for tab in self.tabs for part in tab.fillable)]

    @property
    def adapters(self) -> list[Component]:
        return [tab.settings.adapter for tab in self.tabs]

    def fill(self, read: Callable[[], Shared | None], adapters: Values, is_link: bool = False) -> Updates:
        """Show a recipe from outside on the card and in its own tab. A quick link runs.

        The other tabs take over its model, and drop their adapter (its value in `adapters`) if it does not fit.
        """
        updates = self.show(read, is_filled=True)
        shared: Shared | None = updates.get(self.card.shared)
        if shared is None:
            return updates
        if is_link and is_quick(self.runtime, shared.recipe):
            updates |= self.card.show(describe_shared(self.runtime, shared), shared)
            updates[self.card.opened] = 1
        return {**updates, **self.settings(shared.recipe, adapters)}

    def show(self, read: Callable[[], Shared | None], is_filled: bool = False) -> Updates:
        """Show a recipe from outside on the card alone, or why it cannot be opened."""
        try:
            shared = read()
            if shared is None:
                return {}
            self.runtime.choice(shared.recipe.model)
            with_digests(self.runtime.adapters, shared.recipe)
        except NoRecipe as error:
            return self.card.show([str(error)])
        except Exception as error:
            return self.card.show([f"This recipe cannot be opened. {explain(error)}"])
        return self.card.show(describe_shared(self.runtime, shared, is_filled), shared)

    def settings(self, recipe: Recipe, adapters: Values) -> Updates:
        """Fill in a recipe in its own tab."""
        updates: Updates = {self.tab_bar: gr.Tabs(selected=recipe.first.task)}
        for tab in self.tabs:
            if tab.task == recipe.first.task:
                updates |= tab.from_recipe(recipe)
            else:
                updates |= use_model(self.runtime, tab.settings, recipe.model, adapters[tab.settings.adapter])
        return updates

    def connect(self, events: Sequence[Any], sources: set[Component], read: Callable[[Values], Shared | None]) -> None:
        """Fill the page at these events, and scroll to the card: what it says must be seen."""

        def fill(values: Values) -> Updates:
            return self.fill(lambda: read(values), values)

        scroll_to(self.card.place, gr.on(events, fill, {*sources, *self.adapters}, self.outputs, **LATEST))


def connect_restore(
    page: gr.Blocks, filler: PageFiller, section: RestoreSection, tray: KeptImagesView, reopening: Reopening
) -> None:
    """Open the visit, links, files, pasted and remembered recipes."""
    storage, tabs, history = section.storage, filler.tabs, reopening.history

    def open_page(values: Values, request: gr.Request) -> Updates:
        """A link wins over what the browser remembers, but for a reload: the visitor has worked on since."""
        restored = restore_settings(filler.runtime, tabs, values[storage.settings])
        if VisitClaim.read(values[reopening.view.id]).is_reload:
            filled = filler.show(lambda: from_request(request))
        else:
            adapters: Updates = {adapter: restored.get(adapter, "") for adapter in filler.adapters}
            filled = filler.fill(lambda: from_request(request), adapters, is_link=True)
        opened = reopening.open(values, request.session_hash)
        remembered = storage.open(opened[reopening.view.visit].shared, values)
        return {**opened, **restored, **filled, **remembered}

    outputs = list(dict.fromkeys([*reopening.outputs, *filler.outputs, storage.shared, storage.picker]))
    opened = reopening.find(page).then(open_page, {*storage.states, *reopening.inputs}, outputs, **UNQUEUED)
    opened.then(None, None, None, js=RESTORED_JS, **UNQUEUED)
    reopening.connect(opened)

    def restore_entry(values: Values) -> Updates:
        entry = history.at(values[history.shown], values[history.index])
        visit = values[reopening.view.visit]
        if entry is None or visit is None:
            return NO_CHANGE
        shown = reopening.restore(entry, visit)
        return {**filler.settings(recipe_of(entry), values), **shown}

    def clear_history(values: Values) -> Updates:
        return {**reopening.clear(values[reopening.view.visit]), **storage.clear_recent(values[storage.shared])}

    cleared = [*history.outputs, storage.recent, storage.picker]
    history.clear.click(clear_history, {reopening.view.visit, storage.shared}, cleared, **UNQUEUED)
    inputs: set[Block] = {history.shown, reopening.view.visit, *filler.adapters}
    on_select(history.gallery, history.index, restore_entry, inputs, outputs, **REFUSABLE)
    model = tabs[0].settings.model  # which is that of all tabs
    for file in (section.file, section.dropped):
        connect_file(filler, file, model)

    def read_given(values: Values) -> Shared:
        if not (values[section.text] or "").strip() and values[section.file] is not None:
            return from_file(values[section.file], filler.runtime, values[model])
        return from_text(values[section.text])

    given = {section.text, section.file, model}
    filler.connect([section.button.click, section.text.submit], given, read_given)
    filler.connect([storage.picker.input], {storage.picker}, lambda values: from_query(values[storage.picker] or ""))
    for tab in tabs:
        connect_replay(tab, filler.card)
    connect_browser_storage(storage, reopening.result, tabs, tray)


def connect_file(filler: PageFiller, file: gr.File | gr.UploadButton, model: gr.Dropdown) -> None:
    def read(values: Values) -> Shared:
        return from_file(values[file], filler.runtime, values[model])

    filler.connect([file.upload], {file, model}, read)


def connect_replay(tab: Tab, card: Card) -> None:
    """Run exactly the recipe, whatever the settings are now, with the tab's input images."""

    def read(values: Values) -> Request:
        shared = values[card.shared]
        if shared is None:
            raise UserError(NO_RECIPE)
        return replay_request(shared, *tab.read_images(values, shared.recipe.first.image))

    def compare(values: Values, images: Sequence[GeneratedImage]) -> str:
        return verdict(values[card.shared], images[0]) if len(images) == 1 else ""

    def name(values: Values) -> str:
        return "Replay" if values[card.shared] is None else f"Replay of {label(values[card.shared].recipe)}"

    inputs = {card.shared, *tab.sources}
    action = RunAction(read=read, inputs=inputs, name=name, remark=compare)
    opened = [card.opened.change] if tab.task == TEXT_TO_IMAGE else []
    connect(tab.runtime, tab.result, [card.replay[tab.task].click, *opened], action)
