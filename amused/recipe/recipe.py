"""The recipe: one validated request, shared by the page, the API, the Python interface, links and PNG files.

Values of the wrong type, not finite or out of range are refused with a sentence that names the field and its range;
nothing is clamped silently. What depends on the loaded model (its size, the length of a prompt in tokens) is checked by
the pipeline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral, Real

from amused.errors import UserError
from amused.limits import MAX_PIXELS, MAX_PROMPT, MAX_SEEDS, MAX_STEPS

TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT, VARY, TOUCH_UP, IMPROVE = TASKS = (
    "text_to_image",
    "image_to_image",
    "inpaint",
    "vary",
    "touch_up",
    "improve",
)
ON_TOKENS = (VARY, TOUCH_UP, IMPROVE)
"""Tasks that start from the tokens of an earlier result."""

STRENGTHS = {IMAGE_TO_IMAGE: 0.5, INPAINT: 1.0}
"""Default strength of the tasks that have one."""

MAX_SEED = 2**32 - 1
MAX_GUIDANCE_SCALE = 30.0
MAX_TEMPERATURE = 20.0
MAX_AESTHETIC_SCORE = 10.0
MAX_CROP = 4096
MAX_SIDE = 2048
SIDE_MULTIPLE = 16
FITS = ("crop", "pad", "stretch")
SAMPLERS = ("multinomial", "annealed")
MAX_CORRECTOR_ROUNDS = 10
MAX_MODEL_VERSION = 1000
MASK_BY = ("random", "prompt")
OF_A_MODEL = ("steps", "guidance_scale", "temperature", "sampler", "corrector_rounds", "mask_by", "model_version")
"""The fields for which a model may have values of its own, which apply where a request says nothing."""
MAX_FEATHER = 64
MAX_CELLS = (1024 // 8) ** 2  # of the largest image, with the smallest tokens
MAX_DEPTH = 16
MAX_ADAPTER_STRENGTH = 2.0
ADAPTER_NAME = re.compile(r"[\w(][\w .+()-]{0,63}")


@dataclass(frozen=True)
class Recipe:
    """One request for images.

    Attributes:
        task: "text_to_image", "image_to_image", "inpaint", or on the tokens of an earlier result "vary", "touch_up",
            "improve".
        prompt: what to generate; text past the model's context (77 tokens for the published ones) is cut.
        seeds: one image each, integers in [0, 2**32), 1 to 64 of them.
        model: the checkpoint's name.
        negative_prompt: what to steer away from; unused without guidance.
        steps: sampling steps (num_inference_steps), 1 to 100.
        guidance_scale: 0 to 30; guidance is on above 1.
        temperature: of the noise on the confidences, at the first and the last step, 0 to 20.
        strength: share of the steps to run on an input image, above 0 to 1; None for text to image.
        aesthetic_score: micro-condition, 0 to 10.
        crop: micro-condition, pixels cropped at the top and at the left, 0 to 4096.
        width, height: in pixels, multiples of 16; None for the model's native size, or the input image's.
        fit: how an input image is brought to `width` x `height`: "crop", "pad" or "stretch".
        composite: inpainting, and tasks on the tokens of an inpainted image, leave pixels outside the mask
            unchanged.
        feather: pixels inside the mask's edge over which the new image blends into the old one, 0 to 64.
        only_masked: inpaint a square around the mask at the model's native size and paste it back into the image,
            which keeps its size and sharpness.
        image, mask: digests (`images.digest`) of the inputs of an image task; None skips the check.
        parent: the recipe, of one seed, whose tokens are varied, touched up or improved.
        adapter: the name of a fine-tuned adapter of the model, or None; "" is None.
        adapter_digest: of that adapter's files, 16 hexadecimal digits; None skips the check.
        adapter_strength: scale of the adapter's change, 0 to 2.
        share: of the parent's tokens to mask again at random (the mask ratio), above 0 to 1.
        cells: of the parent's token grid to resample: token indices, row by row from 0.
        sampler: how tokens are drawn: "multinomial", as in the reference, or "annealed": at a temperature that falls
            from 1 to 0 over the first half of the steps.
        corrector_rounds: how often the least likely tenth of the tokens is masked and drawn again at the end, 0 to 10.
            "improve" does nothing else, at least once. A round takes as long as two steps.
        mask_by: which tokens of an input image image to image masks: "random" ones, as in the reference, or those that
            the "prompt" makes least likely.
        model_version: of the checkpoint: with each one, "nouns" gives other images.

    Raises:
        UserError: a value is of the wrong type or out of its range.
    """

    task: str
    prompt: str
    seeds: tuple[int, ...]
    model: str = "nouns"
    negative_prompt: str = ""
    steps: int = 12
    guidance_scale: float = 10.0
    temperature: tuple[float, float] = (2.0, 0.0)
    strength: float | None = None
    aesthetic_score: float = 6.0
    crop: tuple[int, int] = (0, 0)
    width: int | None = None
    height: int | None = None
    fit: str = "crop"
    composite: bool = True
    feather: int = 0
    only_masked: bool = False
    image: str | None = None
    mask: str | None = None
    parent: Recipe | None = None
    share: float | None = None
    cells: tuple[int, ...] | None = None
    adapter: str | None = None
    adapter_digest: str | None = None
    adapter_strength: float = 1.0
    sampler: str = "multinomial"
    corrector_rounds: int = 0
    mask_by: str = "random"
    model_version: int = 1

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"The task must be one of {', '.join(TASKS)}.")
        set_ = object.__setattr__  # the dataclass is frozen; values are stored in one canonical type
        set_(self, "prompt", text("prompt", self.prompt))
        set_(self, "negative_prompt", text("negative prompt", self.negative_prompt))
        listed = isinstance(self.seeds, Iterable) and not isinstance(self.seeds, (str, bytes))
        seeds = tuple(islice(self.seeds, MAX_SEEDS + 1)) if listed else ()
        if not 1 <= len(seeds) <= MAX_SEEDS:
            raise UserError(f"Give 1 to {MAX_SEEDS} seeds.")
        set_(self, "seeds", tuple(whole("seed", seed, 0, MAX_SEED) for seed in seeds))
        set_(self, "model", text("model", self.model))
        set_(self, "steps", whole("number of steps", self.steps, 1, MAX_STEPS))
        set_(self, "guidance_scale", number("guidance scale", self.guidance_scale, 0, MAX_GUIDANCE_SCALE))
        first, last = pair("temperature", self.temperature)
        set_(self, "temperature", tuple(number("temperature", t, 0, MAX_TEMPERATURE) for t in (first, last)))
        set_(self, "strength", self._strength())
        set_(self, "aesthetic_score", number("aesthetic score", self.aesthetic_score, 0, MAX_AESTHETIC_SCORE))
        set_(self, "crop", tuple(whole("crop", c, 0, MAX_CROP) for c in pair("crop", self.crop)))
        for side in ("width", "height"):
            if (value := getattr(self, side)) is not None:
                set_(self, side, whole(side, value, SIDE_MULTIPLE, MAX_SIDE))
                if getattr(self, side) % SIDE_MULTIPLE:
                    raise UserError(f"The {side} must be a multiple of {SIDE_MULTIPLE} pixels.")
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise UserError(f"Width times height must be at most {MAX_PIXELS} pixels.")
        if self.fit not in FITS:
            raise UserError("Fit must be crop, pad or stretch.")
        if self.sampler not in SAMPLERS:
            raise UserError(f"The sampler must be {' or '.join(SAMPLERS)}.")
        rounds = whole("number of corrector rounds", self.corrector_rounds, 0, MAX_CORRECTOR_ROUNDS)
        set_(self, "corrector_rounds", max(1, rounds) if self.task == IMPROVE else rounds)
        if self.mask_by not in MASK_BY:
            raise UserError(f"mask_by must be {' or '.join(MASK_BY)}.")
        if self.task != IMAGE_TO_IMAGE:
            set_(self, "mask_by", "random")
        set_(self, "model_version", whole("version of the model", self.model_version, 1, MAX_MODEL_VERSION))
        for name in ("composite", "only_masked"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false.")
        set_(self, "feather", whole("feather", self.feather, 0, MAX_FEATHER))
        if self.task != INPAINT and (
            self.feather or self.only_masked or not (self.composite or self.task in ON_TOKENS)
        ):
            raise UserError('Feather, "only masked" and "composite" apply to inpainting only.')
        if self.only_masked and (self.width or self.height):
            raise UserError('"Only masked" keeps the image\'s size: leave out width and height.')
        if self.only_masked and not self.composite:
            raise UserError('"Only masked" needs "composite": it pastes the result back into the image.')
        self._check_adapter()
        for name in ("image", "mask", "adapter_digest"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value)):
                label = name.removesuffix("_digest")
                raise UserError(f"The digest of the {label} must be 16 hexadecimal digits.")
        self._check_parent()

    def _check_adapter(self) -> None:
        """The name must be that of a folder; without one, digest and strength are reset."""
        strength = number("adapter's strength", self.adapter_strength, 0, MAX_ADAPTER_STRENGTH)
        name = text("adapter", self.adapter) if self.adapter is not None else ""
        if name and not ADAPTER_NAME.fullmatch(name):
            raise UserError(no_adapter(name[:64]))
        object.__setattr__(self, "adapter", name or None)
        object.__setattr__(self, "adapter_strength", strength if name else 1.0)
        if not name:
            object.__setattr__(self, "adapter_digest", None)

    def _check_parent(self) -> None:
        """A task on tokens needs a parent and what to change in it; the others take neither."""
        by_task = {VARY: ("parent", "share"), TOUCH_UP: ("parent", "cells"), IMPROVE: ("parent",)}
        wanted = by_task.get(self.task, ())
        for name in ("parent", "share", "cells"):
            if (getattr(self, name) is not None) != (name in wanted):
                needs = "needs" if name in wanted else "takes no"
                raise UserError(f'The task "{self.task}" {needs} {name}.')
        if self.parent is None:
            return
        if not isinstance(self.parent, Recipe) or len(self.parent.seeds) != 1:
            raise UserError("Only a recipe with a single seed can be varied, touched up or improved.")
        if self.width or self.height:
            raise UserError("A varied image keeps its size: leave out width and height.")
        if self.parent.model != self.model:
            raise UserError(f"This image can only be varied with the model {self.parent.model}.")
        if self.parent.model_version != self.model_version:
            raise UserError(f"This image can only be varied with version {self.parent.model_version} of its model.")
        if self.depth > MAX_DEPTH:
            raise UserError(f"An image can be varied at most {MAX_DEPTH} times in a row: start from a new one.")
        if self.share is not None:
            object.__setattr__(self, "share", above_0("share", self.share))
        if self.cells is not None:
            if not isinstance(self.cells, Iterable):
                raise UserError("Give the cells as numbers of the token grid, counted row by row.")
            cells = {whole("cell", cell, 0, MAX_CELLS - 1) for cell in self.cells}
            if not cells:
                raise UserError("Nothing to touch up: paint over the part that should change.")
            object.__setattr__(self, "cells", tuple(sorted(cells)))

    @property
    def first(self) -> Recipe:
        """The recipe that a chain of results began with."""
        return self if self.parent is None else self.parent.first

    @property
    def depth(self) -> int:
        """How many results this one was derived from."""
        return 0 if self.parent is None else self.parent.depth + 1

    def _strength(self) -> float | None:
        if self.task not in STRENGTHS:
            if self.strength is not None:
                raise UserError(f"The task {self.task} has no strength.")
            return None
        return STRENGTHS[self.task] if self.strength is None else above_0("strength", self.strength)

    @property
    def start(self) -> int:
        """The first step to run; at least one is left, but for "improve"."""
        if self.task == IMPROVE:
            return self.steps
        if self.strength is None:
            return 0
        return self.steps - max(1, int(self.steps * self.strength))

    @property
    def passes(self) -> int:
        """The steps that run and the passes of the corrector, two a round; each of them gives a `Step`."""
        return self.steps - self.start + 2 * self.corrector_rounds

    def with_seeds(self, seeds: Sequence[int]) -> Recipe:
        return replace(self, seeds=tuple(seeds))


def images_of(recipes: Sequence[Recipe], first: int, last: int) -> list[Recipe]:
    """The recipes of the images from `first` up to but without `last`, which count through the seeds of all recipes."""
    chosen, before = [], 0
    for recipe in recipes:
        seeds = recipe.seeds[max(0, first - before) : max(0, last - before)]
        before += len(recipe.seeds)
        if seeds:
            chosen.append(recipe.with_seeds(seeds))
    return chosen


def no_adapter(name: str) -> str:
    return f"There is no adapter {name} here: choose one from the list."


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"The {name} must be text.")
    if len(value) > MAX_PROMPT:
        raise UserError(f"The {name} is too long: give at most {MAX_PROMPT} characters.")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"The {name} contains characters that are not text: please retype it.")
    return value


def number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:  # NaN
        raise UserError(f"The {name} must be a number from {low:g} to {high:g}.")
    try:
        converted = float(value)
    except OverflowError:  # an integer of more than 300 digits
        converted = math.inf
    if not low <= converted <= high:
        raise UserError(f"The {name} must be from {low:g} to {high:g}.")
    return converted


def above_0(name: str, value: object) -> float:
    share = number(name, value, 0, 1)
    if share == 0:
        raise UserError(f"The {name} must be above 0.")
    return share


def whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, float) and value.is_integer():  # JSON and browsers do not distinguish 12.0 from 12
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"The {name} must be a whole number from {low} to {high}.")
    if not low <= (converted := int(value)) <= high:
        raise UserError(f"The {name} must be from {low} to {high}.")
    return converted


def pair(name: str, value: object) -> tuple[object, object]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(f"The {name} must be two numbers.")
    return value[0], value[1]
