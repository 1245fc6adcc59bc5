"""How fast this is beside diffusers, with the same weights, in one run: `python -m amused.benchmark`.

Both sides are processes of their own that take turns, so that whatever else the machine does meets both; each figure is
the median of several turns, each turn with a prompt that is new to both. Without `--weights` the weights are random, in
the shapes of the published checkpoints: speed does not depend on their values.

Rows are measured one by one and kept in `--results`; a table and a chart show all that has been measured so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from amused.benchmark import startup
from amused.benchmark.report import chart, table
from amused.benchmark.rows import ROWS, Row
from amused.benchmark.sides import Side, take_turns
from amused.benchmark.weights import SIZES, random_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of which the median is taken (default: 3)")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "amused" / "benchmark")
    parser.add_argument("--weights", type=Path, help="a folder with amused-256 and amused-512 (default: random ones)")
    parser.add_argument("--results", type=Path, help="a file that keeps what was measured (default: in --work)")
    parser.add_argument("--chart", type=Path, help="draw the ratios into this file")
    parser.add_argument("--card", action="store_true", help="print the table of the published model card as well")
    options = parser.parse_args()
    if find_spec("diffusers") is None:
        sys.exit("This compares with diffusers: pip install -r tests/requirements.txt, and try again.")

    from amused.generation.placement import place

    options.work.mkdir(parents=True, exist_ok=True)
    results = options.results or options.work / "results.json"
    measured = json.loads(results.read_text("utf-8")) if results.is_file() else {}
    placement = place()
    device, best = placement.device.type, str(placement.dtype).removeprefix("torch.")
    print(f"{machine()}; {device}, {best} ({placement.reason})", flush=True)
    for name in options.rows:
        row = ROWS[name]
        if row.quantize and device != "cpu":
            continue
        print(f"measuring: {row.about}", file=sys.stderr, flush=True)
        measured[name] = measure(row, options, device, best)
        print(json.dumps({name: measured[name]}), flush=True)
        results.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    if options.card:
        print(card(options, device, best))
    print(table(measured))
    if options.chart:
        chart(measured, machine()).save(options.chart, optimize=True)


def measure(row: Row, options: argparse.Namespace, device: str, best: str) -> dict[str, float]:
    if row.kind == "page":
        return startup.first_page(options.repeats)
    if row.kind == "limit":
        from amused.benchmark.limit import products

        return products(checkpoint(options, row.size), best)
    if row.size is None:
        with Side("amused", "nouns", best, device) as side:
            found = take_turns([side], row.requests(), options.repeats)
        return {**found, "seconds": round(found["seconds"] * row.pictures, 3)}
    model = str(checkpoint(options, row.size))
    dtypes = row.dtype or best, row.reference_dtype or best
    if row.kind == "cold":
        return startup.first_picture(model, dtypes, device, row.requests(), options.repeats)
    with (
        Side("amused", model, dtypes[0], device, row.quantize) as one,
        Side("diffusers", model, dtypes[1], device) as other,
    ):
        return take_turns([one, other], row.requests(), options.repeats)


def checkpoint(options: argparse.Namespace, size: int) -> Path:
    if options.weights:
        return options.weights / f"amused-{size}"
    folder = options.work / f"random-{size}"
    if not folder.is_dir():
        random_checkpoint(folder, size)
    return folder


def card(options: argparse.Namespace, device: str, best: str) -> str:
    """The published model card's table: seconds of a batch and peak memory, by size and batch."""
    lines = ["| size | batch | by | | seconds | peak memory |", "|---|---|---|---|---|---|"]
    sides = itertools.product(SIZES, (1, 8), ("amused", "diffusers"), (False, True))
    for size, batch, library, compiled in sides:
        with Side(library, str(checkpoint(options, size)), best, device, compiled=compiled) as side:
            requests = ROWS["256"].requests(pictures=batch)
            found = take_turns([side], requests, options.repeats, warm_up={"steps": 2})  # compiles all that is needed
        how, seconds, gigabytes = "compiled" if compiled else "eager", batch * found["seconds"], found["peak"] / 1e9
        lines.append(f"| {size} | {batch} | {library} | {how} | {seconds:.2f} | {gigabytes:.2f} GB |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        described = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        name = next(line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("Model name"))
    except (OSError, subprocess.CalledProcessError, StopIteration):
        name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    return f"{name}, {torch.get_num_threads()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main()
