"""aMUSEd in use: a recipe in, steps and pictures out.

Reads each component of a checkpoint when it is first needed. Every seed of a sweep is worked on by itself, with its
own generator, so that a picture is the same alone and in any sweep, in every precision. Knows no page and no files but
through the checkpoint.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageChops
from torch import Tensor

import amused
from amused.checkpoints.adapters import TEXT_ENCODER, TRANSFORMER, with_digests
from amused.checkpoints.lora import check_fits, merged, read_adapter
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.images import (
    EMPTY_MASK,
    Source,
    composite,
    digest,
    feather,
    fit,
    fit_mask,
    load_mask,
    load_picture,
    square_around,
    to_image,
    to_tensor,
    token_mask,
)
from amused.generation.placement import Placement
from amused.generation.sampling import guide, mask_at_random, mask_counts, mask_ratios, reveal, temperatures
from amused.model.packed import can_pack, pack, pack_now
from amused.model.quantized import quantize
from amused.model.text import encode_text, is_truncated, tokenize
from amused.model.transformer import Conditioning, UViT, concatenate
from amused.model.vqgan import VQGAN
from amused.recipe.recipe import IMAGE_TO_IMAGE, INPAINT, MAX_PIXELS, STRENGTHS, TEXT_TO_IMAGE, VARY, Recipe

CACHED_PROMPTS = 8
CACHED_PICTURES = 8
CACHED_ADAPTERS = 2  # merged into networks, which share all weights that the adapter leaves alone
CACHED_RESULTS = 1024  # of some 2 to 8 kB
LARGE = ("transformer", "decoder")
QUICK_DECODER = 20_000_000  # parameters up to which a preview is decoded even on a CPU


@dataclass(frozen=True)
class Step:
    """One sampling step is done.

    Attributes:
        index: which seed of the recipe, from 0.
        step: steps done of this picture, from 1 to `steps`.
        tokens: (height, width) on the model's device; where `masked`, not known yet.
    """

    index: int
    seed: int
    step: int
    steps: int
    tokens: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Picture:
    """One picture is finished. `tokens`: (height, width), on the CPU."""

    index: int
    seed: int
    image: Image.Image
    tokens: Tensor


@dataclass
class Frame:
    """The whole picture and mask around the part, `box`, that is worked on."""

    picture: Image.Image
    mask: Image.Image
    box: tuple[int, int, int, int]

    def around(self, part: Image.Image, onto: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """A picture as the whole is, with a part that was worked on set into its place."""
        left, top, right, bottom = self.box
        whole = onto.copy()
        whole.paste(part.resize((right - left, bottom - top), resampling), (left, top))
        return whole


@dataclass
class Prompt:
    """What depends on a prompt and a size alone. `blank`: the features of a picture of which nothing is known yet."""

    conditioning: Conditioning
    blank: Tensor | None = None


@dataclass(frozen=True)
class Networks:
    """What makes the pictures of a recipe: those of the checkpoint, or with an adapter merged."""

    transformer: UViT
    text_encoder: torch.nn.Module
    key: tuple[str, float] | None = None


@dataclass
class Inputs:
    """What a recipe works on, checked and fitted: `tokens`, `repainted` and `open` are (height, width) in tokens.

    `repainted` is what is masked at first, `open` where it may be at random: everywhere if None.
    """

    width: int
    height: int
    picture: Image.Image | None = None
    mask: Image.Image | None = None
    tokens: Tensor | None = None
    repainted: Tensor | None = None
    open: Tensor | None = None
    frame: Frame | None = None


class Amused:
    """A model that turns prompts and pictures into pictures. Made by `amused.load`; safe to use from several threads.

    Attributes:
        name: of the checkpoint.
        size: the side in pixels of the pictures it was made for.
        traits: the words that the bundled checkpoint knows, or None.
        device, dtype, dtype_reason: where and in what precision it runs, and why.
    """

    def __init__(self, checkpoint: Checkpoint, placement: Placement, adapters: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self.size = checkpoint.size
        self.traits = checkpoint.traits
        self.device, self.dtype, self.dtype_reason = placement.device, placement.dtype, placement.reason
        self.quantize = placement.quantize
        self.adapters = adapters
        self._lock = threading.Lock()
        self._parts: dict[str, Future] = {}
        self._prompts: OrderedDict[tuple, Prompt] = OrderedDict()
        self._encoded: OrderedDict[str, Tensor] = OrderedDict()
        self._adapted: OrderedDict[tuple[str, float], Networks] = OrderedDict()
        self._results: OrderedDict[Recipe, Tensor] = OrderedDict()
        self._colours: Tensor | None = None

    def read_weights(self, everything: bool = False) -> None:
        """Read now what every picture needs, not at the first one; or `everything`, as that of image tasks, too."""
        self._read_ahead()
        for name in ("tokenizer", "text_encoder", *LARGE, *(["encoder"] if everything else [])):
            self._part(name)

    @property
    def made(self) -> str:
        """What a picture's every bit depends on beside its recipe, in short, to be written down with it."""
        dtype, version = str(self.dtype).removeprefix("torch."), torch.__version__.partition("+")[0]
        if self.quantize:
            dtype = f"{dtype} {self.quantize}"
        return f"{self.device.type} {dtype} amused-{amused.__version__} torch-{version}"

    def step(self, recipe: Recipe) -> Callable[[], Tensor]:
        """One step of a recipe's network without the sampling, to be measured: its logits for a random picture."""
        networks = self._networks(recipe)
        prompts = self._read_prompts(networks, recipe, self.size, self.size)
        conditioning = concatenate([prompt.conditioning for prompt in prompts])
        side, codes = self.checkpoint.transformer.sample_size, self.checkpoint.transformer.codebook_size
        tokens = torch.randint(codes, (len(prompts), side, side), device=self.device)
        return torch.inference_mode()(lambda: networks.transformer(tokens, conditioning))

    def prompt_is_cut(self, prompt: str) -> bool:
        """Whether a prompt is longer than the text encoder reads, so that its end is left out."""
        return is_truncated(self._part("tokenizer"), prompt)

    # The three tasks.

    def text_to_image(self, prompt: str, *, seeds: Sequence[int] = (0,), **options: Any) -> list[Image.Image]:
        """Pictures of a prompt, in the order of the seeds.

        Args:
            prompt: what to draw.
            seeds: integers in [0, 2**32), one picture each.
            options: `steps`, `guidance_scale`, `negative_prompt`, `temperature`, `aesthetic_score`, `crop`, `width`,
                `height`, `adapter`, `adapter_strength`: see `Recipe` for their meaning, ranges and defaults.

        Raises:
            UserError: a value is out of its range.
            CheckpointError: the weights cannot be used.
        """
        return self._pictures(Recipe(TEXT_TO_IMAGE, prompt, seeds, model=self.name, **options))

    def image_to_image(
        self, prompt: str, image: Source, *, strength: float = 0.5, seeds: Sequence[int] = (0,), **options: Any
    ) -> list[Image.Image]:
        """Pictures of a prompt that start from `image`: a PIL picture, a path or the bytes of a file.

        `strength`, above 0 to 1, is the share of the steps that is run; at 1 nothing of `image` is left. Without
        `width` and `height` the picture keeps its size, cut down to a multiple of 16. Other arguments as for
        `text_to_image`.
        """
        return self._pictures(
            Recipe(IMAGE_TO_IMAGE, prompt, seeds, model=self.name, strength=strength, **options), image
        )

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
        """Pictures that repaint `image` where `mask` is white.

        Every token (16x16 pixels) that the mask touches is repainted; pixels outside the mask come back identical
        unless `composite=False`. Other arguments as for `image_to_image`.
        """
        recipe = Recipe(INPAINT, prompt, seeds, model=self.name, strength=strength, **options)
        return self._pictures(recipe, image, mask)

    def _pictures(self, recipe: Recipe, image: Source | None = None, mask: Source | None = None) -> list[Image.Image]:
        events = self.generate(recipe, image, mask)
        return [event.image for event in events if isinstance(event, Picture)]

    # The streaming form beneath them.

    def generate(
        self, recipe: Recipe, image: Source | None = None, mask: Source | None = None
    ) -> Iterator[Step | Picture]:
        """Work on one seed after the other; yield a `Step` after every step and a `Picture` after the last.

        The iterator can be closed between any two events; what has been yielded stays valid.
        """
        recipe = with_digests(self.adapters, recipe)
        given = self._read_inputs(recipe, image, mask)
        self._read_ahead()
        networks = self._networks(recipe)
        network = networks.transformer
        prompts = self._read_prompts(networks, recipe, given.width, given.height)
        conditioning = concatenate([prompt.conditioning for prompt in prompts])
        if given.tokens is None and given.picture is not None:
            given.tokens = self._encode(given.picture)
        shared_logits = None  # of the first step, where all seeds start from the same tokens
        for index, seed in enumerate(recipe.seeds):
            generator = torch.Generator(self.device).manual_seed(seed)
            tokens = self._start(recipe, given, generator)
            for step, reveal_step in enumerate(self._plan(recipe, tokens), start=1):
                first_of_all = step == 1 and recipe.task not in (IMAGE_TO_IMAGE, VARY)
                rows = self._rows(tokens)
                logits = shared_logits if first_of_all else None
                if logits is None and recipe.task == TEXT_TO_IMAGE and first_of_all:
                    features = torch.cat([self._blank(network, prompt, tokens) for prompt in prompts])
                    logits = self._logits(network, features, rows, recipe.guidance_scale)
                elif logits is None:
                    features = self._features(network, tokens, conditioning)
                    logits = self._logits(network, features, rows, recipe.guidance_scale)
                if first_of_all:
                    shared_logits = logits
                tokens = self._reveal(logits, tokens, *reveal_step, generator, rows)
                masked = tokens == self.checkpoint.mask_token_id
                yield Step(index, seed, step, recipe.steps - recipe.start, tokens, masked)
            result = self.decode(tokens)
            if given.mask is not None and recipe.composite:
                result = self._set_back(recipe, given, result)
            tokens = tokens.cpu()
            self._remember(recipe.with_seeds([seed]), tokens)
            yield Picture(index, seed, result, tokens)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Image.Image:
        """The picture of tokens (height, width)."""
        pixels = self._decoder.decode(tokens.to(self.device)[None])[0]
        if self._colours is None:
            self._colours = self._fit_colours(tokens, pixels)
        return to_image(pixels)

    @torch.inference_mode()
    def preview(self, tokens: Tensor, masked: Tensor | None = None) -> Image.Image:
        """What is known of a picture whose tokens are being revealed; masked cells are a grey chequer.

        Decoded where that is quick. Otherwise each token is one flat colour, learnt from the pictures decoded so far.
        """
        tokens = tokens.to(self.device)
        masked = tokens == self.checkpoint.mask_token_id if masked is None else masked.to(self.device)
        known = tokens.masked_fill(masked, 0)
        scale = self.checkpoint.vqgan.scale_factor
        if self._decodes_quickly():
            pixels = self._decoder.decode(known[None])[0].float()
        elif self._colours is not None:
            pixels = cells(self._colours[known].permute(2, 0, 1), scale)
        else:
            pixels = cells(torch.full((3, *tokens.shape), 0.5, device=self.device), scale)
        rows, columns = (torch.arange(side, device=self.device) for side in tokens.shape)
        chequer = 0.82 + 0.06 * ((rows[:, None] + columns) % 2)
        return to_image(torch.where(cells(masked[None], scale), cells(chequer[None], scale), pixels))

    # Beneath them.

    def _read_inputs(self, recipe: Recipe, image: Source | None, mask: Source | None) -> Inputs:
        """Check and fit what the recipe works on, before any network is needed but for a parent's."""
        if recipe.parent is not None:
            return self._go_on(recipe, image, mask)
        if recipe.task == TEXT_TO_IMAGE:
            given = Inputs(recipe.width or self.size, recipe.height or self.size)
            self._check_size(given.width, given.height)
            return given
        if image is None:
            raise UserError("Give a picture to start from.")
        picture = load_picture(image)
        if recipe.image not in (None, digest(picture)):
            raise UserError("This is not the picture that the recipe was made with: choose that one.")
        if recipe.task != INPAINT:
            return self._fit_inputs(recipe, picture)
        if mask is None:
            raise UserError(EMPTY_MASK)
        mask = load_mask(mask, picture.size)
        if recipe.mask not in (None, digest(mask)):
            raise UserError("This is not the mask that the recipe was made with: choose that one.")
        if not recipe.only_masked:
            return self._fit_inputs(recipe, picture, mask)
        box = square_around(mask, self.size)
        given = self._fit_inputs(
            replace(recipe, only_masked=False, width=self.size, height=self.size, fit="stretch"),
            picture.crop(box),
            mask.crop(box),
        )
        given.frame = Frame(picture, mask, box)
        return given

    def _go_on(self, recipe: Recipe, image: Source | None, mask: Source | None) -> Inputs:
        """From the tokens of an earlier result. What inpainting left as it was stays so, but for cells asked for."""
        tokens, scale = self._parent_tokens(recipe.parent, image, mask), self.checkpoint.vqgan.scale_factor
        cells, first = self._cells(recipe, tokens), recipe.first
        if first.task != INPAINT or not (first.composite and recipe.composite):
            return Inputs(tokens.shape[1] * scale, tokens.shape[0] * scale, tokens=tokens, repainted=cells)
        given = self._read_inputs(first, image, mask)
        whole = given.frame or given
        whole.mask = feather(whole.mask, first.feather)
        while recipe.parent is not None:
            touched = self._cells(recipe, tokens)
            if touched is not None:
                painted = to_mask(touched, scale)
                if given.frame is not None:
                    nothing = Image.new("L", given.frame.mask.size)
                    painted = given.frame.around(painted, nothing, Image.Resampling.NEAREST)
                whole.mask = ImageChops.lighter(whole.mask, painted)
            recipe = recipe.parent
        return replace(given, tokens=tokens, repainted=cells, open=given.repainted)

    def _fit_inputs(self, recipe: Recipe, picture: Image.Image, mask: Image.Image | None = None) -> Inputs:
        width, height = self._fitting_size(recipe, picture)
        # A picture that keeps its size loses less than a token, and is stretched as the reference does it.
        mode = recipe.fit if recipe.width or recipe.height else "stretch"
        given = Inputs(width, height, picture=fit(picture, width, height, mode))
        if mask is not None:
            given.mask = fit_mask(mask, width, height, mode)
            if given.mask.getbbox() is None:
                raise UserError(
                    "What was painted is cut off: paint nearer to the middle, or fit the picture by padding."
                )
            given.repainted = token_mask(given.mask, self.checkpoint.vqgan.scale_factor).to(self.device)
        return given

    def _set_back(self, recipe: Recipe, given: Inputs, result: Image.Image) -> Image.Image:
        """The result within the mask, the picture's own pixels outside of it."""
        frame = given.frame
        if frame is None:
            return composite(given.picture, result, feather(given.mask, recipe.feather))
        whole = frame.around(result, frame.picture, Image.Resampling.LANCZOS)
        return composite(frame.picture, whole, feather(frame.mask, recipe.feather))

    def _fitting_size(self, recipe: Recipe, picture: Image.Image) -> tuple[int, int]:
        multiple = self.multiple
        width = recipe.width or picture.width // multiple * multiple
        height = recipe.height or picture.height // multiple * multiple
        if width * height > MAX_PIXELS:
            raise UserError(
                f"The picture is too large: give a width and a height of at most {MAX_PIXELS} pixels in all."
            )
        if not width or not height:
            raise UserError(f"The picture is too small: it must be at least {multiple} pixels wide and high.")
        self._check_size(width, height)
        return width, height

    def _parent_tokens(self, parent: Recipe, image: Source | None, mask: Source | None) -> Tensor:
        """The tokens of an earlier result: remembered, or made again by its recipe."""
        with self._lock:
            tokens = self._results.get(parent)
        if tokens is None:
            *_, result = self.generate(parent, image, mask)
            tokens = result.tokens
        return tokens.to(self.device)

    def _cells(self, recipe: Recipe, tokens: Tensor) -> Tensor | None:
        """Where the recipe touches tokens (height, width) up, or None if it varies them all over."""
        if recipe.cells is None:
            return None
        if recipe.cells[-1] >= tokens.numel():
            raise UserError(f"The picture has {tokens.numel()} cells: touch up some of these.")
        repainted = torch.zeros(tokens.numel(), dtype=torch.bool)
        repainted[list(recipe.cells)] = True
        return repainted.view(tokens.shape).to(self.device)

    @property
    def multiple(self) -> int:
        """Pixels that must divide the width and the height: of one token, or of two where the U-ViT halves the grid."""
        return self.checkpoint.vqgan.scale_factor * (2 if self.checkpoint.transformer.downsample else 1)

    def _check_size(self, width: int, height: int) -> None:
        if width % self.multiple or height % self.multiple:
            raise UserError(
                f"{self.name} makes pictures whose width and height are multiples of {self.multiple} pixels."
            )

    def _start(self, recipe: Recipe, given: Inputs, generator: torch.Generator) -> Tensor:
        """The tokens (height, width) before the first step."""
        mask_id, scale = self.checkpoint.mask_token_id, self.checkpoint.vqgan.scale_factor
        if given.tokens is None:
            return torch.full((given.height // scale, given.width // scale), mask_id, device=self.device)
        if given.repainted is not None:
            return given.tokens.masked_fill(given.repainted, mask_id)
        ratio = recipe.share
        if ratio is None:
            ratio = mask_ratios(self.checkpoint.masking_schedule, recipe.steps, self.device)[recipe.start]
        tokens = mask_at_random(given.tokens, ratio, mask_id, generator)
        return tokens if given.open is None else torch.where(given.open, tokens, given.tokens)

    def _plan(self, recipe: Recipe, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each step that is run: how many tokens stay masked, and the temperature."""
        # The reference inpaints by the linear schedule whatever the checkpoint says.
        schedule = "linear" if recipe.task == INPAINT else self.checkpoint.masking_schedule
        ratios = mask_ratios(schedule, recipe.steps, self.device)[recipe.start :]
        masked = tokens == self.checkpoint.mask_token_id
        partly = recipe.task == INPAINT or recipe.parent is not None
        share = masked.sum() / masked.numel() if partly else 1.0
        counts = mask_counts(ratios, tokens.numel(), int(masked.sum()), share)
        return zip(counts, temperatures(*recipe.temperature, recipe.steps, self.device)[recipe.start :])

    @torch.inference_mode()
    def _features(self, network: UViT, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        return network.features(tokens[None], conditioning)

    @torch.inference_mode()
    def _blank(self, network: UViT, prompt: Prompt, tokens: Tensor) -> Tensor:
        """The features of tokens that are all masked, computed once a prompt."""
        if prompt.blank is None:
            prompt.blank = self._features(network, tokens, prompt.conditioning)
        return prompt.blank

    def _rows(self, tokens: Tensor) -> Tensor | None:
        """The masked positions, if it pays to compute those alone: a GPU would have to wait to learn how many."""
        if self.device.type != "cpu":
            return None
        return (tokens.flatten() == self.checkpoint.mask_token_id).nonzero()[:, 0]

    @torch.inference_mode()
    def _logits(self, network: UViT, features: Tensor, rows: Tensor | None, guidance_scale: float) -> Tensor:
        """(rows, codebook_size), guided if there are features of two prompts."""
        logits = network.mlm_layer(features if rows is None else features[:, rows])
        return guide(logits[0], logits[1], guidance_scale) if len(logits) == 2 else logits[0]

    @torch.inference_mode()
    def _reveal(
        self,
        logits: Tensor,
        tokens: Tensor,
        stay_masked: int,
        temperature: Tensor,
        generator: torch.Generator,
        rows: Tensor | None,
    ) -> Tensor:
        mask_id = self.checkpoint.mask_token_id
        return reveal(logits, tokens.flatten(), mask_id, stay_masked, temperature, generator, rows).view_as(tokens)

    @torch.inference_mode()
    def _networks(self, recipe: Recipe) -> Networks:
        if recipe.adapter is None or recipe.adapter_strength == 0:
            # Keyword order matters: transformers is imported while another thread reads the transformer.
            return Networks(text_encoder=self._part("text_encoder"), transformer=self._network)
        if self.quantize:
            raise UserError(f"There are no adapters with {self.quantize} weights: start without, or choose none.")
        recipe = with_digests(self.adapters, recipe)
        key = (recipe.adapter_digest, recipe.adapter_strength)
        with self._lock:
            if key in self._adapted:
                self._adapted.move_to_end(key)
                return self._adapted[key]
        adapter = read_adapter(self.adapters, recipe.adapter)
        pack_now(self._network)
        parts = {TRANSFORMER: self._network, TEXT_ENCODER: self._part("text_encoder")}
        for name in adapter.parts:
            check_fits(adapter, name, parts[name])
        for name, layers in adapter.parts.items():
            parts[name] = merged(parts[name], layers, recipe.adapter_strength)
        networks = Networks(parts[TRANSFORMER], parts[TEXT_ENCODER], key)
        with self._lock:
            remember(self._adapted, key, networks, CACHED_ADAPTERS)
        return networks

    def _read_prompts(self, networks: Networks, recipe: Recipe, width: int, height: int) -> list[Prompt]:
        """The prompt, after the negative prompt where there is guidance."""
        micro = (width, height, *recipe.crop, recipe.aesthetic_score)
        prompts = [recipe.prompt] if recipe.guidance_scale <= 1 else [recipe.negative_prompt, recipe.prompt]
        return [self._read_prompt(networks, prompt, micro) for prompt in prompts]

    @torch.inference_mode()
    def _read_prompt(self, networks: Networks, prompt: str, micro: tuple[float, ...]) -> Prompt:
        key = (prompt, micro, networks.key)
        with self._lock:
            if key in self._prompts:
                self._prompts.move_to_end(key)
                return self._prompts[key]
        ids = tokenize(self._part("tokenizer"), [prompt]).to(self.device)
        hidden, pooled = encode_text(networks.text_encoder, ids)
        conditions = torch.tensor([micro], device=self.device, dtype=self.dtype)
        read = Prompt(networks.transformer.condition(hidden, pooled, conditions))
        with self._lock:
            remember(self._prompts, key, read, CACHED_PROMPTS)
        return read

    def _remember(self, recipe: Recipe, tokens: Tensor) -> None:
        """Keep the tokens of a result, to vary it without making it again; only if its recipe says all of it."""
        if recipe.task in STRENGTHS and (recipe.image is None or (recipe.task == INPAINT and recipe.mask is None)):
            return
        with self._lock:
            remember(self._results, recipe, tokens, CACHED_RESULTS)

    @torch.inference_mode()
    def _encode(self, picture: Image.Image) -> Tensor:
        """Tokens (height, width), kept: the same picture is often tried again with other settings."""
        key = digest(picture)
        tokens = self._encoded.get(key)
        if tokens is None:
            tokens = self._part("encoder").encode(to_tensor(picture).to(self.device))[0]
            with self._lock:
                remember(self._encoded, key, tokens, CACHED_PICTURES)
        return tokens

    def _decodes_quickly(self) -> bool:
        if self.device.type != "cpu":
            return True
        return sum(parameter.numel() for parameter in self._decoder.decoder.parameters()) <= QUICK_DECODER

    def _fit_colours(self, tokens: Tensor, pixels: Tensor) -> Tensor | None:
        """A colour for every code, by least squares on one decoded picture: (codebook_size, 3)."""
        if self._decodes_quickly():
            return None
        codes = self._decoder.quantize.embedding.weight.float()
        codes = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
        seen = codes[tokens.to(self.device).flatten()]
        colours = torch.nn.functional.avg_pool2d(pixels.float()[None], self.checkpoint.vqgan.scale_factor)[0]
        ridge = 1e-3 * torch.eye(codes.shape[1], device=self.device)
        return codes @ torch.linalg.solve(seen.mT @ seen + ridge, seen.mT @ colours.flatten(1).mT)

    @property
    def _network(self) -> UViT:
        return self._part("transformer")

    @property
    def _decoder(self) -> VQGAN:
        return self._part("decoder")

    def _part(self, name: str) -> Any:
        """A component, read when it is first asked for, by whoever asks first; a failure is not remembered."""
        with self._lock:
            mine = name not in self._parts
            part = self._parts.setdefault(name, Future())
        if mine:
            try:
                part.set_result(self._read(name))
            except BaseException as error:
                with self._lock:
                    del self._parts[name]
                part.set_exception(error)
        return part.result()

    def _read_ahead(self) -> None:
        """Begin to read the large components, while encoding a prompt takes its time."""

        def read() -> None:
            for name in LARGE:
                with contextlib.suppress(Exception):  # whoever needs it will meet the error again
                    self._part(name)

        if LARGE[0] not in self._parts:
            threading.Thread(target=read, name="read ahead", daemon=True).start()

    def _read(self, name: str) -> Any:
        if name == "transformer":
            transformer = self.checkpoint.load_transformer(self.device, self.dtype)
            if self.quantize:
                return quantize(transformer)
            return pack(transformer) if can_pack(self.device, self.dtype) else transformer
        if name == "text_encoder":
            return self.checkpoint.load_text_encoder(self.device, self.dtype)
        if name == "tokenizer":
            return self.checkpoint.load_tokenizer()
        # Pictures become tokens in full precision, where a rounding error is another token.
        in_full = name == "encoder" or (self.dtype == torch.float16 and self.checkpoint.vqgan.force_upcast)
        return self.checkpoint.load_vqgan(self.device, torch.float32 if in_full else self.dtype, half=name)


def to_mask(chosen: Tensor, scale: int) -> Image.Image:
    """Tokens that are chosen (height, width), white on black in pixels."""
    return Image.fromarray(cells(chosen[None], scale)[0].cpu().numpy().astype("uint8") * 255)


def remember(cache: OrderedDict, key: object, value: object, most: int) -> None:
    """Put a value into a cache that forgets its oldest entries."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)


def cells(values: Tensor, scale: int) -> Tensor:
    """One value a token (channels, height, width) to flat squares of pixels."""
    return values.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
