"""What was measured, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from amused.benchmark.rows import ROWS

Measured = Mapping[str, Mapping[str, Any]]

WIDTH, BAR, GAP, LEFT, MARGIN = 1000, 22, 12, 430, 24
OURS, REFERENCE, INK = "#4f46e5", "#f2b84b", "#1f2430"


def table(measured: Measured) -> str:
    """A line a row: seconds and peak memory of both sides, the ratio, and what it should reach."""
    lines = ["| | amused | diffusers | ratio | reach |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        found = measured.get(name)
        if found is None:
            continue
        if row.kind == "limit":
            share, rate = found["products"] / found["seconds"], found["operations_a_second"] / 1e9
            told = f"{found['products']:.2f} s of products at {rate:.0f} GFLOP/s: {share:.0%}"
            lines.append(f"| {row.about} | {found['seconds']:.2f} s | {told} | | |")
            continue
        ours = f"{found['seconds']:.2f} s, {found['peak'] / 1e9:.2f} GB"
        other = ratio = ""
        reach = f"{row.reach:g}" if row.reach else ""
        if "ratio" in found:
            other = f"{found['reference_seconds']:.2f} s, {found['reference_peak'] / 1e9:.2f} GB"
            ratio = f"{found['ratio']:.2f}"
        elif reach:
            reach += " s"
        lines.append(f"| {row.about} | {ours} | {other} | {ratio} | {reach} |")
    return "\n".join(lines)


def chart(measured: Measured, machine: str) -> Image.Image:
    """Bars: how many times as fast as diffusers, which is the line."""
    shown = [(row, measured[name]) for name, row in ROWS.items() if "ratio" in measured.get(name, {}) and row.size]
    height = 2 * MARGIN + 34 + len(shown) * (BAR + GAP)
    image = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    pen.text((MARGIN, MARGIN - 8), f"Times as fast as diffusers 0.42 · {machine}", INK, font)
    scale = (WIDTH - LEFT - MARGIN - 60) / max(found["ratio"] for _, found in shown)
    for i, (row, found) in enumerate(shown):
        y = MARGIN + 34 + i * (BAR + GAP)
        end = LEFT + found["ratio"] * scale
        pen.text((MARGIN, y + 2), row.about.replace("`", ""), INK, font)
        pen.rectangle((LEFT, y, end, y + BAR), OURS)
        pen.text((end + 8, y + 2), f"{found['ratio']:.2f}", INK, font)
    pen.line((LEFT + scale, MARGIN + 28, LEFT + scale, height - MARGIN), REFERENCE, 2)
    return image
