"""Measurements as a table and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amused.benchmark.rows import ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measurements = Mapping[str, Mapping[str, Any]]

BAR_COLOR, REFERENCE_COLOR = "#4f46e5", "#f2b84b"


def table(measurements: Measurements) -> str:
    """One line per row: seconds and peak memory of both sides, their ratio, and the target."""
    lines = ["| | amused | diffusers | ratio | target |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        measured = measurements.get(name)
        if measured is None:
            continue
        reference = ratio = ""
        target = f"{row.target:g}" if row.target else ""
        if name == "workers":
            shares = ", ".join(f"{share:.2f}" for share in measured["shares"])
            ours = f"{shares} of as many times; {1000 * measured['overhead_seconds']:.1f} ms more per image"
            target = "0.9; 10 ms"
        elif name == "workers-nouns":
            ours, reference = f"{measured['seconds']:.2f} s", f"{measured['reference_seconds']:.2f} s"
            ratio = f"{measured['reference_seconds'] / measured['seconds']:.2f}"
            target = "1, same bytes" if measured["same"] else "1, OTHER BYTES"
        elif row.kind == "limit":
            ours = f"{measured['seconds']:.2f} s"
            share, rate = measured["matmul_seconds"] / measured["seconds"], measured["flops_per_second"] / 1e9
            reference = f"matmuls: {measured['matmul_seconds']:.2f} s at {rate:.0f} GFLOP/s, {share:.0%}"
        else:
            ours = f"{measured['seconds']:.2f} s, {measured['peak'] / 1e9:.2f} GB"
            if "ratio" in measured:
                reference = f"{measured['reference_seconds']:.2f} s, {measured['reference_peak'] / 1e9:.2f} GB"
                ratio = f"{measured['ratio']:.2f}"
            elif target:
                target += " s"
        lines.append(f"| {row.label} | {ours} | {reference} | {ratio} | {target} |")
    return "\n".join(lines)


def chart(measurements: Measurements, machine: str) -> Figure:
    """A bar per row: how many times as fast as diffusers."""
    from matplotlib.figure import Figure

    ratios = {name: measured["ratio"] for name, measured in measurements.items() if "ratio" in measured}
    shown = [(row, ratios[name]) for name, row in ROWS.items() if row.size is not None and name in ratios]
    figure = Figure(figsize=(10, 1.2 + 0.38 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.label.replace("`", "") for row, _ in shown], [ratio for _, ratio in shown], color=BAR_COLOR)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.axvline(1, color=REFERENCE_COLOR, linewidth=2)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)
    axes.set_title(f"Times as fast as diffusers · {machine}", loc="left", fontsize="medium")
    return figure
