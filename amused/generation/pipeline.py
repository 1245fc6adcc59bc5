"""The sampling loop: a recipe in, steps and images out.

Seeds are sampled in batches, each seed with its own generator, so that an image is the same alone and in any sweep.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import amused
from amused.checkpoints.adapters import with_digests
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.batches import batch_size_on_gpu, out_of_memory_refused
from amused.generation.compiled import EAGER, INDUCTOR, Compiler, Turn, one_turn
from amused.generation.components import Components, Networks
from amused.generation.images import Source, digest, to_image, to_tensor
from amused.generation.inputs import InputReader, Inputs
from amused.generation.lru_cache import LRUCache
from amused.generation.placement import Placement, as_current
from amused.generation.predictor import EncodedPrompt, Predictor
from amused.generation.preview import Previewer
from amused.generation.sampling import (
    StepPlan,
    corrector_plans,
    mask_at_random,
    mask_least_likely,
    mask_schedule,
    sampling_steps,
    unmask_step,
)
from amused.generation.throttle import Throttle
from amused.limits import MAX_BATCH
from amused.model.text import encode_text, is_truncated, tokenize
from amused.model.transformer import concatenate
from amused.recipe.recipe import IMAGE_TO_IMAGE, IMPROVE, INPAINT, STRENGTHS, TEXT_TO_IMAGE, Recipe

CACHED_PROMPTS = 8
CACHED_IMAGES = 8
CACHED_RESULTS = 1024  # 2 to 8 kB each


@dataclass(frozen=True)
class Step:
    """Emitted after each sampling step, and after each of the two passes of a corrector round.

    Attributes:
        index: of the seed in the recipe, from 0.
        step: steps done of this image, from 1 to `steps`.
        tokens: (h, w), on the model's device; unknown where `masked`.
        masked: (h, w) bool.
    """

    index: int
    seed: int
    step: int
    steps: int
    tokens: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Picture:
    """A finished image.

    Attributes:
        tokens: (h, w), on the CPU.
        cut: names of the texts that are longer than the model can read: "prompt", "negative prompt".
    """

    index: int
    seed: int
    image: Image.Image
    tokens: Tensor
    cut: tuple[str, ...] = ()


class Amused:
    """A model that turns prompts and images into images. Made by `amused.load`; thread-safe.

    Attributes:
        checkpoint: the configurations and the weight files.
        name: of the checkpoint.
        size: side in pixels of the images it was trained on.
        multiple: width and height must be multiples of it, in pixels.
        pixels_per_token: side of a token's square in the image.
        traits: the words that the bundled checkpoint knows, or None.
        device, dtype, dtype_reason: where it runs, in which precision, and why.
        quantize: "int8" or None.
        adapters: the folder of adapters, or None.
        former: the earlier version of this model, for recipes that it made, or None.
        defaults: the checkpoint's own settings, by field of a recipe: `Recipe(..., **model.defaults)`.
        batch_size: images that are sampled together: 1 on a CPU, where more gain nothing; on a GPU measured before the
            first image, and halved when memory runs out. A short last batch is filled up with its last seed, so that
            the network always sees the same shapes.
    """

    def __init__(
        self, checkpoint: Checkpoint, placement: Placement, adapters: Path | None = None, compile: str = "off"
    ) -> None:
        self.checkpoint = checkpoint
        self.name, self.traits, self.defaults = checkpoint.name, checkpoint.traits, checkpoint.defaults
        self.size, self.multiple = checkpoint.size, checkpoint.multiple
        self.pixels_per_token = checkpoint.vqgan.scale_factor
        self.device, self.dtype, self.dtype_reason = placement.device, placement.dtype, placement.reason
        self.quantize = placement.quantize
        self.adapters = adapters
        if placement.device.type == "cuda":
            # Sum in float32. With (False, False), which forbids split-K too, cuBLAS refuses to multiply.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.batch_size = 1
        self._is_batch_measured = placement.device.type != "cuda"
        self.components = Components(checkpoint, placement, adapters)
        self._compiler = Compiler(compile, placement)
        self._last = threading.local()  # the `rung` and `batch_size` of this thread's last image
        self.former = None if checkpoint.former is None else Amused(checkpoint.former, placement, adapters)
        if self.former is not None:
            self.former._last = self._last
        self._prompts: LRUCache[tuple[Any, ...], EncodedPrompt] = LRUCache(CACHED_PROMPTS)
        self._encodings: LRUCache[str, Tensor] = LRUCache(CACHED_IMAGES)
        self._results: LRUCache[Recipe, tuple[Tensor, str]] = LRUCache(CACHED_RESULTS)

    def read_weights(self, everything: bool = False) -> None:
        """Load the weights now instead of at the first image; `everything` includes those of image tasks only."""
        with out_of_memory_refused():
            self.components.load(with_encoder=everything)

    @property
    def fingerprint(self) -> str:
        """All that the bits of the last image depend on besides its recipe: device, precision, versions."""
        dtype, version = str(self.dtype).removeprefix("torch."), torch.__version__.partition("+")[0]
        if self.quantize:
            dtype = f"{dtype} {self.quantize}"
        made = f"{self.device.type} {dtype} amused-{amused.__version__} torch-{version}"
        if self._rung == INDUCTOR:
            made += f" {INDUCTOR}"
        if self.device.type != "cuda":
            return made
        # Random numbers depend on the card: torch draws as many at once as it has multiprocessors.
        library = f"cuda-{torch.version.cuda}" if torch.version.cuda else f"rocm-{torch.version.hip}"
        batch_size = getattr(self._last, "batch_size", self.batch_size)
        return f"{made} {library} batch-{batch_size} {torch.cuda.get_device_name(self.device)}"

    @property
    def _rung(self) -> str:
        """`EAGER` for all that equal it."""
        return getattr(self._last, "rung", EAGER)

    @property
    def compile_status(self) -> str:
        """Whether the network runs compiled, and why."""
        return self._compiler.status

    @property
    def needs_compiling(self) -> bool:
        """Whether images were sampled for whose shapes `compile` can look for a faster way."""
        return self._compiler.is_needed

    def compile(self, turn: Turn = one_turn) -> None:
        """Find the fastest way to run the network for the shapes sampled so far, as `load(compile=...)` allows.

        Takes from a second to a minute; later runs profit. `turn` gives the model, as other threads may use it.
        """
        self._compiler.compile(turn)

    @property
    def made(self) -> str:
        """An older name of `fingerprint`."""
        return self.fingerprint

    def prompt_is_cut(self, prompt: str) -> bool:
        """Whether a prompt is longer than the text encoder's context, so that its end is ignored."""
        return is_truncated(self.components.tokenizer.get(), prompt)

    def step(self, recipe: Recipe) -> Callable[[], Tensor]:
        """One forward pass of a recipe's network on random tokens, without sampling, for benchmarks."""
        networks = self.components.networks(recipe)
        prompts = self._encode_prompts(networks, recipe, self.size, self.size)
        conditioning = concatenate([prompt.conditioning for prompt in prompts])
        side, codes = self.checkpoint.transformer.sample_size, self.checkpoint.transformer.codebook_size
        tokens = torch.randint(codes, (len(prompts), side, side), device=self.device)
        return torch.inference_mode()(lambda: networks.transformer(tokens, conditioning))

    # The three tasks

    def text_to_image(self, prompt: str, *, seeds: Sequence[int] = (0,), **options: Any) -> list[Image.Image]:
        """One image per seed, in the order of the seeds.

        Args:
            prompt: what to draw.
            seeds: integers in [0, 2**32).
            options: `steps`, `guidance_scale`, `negative_prompt`, `temperature`, `sampler`, `corrector_rounds`,
                `aesthetic_score`, `crop`, `width`, `height`, `adapter`, `adapter_strength`: see `Recipe` for meaning
                and range. Defaults are `defaults`, then those of `Recipe`.

        Raises:
            UserError: a value is out of range.
            CheckpointError: the weights are unusable.
        """
        return self._images(TEXT_TO_IMAGE, prompt, seeds=seeds, **options)

    def image_to_image(
        self, prompt: str, image: Source, *, strength: float = 0.5, seeds: Sequence[int] = (0,), **options: Any
    ) -> list[Image.Image]:
        """Images that start from `image`: a PIL image, a path, or the bytes of a file.

        `strength`, above 0 to 1, is the share of the steps that run; at 1 nothing of `image` is left. Without `width`
        and `height` the image keeps its size, reduced to a multiple of `multiple`. `mask_by` is one more option. Other
        arguments and errors as for `text_to_image`.
        """
        return self._images(IMAGE_TO_IMAGE, prompt, image, seeds=seeds, strength=strength, **options)

    def inpaint(
        self,
        prompt: str,
        image: Source,
        mask: Source,
        *,
        strength: float = 1.0,
        seeds: Sequence[int] = (0,),
        **options: Any,
    ) -> list[Image.Image]:
        """Repaint `image` where `mask` is white; see `pixel_masks.mask_rule` for masks with transparency.

        Every token that the mask touches, a square of `pixels_per_token`, is repainted. Pixels outside the mask come
        back unchanged unless `composite=False`. Other arguments and errors as for `image_to_image`.
        """
        return self._images(INPAINT, prompt, image, mask, seeds=seeds, strength=strength, **options)

    def _images(self, task: str, prompt: str, *inputs: Source, **options: Any) -> list[Image.Image]:
        events = self.generate(Recipe(task, prompt, model=self.name, **{**self.defaults, **options}), *inputs)
        results = [event for event in events if isinstance(event, Picture)]
        for name in results[0].cut:
            warnings.warn(f"The {name} is longer than the model can read: its end is ignored.", stacklevel=3)
        return [result.image for result in results]

    # Sampling

    def generate(
        self, recipe: Recipe, image: Source | None = None, mask: Source | None = None
    ) -> Generator[Step | Picture]:
        """Sample a recipe. Yields, per batch of seeds, a `Step` per image and step, then the `Picture`s in order.

        The iterator can be closed between any two events; events stay valid.

        Raises:
            UserError: an image or mask is missing or unusable, or the model cannot do what the recipe asks for.
            CheckpointError: the weights are unusable.
        """
        model = self.of_version(recipe.model_version)
        with out_of_memory_refused():
            yield from model._generate(with_digests(self.adapters, recipe), image, mask)

    def of_version(self, version: int) -> Amused:
        """This model or a former version of it.

        Raises:
            UserError: the version is not there.
        """
        model, known = self, list[int]()
        while model.checkpoint.version != version:
            known.append(model.checkpoint.version)
            if model.former is None:
                versions = " and ".join(str(one) for one in sorted(known))
                raise UserError(
                    f"This needs version {version} of the model {self.name}, and version {versions} is here: "
                    "use the release of aMUSEd that made it."
                )
            model = model.former
        return model

    def _generate(self, recipe: Recipe, image: Source | None, mask: Source | None) -> Generator[Step | Picture]:
        self._last.rung = EAGER
        reader = InputReader(self.name, self.size, self.multiple, self.pixels_per_token, self._parent_tokens)
        inputs = reader.read(recipe, image, mask)
        rung = self._rung  # of the parent, if there is one; what starts from its tokens is exact
        self.components.start_loading()
        networks = self.components.networks(recipe)
        cut = tuple(name for name, prompt in prompts_of(recipe).items() if self.prompt_is_cut(prompt))[::-1]
        prompts = self._encode_prompts(networks, recipe, inputs.width, inputs.height)
        given = inputs.tokens
        if given is None and inputs.image is not None:
            given = self.encode(inputs.image)
        if not self._is_batch_measured:
            side = self.checkpoint.transformer.sample_size
            with as_current(self.device):
                self.batch_size = batch_size_on_gpu(networks.transformer, prompts[-1].conditioning, side, MAX_BATCH)
            self._is_batch_measured = True
        done = 0
        while done < len(recipe.seeds):
            features = self._compiler.features(networks.transformer, is_exact=recipe.parent is not None)
            features.names.add(rung)
            mask_id = self.checkpoint.mask_token_id
            predict = Predictor(networks.transformer, prompts, recipe, self.batch_size, mask_id, features)
            try:
                for event in self._sample(recipe, inputs, given, predict, done):
                    if isinstance(event, Picture):
                        event, done = replace(event, cut=cut), done + 1
                    yield event
            except torch.OutOfMemoryError:
                if predict.batch_size == 1:
                    raise
                self.batch_size = min(self.batch_size, predict.batch_size // 2)  # another run may have halved it too
            else:
                return
            del predict, features
            self._compiler.forget()  # graphs of the former batch size
            torch.cuda.empty_cache()  # here, where the exception no longer holds the tensors

    def _sample(
        self, recipe: Recipe, inputs: Inputs, given: Tensor | None, predict: Predictor, done: int
    ) -> Generator[Step | Picture]:
        """Sample the seeds of a recipe but for the first `done`."""
        mask_id, throttle = self.checkpoint.mask_token_id, Throttle(self.device)
        may_change = None if inputs.editable is None else torch.from_numpy(inputs.editable).to(self.device)
        start = self._mask_by_prompt(recipe, given, predict) if recipe.mask_by == "prompt" else None
        for first in range(done, len(recipe.seeds), predict.batch_size):
            seeds = recipe.seeds[first : first + predict.batch_size]
            padded = (*seeds, *[seeds[-1]] * (predict.batch_size - len(seeds)))
            generators = [torch.Generator(self.device).manual_seed(seed) for seed in padded]
            tokens = (  # b h w
                self._initial_tokens(recipe, inputs, given, generators)
                if start is None
                else start.repeat(len(generators), 1, 1)
            )
            steps = self._steps_of(recipe, inputs, tokens)
            for step in steps:
                with torch.inference_mode():
                    if step.num_to_mask is not None:
                        tokens = mask_least_likely(
                            predict(tokens, step, None), tokens, mask_id, step.num_to_mask, may_change
                        )
                    else:
                        masked_idx = predict.masked_idx(tokens)  # b k, or None for all positions
                        logits = predict(tokens, step, masked_idx)  # b k codebook
                        tokens = unmask_step(logits, tokens, mask_id, step, generators, masked_idx)
                    masked = tokens == mask_id
                throttle.wait()
                for i, seed in enumerate(seeds):
                    yield Step(first + i, seed, step.number, len(steps), tokens[i], masked[i])
            for i, seed in enumerate(seeds):
                result = self.decode(tokens[i])
                if inputs.frame is not None:
                    result = inputs.frame.composite_result(result)
                on_cpu = tokens[i].cpu()
                self._last.rung = INDUCTOR if INDUCTOR in predict.features.names else EAGER
                self._last.batch_size = predict.batch_size
                self._remember(recipe.with_seeds([seed]), on_cpu)
                yield Picture(first + i, seed, result, on_cpu)

    def _initial_tokens(
        self, recipe: Recipe, inputs: Inputs, given: Tensor | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """(b, h, w), before the first step that runs. `given`: the tokens (h, w) of the image or the parent."""
        mask_id, pixels = self.checkpoint.mask_token_id, self.pixels_per_token
        if given is None:
            shape = (len(generators), inputs.height // pixels, inputs.width // pixels)
            return torch.full(shape, mask_id, device=self.device)
        if inputs.initial_mask is not None:
            initial_mask = torch.from_numpy(inputs.initial_mask).to(self.device)
            return given.masked_fill(initial_mask, mask_id).repeat(len(generators), 1, 1)
        if recipe.task == IMPROVE:
            return given.repeat(len(generators), 1, 1)
        mask_ratio: Tensor | float | None = recipe.share
        if mask_ratio is None:
            mask_ratio = mask_schedule(self.checkpoint.masking_schedule, recipe.steps, self.device)[recipe.start]
        tokens = mask_at_random(given, mask_ratio, mask_id, generators)
        if inputs.editable_mask is None:
            return tokens
        return torch.where(torch.from_numpy(inputs.editable_mask).to(self.device), tokens, given)

    @torch.inference_mode()
    def _mask_by_prompt(self, recipe: Recipe, given: Tensor | None, predict: Predictor) -> Tensor:
        """(1, h, w): the tokens of an image, those masked that are the least likely with the prompt."""
        assert given is not None
        ratio = mask_schedule(self.checkpoint.masking_schedule, recipe.steps, "cpu")[recipe.start]
        plan = StepPlan(0, None, ratio)  # before the first step: of which only the number counts
        logits = predict(given[None], plan, None)
        count = max(1, int(ratio * given.numel()))
        return mask_least_likely(logits, given[None], self.checkpoint.mask_token_id, count)

    def _steps_of(self, recipe: Recipe, inputs: Inputs, tokens: Tensor) -> list[StepPlan]:
        # The reference inpaints with the linear schedule whatever the checkpoint says.
        schedule = "linear" if recipe.task == INPAINT else self.checkpoint.masking_schedule
        plans: list[StepPlan] = []
        if recipe.task != IMPROVE:
            plans = sampling_steps(
                schedule,
                recipe.steps,
                recipe.temperature,
                (tokens == self.checkpoint.mask_token_id).flatten(1),
                start=recipe.start,
                scale_by_mask=recipe.task == INPAINT or recipe.parent is not None,
                sampler=recipe.sampler,
            )
        num_tokens = tokens[0].numel() if inputs.editable is None else int(inputs.editable.sum())
        first = len(plans) + 1
        return plans + corrector_plans(first, recipe.corrector_rounds, num_tokens, recipe.sampler, tokens.device)

    def _parent_tokens(self, parent: Recipe, image: Source | None, mask: Source | None) -> Tensor:
        """The tokens (h, w) of an earlier result: cached, or sampled again."""
        cached = self._results.get(parent)
        if cached is not None:
            tokens, self._last.rung = cached
        else:
            *_, result = self.generate(parent, image, mask)
            tokens = result.tokens
        return tokens.to(self.device)

    def _remember(self, recipe: Recipe, tokens: Tensor) -> None:
        """Cache a result's tokens for tasks on tokens, if its recipe names all of its images."""
        if recipe.task in STRENGTHS and (recipe.image is None or (recipe.task == INPAINT and recipe.mask is None)):
            return
        self._results.put(recipe, (tokens, self._rung))

    # Prompts and images to and from what the network sees

    def _encode_prompts(self, networks: Networks, recipe: Recipe, width: int, height: int) -> list[EncodedPrompt]:
        micro_conditions = (width, height, *recipe.crop, recipe.aesthetic_score)
        return [self._encode_prompt(networks, prompt, micro_conditions) for prompt in prompts_of(recipe).values()]

    @torch.inference_mode()
    def _encode_prompt(self, networks: Networks, prompt: str, micro_conditions: tuple[float, ...]) -> EncodedPrompt:
        """Prompt-only work, cached per prompt, size and adapter."""
        key = (prompt, micro_conditions, networks.key)
        encoded = self._prompts.get(key)
        if encoded is None:
            ids = tokenize(self.components.tokenizer.get(), [prompt]).to(self.device)
            hidden, pooled = encode_text(networks.text_encoder, ids)
            micro = torch.tensor([micro_conditions], device=self.device, dtype=self.dtype)
            encoded = EncodedPrompt(networks.transformer.condition(hidden, pooled, micro))
            self._prompts.put(key, encoded)
        return encoded

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """An image, whose sides are multiples of `multiple`, to its tokens (h, w). Cached."""
        key = digest(image)
        tokens = self._encodings.get(key)
        if tokens is None:
            # cuDNN computes convolutions in TF32 by default.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                tokens = self.components.encoder.get().encode(to_tensor(image).to(self.device))[0]
            self._encodings.put(key, tokens)
        return tokens

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Image.Image:
        """Tokens (h, w), integers in [0, codebook_size), to their image."""
        tokens = tokens.to(self.device)
        pixels = self.components.decoder.get().decode(tokens[None])[0]
        self._previewer.observe(tokens, pixels)
        return to_image(pixels)

    def preview(self, tokens: Tensor, masked: Tensor | None = None, version: int | None = None) -> Image.Image:
        """An unfinished image: tokens (h, w), a grey checkerboard where `masked` (by default, the mask tokens).

        `version` is that of the recipe, by default this model's.
        """
        if version not in (None, self.checkpoint.version):
            return self.of_version(version).preview(tokens, masked)
        masked = tokens == self.checkpoint.mask_token_id if masked is None else masked
        return self._previewer.preview(tokens.to(self.device), masked.to(self.device))

    @functools.cached_property
    def _previewer(self) -> Previewer:
        return Previewer(self.components.decoder.get(), self.pixels_per_token)


def prompts_of(recipe: Recipe) -> dict[str, str]:
    """The texts that the network sees, by name: the prompt, after the negative prompt if there is guidance."""
    negative = {} if recipe.guidance_scale <= 1 else {"negative prompt": recipe.negative_prompt}
    return {**negative, "prompt": recipe.prompt}
