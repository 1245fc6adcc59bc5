"""Nouns pixel art as training data: downloads the trait images, composes characters and writes their captions.

The artwork is in the public domain (CC0). It comes as run-length data from the npm package `@nouns/assets` and is not
stored in this project.
"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amused.atomic import atomic_file
from amused.errors import UserError
from amused.recipe.words import PARTS, file_words

ASSETS_URL = "https://registry.npmjs.org/@nouns/assets/-/assets-0.10.0.tgz"
ASSETS_SHA256 = "60ed1040e399e10113bd3e4a5c47b1618517c3bba082790b8bd5588af6ca3551"

SIZE = 32
"""Side of a character in art pixels."""

SCALE = 8
"""Side of an art pixel in image pixels."""

KINDS = ("bodies", "accessories", "heads", "glasses")
"""Layers, from bottom to top."""

NO_ACCESSORY = "accessory-none"

HELD_OUT = 1 / 16
"""Share of the pairs of head and glasses that are held out for scoring."""

BACKGROUNDS = {
    "cool": "d5d7e1",
    "warm": "e1d7d5",
    "dark": "2b2834",
    "blue": "8fb8f0",
    "green": "9ed8a4",
    "pink": "f2b3c9",
    "yellow": "f5e08c",
    "purple": "b79fe0",
}
"""The two backgrounds of Nouns and six more, by name."""


def fetch_assets(cache: Path) -> Mapping[str, Any]:
    """The package's `image-data.json`, downloaded into `cache` unless it is there."""
    archive = cache / "nouns-assets.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(ASSETS_URL, timeout=60) as response:
                content = response.read()
        except OSError as error:
            raise UserError(f"{ASSETS_URL} cannot be downloaded: check the connection.") from error
        with atomic_file(archive) as part:
            part.write_bytes(content)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ASSETS_SHA256:
        raise UserError(f"{archive} is not the file that this recipe was made with: delete it and try again.")
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/dist/image-data.json")
        assert file is not None
        return json.load(file)


def decode_run_lengths(data: str) -> NDArray[np.uint8]:
    """Decode a trait image to palette indices, (32, 32), 0 where it is transparent.

    The data is hexadecimal: a palette byte, the bounds (top, right, bottom, left), then pairs of run length and colour
    that fill the bounds row by row.
    """
    content = bytes.fromhex(data.removeprefix("0x"))
    top, right, _, left = content[1:5]
    runs = np.frombuffer(content[5:], dtype=np.uint8).reshape(-1, 2)
    pixels = np.repeat(runs[:, 1], runs[:, 0])
    art = np.zeros((SIZE, SIZE), dtype=np.uint8)
    if right > left:  # "accessory-none" is empty
        rows = pixels.reshape(-1, right - left)
        art[top : top + len(rows), left:right] = rows
    return art


PLAIN = {
    "glasses-hip-rose": "pink",
    "glasses-square-black-eyes-red": "red eyed black",
    "glasses-square-black-rgb": "dotted black",
    "glasses-square-frog-green": "lime",
    "glasses-square-fullblack": "dark",
    "glasses-square-green-blue-multi": "green blue",
    "glasses-square-honey": "gold",
    "glasses-square-pink-purple-multi": "pink purple",
    "glasses-square-smoke": "gray",
    "glasses-square-teal": "mint",
    "glasses-square-yellow-saturated": "yellow",
    "glasses-grass": "green",
    "body-bege-crt": "beige",
    "body-bluegrey": "gray",
    "body-darkbrown": "brown",
    "body-grayscale-1": "white",
    "body-grayscale-9": "black",
    "body-gunk": "olive",
    "body-peachy-a": "peach",
    "body-redpinkish": "crimson",
    "body-teal-light": "mint",
    "head-baseball-gameball": "baseball",
    "head-burger-dollarmenu": "burger",
    "head-diamond-blue": "diamond",
    "head-ghost-B": "ghost",
    "head-skeleton-hat": "skeleton",
    "head-wizardhat": "wizard",
}
"""What people call a trait, where that is not its name in the data."""


def plain_words(trait: str) -> str:
    """A trait in plain English: "glasses-square-red" gives "red", "head-burger-dollarmenu" gives "burger"."""
    return PLAIN.get(trait) or file_words(trait).removeprefix("square ")


@dataclass(frozen=True)
class Noun:
    """A character: file names of its traits in the data, and a background from `BACKGROUNDS`."""

    background: str
    body: str
    accessory: str
    head: str
    glasses: str


class Nouns:
    """The trait images, and characters composed from them.

    Attributes:
        palette: (colours, 3).
        layers: trait to palette indices, (32, 32).
        traits: names by kind.
    """

    def __init__(self, assets: Mapping[str, Any]) -> None:
        palette = [(0, 0, 0)] + [tuple(bytes.fromhex(color)) for color in assets["palette"][1:]]
        self.palette = np.array(palette, dtype=np.uint8)
        self.layers: dict[str, NDArray[np.uint8]] = {}
        self.traits: dict[str, list[str]] = {}
        for kind in KINDS:
            images = assets["images"][kind]
            self.traits[kind] = [image["filename"] for image in images]
            self.layers.update((image["filename"], decode_run_lengths(image["data"])) for image in images)

    def render(self, noun: Noun) -> NDArray[np.uint8]:
        """The character in art pixels, (32, 32, 3)."""
        art = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
        art[:] = tuple(bytes.fromhex(BACKGROUNDS[noun.background]))
        for trait in (noun.body, noun.accessory, noun.head, noun.glasses):
            layer = self.layers[trait]
            art[layer > 0] = self.palette[layer[layer > 0]]
        return art


@dataclass(frozen=True)
class Vocabulary:
    """The traits that a checkpoint was trained on, as in its `traits.json`.

    Attributes:
        backgrounds: hexadecimal colours by name.
        words: what people call a trait, where that is not its name.
    """

    backgrounds: dict[str, str]
    bodies: list[str]
    accessories: list[str]
    heads: list[str]
    glasses: list[str]
    words: dict[str, str] = field(default_factory=dict)

    def sample(self, rng: random.Random, accessories: float, held_out: float = 0.0) -> Noun:
        """A random character.

        Args:
            accessories: share that wears one, 0 to 1.
            held_out: share of those that are held out for scoring, 0 to 1.
        """
        is_held_out = rng.random() < held_out
        while True:
            accessory = rng.choice(self.accessories) if rng.random() < accessories else NO_ACCESSORY
            noun = Noun(
                background=rng.choice(list(self.backgrounds)),
                body=rng.choice(self.bodies),
                accessory=accessory,
                head=rng.choice(self.heads),
                glasses=rng.choice(self.glasses),
            )
            if held_out_pair(noun.head, noun.glasses) == is_held_out:
                return noun

    def vary(self, noun: Noun, rng: random.Random) -> Noun:
        """The character with another trait of a random kind."""
        names = {"background": list(self.backgrounds), "body": self.bodies, "head": self.heads, "glasses": self.glasses}
        kind = rng.choice(list(names))
        return replace(noun, **{kind: rng.choice(names[kind])})

    def evaluation(self, count: int) -> list[Noun]:
        """Held-out characters for scoring, the same in every call."""
        rng = random.Random("evaluation")
        pairs = [(h, g) for h in self.heads for g in self.glasses if held_out_pair(h, g)]
        nouns: list[Noun] = []
        while len(nouns) < count:
            rng.shuffle(pairs)
            nouns += [
                Noun(rng.choice(list(self.backgrounds)), rng.choice(self.bodies), NO_ACCESSORY, head, glasses)
                for head, glasses in pairs
            ]
        return nouns[:count]


def held_out_pair(head: str, glasses: str) -> bool:
    """Whether this pair of head and glasses is held out: the same pairs for every vocabulary."""
    return hashlib.sha256(f"{head} {glasses}".encode()).digest()[0] < 256 * HELD_OUT


def caption(noun: Noun, leave_out: Collection[str] = ()) -> str:
    """The standard caption. It names every trait but the accessory, and those of `leave_out`, such as "glasses"."""
    named = {
        "glasses": f"{file_words(noun.glasses)} glasses",
        "head": f"a {file_words(noun.head)}-shaped head",
        "body": f"a {file_words(noun.body)}-colored body",
    }
    clauses = enumerate_clauses([clause for kind, clause in named.items() if kind not in leave_out])
    text = f"a pixel art character with {clauses}" if clauses else "a pixel art character"
    return text if "background" in leave_out else f"{text} on a {noun.background} background"


def training_caption(noun: Noun, rng: random.Random) -> str:
    """A caption as the model learns from: of any wording, with any of the traits left out."""
    keep = rng.choice((1.0, 1.0, 1.0, 0.7, 0.4, 0.0))
    style = rng.random()
    if style < 0.4 and noun.accessory == NO_ACCESSORY:
        return caption(noun, [part for part in PARTS if not is_named(part, rng, keep)])
    return varied_caption(noun, rng, keep) if style < 0.7 else short_caption(noun, rng, keep)


def is_named(part: str, rng: random.Random, keep: float) -> bool:
    """Whether a caption names a trait: with probability `keep`, glasses with half of it.

    Some glasses differ only in one lens. Where a caption leaves them open, the model has to learn which lenses match.
    """
    return rng.random() < (keep / 2 if part == "glasses" else keep)


def short_caption(noun: Noun, rng: random.Random, keep: float) -> str:
    """A caption as people type it: "a fox with red glasses", "frog, pink background". Names traits by `is_named`."""
    keep_glasses, keep_head, keep_body, keep_background = (is_named(part, rng, keep) for part in PARTS)
    head = plain_words(noun.head)
    text = rng.choice(["a character", "character", ""])
    if keep_head:
        text = rng.choice(["an " if head[0] in "aeiou" else "a ", ""]) + head
    clauses = [f"{plain_words(noun.glasses)} glasses"] if keep_glasses else []
    if keep_body:
        clauses.append(rng.choice(["a ", ""]) + f"{plain_words(noun.body)} body")
    if noun.accessory != NO_ACCESSORY:
        clauses.append(f"{file_words(noun.accessory)} accessory")
    if clauses:
        joined = rng.choice([" and ", ", "]).join(clauses)
        text = rng.choice([f"{text} with {joined}", f"{text}, {joined}"]) if text else joined
    if keep_background:
        name = f"{noun.background} background"
        text += rng.choice([f" on {noun.background}", f" on a {name}", f", {name}"])
    return text.removeprefix(", ").strip()


def varied_caption(noun: Noun, rng: random.Random, keep: float) -> str:
    """A caption in random wording. It names traits by `is_named`, and a worn accessory."""
    keep_glasses, keep_head, keep_body, keep_background = (is_named(part, rng, keep) for part in PARTS)
    name = rng.choice([file_words, plain_words])
    glasses = f"{name(noun.glasses)} glasses" if keep_glasses else None
    head = rng.choice([f"a {name(noun.head)}-shaped head", f"a {name(noun.head)} head"]) if keep_head else None
    body = rng.choice([f"a {name(noun.body)}-colored body", f"a {name(noun.body)} body"]) if keep_body else None
    accessory = f"a {file_words(noun.accessory)} accessory" if noun.accessory != NO_ACCESSORY else None
    clauses = [clause for clause in (glasses, head, body, accessory) if clause]
    if rng.random() < 0.5:
        rng.shuffle(clauses)
    start = rng.choice(["a pixel art character", "pixel art of a character", "a character", "pixel art", ""])
    text = enumerate_clauses(clauses)
    text = f"{start} with {text}" if start and text else start or text
    if keep_background:
        text += rng.choice([f" on a {noun.background} background", f", {noun.background} background"])
    return text.removeprefix(", ").strip()


def enumerate_clauses(clauses: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(clauses[:-1]), *clauses[-1:]]))


def caption_words(nouns: Nouns) -> list[str]:
    """All words that captions use, sorted."""
    rng = random.Random(0)
    texts = [file_words(trait) for traits in nouns.traits.values() for trait in traits] + list(BACKGROUNDS)
    noun = Noun("cool", nouns.traits["bodies"][0], NO_ACCESSORY, nouns.traits["heads"][0], nouns.traits["glasses"][0])
    texts += [*PLAIN.values()]
    texts += [varied_caption(noun, rng, 0.8) for _ in range(100)] + [caption(noun), "accessory"]
    return sorted({word for text in texts for word in text.replace("-", " ").replace(",", " ").split()})


def distinct_traits(nouns: Nouns, kind: str, count: int, always: Sequence[str]) -> list[str]:
    """`count` traits of a kind that differ most in RGBA, by farthest-point sampling that starts from `always`."""
    names = [name for name in nouns.traits[kind] if name != NO_ACCESSORY]

    def look(name: str) -> NDArray[np.float64]:
        layer = nouns.layers[name]
        return np.concatenate([nouns.palette[layer] / 255.0, (layer > 0)[..., None]], axis=-1).ravel()

    images = np.stack([look(name) for name in names])
    chosen = [names.index(name) for name in always]
    distances = ((images[:, None] - images[chosen]) ** 2).sum(axis=-1).min(axis=1)
    while len(chosen) < count:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, ((images - images[chosen[-1]]) ** 2).sum(axis=-1))
    return [names[i] for i in sorted(chosen)]


HEADS = [
    "ape", "baseball-gameball", "bear", "burger-dollarmenu", "cake", "cow", "crab", "diamond-blue", "dog", "duck",
    "fox", "frog", "ghost-B", "mushroom", "moose", "owl", "panda", "pizza", "pumpkin", "rabbit", "rainbow", "robot",
    "shark", "skeleton-hat", "snowman", "toaster", "unicorn", "watermelon", "whale", "wizardhat", "zebra", "volcano",
]  # fmt: skip


def known_traits(nouns: Nouns) -> Vocabulary:
    """The traits of the bundled checkpoint: heads that people recognise, and otherwise those that differ most."""
    known = Vocabulary(
        backgrounds=BACKGROUNDS,
        bodies=distinct_traits(nouns, "bodies", 16, ["body-orange", "body-red", "body-purple"]),
        accessories=distinct_traits(nouns, "accessories", 12, ["accessory-heart", "accessory-stripes-big-red"]),
        heads=sorted(f"head-{name}" for name in HEADS),
        glasses=distinct_traits(nouns, "glasses", 16, ["glasses-square-red", "glasses-square-blue"]),
    )
    named = {trait: plain_words(trait) for trait in (*known.glasses, *known.heads, *known.bodies)}
    return replace(known, words={trait: name for trait, name in named.items() if name != file_words(trait)})


def all_traits(nouns: Nouns) -> Vocabulary:
    traits = nouns.traits
    return Vocabulary(BACKGROUNDS, traits["bodies"], traits["accessories"], traits["heads"], traits["glasses"])
