"""What a run of fine-tuning shows of itself, as files: the loss of every step, its curve, validation pictures."""

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

from amused.generation.images import to_image
from amused.generation.sampling import apply_cfg, sampling_steps, unmask_step
from amused.model.transformer import UViT, concatenate
from amused.model.vqgan import VQGAN
from amused.recipe.recipe import Recipe

COLUMNS = ("step", "loss", "learning_rate", "masking_rate", "seconds")
SMOOTHING = 0.05
SEED = 0  # of validation pictures: the same at every step, so that they can be compared


class LossLog:
    """`loss.csv`, one row a step, and `loss.png`."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        self.folder, self.path = folder, folder / "loss.csv"
        self.rows: list[dict[str, str]] = []
        if self.path.is_file():
            with self.path.open(newline="") as stream:
                self.rows = [row for row in csv.DictReader(stream) if row["step"].isdigit()]
        self.rows = [row for row in self.rows if int(row["step"]) <= steps_done]
        with self.path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: dict[str, float]) -> None:
        self.rows.append({key: f"{value:.8g}" for key, value in row.items()})
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(self.rows[-1])

    def draw(self) -> None:
        draw_curve([(int(row["step"]), float(row["loss"])) for row in self.rows]).savefig(self.folder / "loss.png")


def draw_curve(points: Sequence[tuple[int, float]]) -> Figure:
    """Every loss as a dot, and their running average as a line."""
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
def sample(
    transformer: UViT, texts: tuple[Tensor, Tensor], empty: tuple[Tensor, Tensor], side: int, micro: Tensor
) -> Tensor:
    """Tokens (batch, side, side) of embedded prompts, by the recipe's own defaults; a seed for each."""
    size, config, device = len(texts[0]), transformer.config, micro.device
    conditions = micro.expand(size, -1)
    conditioning = concatenate(
        [
            transformer.condition(*(part.expand(size, *part.shape[1:]) for part in empty), conditions),
            transformer.condition(*texts, conditions),
        ]
    )
    mask_id = config.vocab_size - 1
    tokens = torch.full((size, side, side), mask_id, device=device)
    generators = [torch.Generator(device).manual_seed(SEED) for _ in range(size)]
    for step in sampling_steps("cosine", Recipe.steps, Recipe.temperature, (tokens == mask_id).flatten(1)):
        logits = transformer(tokens.repeat(2, 1, 1), conditioning).float()
        logits = apply_cfg(*logits.chunk(2), Recipe.guidance_scale)
        tokens = unmask_step(logits, tokens, mask_id, step, generators)
    return tokens


@torch.no_grad()
def save_pictures(folder: Path, vqgan: VQGAN, tokens: Tensor, prompts: Sequence[str]) -> list[Image.Image]:
    """A file for each prompt, named by it."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(1, math.ceil(math.log10(len(prompts) + 1)))
    images = [to_image(vqgan.decode(one[None])[0]) for one in tokens]
    for i, (image, prompt) in enumerate(zip(images, prompts)):
        words = re.sub(r"\W+", "-", prompt).strip("-")[:60]
        image.save(folder / f"{i:0{digits}}-{words or 'empty'}.png")
    return images
