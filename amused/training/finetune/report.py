"""What a run reports as files: the loss of every step, its curve, and validation images."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from amused.atomic import atomic_file
from amused.generation.images import to_image
from amused.model.vqgan import VQGAN

COLUMNS = ("step", "loss", "learning_rate", "masking_rate", "seconds")
SMOOTHING = 0.05  # weight of a new loss in the running average


class LossLog:
    """`loss.csv`, one row per step, and `loss.png`.

    Args:
        folder: of the run; rows of an earlier part of it are kept.
        steps_done: rows of later steps are dropped.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        self.folder, self.path = folder, folder / "loss.csv"
        self.rows: list[dict[str, str]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8", errors="replace") as stream:
                self.rows = [row for row in csv.DictReader(stream) if is_whole(row) and int(row["step"]) <= steps_done]
        with atomic_file(self.path) as part, part.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: dict[str, float]) -> None:
        self.rows.append({key: f"{value:.8g}" for key, value in row.items()})
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(self.rows[-1])

    def draw(self) -> None:
        draw_curve([(int(row["step"]), float(row["loss"])) for row in self.rows]).savefig(self.folder / "loss.png")


def is_whole(row: dict[str, str]) -> bool:
    """Whether a row can be drawn: a program that was killed or a spreadsheet leaves others."""
    try:
        return int(row["step"]) > 0 and math.isfinite(float(row["loss"]))
    except (KeyError, TypeError, ValueError):
        return False


def draw_curve(points: Sequence[tuple[int, float]]) -> Figure:
    """A chart of (step, loss) points and their running average."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss")
    if points:
        steps, losses = zip(*points)
        averages = itertools.accumulate(losses, lambda average, loss: average + SMOOTHING * (loss - average))
        axes.plot(steps, losses, ".", color="#b0b8d0", label="loss")
        axes.plot(steps, list(averages), color="#3b4cc0", label="running average")
        axes.legend(frameon=False)
    return figure


@torch.no_grad()
def save_images(folder: Path, vqgan: VQGAN, tokens: Tensor, prompts: Sequence[str]) -> list[Image.Image]:
    """Decode tokens (batch, height, width) and write a PNG file per prompt, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(prompts)))
    images = [to_image(vqgan.decode(one[None])[0]) for one in tokens]
    for i, (image, prompt) in enumerate(zip(images, prompts)):
        words = re.sub(r"\W+", "-", prompt).strip("-")[:60]
        image.save(folder / f"{i:0{digits}}-{words or 'empty'}.png")
    return images
