"""The rows of the table: what each measures, and its target."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PROMPT_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Row:
    """One comparison with diffusers.

    Attributes:
        size: 256 or 512 for the published shapes; None for the bundled model, which has no reference.
        kind: "warm" (a loaded model), "cold" (a fresh process), "page" (first page of the app), "limit" (matmuls), or
            "workers" (Ray).
        target: ratio to reach, or seconds if there is no reference.
    """

    label: str
    size: int | None = 256
    task: str = "text_to_image"
    num_images: int = 1
    steps: int = 12
    reference_steps: int = 12
    dtype: str | None = None
    reference_dtype: str | None = None
    quantize: str | None = None
    kind: str = "warm"
    target: float | None = None

    def requests(self, num_images: int | None = None) -> Iterator[list[dict[str, Any]]]:
        """Endless turns: one request per side, with a new prompt each turn."""
        while True:
            request = {
                "task": self.task,
                "prompt": f"a red cat with hat number {next(PROMPT_NUMBERS)}",
                "num_images": num_images or self.num_images,
            }
            yield [{**request, "steps": self.steps}, {**request, "steps": self.reference_steps}]


INT8, FLOAT32 = "int8", "float32"
ROWS = {
    "256": Row("256, one image", target=1.4),
    "256-sweep": Row("256, sweep of 8, per image", num_images=8, target=1.5),
    "512": Row("512, one image", size=512, target=1.4),
    "256-fp32": Row("256, diffusers in float32", reference_dtype=FLOAT32, target=3),
    "256-exact": Row("256, both in float32", dtype=FLOAT32, reference_dtype=FLOAT32),
    "256-int8": Row('256, `quantize="int8"`', quantize=INT8, target=2),
    "256-fast": Row("256, 4 steps against 12", steps=4, target=3),
    "256-fast-int8": Row('256, 4 steps against 12, `quantize="int8"`', steps=4, quantize=INT8, target=3),
    "image-to-image": Row("256, image to image", task="image_to_image"),
    "inpaint": Row("256, inpainting", task="inpaint"),
    "cold": Row("256, fresh process to an image of 2 steps", kind="cold", steps=2, reference_steps=2, target=1.67),
    "page": Row("`python app.py` to the first page, against an empty Gradio page", size=None, kind="page", target=0.77),
    "nouns": Row("nouns, one image", size=None, target=1.0),
    "nouns-16": Row("nouns, sixteen images", size=None, num_images=16, target=10.0),
    "workers": Row("2, 4 and 8 workers, with a model that sleeps", size=None, kind="workers"),
    "workers-nouns": Row("nouns, 2 workers of one thread against a process of two", size=None, kind="workers"),
    "limit": Row("256, one step against its matmuls alone", kind="limit"),
}
