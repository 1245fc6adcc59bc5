"""Compare speed and memory with diffusers, on the same weights: `python -m amused.benchmark`.

Each side is a process. The two take turns, so other load on the machine affects both. A figure is the median of several
turns, each with a prompt that is new to both. Without `--weights`, weights are random in the published shapes: speed
does not depend on their values.

Rows are saved in `--results` one by one; the table and the chart show all rows measured so far.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amused.atomic import atomic_file, write_json
from amused.benchmark import startup
from amused.benchmark.report import chart, table
from amused.benchmark.rows import ROWS, Row
from amused.benchmark.sides import Side, take_turns
from amused.benchmark.weights import random_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=3, help="turns per row; a figure is their median (default: 3)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path.home() / ".cache" / "amused" / "benchmark",
        help="folder for weights and results",
    )
    parser.add_argument("--weights", type=Path, help="folder with amused-256 and amused-512 (default: random weights)")
    parser.add_argument("--results", type=Path, help="file with all measurements (default: in --work)")
    parser.add_argument("--chart", type=Path, help="write a chart of the ratios to this file")
    parser.add_argument("--card", action="store_true", help="measure only the table of the published card, on a GPU")
    options = parser.parse_args()
    if find_spec("diffusers") is None:
        sys.exit("The benchmark needs diffusers: pip install -r tests/requirements.txt")

    from amused.generation.placement import place

    options.work.mkdir(parents=True, exist_ok=True)
    results: Path = options.results or options.work / "results.json"
    for file in filter(None, (results, options.chart)):
        file.parent.mkdir(parents=True, exist_ok=True)  # now, not after half an hour
    measurements = json.loads(results.read_text("utf-8")) if results.is_file() else {}
    placement = place()
    if options.card:
        if placement.device.type != "cuda":
            sys.exit("--card measures a GPU, and this machine has no CUDA device.")
        print_card(options)
        return
    device, dtype = placement.device.type, str(placement.dtype).removeprefix("torch.")
    print(f"{describe_machine()}; {device}, {dtype} ({placement.reason})", flush=True)
    for name in options.rows:
        row = ROWS[name]
        if row.quantize and device != "cpu":
            continue
        if row.kind == "workers" and find_spec("ray") is None:
            print(f"left out, as Ray is not installed: {row.label}", file=sys.stderr)
            continue
        print(f"measuring: {row.label}", file=sys.stderr, flush=True)
        measurements[name] = measure(row, options, device, dtype)
        print(json.dumps({name: measurements[name]}), flush=True)
        with atomic_file(results) as part:
            write_json(part, measurements)
    print(table(measurements))
    if options.chart:
        chart(measurements, describe_machine()).savefig(options.chart, dpi=100)


def measure(row: Row, options: argparse.Namespace, device: str, dtype: str) -> dict[str, Any]:
    """Seconds and peak bytes of a row, as `summarize` or `measure_matmuls` gives them.

    Args:
        dtype: where the row names none.
    """
    if row.kind == "page":
        return startup.first_page(options.repeats)
    if row.kind == "workers":
        from amused.benchmark import workers

        return workers.with_nouns(options.repeats) if row is ROWS["workers-nouns"] else workers.with_sleep()
    if row.size is None:
        with Side("amused", "nouns", dtype, device) as side:
            measured = take_turns([side], row.requests(), options.repeats)
        return {**measured, "seconds": round(measured["seconds"] * row.num_images, 3)}
    model = checkpoint_folder(options, row.size)
    if row.kind == "limit":
        from amused.benchmark.matmuls import measure_matmuls

        return measure_matmuls(model, dtype)
    dtypes = row.dtype or dtype, row.reference_dtype or dtype
    if row.kind == "cold":
        return startup.first_image(str(model), dtypes, device, row.requests(), options.repeats)
    with (
        Side("amused", str(model), dtypes[0], device, row.quantize) as amused,
        Side("diffusers", str(model), dtypes[1], device) as diffusers,
    ):
        return take_turns([amused, diffusers], row.requests(), options.repeats)


def checkpoint_folder(options: argparse.Namespace, size: int) -> Path:
    """The checkpoint for a size, 256 or 512; a random one is made unless it is there."""
    work: Path = options.work
    weights: Path | None = options.weights
    if weights is not None:
        return weights / f"amused-{size}"
    folder = work / f"random-{size}"
    if not folder.is_dir():
        random_checkpoint(folder, size)
    return folder


def print_card(options: argparse.Namespace) -> None:
    from amused.benchmark.card import card_table, measure_card

    card = measure_card(partial(checkpoint_folder, options), options.repeats)
    with atomic_file(options.results or options.work / "card.json") as part:
        write_json(part, card)
    print(card_table(card))


def describe_machine() -> str:
    """Names the GPU, or the CPU with its threads and the version of torch."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        name = next(line.partition(":")[2].strip() for line in lscpu.splitlines() if line.startswith("Model name"))
    except (OSError, subprocess.CalledProcessError, StopIteration):
        name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    return f"{name}, {torch.get_num_threads()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main()
