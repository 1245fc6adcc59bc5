"""The table of the published model card, measured on a GPU: `python -m amused.benchmark --card`.

Each library and rung is a process that makes batches of 1 and 8 at both sizes. The arithmetic limit of a batch is the
time that its matmuls, convolutions and attention would take at the speed of one large matmul on this card.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import amused
from amused.benchmark.rows import Row
from amused.benchmark.sides import Side, take_turns
from amused.checkpoints.weights import Checkpoint
from amused.generation.compiled import seconds_of
from amused.model.transformer import UViT
from amused.model.vqgan import VQGAN

STEPS = 12
SIZES = (256, 512)
BATCHES = (1, 8)
RUNS = (("amused", "off"), ("amused", "graph"), ("amused", "inductor"), ("diffusers", "off"), ("diffusers", "inductor"))
MODES = {"off": "eager", "graph": "CUDA graph", "inductor": "compiled"}
LAST_START = 400.0  # seconds: the last process takes up to three minutes, and all must end within ten

Card = dict[str, Any]


def measure_card(
    checkpoint_folder: Callable[[int], Path],
    repeats: int,
    device: str = "cuda",
    dtype: str = "float16",
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    open_side: Callable[..., Side] = Side,
) -> Card:
    """All figures, and what they were measured on. What fails or finds no time left has a note instead of seconds."""
    start = time.monotonic()
    folders = {size: checkpoint_folder(size) for size in sizes}
    rate = matmul_rate(device, dtype)
    operations = {size: operations_of_image(amused.load(folders[size], device="cpu").checkpoint) for size in sizes}
    rows: list[dict[str, Any]] = []
    for library, mode in RUNS:
        for size in sizes:
            run = {"size": size, "library": library, "mode": mode}
            figures: list[dict[str, Any]] = [{**run, "batch": batch} for batch in batches]
            rows += figures
            print(f"measuring: {library}, {MODES[mode]}, {size}", file=sys.stderr, flush=True)
            if time.monotonic() - start > LAST_START:
                for figure in figures:
                    figure["note"] = "not measured: out of time"
                continue
            try:
                with open_side(library, str(folders[size]), dtype, device, compile=mode, batch=1) as side:
                    for figure in figures:
                        figure |= measure_batch(side, figure["batch"], repeats)
                        limit = figure["batch"] * operations[size] / rate
                        figure["limit_share"] = round(limit / figure["seconds"], 4)
            except (RuntimeError, OSError) as error:  # the process has ended
                for figure in figures:
                    figure.setdefault("note", f"not measured: {error}")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "amused": amused.__version__}
    rows.sort(key=lambda row: (row["size"], row["batch"]))  # stable
    return {"device": name, **versions, "dtype": dtype, "steps": STEPS, "flops_per_second": round(rate), "rows": rows}


def measure_batch(side: Side, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of a batch and its peak memory."""
    requests = Row("", num_images=batch, steps=STEPS, reference_steps=STEPS).requests()
    first = {"steps": 2, "batch": batch, "compile": True}  # compiles all that is needed
    measured = take_turns([side], requests, repeats, warm_up=first)
    return {"seconds": measured["seconds"] * batch, "peak": measured["peak"], "note": side.note}


def card_table(card: Card) -> str:
    """As Markdown, with what each rung said about itself below."""
    lines = [
        f"{card['device']}, torch {card['torch']}, CUDA {card['cuda']}, {card['dtype']}, {card['steps']} steps, "
        f"one large matmul: {card['flops_per_second'] / 1e12:.3g} TFLOP/s",
        "",
        "| size | batch | library | | seconds | peak memory | share of the arithmetic limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in card["rows"]:
        figures = "not measured | | "
        if "seconds" in row:
            figures = f"{row['seconds']:.3f} | {row['peak'] / 1e9:.2f} GB | {row['limit_share']:.1%} "
        lines.append(f"| {row['size']} | {row['batch']} | {row['library']} | {MODES[row['mode']]} | {figures}|")
    lines.append("")
    for row in card["rows"]:
        what = f"{row['library']}, {MODES[row['mode']]}, {row['size']}, batch {row['batch']}"
        lines += [f"- {what}: {row['note']}"] if row["note"] else []
    return "\n".join(lines)


def matmul_rate(device: str, dtype: str, side: int | None = None) -> float:
    """Floating-point operations per second of one large matmul."""
    side = side or (8192 if device == "cuda" else 512)
    one, other = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    step = partial(torch.mm, one, other)
    step()
    return 2 * side**3 / statistics.median(seconds_of(torch.device(device), step) for _ in range(20))


@torch.inference_mode()
def operations_of_image(checkpoint: Checkpoint) -> int:
    """Floating-point operations of the matmuls, convolutions and attention of an image with guidance, decoded."""
    config = checkpoint.transformer
    with torch.device("meta"):
        network, decoder = UViT(config), VQGAN(checkpoint.vqgan)
        tokens = torch.zeros((1, config.sample_size, config.sample_size), dtype=torch.int64)
        text, pooled = torch.zeros(2, 77, config.encoder_hidden_size), torch.zeros(2, config.cond_embed_dim)
        conditioning = network.condition(text, pooled, torch.zeros(2, 5))
        with FlopCounterMode(display=False) as step:
            network(tokens.expand(2, -1, -1), conditioning)
        with FlopCounterMode(display=False) as decode:
            decoder.decode(tokens)
    return STEPS * step.get_total_flops() + decode.get_total_flops()
