"""Pictures and captions to train on: read, checked, and encoded once into tokens and embeddings, kept on disk.

All pictures are read before the first step, so that a broken one is named then and not at night. What a batch holds is
a function of the seed, the step and the place in the batch alone: a run that is resumed, or shared by several
processes, sees what it would have seen. Knows nothing of how a network is trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from amused.atomic import whole_folder, write_json
from amused.checkpoints.checkpoint import Checkpoint
from amused.errors import UserError
from amused.generation.images import Source, load_image, to_tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"
CROPS = 4  # of a picture that is not square; the published script draws a new one at every step
AESTHETIC_SCORE = 6.0
CAPTIONS_A_FILE = 512
CAPTIONS_AT_A_TIME = 16
NAMED = 5  # broken pictures that a sentence names
FORMAT = 1  # of the cache


@dataclass(frozen=True)
class Example:
    """A picture to be opened, what to call it in a message, its caption, and a digest of the picture's file."""

    name: str
    caption: str
    source: Callable[[], Source]
    digest: str


# From files and datasets


def read_examples(options: argparse.Namespace) -> list[Example]:
    """The pictures that the options name, none of them opened yet."""
    if options.instance_data_dir is not None:
        return read_folder(options.instance_data_dir, options.prompt_prefix, options.prompt_key)
    if options.instance_data_image is not None:
        path = options.instance_data_image
        if not path.is_file():
            raise UserError(f"There is no picture {path}.")
        return [from_file(path, options.prompt_prefix + path.stem)]
    return read_dataset(options.instance_data_dataset, options.image_key, options.prompt_key, options.prompt_prefix)


def read_folder(folder: Path, prefix: str = "", key: str | None = None) -> list[Example]:
    """Pictures of a folder. A caption is a line of metadata.jsonl, else NAME.txt beside NAME.png, else the name."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"There are no pictures in {folder}: it may hold {', '.join(s[1:] for s in SUFFIXES)} files.")
    listed = read_metadata(folder / METADATA, key or "text")
    return [from_file(path, prefix + (listed.get(path.name) or beside(path) or path.stem)) for path in paths]


def read_metadata(path: Path, key: str) -> dict[str, str]:
    """Captions by file name, from lines such as {"file_name": "cat.png", "text": "a cat"}."""
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[Path(row["file_name"]).name] = str(row[key])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f'Line {number} of {path.name} is not {{"file_name": ..., "{key}": ...}}.') from error
    return captions


def beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text("utf-8").strip() if text.is_file() else ""


def from_file(path: Path, caption: str) -> Example:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Example(path.name, caption, lambda: path, digest)


def read_dataset(name: str, image_key: str, prompt_key: str, prefix: str = "") -> list[Example]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("Hub datasets are read by another library: pip install datasets, and try again.") from error
    try:
        table = datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub, the network and the dataset's own files can come up with
        raise UserError(f"The dataset {name} cannot be read: check its name and the connection.") from error
    for column in (image_key, prompt_key):
        if column not in table.column_names:
            raise UserError(f"The dataset {name} has no column {column}, but {', '.join(table.column_names)}.")
    missing = [i for i, caption in enumerate(table[prompt_key]) if not isinstance(caption, str)]
    if missing:
        raise UserError(f"Row {missing[0]} of the dataset {name} has no caption.")
    version = getattr(table, "_fingerprint", name)
    return [
        Example(f"row {i}", prefix + caption, lambda i=i: table[i][image_key], f"{version} {i}")
        for i, caption in enumerate(table[prompt_key])
    ]


# Pictures to tokens


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures. `tokens` (rows, height, width) and `micro` (rows, 5) have one row a crop.

    `first` and `count` (pictures,) say which rows are a picture's.
    """

    tokens: Tensor
    micro: Tensor
    first: Tensor
    count: Tensor


def encode_pictures(
    checkpoint: Checkpoint, examples: Sequence[Example], resolution: int, cache: Path, device: torch.device, split: int
) -> Pictures:
    """Tokens of every picture, from the cache where they are there already. Every broken picture is named first."""
    key = [FORMAT, identity(checkpoint, "vqvae"), resolution, [example.digest for example in examples]]
    folder = cache / f"tokens-{digest_of(key)}"
    if not folder.is_dir():
        pictures = encode_anew(checkpoint, examples, resolution, device, split)
        with whole_folder(folder) as beside_it:
            save_file(vars(pictures), beside_it / "tokens.safetensors")
    return Pictures(**load_file(folder / "tokens.safetensors"))


def encode_anew(
    checkpoint: Checkpoint, examples: Sequence[Example], resolution: int, device: torch.device, split: int
) -> Pictures:
    check_pictures(examples)
    vqgan = checkpoint.load_vqgan(device, torch.float32)  # in half precision a rounding error is another token
    tokens: list[Tensor] = []
    micro: list[tuple[float, ...]] = []
    counts: list[int] = []
    waiting: list[Image.Image] = []

    @torch.inference_mode()
    def encode() -> None:
        if waiting:
            pixels = torch.cat([to_tensor(image) for image in waiting]).to(device)
            tokens.append(vqgan.encode(pixels).to("cpu", torch.int32))
            waiting.clear()

    for example in tqdm(examples, desc="Encoding pictures", unit="picture", disable=len(examples) < 2):
        picture = load_image(example.source())
        crops = list(crops_of(picture, resolution, example.digest))
        counts.append(len(crops))
        for image, left, top in crops:
            waiting.append(image)
            micro.append((picture.width, picture.height, top, left, AESTHETIC_SCORE))
            if len(waiting) == split:
                encode()
    encode()
    count = torch.tensor(counts)
    return Pictures(torch.cat(tokens), torch.tensor(micro), count.cumsum(0) - count, count)


def check_pictures(examples: Sequence[Example]) -> None:
    """Decode every picture once, so that all broken ones are told of together and before anything is trained."""
    broken = []
    for example in examples:
        try:
            load_image(example.source())
        except UserError as error:
            broken.append(f"{example.name}: {error}")
        except Exception:  # a dataset decodes by itself, and raises what it happens to raise
            broken.append(f"{example.name}: it cannot be read.")
    if broken:
        more = f"\n- and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        listed = "".join(f"\n- {line}" for line in broken[:NAMED])
        raise UserError(f"{len(broken)} of {len(examples)} pictures cannot be used, replace or remove:{listed}{more}")


def crops_of(picture: Image.Image, resolution: int, digest: str) -> Iterator[tuple[Image.Image, int, int]]:
    """Squares of a picture whose shorter side is scaled to the resolution: with how far from the left and the top."""
    shorter = min(picture.size)
    scale = resolution / shorter
    room = int(max(picture.size) * scale) - resolution
    generator = generator_of("crop", digest)
    for start in {int(torch.randint(room + 1, (), generator=generator)): None for _ in range(CROPS)}:
        left, top = (start, 0) if picture.width > picture.height else (0, start)
        x, y = min(left / scale, picture.width - shorter), min(top / scale, picture.height - shorter)
        # Scaled within the box alone: a picture of 1x5000 pixels would not fit in memory.
        box = (x, y, x + shorter, y + shorter)
        yield picture.resize((resolution, resolution), Image.Resampling.BILINEAR, box), left, top


# Captions to embeddings


class Texts:
    """Embeddings of texts on disk, read as they are needed."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self.places = {text: divmod(i, CAPTIONS_A_FILE) for i, text in enumerate(unique(texts))}
        count = max(file for file, _ in self.places.values()) + 1
        self.files = [safe_open(folder / f"{i:05}.safetensors", framework="pt") for i in range(count)]

    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, length, width) and pooled embeddings (batch, width), in single precision."""
        rows = []
        for text in texts:
            file, row = self.places[text]
            rows.append(
                [self.files[file].get_slice(part)[row : row + 1].clone().float() for part in ("hidden", "pooled")]
            )
        hidden, pooled = zip(*rows)
        return torch.cat(hidden), torch.cat(pooled)


def encode_texts(
    checkpoint: Checkpoint, texts: Sequence[str], cache: Path, device: torch.device, dtype: torch.dtype
) -> Texts:
    """Embeddings of texts, stored as `dtype`, from the cache where they are there already."""
    texts = unique(texts)
    folder = cache / f"texts-{digest_of([FORMAT, identity(checkpoint, 'text_encoder'), str(dtype), texts])}"
    if not folder.is_dir():
        tokenizer, encoder = checkpoint.tokenizer(), checkpoint.load_text_encoder(device, torch.float32)
        with whole_folder(folder) as beside_it:
            for start in tqdm(range(0, len(texts), CAPTIONS_A_FILE), desc="Encoding captions", disable=len(texts) < 2):
                part = texts[start : start + CAPTIONS_A_FILE]
                batches = [part[i : i + CAPTIONS_AT_A_TIME] for i in range(0, len(part), CAPTIONS_AT_A_TIME)]
                with torch.inference_mode():
                    rows = [encoder(tokenizer(batch).to(device)) for batch in batches]
                hidden, pooled = (torch.cat(parts).to("cpu", dtype) for parts in zip(*rows))
                save_file(
                    {"hidden": hidden, "pooled": pooled}, beside_it / f"{start // CAPTIONS_A_FILE:05}.safetensors"
                )
            write_json(beside_it / "texts.json", texts)
    return Texts(folder, texts)


# Batches


@dataclass(frozen=True)
class Draw:
    """What one place of a batch holds: a row of the encoded pictures, a caption, and which tokens are masked."""

    row: int
    caption: str
    masked: Tensor  # height, width
    rate: float


class Batches:
    """An endless supply of batches, each known by its step alone."""

    def __init__(self, pictures: Pictures, captions: Sequence[str], options: argparse.Namespace, seed: int) -> None:
        self.pictures, self.captions, self.seed = pictures, captions, seed
        self.dropout, self.least = options.cond_dropout_prob, options.min_masking_rate
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.captions), generator=generator_of(self.seed, "order", epoch)).tolist()

    def draw(self, step: int, places: Sequence[int], size: int) -> list[Draw]:
        """Some places of the batch of a step, which has `size` places in all."""
        return [self._draw(step, place, size) for place in places]

    def _draw(self, step: int, place: int, size: int) -> Draw:
        epoch, position = divmod(step * size + place, len(self.captions))
        picture = self.order(epoch)[position]
        generator = generator_of(self.seed, step, place)
        height, width = self.pictures.tokens.shape[1:]
        rate = math.cos(torch.rand((), generator=generator).item() * math.pi / 2)  # MUSE, section 2.4
        rate = max(rate, self.least)
        count = max(1, round(height * width * rate))
        masked = torch.rand(height * width, generator=generator).argsort() < count
        crop = int(torch.randint(int(self.pictures.count[picture]), (), generator=generator))
        dropped = torch.rand((), generator=generator).item() < self.dropout
        caption = "" if dropped else self.captions[picture]
        return Draw(int(self.pictures.first[picture]) + crop, caption, masked.view(height, width), rate)

    def tensors(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and which of them are masked, (batch, height, width), and micro-conditions (batch, 5)."""
        rows = [draw.row for draw in draws]
        return self.pictures.tokens[rows].long(), torch.stack([d.masked for d in draws]), self.pictures.micro[rows]


# Beneath them


def identity(checkpoint: Checkpoint, component: str) -> list[object]:
    """What tells one checkpoint's encoder from another's without reading it."""
    folder = checkpoint.folder.resolve()
    if checkpoint.fetch is not None:
        return [str(folder)]  # named by its commit
    files = sorted((folder / component).glob("*.safetensors"))
    return [[file.name, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]


def unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def generator_of(*parts: object) -> torch.Generator:
    """Random numbers that depend on these parts alone."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
