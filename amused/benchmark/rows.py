"""What is measured: one row of the table each, with the ratio that it should reach."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COUNTER = itertools.count()


@dataclass(frozen=True)
class Row:
    """A comparison. `size` None is the bundled checkpoint, by itself; `reach` is a ratio, or seconds in that case.

    `kind`: "warm" pictures, "cold" ones of a fresh process, the first "page", or the processor's "limit".
    """

    about: str
    size: int | None = 256
    task: str = "text_to_image"
    pictures: int = 1
    steps: int = 12
    reference_steps: int = 12
    dtype: str | None = None
    reference_dtype: str | None = None
    quantize: str | None = None
    kind: str = "warm"
    reach: float | None = None

    def requests(self, pictures: int | None = None) -> Iterator[list[dict[str, Any]]]:
        """Endless turns: the request to each side, whose prompt neither has seen."""
        while True:
            request = {
                "task": self.task,
                "prompt": f"a red cat with hat number {next(COUNTER)}",
                "pictures": pictures or self.pictures,
            }
            yield [{**request, "steps": self.steps}, {**request, "steps": self.reference_steps}]


ROWS = {
    "256": Row("256, one picture", reach=1.4),
    "256-sweep": Row("256, a sweep of 8, per picture", pictures=8, reach=1.5),
    "512": Row("512, one picture", size=512, reach=1.4),
    "256-fp32": Row("256, one picture, beside diffusers in float32", reference_dtype="float32", reach=3),
    "256-exact": Row("256, one picture, both in float32", dtype="float32", reference_dtype="float32"),
    "256-int8": Row('256, one picture, quantize="int8"', quantize="int8", reach=2),
    "256-fast": Row("256, one picture in 4 steps, beside 12", steps=4, reach=3),
    "256-fast-int8": Row('256, one picture in 4 steps, quantize="int8", beside 12', steps=4, quantize="int8", reach=3),
    "image-to-image": Row("256, image to image", task="image_to_image"),
    "inpaint": Row("256, inpainting", task="inpaint"),
    "cold": Row("256, a fresh process to a picture of 2 steps", kind="cold", steps=2, reference_steps=2, reach=1.67),
    "page": Row("`python app.py` to the first page, beside an empty Gradio page", size=None, kind="page", reach=0.77),
    "nouns": Row("bundled checkpoint, one picture", size=None, reach=1.0),
    "nouns-16": Row("bundled checkpoint, sixteen pictures", size=None, pictures=16, reach=10.0),
    "limit": Row("256, a step beside its matrix products alone", kind="limit"),
}
