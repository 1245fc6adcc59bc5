"""The strip below the tabs: the sweeps of a visit, each a thumbnail that brings it back."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from PIL import Image

from amused.serving import file_cache
from amused.ui.events import Updates, selected_index
from amused.ui.files import GeneratedImage, open_image

MAX_SWEEPS = 40
THUMBNAIL_SIDE = 128  # pixels, of up to four images


@dataclass(frozen=True)
class Sweep:
    """The images of one run. `thumbnail` is a file."""

    title: str
    images: tuple[GeneratedImage, ...]
    thumbnail: str

    @property
    def task(self) -> str:
        return self.images[0].recipe.first.task


class History:
    """The latest sweeps of a visit, the last one first. `sweeps` is replaced, never changed: threads may read it."""

    def __init__(self) -> None:
        self.sweeps: tuple[Sweep, ...] = ()

    def add(self, title: str, images: tuple[GeneratedImage, ...]) -> None:
        with contextlib.suppress(OSError):  # a full disk
            sweep = Sweep(title, images, save_thumbnail(images))
            self.sweeps = (sweep, *self.sweeps)[:MAX_SWEEPS]

    def forget_missing_files(self) -> None:
        self.sweeps = tuple(
            sweep
            for sweep in self.sweeps
            if all(Path(file).exists() for file in (sweep.thumbnail, *(image.path for image in sweep.images)))
        )


def save_thumbnail(images: Sequence[GeneratedImage]) -> str:
    """One image, or the first four in a square."""
    per_side = 1 if len(images) < 4 else 2
    side = THUMBNAIL_SIDE // per_side
    drawn = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), "#888")
    for index, image in enumerate(images[: per_side**2]):
        tile = open_image(image.path).convert("RGB")
        tile.thumbnail((side, side))
        row, column = divmod(index, per_side)
        drawn.paste(tile, (column * side + (side - tile.width) // 2, row * side + (side - tile.height) // 2))
    buffer = io.BytesIO()
    drawn.save(buffer, "WEBP")
    return file_cache.save(buffer.getvalue(), "sweep.webp")


class HistoryView:
    """`shown` is the State of the sweeps in the gallery, by which a click is understood."""

    def __init__(self) -> None:
        self.shown = gr.State(())
        with gr.Column(visible=False, elem_id="history") as self.place:
            with gr.Row(elem_classes="history-head"):
                gr.Markdown("### History")
                self.clear = gr.Button("Clear history", size="sm", scale=0, min_width=120, elem_id="history-clear")
            self.gallery = gr.Gallery(
                label="History",
                show_label=False,
                columns=MAX_SWEEPS,
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="history-gallery",
                elem_classes="images strip",
            )
        self.index = selected_index(self.gallery)

    @property
    def outputs(self) -> list[Block]:
        return [self.shown, self.place, self.gallery]

    @staticmethod
    def at(shown: Sequence[Sweep], index: Any) -> Sweep | None:
        """The clicked one, by an index that a browser sent."""
        return shown[index] if type(index) is int and 0 <= index < len(shown) else None

    def show(self, history: History) -> Updates:
        sweeps = history.sweeps
        return {
            self.shown: sweeps,
            self.place: gr.Column(visible=bool(sweeps)),
            self.gallery: gr.Gallery([(sweep.thumbnail, sweep.title) for sweep in sweeps], selected_index=None),
        }
