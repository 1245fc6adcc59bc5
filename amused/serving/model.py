"""What serving and the page ask of a model, in this process or in a worker: the real `Amused`, the tests' fake.

Imports no torch. The type checker fails if `Amused` drifts from it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image

from amused.recipe.recipe import Recipe

if TYPE_CHECKING:
    from amused.generation.pipeline import Amused


class SamplingStep(Protocol):
    """A sampling step; `step` counts from 1 to `steps`. Tokens are (height, width); masked ones are open."""

    @property
    def index(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens(self) -> Any: ...
    @property
    def masked(self) -> Any: ...


@runtime_checkable
class FinishedImage(Protocol):
    """A finished image. Tokens are (height, width) and convert to a NumPy array; `cut` as in `jobs.Result`."""

    @property
    def index(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def image(self) -> Image.Image: ...
    @property
    def tokens(self) -> Any: ...
    @property
    def cut(self) -> tuple[str, ...]: ...


class Model(Protocol):
    """A model that samples recipes.

    Attributes:
        size: side in pixels of the images it was trained on; `multiple` must divide the sides of others.
        pixels_per_token: side of a token's square in the image.
        traits: the words a bundled model knows, None for others.
        fingerprint: device, precision and versions: what every bit of the last image depends on besides its recipe.
        compile_status: whether the network runs compiled, and why, for people.
        needs_compiling: `compile` has something to do.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def pixels_per_token(self) -> int: ...
    @property
    def traits(self) -> dict[str, Any] | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def compile_status(self) -> str: ...
    @property
    def needs_compiling(self) -> bool: ...

    def read_weights(self, everything: bool = False) -> None:
        """Load the weights that every recipe needs, or `everything`."""

    def compile(self, turn: Callable[[], AbstractContextManager[bool]]) -> None:
        """Find a faster way to run the network, in a thread of its own; within a `turn` it has the model to itself."""

    def generate(
        self, recipe: Recipe, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Generator[SamplingStep | FinishedImage]:
        """Sample one seed after the other. It can be closed between two events."""

    def preview(self, tokens: Any, masked: Any = None, version: int | None = None) -> Image.Image:
        """A quick look at unfinished tokens, of a recipe with this `model_version`."""


if TYPE_CHECKING:

    def _amused_is_a_model(model: Amused) -> Model:
        return model
