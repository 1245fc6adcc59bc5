"""Actions on a generated image: inspect, vary, touch up, improve, keep, send to another tab, share.

The gallery shows the selected image large; its facts and actions are below. A kept image that is opened again may not
be in the gallery: it is shown with its actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import gradio as gr
from gradio.blocks import Block
from PIL import Image

from amused.errors import UserError
from amused.generation.images import fit
from amused.generation.pixel_masks import token_indices
from amused.limits import MAX_SEEDS
from amused.recipe.recipe import IMAGE_TO_IMAGE, IMPROVE, INPAINT, STRENGTHS, TOUCH_UP, VARY
from amused.recipe.sweep import escape
from amused.serving.jobs import Request
from amused.serving.runtime import Runtime
from amused.ui.derive import continue_request, derive_request, painted_cells
from amused.ui.describe import describe_image, note
from amused.ui.drawing import Drawing, build_editor, show_grid
from amused.ui.enlarge import FACTORS, write_enlarged
from amused.ui.events import (
    NO_CHANGE,
    REFUSABLE,
    UNQUEUED,
    Updates,
    Values,
    on_select,
    scroll_to,
    send,
    sent_number,
)
from amused.ui.files import GeneratedImage, open_image
from amused.ui.kept_images import MAX_STARS, KeptImages, KeptImagesView, start_download
from amused.ui.latest import sync
from amused.ui.results import MORE, ResultState, ResultView, build_progress, image_at
from amused.ui.runs import RunAction, connect
from amused.ui.setting_examples import low_high
from amused.ui.settings import Settings
from amused.ui.sharing import CopyLink
from amused.ui.status import status_line
from amused.ui.tab import Tab
from amused.wording import plural

KEEP, KEPT = "Keep", "Kept ♥"
NOTHING_SELECTED = "Select an image first."
LOST = "The server was restarted and no longer has these images: reload the page."
UNFINISHED = "This image is not finished yet."
IMPROVE_ROUNDS = 2  # as long as four steps


class VaryForm:
    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="result-vary-form") as self.place:
            with gr.Row():
                self.mask_ratio = gr.Slider(
                    0.05,
                    1.0,
                    value=0.4,
                    step=0.05,
                    label="How much may change",
                    info="Share of the image's tokens to resample",
                    elem_classes=low_high("mask_ratio"),
                    min_width=160,
                    elem_id="result-mask-ratio",
                )
                self.count = count_slider("result-vary-count")
            self.run = gr.Button("Generate variations", elem_id="result-make-variations")
            self.progress = build_progress("result-vary-progress")


class TouchUpForm:
    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="result-touch-up-form") as self.place:
            self.drawing = build_editor("Paint over what should be repainted", "result-touch-up-editor")
            with gr.Row():
                self.prompt = gr.Textbox(label="Prompt", lines=2, min_width=200, elem_id="result-touch-up-prompt")
                self.count = count_slider("result-touch-up-count")
            self.run = gr.Button("Repaint this area", elem_id="result-repaint")
            self.progress = build_progress("result-repaint-progress")


class DetailsView:
    """The selected image and its actions.

    `selected` is the State of a GeneratedImage or None. `keep_tile` is pressed by page.html, `tile` is the index of its
    tile. `close` closes a kept image; one in the gallery has a button there. `seen_by` is what `seen` needs.
    """

    def __init__(self, result: ResultView) -> None:
        self.buttons: dict[str, gr.Button] = {}
        self.keep_tile = gr.Button(KEEP, visible="hidden", elem_id="result-keep-tile")
        self.tile = sent_number("window.amusedTile")
        self.result, self.selected = result, gr.State(None)
        self.seen_by: set[Block] = {result.state, result.index, self.selected}
        with result.details as self.place:
            self.image = gr.Image(
                label="Kept image",
                format="png",
                interactive=False,
                visible=False,
                height=420,
                buttons=["download", "fullscreen"],
                elem_id="result-kept-image",
            )
            with gr.Row(elem_classes="button-row"):
                self.buttons["keep"] = gr.Button(KEEP, min_width=90, elem_id="result-keep")
                self.buttons["vary"] = gr.Button("Vary", min_width=90, elem_id="result-vary")
                self.buttons["touch up"] = gr.Button("Touch up", min_width=100, elem_id="result-touch-up")
                self.close = gr.Button("Close", visible=False, min_width=90, elem_id="result-close")
            self.stars = gr.Radio(
                [*range(1, MAX_STARS + 1)], label="Stars", elem_id="result-stars", elem_classes="stars"
            )
            self.vary = VaryForm()
            self.touch_up = TouchUpForm()
            with gr.Row(elem_classes="button-row"):
                self.buttons["improve"] = small_button("Improve", 80, "result-improve")
                self.buttons["use seed"] = small_button("Use this seed", 110, "result-use-seed")
                self.compare = compare_button("result-compare-open", result.gallery)
                self.copy_link = CopyLink()
                self.buttons[IMAGE_TO_IMAGE] = small_button("Send to Image to image", 170, "result-to-image")
                self.buttons[INPAINT] = small_button("Send to Inpaint", 110, "result-to-inpaint")
                # Whoever opens the link of an inpainted image needs its mask, which may have been drawn by hand.
                self.mask = gr.DownloadButton(
                    "Mask", size="sm", min_width=70, visible=False, elem_id="result-mask-file"
                )
                self.enlarged = {
                    factor: small_button(f"Download ×{factor}", 110, f"result-download-{factor}") for factor in FACTORS
                }
            self.progress = build_progress("result-improve-progress")
            self.note = gr.HTML(padding=False, elem_id="result-note")
            self.facts = gr.HTML(padding=False, elem_id="result-facts")
            with gr.Accordion("Before and after", open=False, visible=False) as self.comparison:
                self.slider = gr.ImageSlider(
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["fullscreen"],
                    elem_id="result-before-after",
                )

    @property
    def outputs(self) -> list[Block]:
        """All that `show` updates."""
        return [
            self.place, self.selected, self.image, self.stars, self.facts, self.note, self.vary.place,
            self.touch_up.place, self.mask, self.comparison, self.slider, self.close, self.compare,
            self.buttons["keep"], *self.copy_link.outputs,
        ]  # fmt: skip

    def seen(self, values: Values) -> GeneratedImage | None:
        """The open image as the visitor sees it: the server may not have selected it yet."""
        state: ResultState = values[self.result.state]
        return image_at(state.shown, values[self.result.index]) or values[self.selected]

    def show(self, image: GeneratedImage, kept: KeptImages, in_gallery: bool = True) -> Updates:
        before = before_image(image)
        return {
            self.place: gr.Column(visible=True),
            self.selected: image,
            self.image: gr.Image(value=None if in_gallery else image.path, visible=not in_gallery),
            self.stars: kept.stars.get(image.path),
            self.buttons["keep"]: gr.Button(KEPT if image in kept.images else KEEP),
            self.close: gr.Button(visible=not in_gallery),
            self.compare: gr.Button(visible=in_gallery),
            self.facts: describe_image(image),
            self.note: "",
            self.vary.place: gr.Column(visible=False),
            self.touch_up.place: gr.Column(visible=False),
            self.mask: gr.DownloadButton(value=image.mask, visible=image.mask is not None),
            self.comparison: gr.Accordion(visible=before is not None),
            self.slider: None if before is None else (before, image.path),
            **self.copy_link.show(image),
        }


def connect_actions(
    runtime: Runtime, result: ResultView, tabs: Sequence[Tab], tab_bar: gr.Tabs, tray: KeptImagesView
) -> None:
    """Build the details, and connect them with the tabs and the tray."""
    view = DetailsView(result)
    connect_details(result, view, tray)
    connect_use_seed(view, [tab.settings for tab in tabs])
    connect_keep(result, view, tray)
    connect_vary(runtime, result, view)
    connect_more(runtime, result)
    connect_touch_up(runtime, result, view)
    connect_improve(runtime, result, view)
    connect_enlarged(runtime, view, tray)
    for tab in tabs:
        if tab.task in view.buttons:
            connect_send(view, view.buttons[tab.task], tab_bar, tab)

    def reopen(values: Values) -> Updates:
        state: ResultState = values[result.state]
        state.opened, state.num_openings = None, state.num_openings + 1
        kept = values[tray.state].kept.select(values[tray.index])
        shown = view.show(kept.selected_image(), kept, in_gallery=False)
        return {result.gallery: gr.Gallery(selected_index=None), **shown}

    def close(values: Values) -> Updates:
        values[result.state].num_openings += 1
        return {view.place: gr.Column(visible=False)}

    inputs = {*tray.shown, result.state}
    outputs = [result.gallery, *view.outputs]
    view.close.click(close, {result.state}, view.place, **UNQUEUED)
    reopened = tray.reopen.click(reopen, inputs, outputs, js=send(inputs), **REFUSABLE)
    scroll_to(view.image, reopened)


def before_image(image: GeneratedImage) -> Image.Image | str | None:
    """The input image of an image to image or inpainting, as the model saw it, or its file; None if that is gone."""
    if image.recipe.task not in STRENGTHS or image.image is None or not Path(image.image).exists():
        return None
    with Image.open(image.image) as given:  # reads the size alone
        if given.size == image.size:
            return image.image
    return fit(open_image(image.image), *image.size, image.recipe.fit)


def small_button(label: str, min_width: int, elem_id: str) -> gr.Button:
    return gr.Button(label, size="sm", min_width=min_width, elem_id=elem_id)


def compare_button(elem_id: str, gallery: gr.Gallery) -> gr.Button:
    """A button that shows images of a gallery side by side, in the browser alone."""
    button = small_button("Compare", 90, elem_id)
    button.click(None, None, None, js=f"() => window.amusedCompare('{gallery.elem_id}')", **UNQUEUED)
    return button


def count_slider(elem_id: str) -> gr.Slider:
    return gr.Slider(1, MAX_SEEDS, value=4, step=1, label="Images", min_width=140, elem_id=elem_id)


# Events


def connect_details(result: ResultView, view: DetailsView, tray: KeptImagesView) -> None:
    """Open and close an image."""

    def select(values: Values) -> Updates:
        state: ResultState = values[result.state]
        former, state.opened = state.opened, None if values[result.index] == -1 else values[result.index]
        state.num_openings += state.opened != former  # a gallery that gets images may report its selection again
        image = image_at(state.shown, state.opened)
        if image is None:  # it was closed, or is the preview of the next image
            is_lost = state.opened is not None and not state.shown and not state.num_runs
            return {view.place: gr.Column(visible=False), **({result.status: status_line(LOST)} if is_lost else {})}
        if image is values[view.selected]:  # it was clicked again: a form may be open already
            return {view.place: gr.Column(visible=True), view.image: gr.Image(value=None, visible=False)}
        return view.show(image, values[tray.state].kept)

    def show_finished(values: Values) -> Updates:
        """The image that is open may have been a preview until now."""
        state: ResultState = values[result.state]
        image = image_at(state.shown, state.opened)
        if image is None or image is values[view.selected]:
            return NO_CHANGE
        return view.show(image, values[tray.state].kept)

    inputs: set[Block] = {result.state, tray.state, view.selected}
    on_select(result.gallery, result.index, select, inputs, [*view.outputs, result.status], closing=True)
    result.ended.change(show_finished, inputs, view.outputs, **UNQUEUED)


def connect_use_seed(view: DetailsView, all_settings: Sequence[Settings]) -> None:
    """The seed of the image becomes that of all tabs."""

    def use_seed(values: Values) -> Updates:
        seed = required(view.seen(values)).seed
        updates: Updates = {view.note: note(f"The next runs start from seed {seed}")}
        for settings in all_settings:
            updates |= {settings.seeds: gr.Textbox(value=str(seed), interactive=True), settings.random_seeds: False}
        return updates

    outputs = [part for settings in all_settings for part in (settings.seeds, settings.random_seeds)]
    given = view.seen_by
    view.buttons["use seed"].click(use_seed, given, [view.note, *outputs], js=send(given), **REFUSABLE)


def connect_keep(result: ResultView, view: DetailsView, tray: KeptImagesView) -> None:
    """Keep the open image or a tile, or give the open image stars, which keeps it too."""
    kept_parts = [view.buttons["keep"], view.note]

    def show_kept() -> Updates:
        return {view.buttons["keep"]: gr.Button(KEPT), view.note: note("Added to Kept images")}

    def keep(values: Values) -> Updates:
        image = required(view.seen(values))
        shown = tray.show_changed(values[tray.state], lambda kept: kept.keep(image))
        return {**shown, **show_kept()}

    def rate(values: Values) -> Updates:
        image = required(view.seen(values))
        shown = tray.show_changed(values[tray.state], lambda kept: kept.rate(image, values[view.stars]))
        return {**shown, **show_kept()}

    def keep_tile(values: Values) -> Updates:
        state: ResultState = values[result.state]
        image = image_at(state.shown, values[view.tile])
        if image is None:
            raise UserError(UNFINISHED)
        return tray.show_changed(values[tray.state], lambda kept: kept.keep(image))

    for event, handler, inputs, outputs in (
        (view.buttons["keep"].click, keep, view.seen_by, [*tray.outputs, *kept_parts]),
        (view.stars.input, rate, {*view.seen_by, view.stars}, [*tray.outputs, *kept_parts]),
        (view.keep_tile.click, keep_tile, {result.state, view.tile}, tray.outputs),
    ):
        given = {tray.state, *inputs}
        event(handler, given, outputs, js=send(given), trigger_mode="multiple", **REFUSABLE)


def connect_send(view: DetailsView, button: gr.Button, tab_bar: gr.Tabs, target: Tab) -> None:
    """The image and its prompt to another tab, or to the same one. An editor gets its image once it is visible."""
    prompt, image_input = target.settings.prompt, target.file_inputs[0]

    def open_tab(values: Values) -> Updates:
        image = required(view.seen(values))
        return {tab_bar: gr.Tabs(selected=target.task), prompt: escape(image.recipe.prompt)}

    def give(values: Values) -> Updates:
        return {image_input: required(view.seen(values)).path}

    given = view.seen_by
    sent = button.click(open_tab, given, [tab_bar, prompt], js=send(given), **REFUSABLE)
    sent = sent.success(give, given, [image_input], js=send(given), **REFUSABLE)
    scroll_to(image_input, sent)


def connect_vary(runtime: Runtime, result: ResultView, view: DetailsView) -> None:
    form = view.vary

    def unfold(values: Values) -> Updates:
        values[result.state].num_openings += 1
        return {form.place: gr.Column(visible=True), view.touch_up.place: gr.Column(visible=False)}

    def read(values: Values) -> Request:
        image = required(view.seen(values))
        return derive_request(image, VARY, values[form.count], share=values[form.mask_ratio])

    def name(values: Values) -> str:
        return f"{plural(values[form.count], 'variation')} of {seed_of(view.seen(values))}"

    unfolded = view.buttons["vary"].click(unfold, {result.state}, [form.place, view.touch_up.place], **UNQUEUED)
    scroll_to(form.place, unfolded)
    action = deriving(view, read, {*view.seen_by, form.mask_ratio, form.count}, name, form.progress)
    connect(runtime, result, [form.run.click], action)


def connect_touch_up(runtime: Runtime, result: ResultView, view: DetailsView) -> None:
    form = view.touch_up

    def unfold(values: Values) -> Updates:
        image = required(values[view.selected])
        values[result.state].num_openings += 1
        return {
            view.vary.place: gr.Column(visible=False),
            form.place: gr.Column(visible=True),
            form.drawing: image.path,
            form.prompt: image.recipe.prompt,
        }

    def read(values: Values) -> Request:
        image = required(values[view.selected])
        _, cells = painted_cells(runtime, values[form.drawing].mask(image.size), image)
        changes = {"prompt": values[form.prompt], "cells": token_indices(cells)}
        return derive_request(image, TOUCH_UP, values[form.count], **changes)

    def show_cells(values: Values) -> Updates:
        image: GeneratedImage | None = values[view.selected]
        drawing: Drawing = values[form.drawing]
        if image is None or drawing.background is None:
            return NO_CHANGE
        mask = drawing.painted(image.size) or Image.new("L", image.size)
        return {form.drawing: show_grid(image.size, *painted_cells(runtime, mask, image))}

    def name(values: Values) -> str:
        return f"{plural(values[form.count], 'touch-up')} of {seed_of(values[view.selected])}"

    outputs = [view.vary.place, form.place, form.drawing, form.prompt]  # the editor scrolls to itself
    view.buttons["touch up"].click(unfold, {view.selected, result.state}, outputs, **REFUSABLE)
    inputs: set[Block] = {view.selected, form.drawing, form.prompt, form.count}
    action = deriving(view, read, inputs, name, form.progress)
    connect(runtime, result, [form.run.click], action)
    sync([form.drawing], show_cells, {view.selected, form.drawing}, [form.drawing])


def connect_improve(runtime: Runtime, result: ResultView, view: DetailsView) -> None:
    def read(values: Values) -> Request:
        changes = {"corrector_rounds": IMPROVE_ROUNDS, "sampler": "annealed"}
        return derive_request(required(view.seen(values)), IMPROVE, 1, **changes)

    def name(values: Values) -> str:
        return f"Improvement of {seed_of(view.seen(values))}"

    action = deriving(view, read, view.seen_by, name, view.progress)
    connect(runtime, result, [view.buttons["improve"].click], action)


def connect_enlarged(runtime: Runtime, view: DetailsView, tray: KeptImagesView) -> None:
    for factor, button in view.enlarged.items():

        def prepare(values: Values, factor: int = factor) -> Updates:
            image = required(view.seen(values))
            choice = runtime.choice(image.recipe.model)
            return {tray.file: write_enlarged(image, factor, choice, values[tray.write_metadata])}

        given = {*view.seen_by, tray.write_metadata}
        start_download(button.click(prepare, given, [tray.file], js=send(given), **REFUSABLE))


def connect_more(runtime: Runtime, result: ResultView) -> None:
    def read(values: Values) -> Request:
        state: ResultState = values[result.state]
        return continue_request(state.images)

    action = RunAction(read, {result.state}, name=lambda values: f"{MORE} more", append=True)
    connect(runtime, result, [result.more.click], action)


def deriving(
    view: DetailsView,
    read: Callable[[Values], Request],
    inputs: AbstractSet[Block],
    name: Callable[[Values], str],
    progress: gr.HTML,
) -> RunAction:
    """More images in the gallery, the first of which is open at the end."""

    def finish(request: Request, images: Sequence[GeneratedImage]) -> Updates:
        return view.show(images[0], KeptImages())

    outputs = tuple(view.outputs)
    return RunAction(read, inputs, name, progress, append=True, opens=True, finish=finish, outputs=outputs)


def seed_of(selected: GeneratedImage | None) -> str:
    return "an image" if selected is None else f"seed {selected.seed}"


def required(selected: GeneratedImage | None) -> GeneratedImage:
    """Nothing is selected after a server restart, whatever the page still shows."""
    if selected is None:
        raise UserError(NOTHING_SELECTED)
    return selected
