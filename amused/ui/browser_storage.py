"""What the browser remembers: settings, recent and kept recipes. Untrusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from amused.errors import UserError
from amused.limits import MAX_SEEDS
from amused.recipe.links import from_query, to_query
from amused.recipe.recipe import Recipe
from amused.recipe.seeds import parse_seeds
from amused.serving.runtime import Runtime
from amused.ui.events import UNQUEUED, Updates, Values
from amused.ui.files import GeneratedImage
from amused.ui.kept_images import KeptImages, KeptImagesView
from amused.ui.results import ResultState, ResultView
from amused.ui.settings import Settings, to_recipe
from amused.ui.tab import Tab
from amused.wording import plural, shorten

MAX_RECIPES = 30
MAX_PROMPT_LENGTH = 70  # of a label, in characters
MAX_QUERY_LENGTH = 4000  # the browser keeps a few megabytes in all
SECRET = "amused"  # fixed: a new one at each restart would make browsers forget. Nothing in it is secret

# The browser itself stores the settings, but only after those of the last visit are restored.
REMEMBER_JS = """(former, ...values) => {
    if (!window.amusedRestored) return [former];
    const remembered = {};
    %s.forEach(([task, field], index) => ((remembered[task] ||= {})[field] = values[index]));
    return [remembered];
}"""


@dataclass
class SharedLists:
    """The lists of recipes as all tabs of a browser have them; None until one of them says what the browser has.

    A browser tab knows only those of the time it was opened.
    """

    recent: Any = None
    kept: Any = None


@dataclass(frozen=True)
class BrowserStorage:
    """`settings` is {task: {field of Settings: value}}; the others are lists of queries, the latest first.

    `picker` offers the recipes to open again. `shared` is the State of SharedLists, those of the visit.
    """

    settings: gr.BrowserState
    recent: gr.BrowserState
    kept: gr.BrowserState
    shared: gr.State
    picker: gr.Dropdown

    @property
    def states(self) -> set[Block]:
        return {self.settings, self.recent, self.kept}

    def open(self, shared: SharedLists, values: Values) -> Updates:
        if shared.recent is None:
            shared.recent, shared.kept = values[self.recent], values[self.kept]
        return {self.shared: shared, **self.offer(shared.recent, shared.kept)}

    def clear_recent(self, shared: SharedLists) -> Updates:
        shared.recent = []
        return {self.recent: [], **self.offer([], shared.kept)}

    def offer(self, recent: Any, kept: Any) -> Updates:
        choices = [(f"kept: {label(recipe)}", query) for query, recipe in read_queries(kept).items()]
        choices += [(label(recipe), query) for query, recipe in read_queries(recent).items()]
        return {self.picker: gr.Dropdown(choices=choices, value=None)}

    def add_recent(self, images: Sequence[GeneratedImage], values: Values) -> Updates:
        """Put the recipe of the last image first; more images of the same recipe stay one entry."""
        if not images:
            return {}
        last = images[-1].recipe
        seeds = [image.seed for image in images if image.recipe.with_seeds(last.seeds) == last]
        recipe = last.with_seeds(list(dict.fromkeys(seeds))[-MAX_SEEDS:])
        query = to_query(recipe)
        if len(query) > MAX_QUERY_LENGTH:
            return {}
        shared: SharedLists = values[self.shared]
        former = read_queries(shared.recent)
        older = [one for one, other in former.items() if other.with_seeds(recipe.seeds) != recipe]
        shared.recent = [query, *older][:MAX_RECIPES]
        return {self.recent: shared.recent, **self.offer(shared.recent, shared.kept)}

    def add_kept(self, kept: KeptImages, values: Values) -> Updates:
        """Put the kept images before those of earlier visits, and forget the discarded ones."""
        ours = [image.query for image in reversed(kept.images)]
        discarded = {image.query for _, image in kept.discarded}
        shared: SharedLists = values[self.shared]
        older = [query for query in read_queries(shared.kept) if query not in ours and query not in discarded]
        shared.kept = [query for query in [*ours, *older] if len(query) <= MAX_QUERY_LENGTH][:MAX_RECIPES]
        return {self.kept: shared.kept, **self.offer(shared.recent, shared.kept)}


def build_browser_storage(picker: gr.Dropdown) -> BrowserStorage:
    return BrowserStorage(
        settings=gr.BrowserState({}, storage_key="amused-settings", secret=SECRET),
        recent=gr.BrowserState([], storage_key="amused-recent", secret=SECRET),
        kept=gr.BrowserState([], storage_key="amused-kept", secret=SECRET),
        shared=gr.State(SharedLists()),
        picker=picker,
    )


def connect_browser_storage(
    storage: BrowserStorage, result: ResultView, tabs: Sequence[Tab], tray: KeptImagesView
) -> None:
    """Remember settings as they change, recipes as runs end, and what is kept."""
    fields = [(tab.task, name) for tab in tabs for name in tab.settings.components()]
    settings = [component for tab in tabs for component in tab.settings.components().values()]
    gr.on(
        [component.change for component in settings],  # type: ignore[attr-defined]  # Gradio adds events at run time
        None,
        [storage.settings, *settings],
        storage.settings,
        js=REMEMBER_JS % json.dumps(fields),
        **UNQUEUED,
    )

    def add_recent(values: Values) -> Updates:
        state: ResultState = values[result.state]
        return {} if state.images == result.ready else storage.add_recent(state.images, values)

    outputs = [storage.recent, storage.picker]
    result.ended.change(add_recent, {result.state, storage.shared}, outputs, **UNQUEUED)

    def add_kept(values: Values) -> Updates:
        return storage.add_kept(values[tray.state].kept, values)

    # Follows the gallery: a State that changes in an event with `queue=False` triggers nothing (Gradio 6.31).
    tray.gallery.change(add_kept, {tray.state, storage.shared}, [storage.kept, storage.picker], **UNQUEUED)


# Restoring


def restore_settings(runtime: Runtime, tabs: Sequence[Tab], remembered: Any) -> Updates:
    """Updates to the settings of the last visit. Tabs with an invalid value are skipped."""
    updates: Updates = {}
    for tab in tabs:
        named = remembered.get(tab.task) if isinstance(remembered, Mapping) else None
        if isinstance(named, Mapping):
            try:
                updates |= restore_tab(runtime, tab.settings, named)
            except (UserError, TypeError):
                continue
    return updates


def restore_tab(runtime: Runtime, settings: Settings, remembered: Mapping[str, Any]) -> Updates:
    """Raises UserError or TypeError if a value is invalid."""
    values = {name: remembered.get(name, part.value) for name, part in settings.components().items()}
    if not isinstance(values["seeds"], str) or not isinstance(values["random_seeds"], bool):
        raise UserError("The settings are damaged.")
    try:
        parse_seeds(values["seeds"])
    except UserError:  # half typed
        values["seeds"] = "0"
    runtime.choice(values["model"])
    if values["adapter"] not in runtime.adapters_for(values["model"]):
        values["adapter"] = ""
    return {
        **settings.from_recipe(to_recipe(settings.task, values)),
        settings.seeds: gr.Textbox(value=values["seeds"], interactive=not values["random_seeds"]),
        settings.prompt: values["prompt"],  # as typed
        settings.count: values["count"],
        settings.random_seeds: values["random_seeds"],
    }


def read_queries(remembered: Any) -> dict[str, Recipe]:
    """The valid queries of a list, with their recipes."""
    listed = remembered[: 2 * MAX_RECIPES] if isinstance(remembered, list) else []
    recipes = {query: read_query(query) for query in listed if isinstance(query, str)}
    return {query: recipe for query, recipe in recipes.items() if recipe is not None}


def read_query(query: str) -> Recipe | None:
    try:
        shared = from_query(query)
    except UserError:
        return None
    return None if shared is None else shared.recipe


def label(recipe: Recipe) -> str:
    seeds = f"seed {recipe.seeds[0]}" if len(recipe.seeds) == 1 else plural(len(recipe.seeds), "seed")
    return f"{shorten(recipe.prompt, MAX_PROMPT_LENGTH) or 'no prompt'} · {seeds}"
