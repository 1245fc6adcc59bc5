"""The strip below the tabs: the runs of a visit, each a thumbnail that brings its images back."""

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

MAX_ENTRIES = 40
THUMBNAIL_SIDE = 128  # pixels, of up to four images


@dataclass(frozen=True)
class HistoryEntry:
    """The images of one run. `thumbnail` is a file."""

    title: str
    images: tuple[GeneratedImage, ...]
    thumbnail: str

    @property
    def task(self) -> str:
        return self.images[0].recipe.first.task


class History:
    """The latest runs of a visit, the last one first. `entries` is replaced, never changed: threads may read it."""

    def __init__(self) -> None:
        self.entries: tuple[HistoryEntry, ...] = ()

    def add(self, title: str, images: tuple[GeneratedImage, ...]) -> None:
        with contextlib.suppress(OSError):  # a full disk
            entry = HistoryEntry(title, images, save_thumbnail(images))
            self.entries = (entry, *self.entries)[:MAX_ENTRIES]

    def forget_missing_files(self) -> None:
        self.entries = tuple(
            entry
            for entry in self.entries
            if all(Path(file).exists() for file in (entry.thumbnail, *(image.path for image in entry.images)))
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
    """`shown` is the State of the entries in the gallery, by which a click is understood."""

    def __init__(self) -> None:
        self.shown = gr.State(())
        with gr.Column(visible=False, elem_id="history") as self.place:
            with gr.Row(elem_classes="history-head"):
                gr.Markdown("### History")
                self.clear = gr.Button("Clear history", size="sm", scale=0, min_width=120, elem_id="history-clear")
            self.gallery = gr.Gallery(
                label="History",
                show_label=False,
                columns=MAX_ENTRIES,
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
    def at(shown: Sequence[HistoryEntry], index: Any) -> HistoryEntry | None:
        """The clicked one, by an index that a browser sent."""
        return shown[index] if type(index) is int and 0 <= index < len(shown) else None

    def show(self, history: History) -> Updates:
        entries = history.entries
        return {
            self.shown: entries,
            self.place: gr.Column(visible=bool(entries)),
            self.gallery: gr.Gallery([(entry.thumbnail, entry.title) for entry in entries], selected_index=None),
        }
