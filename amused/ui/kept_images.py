"""The tray below the tabs: kept images, to compare, open again and download."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import gradio as gr
from gradio.blocks import Block
from PIL import Image

from amused.errors import UserError
from amused.generation.contact_sheet import bundle, sheet
from amused.generation.images import png_bytes, strip_metadata
from amused.recipe.metadata import png_info, to_json
from amused.serving import file_cache
from amused.ui.describe import note
from amused.ui.events import (
    REFUSABLE,
    UNQUEUED,
    Updates,
    Values,
    on_select,
    selected_index,
    send,
)
from amused.ui.files import GeneratedImage, open_image
from amused.ui.results import ResultView, image_at

NOTHING_KEPT = "No images kept yet: select one and press Keep."
COMPARE = "Compare by slider"
MAX_KEPT = 100
MAX_STARS = 5
SHEET_SIDE = 512  # of an image on the contact sheet, in pixels at most

# Gradio's DownloadButton needs an existing file; this one is written on click.
DOWNLOAD_JS = "() => { requestAnimationFrame(() => document.querySelector('#tray-file')?.click()); }"


@dataclass(frozen=True)
class KeptImages:
    """Images with the stars they were given, by path; an image without stars is not in `stars`.

    `selected` are the indices last selected, at most two; `discarded` is what undo brings back.
    """

    images: tuple[GeneratedImage, ...] = ()
    selected: tuple[int, ...] = ()
    discarded: tuple[tuple[int, GeneratedImage], ...] = ()
    comparing: bool = False
    stars: Mapping[str, int] = field(default_factory=dict)

    def keep(self, image: GeneratedImage) -> KeptImages:
        if image in self.images:
            return self.select(self.images.index(image))
        if len(self.images) >= MAX_KEPT:
            raise UserError(f"At most {MAX_KEPT} images can be kept: discard one first.")
        return replace(self, images=(*self.images, image)).select(len(self.images))

    def select(self, index: Any) -> KeptImages:
        if image_at(self.images, index) is None:
            return self
        return replace(self, selected=(*(other for other in self.selected if other != index), index)[-2:])

    def discard(self) -> KeptImages:
        """Without the image last selected."""
        if not self.selected:
            return self
        index = self.selected[-1]
        rest = (*self.images[:index], *self.images[index + 1 :])
        selected = tuple(other - (other > index) for other in self.selected if other != index)
        discarded = (*self.discarded, (index, self.images[index]))[-MAX_KEPT:]
        selected = selected or tuple(range(len(rest)))[-1:]
        return replace(self, images=rest, selected=selected, discarded=discarded, comparing=False)

    def undo(self) -> KeptImages:
        if not self.discarded:
            return self
        *earlier, (index, image) = self.discarded
        images = (*self.images[:index], image, *self.images[index:])
        selected = tuple(other + (other >= index) for other in self.selected)
        undone = replace(self, images=images, selected=selected, discarded=tuple(earlier), comparing=False)
        return undone.select(index)

    def rate(self, image: GeneratedImage, stars: Any) -> KeptImages:
        """Keep an image and give it stars, 1 to `MAX_STARS`."""
        if type(stars) is not int or not 1 <= stars <= MAX_STARS:
            raise UserError(f"Give 1 to {MAX_STARS} stars.")
        kept = self.keep(image)
        return replace(kept, stars={**kept.stars, image.path: stars})

    def join(self, others: KeptImages) -> KeptImages:
        """With the images and stars of `others` too, as far as there is room."""
        joined = self
        for image in others.images:
            joined = joined.keep(image) if len(joined.images) < MAX_KEPT else joined
        return replace(joined, stars={**joined.stars, **others.stars})

    def best_first(self) -> KeptImages:
        """Sorted by stars; those with as many stay in order."""
        order = sorted(range(len(self.images)), key=lambda index: -self.stars.get(self.images[index].path, 0))
        images = tuple(self.images[index] for index in order)
        return replace(self, images=images, selected=tuple(order.index(index) for index in self.selected))

    def caption(self, image: GeneratedImage) -> str:
        stars = self.stars.get(image.path, 0)
        return f"{'★' * stars} {image.tile[1]}" if stars else image.tile[1]

    def pair(self) -> tuple[GeneratedImage, GeneratedImage] | None:
        """The two to compare: those last selected, else the last ones."""
        if len(self.images) < 2:
            return None
        others = [index for index in range(len(self.images)) if index not in self.selected]
        first, second = [*others, *self.selected][-2:]
        return self.images[first], self.images[second]

    def required_images(self) -> tuple[GeneratedImage, ...]:
        """Nothing is kept after a server restart, whatever the page still shows."""
        if not self.images:
            raise UserError(NOTHING_KEPT)
        return self.images

    def selected_image(self) -> GeneratedImage:
        return self.required_images()[self.selected[-1]]


@dataclass(eq=False)
class Tray:
    """The kept images of a visit. Events may overlap: each changes what the one before has left."""

    kept: KeptImages = field(default_factory=KeptImages)
    _lock: ClassVar[threading.Lock] = threading.Lock()  # of all, as Gradio copies a State's first value

    def change(self, change: Callable[[KeptImages], KeptImages]) -> KeptImages:
        with self._lock:
            self.kept = change(self.kept)
            return self.kept


class KeptImagesView:
    """`state` is a Tray; `file` is hidden by the style sheet, a click on it downloads its value."""

    def __init__(self) -> None:
        self.state = gr.State(Tray())
        with gr.Accordion("Kept images", open=True, visible=False, elem_id="tray") as self.place:
            self.gallery = gr.Gallery(
                label="Kept images",
                show_label=False,
                format="png",
                columns=6,
                fit_columns=False,
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="tray-gallery",
                elem_classes="images",
            )
            self.note = gr.HTML(padding=False, elem_id="tray-note")
            with gr.Row(elem_classes="button-row"):
                self.reopen = gr.Button("Open", size="sm", min_width=80, elem_id="tray-open")
                self.compare = gr.Button(COMPARE, size="sm", min_width=130, elem_id="tray-compare")
                self.side_by_side = gr.Button("Side by side", size="sm", min_width=110, elem_id="tray-side-by-side")
                self.sort = gr.Button("Best first", size="sm", min_width=90, elem_id="tray-sort")
                self.discard = gr.Button("Discard", size="sm", min_width=90, elem_id="tray-discard")
                self.undo = gr.Button("Undo discard", size="sm", min_width=110, elem_id="tray-undo")
            self.slider = gr.ImageSlider(
                label="Comparison",
                visible=False,
                interactive=False,
                format="png",
                buttons=["fullscreen"],
                elem_id="tray-slider",
            )
            with gr.Group() as self.downloads:
                with gr.Row(elem_classes="button-row"):
                    self.single = gr.Button("Download this one", size="sm", min_width=130, elem_id="tray-single")
                    self.bundle = gr.Button("Download all (ZIP)", size="sm", min_width=130, elem_id="tray-zip")
                    self.sheet = gr.Button("Download a contact sheet", size="sm", min_width=150, elem_id="tray-sheet")
                self.write_metadata = gr.Checkbox(
                    value=True,
                    label="Save settings in image files",
                    info="In new images and in these downloads",
                    elem_id="tray-tagged",
                )
        self.file = gr.DownloadButton("File", elem_id="tray-file")
        self.index = selected_index(self.gallery)
        self.shown: set[Block] = {self.state, self.index}

    @property
    def outputs(self) -> list[Block]:
        """All that `show` updates."""
        return [
            self.place, self.gallery, self.note, self.reopen, self.compare, self.side_by_side, self.sort, self.discard,
            self.undo, self.slider, self.downloads,
        ]  # fmt: skip

    def show_changed(self, tray: Tray, change: Callable[[KeptImages], KeptImages]) -> Updates:
        """Change the tray and show it; nothing if another event has changed it since, whose answer shows both."""
        kept = tray.change(change)
        updates = self.show(kept)
        return updates if tray.kept is kept else {}

    def show(self, kept: KeptImages) -> Updates:
        tiles = [(image.path, kept.caption(image)) for image in kept.images]
        selected = kept.selected[-1] if kept.selected else None
        return {
            self.gallery: gr.Gallery(value=tiles, selected_index=selected, visible=bool(tiles)),
            **self.show_selection(kept),
        }

    def show_selection(self, kept: KeptImages) -> Updates:
        """All but the gallery, which has not changed."""
        count, pair = len(kept.images), kept.pair()
        slider: dict[str, Any] = {"visible": kept.comparing and pair is not None}
        if kept.comparing and pair is not None:
            first, second = pair
            slider |= {"value": (first.path, second.path), "label": f"Seed {first.seed} and seed {second.seed}"}
        label = "Hide the slider" if slider["visible"] else COMPARE
        return {
            self.place: gr.Accordion(label=f"Kept images ({count})", visible=bool(count or kept.discarded)),
            self.note: note(describe_selection(kept)),
            self.reopen: gr.Button(visible=bool(count)),
            self.compare: gr.Button(label, visible=pair is not None),
            self.side_by_side: gr.Button(visible=pair is not None),
            self.sort: gr.Button(visible=len({kept.stars.get(image.path, 0) for image in kept.images}) > 1),
            self.discard: gr.Button(visible=bool(count)),
            self.undo: gr.Button(visible=bool(kept.discarded)),
            self.slider: gr.ImageSlider(**slider),
            self.downloads: gr.Group(visible=bool(count)),
        }


def describe_selection(kept: KeptImages) -> str:
    if not kept.images:
        return "No images kept"
    text = f"Selected: seed {kept.selected_image().seed}"
    pair = kept.pair()
    return f"{text} (compare with seed {pair[0].seed})" if pair else text


def connect_kept_images(view: KeptImagesView, result: ResultView) -> None:
    def select(values: Values) -> Updates:
        tray: Tray = values[view.state]
        return view.show_selection(tray.change(lambda kept: kept.select(values[view.index])))

    def compare(tray: Tray) -> Updates:
        return view.show_selection(tray.change(lambda kept: replace(kept, comparing=not kept.comparing)))

    def sort(tray: Tray) -> Updates:
        return view.show_changed(tray, KeptImages.best_first)

    def discard(values: Values) -> Updates:
        index = values[view.index]
        return view.show_changed(values[view.state], lambda kept: kept.select(index).discard())

    def undo(tray: Tray) -> Updates:
        return view.show_changed(tray, KeptImages.undo)

    on_select(view.gallery, view.index, select, {view.state}, view.outputs)
    view.compare.click(compare, view.state, view.outputs, **UNQUEUED)
    view.side_by_side.click(None, None, None, js="() => window.amusedCompare('tray-gallery')", **UNQUEUED)
    view.sort.click(sort, view.state, view.outputs, **UNQUEUED)
    view.discard.click(discard, view.shown, view.outputs, js=send(view.shown), **UNQUEUED)
    view.undo.click(undo, view.state, view.outputs, **UNQUEUED)

    view.write_metadata.change(lambda on: on, view.write_metadata, result.write_metadata, **UNQUEUED)
    for button, write in ((view.single, write_single), (view.bundle, write_bundle), (view.sheet, write_sheet)):
        connect_download(view, button, write)


def connect_download(view: KeptImagesView, button: gr.Button, write: Callable[[KeptImages, bool], str]) -> None:
    def prepare(values: Values) -> Updates:
        tray: Tray = values[view.state]
        return {view.file: write(tray.kept.select(values[view.index]), values[view.write_metadata])}

    inputs = {*view.shown, view.write_metadata}
    start_download(button.click(prepare, inputs, [view.file], js=send(inputs), **REFUSABLE))


def start_download(prepared: Any) -> None:
    """After the event, download what it put into `KeptImagesView.file`."""
    prepared.success(None, None, None, js=DOWNLOAD_JS, show_progress="hidden")


# Files


def write_single(kept: KeptImages, write_metadata: bool) -> str:
    image = kept.selected_image()
    return file_cache.save(file_content(image, write_metadata), f"amused-seed-{image.seed}.png")


def write_bundle(kept: KeptImages, write_metadata: bool) -> str:
    images = kept.required_images()
    files, manifest = [], []
    for number, image in enumerate(images, start=1):
        name = f"{number:02}-seed-{image.seed}.png"
        files.append((name, file_content(image, write_metadata)))
        recipe = to_json(image.recipe) if write_metadata else {}
        manifest.append({"file": name, **recipe, "digest": image.digest})
    return file_cache.save(bundle(files, manifest), "amused-kept.zip")


def write_sheet(kept: KeptImages, write_metadata: bool) -> str:
    images = kept.required_images()
    labels = [f"seed {one.seed}: {one.recipe.prompt}" if write_metadata else f"seed {one.seed}" for one in images]
    page = sheet([thumbnail(one) for one in images], labels, math.ceil(math.sqrt(len(images))))
    return file_cache.save(png_bytes(page), "amused-sheet.png")


def thumbnail(image: GeneratedImage) -> Image.Image:
    shown = open_image(image.path)
    shown.thumbnail((SHEET_SIDE, SHEET_SIDE))  # larger ones only
    return shown


def file_content(image: GeneratedImage, write_metadata: bool) -> bytes:
    info = png_info(image.recipe, image.digest, image.fingerprint) if write_metadata else None
    return png_bytes(strip_metadata(open_image(image.path)), info)
