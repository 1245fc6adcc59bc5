"""What is done with a picture that is there: look at it, go on from it, keep it, compare, download.

Beneath each gallery the picture that was clicked, below the tabs the tray of those that are kept. Knows recipes and
files of finished pictures; how pictures are made is the business of `run`.
"""

from __future__ import annotations

import html
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from amused.errors import UserError
from amused.generation.contact_sheet import bundle, sheet
from amused.generation.images import load_image
from amused.generation.masks import crop_mask, load_mask, square_around, token_indices, touched_cells
from amused.recipe.links import png_info, to_json
from amused.recipe.recipe import (
    IMAGE_TO_IMAGE,
    INPAINT,
    MAX_SEEDS,
    SIDE_MULTIPLE,
    TEXT_TO_IMAGE,
    TOUCH_UP,
    VARY,
    Recipe,
    whole,
)
from amused.serving.runtime import Runtime
from amused.ui.inputs import Carried, Drawing, DrawingInput
from amused.ui.run import (
    Request,
    Run,
    Shot,
    TabState,
    as_request,
    bare,
    columns_for,
    connect,
    png_bytes,
    sample,
    save_file,
)
from amused.ui.settings import AT_ONCE, RANDOM_SEEDS, Panel
from amused.ui.sharing import CopyLink, build_copy_link, link, offer_link
from amused.ui.sync import carry

TITLES = {
    TEXT_TO_IMAGE: "Text to image",
    IMAGE_TO_IMAGE: "Image to image",
    INPAINT: "Inpaint",
    VARY: "More like another picture",
    TOUCH_UP: "Touched up",
}
LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "seeds": "Seed",
    "model": "Model",
    "adapter": "Adapter",
    "adapter_strength": "Adapter's strength",
    "adapter_digest": "Adapter's digest",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "temperature": "Temperature",
    "strength": "Strength",
    "share": "Drawn anew",
    "cells": "Drawn anew",
    "aesthetic_score": "Aesthetic score",
    "crop": "Crop",
    "fit": "Fitted by",
    "composite": "Outside kept",
    "feather": "Feather",
    "only_masked": "Only the masked part",
    "image": "Given picture",
    "mask": "Given mask",
}
ALWAYS = ("prompt", "seeds", "model", "steps", "guidance_scale", "temperature")

NOTHING_PICKED = "No image is picked: click one first."
NOTHING_KEPT = "No image is kept: pick one and press Keep first."

# Brings what a click opened into view; a gallery may be longer than the window.
SHOW_JS = "() => { document.getElementById('%s')?.scrollIntoView({block: 'nearest'}); }"
# A file that is made when it is asked for: Gradio's own download buttons only know files that are there already.
DOWNLOAD_JS = "() => { requestAnimationFrame(() => document.querySelector('#tray-file')?.click()); }"


@dataclass(frozen=True)
class Tray:
    """The kept pictures, which of them are chosen (the last two clicked), and what was discarded, to undo it."""

    shots: tuple[Shot, ...] = ()
    chosen: tuple[int, ...] = ()
    discarded: tuple[tuple[int, Shot], ...] = ()
    comparing: bool = False

    def keep(self, shot: Shot) -> Tray:
        if shot in self.shots:
            return replace(self, chosen=self._with(self.shots.index(shot)))
        grown = replace(self, shots=(*self.shots, shot))
        return replace(grown, chosen=grown._with(len(self.shots)))

    def choose(self, index: Any) -> Tray:
        return self if shot_at(self.shots, index) is None else replace(self, chosen=self._with(index))

    def _with(self, index: int) -> tuple[int, ...]:
        return (*(other for other in self.chosen if other != index), index)[-2:]

    def discard(self) -> Tray:
        """Without the picture that was clicked last."""
        if not self.chosen:
            return self
        index = self.chosen[-1]
        rest = (*self.shots[:index], *self.shots[index + 1 :])
        chosen = tuple(other - (other > index) for other in self.chosen if other != index)
        discarded = (*self.discarded, (index, self.shots[index]))
        return Tray(rest, chosen or tuple(range(len(rest)))[-1:], discarded)

    def undo(self) -> Tray:
        if not self.discarded:
            return self
        *earlier, (index, shot) = self.discarded
        shots = (*self.shots[:index], shot, *self.shots[index:])
        chosen = tuple(other + (other >= index) for other in self.chosen)
        return replace(Tray(shots, chosen, tuple(earlier)), chosen=(*chosen, index)[-2:])

    def pair(self) -> tuple[Shot, Shot] | None:
        """The two to compare: those chosen last, else the last ones."""
        if len(self.shots) < 2:
            return None
        last = [index for index in range(len(self.shots)) if index not in self.chosen]
        first, second = [*last, *self.chosen][-2:]
        return self.shots[first], self.shots[second]


@dataclass(frozen=True)
class Picked:
    """The components that show the picture that was clicked in one tab."""

    place: gr.Column
    shot: gr.State
    image: gr.Image
    facts: gr.HTML
    note: gr.HTML
    varying: gr.Column
    touching: gr.Column
    mask: gr.DownloadButton
    shared: CopyLink

    def outputs(self) -> list[Any]:
        return [
            self.place, self.shot, self.image, self.facts, self.note, self.varying, self.touching, self.mask,
            *self.shared.outputs(),
        ]  # fmt: skip


@dataclass(frozen=True)
class TrayView:
    """The components of the tray."""

    tray: gr.State
    place: gr.Accordion
    gallery: gr.Gallery
    note: gr.HTML
    reopen: gr.Button
    discard: gr.Button
    undo: gr.Button
    compare: gr.Button
    slider: gr.ImageSlider
    files: gr.Group

    def outputs(self) -> list[Any]:
        return [
            self.tray, self.place, self.gallery, self.note, self.reopen, self.discard, self.undo, self.compare,
            self.slider, self.files,
        ]  # fmt: skip


def build(runtime: Runtime, tabs: gr.Tabs, panels: list[Panel]) -> TrayView:
    """The picked picture in every tab, and here, below them, the tray."""
    view = build_tray(panels)
    picked = [build_picked(runtime, tabs, panels, panel, view) for panel in panels]

    def open_again(tray: Tray) -> list[Any]:
        shot = chosen_shot(tray)
        home = shot.recipe.first.task
        updates: list[Any] = [gr.Tabs(selected=home)]
        for panel, part in zip(panels, picked):
            updates += show_picked(shot) if panel.task == home else [gr.skip() for _ in part.outputs()]
        return updates

    view.reopen.click(
        open_again, view.tray, [tabs, *(output for part in picked for output in part.outputs())], **AT_ONCE
    )
    return view


# The picture that was clicked


def build_picked(runtime: Runtime, tabs: gr.Tabs, panels: list[Panel], panel: Panel, view: TrayView) -> Picked:
    task, result = panel.task, panel.result
    with result.place:
        shot = gr.State(None)
        image = gr.Image(
            label="Picked picture",
            format="png",
            interactive=False,
            height=420,
            buttons=["download", "fullscreen"],
            elem_id=f"{task}-picked-image",
        )
        facts = gr.HTML(padding=False, elem_id=f"{task}-facts")
        with gr.Row(elem_classes="deeds"):
            keep = gr.Button("Keep", min_width=90, elem_id=f"{task}-keep")
            more = gr.Button("More like this", min_width=120, elem_id=f"{task}-more")
            touch = gr.Button("Touch up", min_width=100, elem_id=f"{task}-touch")
        with gr.Column(visible=False, elem_id=f"{task}-varying") as varying:
            with gr.Row():
                share = gr.Slider(
                    0.05,
                    1.0,
                    value=0.4,
                    step=0.05,
                    label="How different",
                    info="Share of the picture's tokens that is drawn anew",
                    min_width=160,
                    elem_id=f"{task}-share",
                )
                variants = count_slider(f"{task}-variants")
            vary = gr.Button("Make more like this", elem_id=f"{task}-vary")
        with gr.Column(visible=False, elem_id=f"{task}-touching") as touching:
            drawing = DrawingInput(
                label="Paint over what should be drawn anew",
                type="filepath",
                image_mode="RGBA",
                format="png",
                sources=[],
                layers=False,
                transforms=(),
                brush=gr.Brush(colors=["#f43f5e"], color_mode="fixed", default_size=24),
                eraser=gr.Eraser(default_size=24),
                canvas_size=(512, 512),
                height=440,
                buttons=[],
                elem_id=f"{task}-strokes",
            )
            carried = Carried.of(drawing)
            with gr.Row():
                wish = gr.Textbox(label="Prompt", lines=2, min_width=200, elem_id=f"{task}-wish")
                attempts = count_slider(f"{task}-attempts")
            retouch = gr.Button("Draw the painted cells anew", elem_id=f"{task}-retouch")
        with gr.Row(elem_classes="deeds"):
            use_seed = gr.Button("Use this seed", size="sm", min_width=110, elem_id=f"{task}-copy-seed")
            shared = build_copy_link(task)
            to_image = gr.Button("To Image to image", size="sm", min_width=130, elem_id=f"{task}-to-image")
            to_inpaint = gr.Button("To Inpaint", size="sm", min_width=90, elem_id=f"{task}-to-inpaint")
            # Whoever opens the link of an inpainted picture needs its mask, which was perhaps drawn by hand.
            mask = gr.DownloadButton("Mask", size="sm", min_width=70, visible=False, elem_id=f"{task}-mask-file")
            close = gr.Button("Close", size="sm", min_width=70, elem_id=f"{task}-close")
        note = gr.HTML(padding=False, elem_id=f"{task}-note")
    picked = Picked(result.place, shot, image, facts, note, varying, touching, mask, shared)

    def pick(run: Run, event: gr.SelectData) -> list[Any]:
        shot = shot_at(run.shots, event.index)
        if shot is None:  # the picture that is just being made
            return [gr.skip() for _ in picked.outputs()]
        return show_picked(shot)

    into_view = {"fn": None, "inputs": None, "outputs": None, "show_progress": "hidden"}
    result.gallery.select(pick, result.run, picked.outputs(), **AT_ONCE).then(
        **into_view, js=SHOW_JS % result.place.elem_id
    )
    close.click(lambda: gr.Column(visible=False), None, result.place, **AT_ONCE)
    keep.click(
        lambda tray, shot: [*show_tray(tray.keep(needed(shot))), told("Kept, below")],
        [view.tray, shot],
        [*view.outputs(), note],
        **AT_ONCE,
    )
    use_seed.click(
        lambda shot: [
            gr.Textbox(value=str(needed(shot).seed), interactive=True),
            False,
            told(f"The next runs start from seed {shot.seed}"),
        ],
        shot,
        [panel.settings.seeds, panel.settings.random_seeds, note],
        **AT_ONCE,
    )
    for button, target in ((to_image, IMAGE_TO_IMAGE), (to_inpaint, INPAINT)):
        send(button, shot, tabs, next(other for other in panels if other.task == target))

    more.click(lambda: [gr.Column(visible=True), gr.Column(visible=False)], None, [varying, touching], **AT_ONCE).then(
        **into_view, js=SHOW_JS % varying.elem_id
    )

    def unfold(shot: Shot | None) -> list[Any]:
        needed(shot)
        return [gr.Column(visible=False), gr.Column(visible=True)]

    # The editor is given its picture once it is there: one that is hidden does not know its size.
    touch.click(unfold, shot, [varying, touching], **AT_ONCE).success(
        lambda shot: [{"background": needed(shot).path, "layers": [], "composite": None}, shot.recipe.prompt],
        shot,
        [drawing, wish],
        **AT_ONCE,
    ).then(**into_view, js=SHOW_JS % touching.elem_id)

    def more_like(shot: Shot, share: float, count: float) -> Request:
        return onward(shot, VARY, count, share=share)

    def touched_up(shot: Shot, drawing: Drawing, wish: str, count: float) -> Request:
        if shot is None:
            raise UserError(NOTHING_PICKED)
        size, _ = runtime.native_size(shot.recipe.model)
        return onward(shot, TOUCH_UP, count, prompt=wish, cells=painted_cells(drawing, shot, size, SIDE_MULTIPLE))

    connect(panel, [vary.click], started(runtime, more_like), [shot, share, variants])
    bring = partial(carry, carried=carried)
    connect(panel, [retouch.click], started(runtime, touched_up), [shot, carried, wish, attempts], bring=bring)
    return picked


def count_slider(elem_id: str) -> gr.Slider:
    return gr.Slider(1, MAX_SEEDS, value=4, step=1, label="Pictures", min_width=140, elem_id=elem_id)


def shot_at(shots: Sequence[Shot], index: Any) -> Shot | None:
    """What was clicked, by an index that a browser sent."""
    return shots[index] if isinstance(index, int) and 0 <= index < len(shots) else None


def needed(shot: Shot | None) -> Shot:
    """The picked image. There is none in a page that outlasts its session on the server."""
    if shot is None:
        raise gr.Error(NOTHING_PICKED, print_exception=False)
    return shot


def show_picked(shot: Shot) -> list[Any]:
    """Updates for `Picked.outputs()`."""
    image = gr.Image(value=shot.path, label=f"Seed {shot.seed}")
    folded = gr.Column(visible=False)
    mask = gr.DownloadButton(value=shot.mask, visible=shot.mask is not None)
    copying = offer_link(link("", shot.recipe, shot.digest, shot.made))
    return [gr.Column(visible=True), shot, image, describe(shot), "", folded, folded, mask, *copying]


def send(button: gr.Button, shot: gr.State, tabs: gr.Tabs, panel: Panel) -> None:
    """The picture and its prompt to another tab, or to this one; its editor is filled once it is seen."""
    button.click(
        lambda shot: [gr.Tabs(selected=panel.task), needed(shot).recipe.prompt],
        shot,
        [tabs, panel.settings.prompt],
        **AT_ONCE,
    ).success(lambda shot: needed(shot).path, shot, panel.media[0], **AT_ONCE)


def started(runtime: Runtime, read: Callable[..., Request]) -> Callable[..., Iterator[list[Any]]]:
    """A run whose pictures join those in the gallery."""

    def run(former: Run, tab: TabState, tag: bool, *values: Any) -> Iterator[list[Any]]:
        yield from sample(runtime, former, tab, tag, lambda: as_request(read(*values)), append=True)

    return run


def onward(shot: Shot | None, task: str, count: float, prompt: str | None = None, **changes: Any) -> Request:
    """A request for new pictures from the tokens of one, by its own settings, under random seeds."""
    if shot is None:
        raise UserError(NOTHING_PICKED)
    parent = shot.recipe
    first = secrets.randbelow(RANDOM_SEEDS)
    recipe = Recipe(
        task=task,
        prompt=parent.prompt if prompt is None else prompt,
        seeds=tuple(range(first, first + whole("number of pictures", count, 1, MAX_SEEDS))),
        model=parent.model,
        negative_prompt=parent.negative_prompt,
        steps=parent.steps,
        guidance_scale=parent.guidance_scale,
        temperature=parent.temperature,
        aesthetic_score=parent.aesthetic_score,
        crop=parent.crop,
        adapter=parent.adapter,
        adapter_digest=parent.adapter_digest,
        adapter_strength=parent.adapter_strength,
        parent=parent,
        **changes,
    )
    return recipe, open_file(shot.image), open_file(shot.mask)


def open_file(path: str | None) -> Image.Image | None:
    if path is None:
        return None
    with Image.open(path) as image:  # one of ours: written when the picture was made
        image.load()
    return image


def painted_cells(drawing: Drawing, shot: Shot, size: int, pixels_per_token: int) -> tuple[int, ...]:
    """The cells of the token grid that any stroke touches, counted row by row from 0; `size` is the model's."""
    mask = drawing.mask(shot.size)
    if shot.recipe.first.only_masked:
        box = square_around(load_mask(open_file(shot.mask), shot.size), size)
        mask = crop_mask(mask, box, size)
    return token_indices(touched_cells(mask, pixels_per_token))


# Words


def told(text: str) -> str:
    return f'<p class="told-note" role="status">{html.escape(text)}</p>'


def describe(shot: Shot) -> str:
    """The whole recipe of a picture, to read."""
    width, height = shot.size
    head = f"<h2>Seed {shot.seed}</h2><p>{TITLES[shot.recipe.task]}, {width} × {height}</p>"
    return f'<div class="facts">{head}{listed(shot.recipe)}</div>'


def listed(recipe: Recipe) -> str:
    rows = []
    for field, label in LABELS.items():
        value = getattr(recipe, field)
        if field in ALWAYS or value != Recipe.__dataclass_fields__[field].default:
            rows.append(f"<dt>{label}</dt><dd>{html.escape(worded(field, value))}</dd>")
    text = f"<dl>{''.join(rows)}</dl>"
    if recipe.parent is not None:
        text += f"<details><summary>{made_from(recipe.parent)}</summary>{listed(recipe.parent)}</details>"
    return text


def made_from(parent: Recipe) -> str:
    return f"From seed {parent.seeds[0]}, {TITLES[parent.task]}"


def worded(field: str, value: Any) -> str:
    if field == "cells":
        return f"{len(value)} cells of the token grid"
    if field == "share":
        return f"{value:.0%} of the tokens"
    if field == "temperature":
        return f"{value[0]:g} to {value[1]:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


# The tray


def build_tray(panels: list[Panel]) -> TrayView:
    tray = gr.State(Tray())
    with gr.Accordion("Kept pictures", open=True, visible=False, elem_id="tray") as place:
        gallery = gr.Gallery(
            label="Kept pictures",
            show_label=False,
            format="png",
            columns=6,
            fit_columns=False,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="tray-gallery",
            elem_classes="pictures",
        )
        note = gr.HTML(padding=False, elem_id="tray-note")
        with gr.Row(elem_classes="deeds"):
            reopen = gr.Button("Open", size="sm", min_width=80, elem_id="tray-open")
            compare = gr.Button("Compare two", size="sm", min_width=110, elem_id="tray-compare")
            discard = gr.Button("Discard", size="sm", min_width=90, elem_id="tray-discard")
            undo = gr.Button("Undo discard", size="sm", min_width=110, elem_id="tray-undo")
        slider = gr.ImageSlider(
            label="Compared", visible=False, interactive=False, format="png", buttons=["fullscreen"],
            elem_id="tray-slider",
        )  # fmt: skip
        with gr.Group() as files:
            with gr.Row(elem_classes="deeds"):
                single = gr.Button("Download this one", size="sm", min_width=130, elem_id="tray-single")
                everything = gr.Button("Download all (ZIP)", size="sm", min_width=130, elem_id="tray-zip")
                labelled = gr.Button("Download a contact sheet", size="sm", min_width=150, elem_id="tray-sheet")
            tagged = gr.Checkbox(
                value=True,
                label="Recipe in the files",
                info="Pictures made from now on, and downloads from here, tell how they were made",
                elem_id="tray-tagged",
            )
    file = gr.DownloadButton("File", elem_id="tray-file")  # never seen: the style sheet hides it
    view = TrayView(tray, place, gallery, note, reopen, discard, undo, compare, slider, files)

    def choose(tray: Tray, event: gr.SelectData) -> list[Any]:
        return show_tray(tray.choose(event.index), gallery=False)

    gallery.select(choose, tray, view.outputs(), **AT_ONCE)
    discard.click(lambda tray: show_tray(tray.discard()), tray, view.outputs(), **AT_ONCE)
    undo.click(lambda tray: show_tray(tray.undo()), tray, view.outputs(), **AT_ONCE)
    compare.click(
        lambda tray: show_tray(replace(tray, comparing=not tray.comparing), gallery=False),
        tray,
        view.outputs(),
        **AT_ONCE,
    )
    tagged.change(lambda on: [on for _ in panels], tagged, [panel.result.tag for panel in panels], **AT_ONCE)
    for button, write in ((single, write_single), (everything, write_bundle), (labelled, write_sheet)):
        button.click(write, [tray, tagged], file, **AT_ONCE).success(
            None, None, None, js=DOWNLOAD_JS, show_progress="hidden"
        )
    return view


def show_tray(tray: Tray, gallery: bool = True) -> list[Any]:
    """Updates for `TrayView.outputs()`."""
    count, pair = len(tray.shots), tray.pair()
    tiles = [(shot.path, f"seed {shot.seed}") for shot in tray.shots]
    comparing = tray.comparing and pair is not None
    slider: dict[str, Any] = {"visible": comparing}
    if comparing:
        first, second = pair
        slider |= {"value": (first.path, second.path), "label": f"Seed {first.seed} and seed {second.seed}"}
    chosen = tray.chosen[-1] if tray.chosen else None
    return [
        tray,
        gr.Accordion(label=f"Kept pictures ({count})", visible=bool(count or tray.discarded)),
        gr.Gallery(value=tiles, columns=max(6, columns_for(count)), selected_index=chosen, visible=bool(count))
        if gallery
        else gr.skip(),
        tray_line(tray),
        gr.Button(visible=bool(count)),
        gr.Button(visible=bool(count)),
        gr.Button(visible=bool(tray.discarded)),
        gr.Button("Stop comparing" if comparing else "Compare two", visible=pair is not None),
        gr.ImageSlider(**slider),
        gr.Group(visible=bool(count)),
    ]


def tray_line(tray: Tray) -> str:
    if not tray.shots:
        return told("Nothing is kept now")
    text = f"Chosen: seed {tray.shots[tray.chosen[-1]].seed}"
    pair = tray.pair()
    return told(f"{text}, to compare with seed {pair[0].seed}" if pair else text)


def chosen_shot(tray: Tray) -> Shot:
    return kept_shots(tray)[tray.chosen[-1]]


def kept_shots(tray: Tray) -> tuple[Shot, ...]:
    if not tray.shots:
        raise gr.Error(NOTHING_KEPT, print_exception=False)
    return tray.shots


def write_single(tray: Tray, tagged: bool) -> str:
    shot = chosen_shot(tray)
    return save_file(shot_bytes(shot, tagged), f"amused-seed-{shot.seed}.png")


def write_bundle(tray: Tray, tagged: bool) -> str:
    shots = kept_shots(tray)
    names = [f"{number:02}-seed-{shot.seed}.png" for number, shot in enumerate(shots, start=1)]
    files = [(name, shot_bytes(shot, tagged)) for name, shot in zip(names, shots)]
    return save_file(bundle(files, manifest(shots, names, tagged)), "amused-picks.zip")


def manifest(shots: Sequence[Shot], names: Sequence[str], tagged: bool) -> list[dict[str, Any]]:
    rows = []
    for shot, name in zip(shots, names):
        recipe = to_json(shot.recipe) if tagged else {}
        rows.append({"file": name, **recipe, "digest": shot.digest})
    return rows


def write_sheet(tray: Tray, tagged: bool) -> str:
    shots = kept_shots(tray)
    pictures = [load_image(Image.open(shot.path)) for shot in shots]
    labels = [f"seed {shot.seed}: {shot.recipe.prompt}" if tagged else f"seed {shot.seed}" for shot in shots]
    page = sheet(pictures, labels, columns=math.ceil(math.sqrt(len(pictures))))
    return save_file(png_bytes(page), "amused-sheet.png")


def shot_bytes(shot: Shot, tagged: bool) -> bytes:
    info = png_info(shot.recipe, shot.digest, shot.made) if tagged else None
    with Image.open(shot.path) as image:
        return png_bytes(bare(image), info)
