"""Recipes that come from outside, in a link or a picture, and recipes that go there; what the browser remembers.

A recipe from outside fills the page and waits for a click: nothing is run, loaded or fetched by itself, and whatever
was in it is shown as text only.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from amused.errors import UserError
from amused.generation.images import check_digest, read_bytes
from amused.recipe.links import MAX_METADATA, Shared, from_png_file, from_query, parse_json, to_query
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, MAX_SEEDS, STRENGTHS, TEXT_TO_IMAGE, Recipe, parse_seeds
from amused.serving.runtime import Runtime
from amused.ui.run import Request, Run, TabState, as_request, connect, explain, sample
from amused.ui.settings import AT_ONCE, Panel, fill, fill_model, read_recipe

MAX_REMEMBERED = 30
MAX_REMEMBERED_LENGTH = 4000  # of one recipe: the browser keeps a few megabytes in all
NO_RECIPE = "This holds no recipe: paste a link that was copied from this page."
TITLES = {TEXT_TO_IMAGE: "Text to image", IMAGE_TO_IMAGE: "Image to image", INPAINT: "Inpaint"}

COPY_LINK = "Copy link"
COPY_JS = "(link) => window.amusedCopyLink(link)"
# Settings are written down by the browser itself, and only after those of the last visit were put in place.
REMEMBER_JS = "(former, ...values) => [window.amusedRestored ? values : former]"
RESTORED_JS = "() => { window.amusedRestored = true; }"
ANNOUNCE_JS = "(text) => window.amusedAnnounce(text)"
SECRET = "amused"  # fixed, or what is remembered is lost at each restart; nothing in it is secret


# Going out


def link(base: str | gr.Request, recipe: Recipe, digest: str | None = None, made: str | None = None) -> str:
    """A link to this page that carries the recipe of one picture.

    Args:
        base: the page's address or a request from the page. With "" the link is only the query, which the button that
            copies it puts behind the address that the browser knows.
        digest: of the picture's pixels.
        made: on what it was made (`Result.fingerprint`).
    """
    address = page_address(base) if isinstance(base, gr.Request) else base
    return f"{address.partition('#')[0].partition('?')[0]}?{to_query(recipe, digest, made)}"


def page_address(request: gr.Request) -> str:
    """As the browser knows it: behind a Space's proxies the server itself does not."""
    return request.headers.get("referer") or ""


@dataclass(frozen=True)
class CopyLink:
    """A button, and the link it copies: the event that picks an image sets both by `offer_link`."""

    address: gr.Textbox
    button: gr.Button

    def outputs(self) -> list[Any]:
        return [self.address, self.button]


def build_copy_link(elem_id: str, **look: Any) -> CopyLink:
    """A "Copy link" button. Where the browser forbids copying it shows the link instead, to be copied by hand."""
    button = gr.Button(COPY_LINK, elem_id=f"{elem_id}-copy-link", **{"size": "sm", "min_width": 110, **look})
    address = gr.Textbox(label="Link", visible=False, interactive=False, buttons=["copy"], elem_id=f"{elem_id}-link")
    button.click(None, address, [button, address], js=COPY_JS, **AT_ONCE)
    return CopyLink(address, button)


def offer_link(address: str) -> list[Any]:
    """Updates for `CopyLink.outputs()`."""
    return [gr.Textbox(value=address, visible=False), gr.Button(COPY_LINK)]


# Coming in


def from_request(request: gr.Request) -> Shared | None:
    """What the page's address holds. Gradio's and a Space's own parameters start with two underscores."""
    parts = request.request.url.query.split("&") if request.request else []
    return from_query("&".join(part for part in parts if not part.startswith("__")))


def from_text(text: str) -> Shared:
    """A recipe that was pasted: a link, the query of one, or JSON."""
    text = text.strip()
    if text.startswith("{"):
        return parse_json(text)
    query = (text[: MAX_METADATA + 1].partition("?")[2] or text).partition("#")[0]
    shared = from_query("&".join(part for part in query.split("&") if not part.startswith("__")))
    if shared is None:
        raise UserError(NO_RECIPE)
    return shared


def from_file(path: str) -> Shared:
    shared = from_png_file(read_bytes(Path(path)))
    if shared is None:
        raise UserError("This picture carries no recipe: choose one that was downloaded from here.")
    return shared


# What is shown of it


@dataclass(frozen=True)
class Card:
    """What the page says of a recipe from outside, and the click that runs it: a button for each tab's own result."""

    box: gr.Column
    text: gr.HTML
    replays: dict[str, gr.Button]
    shared: gr.State

    def outputs(self) -> list[Any]:
        return [self.box, self.text, *self.replays.values(), self.shared]


def build_card() -> Card:
    with gr.Column(visible=False, elem_classes="card", elem_id="shared") as box:
        text = gr.HTML(padding=False, elem_id="shared-text", elem_classes="told")
        with gr.Row(elem_classes="card-buttons"):
            replays = {
                task: gr.Button("Replay", size="sm", scale=0, min_width=120, elem_id=f"{task}-replay")
                for task in TITLES
            }
            close = gr.Button("Close", size="sm", scale=0, min_width=90, elem_id="shared-close")
    close.click(lambda: gr.Column(visible=False), None, box, **AT_ONCE)
    return Card(box, text, replays, gr.State(None))


def describe(runtime: Runtime, shared: Shared) -> list[str]:
    """In plain sentences: what the recipe makes, what it needs, what was passed over."""
    recipe, first = shared.recipe, shared.recipe.first
    pictures = "one picture" if len(recipe.seeds) == 1 else f"{len(recipe.seeds)} pictures"
    changed = ", then varied or touched up" if recipe.parent is not None else ""
    said = [f"A recipe of {pictures} with {recipe.model}: {TITLES[first.task].lower()}{changed}. Its settings are set."]
    if first.task in STRENGTHS:
        names = [f"{part} {value}" for part in ("image", "mask") if (value := getattr(first, part))]
        named = f" ({', '.join(names)})" if names else ""
        said.append(f"It starts from a picture that is not in it{named}: choose that file below, then replay.")
    download = runtime.choice(recipe.model).download
    if download and not runtime.is_loaded(recipe.model):
        said.append(f"To replay it {recipe.model} is downloaded first, {download}.")
    if shared.ignored:
        said.append(f"Passed over, as not known or not valid: {', '.join(shared.ignored)}.")
    return said


def verdict(shared: Shared, made: str, here: str | None) -> str:
    """Whether a replay gave the picture that the link tells of, and if not, why.

    Args:
        made: the digest of the replay's picture.
        here: on what it was made.
    """
    if shared.digest is None:
        return "The recipe names no picture to compare it with."
    if made == shared.digest:
        return "The same picture, bit for bit."
    if shared.made is None:
        return "Not the same picture, bit for bit: the recipe does not say on what device it was made."
    if shared.made != here:
        return f"Not the same picture, bit for bit: it was made on {shared.made}, here it is {here}."
    return "Not the same picture, bit for bit: made on another processor, or the link was changed."


def paragraphs(*sentences: str) -> str:
    return '<div class="status">' + "".join(f"<p>{html.escape(one)}</p>" for one in sentences) + "</div>"


# Wiring


@dataclass(frozen=True)
class Restore:
    recent: gr.Dropdown
    file: gr.File
    text: gr.Textbox
    button: gr.Button


def build_restore() -> Restore:
    with gr.Accordion("Recent recipes, or restore from a picture or link", open=False, elem_id="restore"):
        recent = gr.Dropdown(
            [],
            value=None,
            label="Recent and kept recipes",
            info="Remembered by this browser",
            filterable=False,
            elem_id="restore-recent",
        )
        with gr.Row():
            file = gr.File(label="A PNG file made here", height=140, elem_id="restore-file")
            with gr.Column():
                text = gr.Textbox(
                    label="A link or recipe", placeholder="Paste it here", max_lines=3, elem_id="restore-link"
                )
                button = gr.Button("Restore", size="sm", elem_id="restore-open")
    return Restore(recent, file, text, button)


def wire(
    runtime: Runtime,
    page: gr.Blocks,
    panels: list[Panel],
    tabs: gr.Tabs,
    card: Card,
    restore: Restore,
    tray: gr.State,
    kept_gallery: gr.Gallery,
) -> None:
    """Connect everything; `tray` holds the kept pictures, which `kept_gallery` shows."""
    settings = [part for panel in panels for part in panel.settings.inputs()]
    remembered = gr.BrowserState([], storage_key="amused-settings", secret=SECRET)
    recents = gr.BrowserState([], storage_key="amused-recent", secret=SECRET)
    kept = gr.BrowserState([], storage_key="amused-kept", secret=SECRET)
    shaping = [part for panel in panels for part in panel.shaping]
    filled = [*card.outputs(), tabs, *shaping, *settings]
    adapters = [panel.settings.adapter for panel in panels]

    def put(read: Callable[[], Shared | None], chosen: Sequence[Any]) -> list[Any]:
        """A recipe from outside into the page, or the reason why not into the card.

        It fills its own tab; the others take over its model, as only one is held in memory, and lose their adapter if
        that does not fit. `chosen` are the tabs' adapters.
        """
        skips = [gr.skip() for _ in [*shaping, *settings]]
        try:
            shared = read()
            if shared is None:
                return [gr.skip() for _ in filled]
            runtime.choice(shared.recipe.model)
            runtime.resolve_adapters(shared.recipe)
        except Exception as error:
            hidden = [gr.Button(visible=False) for _ in card.replays]
            said = paragraphs(f"This was not used. {explain(error)}")
            return [gr.Column(visible=True), said, *hidden, None, gr.skip(), *skips]
        task = shared.recipe.first.task
        shapes: list[Any] = []
        values: list[Any] = []
        for panel, adapter in zip(panels, chosen, strict=True):
            if panel.task == task:
                shapes += panel.shape(shared.recipe.first)
                values += fill(shared.recipe)
            else:
                shapes += [gr.skip() for _ in panel.shaping]
                values += fill_model(runtime, shared.recipe.model, adapter)
        replays = [gr.Button(visible=name == task) for name in card.replays]
        said = paragraphs(*describe(runtime, shared))
        return [gr.Column(visible=True), said, *replays, shared, gr.Tabs(selected=task), *shapes, *values]

    def arrive(request: gr.Request, former: Any, recent: Any, kept: Any) -> list[Any]:
        """A reload, or a link: the link wins over what the browser remembers."""
        put_back = restored(runtime, panels, former)
        from_link = put(lambda: from_request(request), [put_back[settings.index(one)] for one in adapters])
        values = [mine if is_skip(theirs) else theirs for mine, theirs in zip(put_back, from_link[-len(settings) :])]
        return [*from_link[: -len(settings)], *values, choices(recent, kept)]

    page.load(
        arrive, [remembered, recents, kept], [*filled, restore.recent], **AT_ONCE
    ).then(None, None, None, js=RESTORED_JS, **AT_ONCE)  # fmt: skip
    gr.on([part.change for part in settings], None, [remembered, *settings], remembered, js=REMEMBER_JS, **AT_ONCE)

    restore.file.upload(
        lambda path, *chosen: put(lambda: from_file(path), chosen), [restore.file, *adapters], filled, **AT_ONCE
    )
    gr.on(
        [restore.button.click, restore.text.submit],
        lambda text, *chosen: put(lambda: from_text(text), chosen),
        [restore.text, *adapters],
        filled,
        **AT_ONCE,
    )
    restore.recent.input(
        lambda query, *chosen: put(lambda: from_query(query or ""), chosen),
        [restore.recent, *adapters],
        filled,
        **AT_ONCE,
    )
    for panel in panels:
        inputs = [] if panel.task == TEXT_TO_IMAGE else [*panel.own, *panel.settings.inputs()]
        replayed = partial(replay, runtime, panel)
        connect(panel, [card.replays[panel.task].click], replayed, [card.shared, *inputs], bring=panel.bring)
        panel.result.ended.change(record, [panel.result.run, recents, kept], [recents, restore.recent], **AT_ONCE)
        panel.result.status.change(None, panel.result.status, None, js=ANNOUNCE_JS, **AT_ONCE)
    # By the gallery: the browser does not hear that a State was changed by an event with `queue=False` (Gradio 6.31).
    kept_gallery.change(keep, [tray, recents, kept], [kept, restore.recent], **AT_ONCE)


def is_skip(update: Any) -> bool:
    return isinstance(update, dict) and set(update) == {"__type__"}


def replay(
    runtime: Runtime, panel: Panel, former: Run, tab: TabState, tag: bool, shared: Shared, *values: Any
) -> Iterator[list[Any]]:
    """Run exactly the recipe, whatever the page's settings are by now, and compare the picture with the recipe's."""

    def read() -> Request:
        if panel.task == TEXT_TO_IMAGE:
            return shared.recipe, None, None
        _, image, mask = panel.read(*values)
        return checked(shared.recipe, image, mask)

    for update in sample(runtime, former, tab, tag, lambda: as_request(read())):
        run = update[2]
        if isinstance(run, Run) and run.note and run.made == run.wanted == 1:
            answer = verdict(shared, run.shots[-1].digest, run.shots[-1].made)
            update = [*update]
            update[2] = replace(run, note=f"{answer} {run.note}")
        yield update


def checked(recipe: Recipe, image: Image.Image | None, mask: Image.Image | None) -> Request:
    """The recipe with the pictures for it, if they are those that it names."""
    check_digest(image, recipe.first.image, "image")
    check_digest(mask, recipe.first.mask, "mask")
    return recipe, image, mask


# What the browser remembers


def restored(runtime: Runtime, panels: list[Panel], former: Any) -> list[Any]:
    """The settings of the last visit, tab by tab; a tab with one that is not valid stays as it is."""
    values: list[Any] = []
    count = len(panels[0].settings.inputs())
    whole = isinstance(former, list) and len(former) == count * len(panels)
    for index, panel in enumerate(panels):
        mine = former[index * count : (index + 1) * count] if whole else []
        try:
            values += put_back(runtime, panel.task, *mine)
        except (UserError, TypeError):
            values += [gr.skip() for _ in range(count)]
    return values


def put_back(
    runtime: Runtime,
    task: str,
    prompt: str,
    negative_prompt: str,
    seeds: str,
    count: float,
    random_seeds: bool,
    steps: float,
    guidance_scale: float,
    first_temperature: float,
    last_temperature: float,
    strength: float | None,
    model: str,
    adapter: str | None,
    adapter_strength: float,
) -> list[Any]:
    if not isinstance(seeds, str) or not isinstance(random_seeds, bool):
        raise UserError("The settings are damaged.")
    try:
        parse_seeds(seeds)
    except UserError:
        seeds = "0"
    runtime.choice(model)
    recipe = read_recipe(
        task, prompt, negative_prompt, seeds, count, random_seeds, steps, guidance_scale, first_temperature,
        last_temperature, strength, model, adapter if adapter in runtime.adapters_for(model) else None,
        adapter_strength,
    )  # fmt: skip
    updates = fill(recipe)
    updates[2:5] = [gr.Textbox(value=seeds, interactive=not random_seeds), count, random_seeds]
    return updates


def record(run: Run, recents: Any, kept: Any) -> list[Any]:
    """Put the recipe of a run before those of earlier ones; while its pictures arrive it stays one entry."""
    if not run.shots:
        return [gr.skip(), gr.skip()]
    last = run.shots[-1].recipe
    seeds = [shot.seed for shot in run.shots if shot.recipe.with_seeds(last.seeds) == last]
    recipe = last.with_seeds(list(dict.fromkeys(seeds))[-MAX_SEEDS:])
    query = to_query(recipe)
    if len(query) > MAX_REMEMBERED_LENGTH:
        return [gr.skip(), gr.skip()]
    older = [one for one in queries(recents) if recipe_in(one).with_seeds(recipe.seeds) != recipe]
    recents = [query, *older][:MAX_REMEMBERED]
    return [recents, choices(recents, kept)]


def keep(tray: Any, recents: Any, kept: Any) -> list[Any]:
    """Put the recipes of the kept pictures before those of earlier visits, and forget what was discarded."""
    ours = [to_query(shot.recipe, shot.digest, shot.made) for shot in reversed(tray.shots)]
    gone = {to_query(shot.recipe, shot.digest, shot.made) for _, shot in tray.discarded}
    older = [query for query in queries(kept) if query not in ours and query not in gone]
    kept = [query for query in [*ours, *older] if len(query) <= MAX_REMEMBERED_LENGTH][:MAX_REMEMBERED]
    return [kept, choices(recents, kept)]


def queries(remembered: Any) -> list[str]:
    """The recipes in a list that the browser kept, and that anybody may have changed there."""
    listed = remembered[: 2 * MAX_REMEMBERED] if isinstance(remembered, list) else []
    return [one for one in listed if isinstance(one, str) and recipe_in(one) is not None]


def recipe_in(query: str) -> Recipe | None:
    try:
        shared = from_query(query)
    except UserError:
        return None
    return None if shared is None else shared.recipe


def choices(recents: Any, kept: Any) -> gr.Dropdown:
    named = [(f"kept: {label(query)}", query) for query in queries(kept)]
    named += [(label(query), query) for query in queries(recents)]
    return gr.Dropdown(choices=named, value=None)


def label(query: str) -> str:
    recipe = recipe_in(query)
    seeds = f"seed {recipe.seeds[0]}" if len(recipe.seeds) == 1 else f"{len(recipe.seeds)} seeds"
    prompt = recipe.prompt if len(recipe.prompt) <= 70 else recipe.prompt[:70] + "…"
    return f"{prompt or 'no prompt'} · {seeds}"
