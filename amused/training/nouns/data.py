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
from dataclasses import asdict, dataclass, field, replace
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
    "glasses-square-blue-med-saturated": "bright blue",
    "glasses-square-frog-green": "lime",
    "glasses-square-fullblack": "dark",
    "glasses-square-green-blue-multi": "green blue",
    "glasses-square-grey-light": "silver",
    "glasses-square-guava": "salmon",
    "glasses-square-honey": "gold",
    "glasses-square-pink-purple-multi": "pink purple",
    "glasses-square-smoke": "gray",
    "glasses-square-teal": "mint",
    "glasses-square-watermelon": "coral",
    "glasses-square-yellow-orange-multi": "yellow orange",
    "glasses-square-yellow-saturated": "yellow",
    "glasses-deep-teal": "teal",
    "glasses-grass": "green",
    "body-bege-bsod": "tan",
    "body-bege-crt": "beige",
    "body-blue-sky": "sky blue",
    "body-bluegrey": "gray",
    "body-cold": "ice blue",
    "body-computerblue": "blue",
    "body-darkbrown": "brown",
    "body-darkpink": "dark pink",
    "body-foggrey": "light gray",
    "body-grayscale-1": "white",
    "body-grayscale-7": "dark gray",
    "body-grayscale-8": "charcoal",
    "body-grayscale-9": "black",
    "body-gunk": "olive",
    "body-hotbrown": "red brown",
    "body-orange-yellow": "light orange",
    "body-peachy-B": "coral",
    "body-peachy-a": "peach",
    "body-redpinkish": "crimson",
    "body-slimegreen": "lime green",
    "body-teal-light": "mint",
    "head-bagpipe": "bagpipes",
    "head-baseball-gameball": "baseball",
    "head-bigfoot-yeti": "yeti",
    "head-blackhole": "black hole",
    "head-boxingglove": "boxing glove",
    "head-bubble-speech": "speech bubble",
    "head-bubblegum": "bubble gum",
    "head-burger-dollarmenu": "burger",
    "head-cannedham": "canned ham",
    "head-cassettetape": "cassette tape",
    "head-chart-bars": "bar chart",
    "head-chefhat": "chef hat",
    "head-chipboard": "circuit board",
    "head-clutch": "purse",
    "head-coffeebean": "coffee bean",
    "head-cone": "traffic cone",
    "head-console-handheld": "game console",
    "head-cordlessphone": "phone",
    "head-cottonball": "cotton ball",
    "head-croc-hat": "crocodile",
    "head-crt-bsod": "crashed computer",
    "head-crystalball": "crystal ball",
    "head-diamond-blue": "diamond",
    "head-diamond-red": "ruby",
    "head-dino": "dinosaur",
    "head-doughnut": "donut",
    "head-ducky": "rubber duck",
    "head-faberge": "faberge egg",
    "head-factory-dark": "factory",
    "head-film-35mm": "film canister",
    "head-fir": "fir tree",
    "head-firehydrant": "fire hydrant",
    "head-ghost-B": "ghost",
    "head-glasses-big": "spectacles",
    "head-goldcoin": "gold coin",
    "head-grouper": "fish",
    "head-hardhat": "hard hat",
    "head-highheel": "high heel",
    "head-hockeypuck": "hockey puck",
    "head-horse-deepfried": "horse",
    "head-hotdog": "hot dog",
    "head-icepop-b": "popsicle",
    "head-lipstick2": "lipstick",
    "head-mixer": "sound mixer",
    "head-mountain-snowcap": "mountain",
    "head-nigiri": "sushi",
    "head-outlet": "power outlet",
    "head-paperclip": "paper clip",
    "head-pencil-tip": "pencil",
    "head-piggybank": "piggy bank",
    "head-pirateship": "pirate ship",
    "head-pop": "soda can",
    "head-porkbao": "bao",
    "head-queencrown": "queen crown",
    "head-rangefinder": "camera",
    "head-rgb": "color wheel",
    "head-rosebud": "rose",
    "head-ruler-triangular": "triangle ruler",
    "head-saguaro": "cactus",
    "head-skeleton-hat": "skeleton",
    "head-skilift": "ski lift",
    "head-snowglobe": "snow globe",
    "head-star-sparkles": "star",
    "head-taco-classic": "taco",
    "head-thumbsup": "thumbs up",
    "head-toiletpaper-full": "toilet paper",
    "head-toothbrush-fresh": "toothbrush",
    "head-trashcan": "trash can",
    "head-turing": "turing machine",
    "head-undead": "zombie",
    "head-wallsafe": "safe",
    "head-washingmachine": "washing machine",
    "head-whale-alive": "living whale",
    "head-wizardhat": "wizard",
    "head-treasurechest": "treasure chest",
    "head-shrimp-tempura": "fried shrimp",
    "head-green-snake": "snake",
    "accessory-1n": "first noun",
    "accessory-belly-chameleon": "chameleon belly",
    "accessory-bird-flying": "flying bird",
    "accessory-bird-side": "red bird",
    "accessory-bling-anchor": "anchor",
    "accessory-bling-anvil": "anvil",
    "accessory-bling-arrow": "arrow",
    "accessory-bling-cheese": "cheese",
    "accessory-bling-gold-ingot": "gold ingot",
    "accessory-bling-love": "gold heart",
    "accessory-bling-mask": "gold mask",
    "accessory-bling-rings": "rings",
    "accessory-bling-scissors": "scissors",
    "accessory-bling-sparkles": "sparkles",
    "accessory-body-gradient-checkerdisco": "disco checkers",
    "accessory-body-gradient-dawn": "dawn gradient",
    "accessory-body-gradient-dusk": "dusk gradient",
    "accessory-body-gradient-glacier": "glacier gradient",
    "accessory-body-gradient-ice": "ice gradient",
    "accessory-body-gradient-pride": "rainbow gradient",
    "accessory-body-gradient-redpink": "pink gradient",
    "accessory-body-gradient-sunset": "sunset gradient",
    "accessory-chain-logo": "logo chain",
    "accessory-checker-RGB": "rgb checkers",
    "accessory-checker-bigwalk-blue-prime": "blue tiles",
    "accessory-checker-bigwalk-greylight": "light gray tiles",
    "accessory-checker-bigwalk-rainbow": "rainbow tiles",
    "accessory-checker-spaced-black": "spaced black checkers",
    "accessory-checker-spaced-white": "spaced white checkers",
    "accessory-checker-vibrant": "vibrant checkers",
    "accessory-checkers-big-green": "big green checkers",
    "accessory-checkers-big-red-cold": "big red checkers",
    "accessory-checkers-black": "black checkers",
    "accessory-checkers-blue": "blue checkers",
    "accessory-checkers-magenta-80": "pink checkers",
    "accessory-collar-sunset": "sunset collar",
    "accessory-decay-gray-dark": "dark gray decay",
    "accessory-decay-pride": "rainbow decay",
    "accessory-dollar-bling": "dollar",
    "accessory-ducky": "rubber duck",
    "accessory-eth": "ethereum",
    "accessory-glasses-logo-sun": "sunglasses logo",
    "accessory-grid-simple-bege": "beige grid",
    "accessory-hoodiestrings-uneven": "hoodie strings",
    "accessory-id": "id badge",
    "accessory-lightbulb": "light bulb",
    "accessory-lines-45-greens": "green diagonal lines",
    "accessory-lines-45-rose": "pink diagonal lines",
    "accessory-lp": "vinyl record",
    "accessory-marsface": "mars face",
    "accessory-matrix-white": "white dots",
    "accessory-oldshirt": "old shirt",
    "accessory-pizza-bling": "gold pizza",
    "accessory-rgb": "rgb dots",
    "accessory-scarf-clown": "clown scarf",
    "accessory-shirt-black": "black shirt",
    "accessory-slimesplat": "slime splat",
    "accessory-small-bling": "gold necklace",
    "accessory-stains-blood": "blood stains",
    "accessory-stains-zombie": "zombie stains",
    "accessory-stripes-big-red": "big red stripes",
    "accessory-stripes-blit": "blue pink stripes",
    "accessory-stripes-blue-med": "blue stripes",
    "accessory-stripes-brown": "brown stripes",
    "accessory-stripes-olive": "olive stripes",
    "accessory-stripes-red-cold": "red stripes",
    "accessory-tee-yo": "yo shirt",
    "accessory-text-yolo": "yolo text",
    "accessory-think": "thought bubble",
    "accessory-tie-black-on-white": "black tie",
    "accessory-tie-purple-on-white": "purple tie",
    "accessory-tie-red": "red tie",
    "accessory-txt-a2+b2": "formula text",
    "accessory-txt-cc": "purple cc text",
    "accessory-txt-cc2": "red cc text",
    "accessory-txt-copy": "copy text",
    "accessory-txt-dao-black": "dao text",
    "accessory-txt-doom": "doom text",
    "accessory-txt-dope-text": "dope text",
    "accessory-txt-foo-black": "foo text",
    "accessory-txt-ico": "ico text",
    "accessory-txt-io": "io text",
    "accessory-txt-lmao": "lmao text",
    "accessory-txt-lol": "lol text",
    "accessory-txt-mint": "mint text",
    "accessory-txt-nil-grey-dark": "nil text",
    "accessory-txt-noun-f0f": "magenta noun text",
    "accessory-txt-noun-green": "green noun text",
    "accessory-txt-noun-multicolor": "colorful noun text",
    "accessory-txt-noun": "pink noun text",
    "accessory-txt-pi": "pi text",
    "accessory-txt-pop": "pop text",
    "accessory-txt-rofl": "rofl text",
    "accessory-txt-we": "we text",
    "accessory-txt-yay": "yay text",
    "accessory-woolweave-bicolor": "orange blue weave",
    "accessory-woolweave-dirt": "dirt weave",
    "accessory-yingyang": "yin yang",
    "body-bege": "beige shirt",
    "body-gray-scale-1": "white shirt",
    "body-gray-scale-9": "plain black shirt",
    "body-ice-cold": "ice blue shirt",
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
        return self.variants(noun, "background", [noun.background])[0]

    def variants(self, noun: Noun, part: str, names: Sequence[str]) -> NDArray[np.uint8]:
        """The character with each of these traits in one part, such as "head", in art pixels, (names, 32, 32, 3)."""
        own = {key: [trait] for key, trait in asdict(noun).items()}
        backgrounds, *layers = {**own, part: names}.values()
        colors = [tuple(bytes.fromhex(BACKGROUNDS[name])) for name in backgrounds]
        art = np.array(colors, dtype=np.uint8)[:, None, None]
        for traits in layers:
            layer = np.stack([self.layers[name] for name in traits])
            art = np.where(layer[..., None] > 0, self.palette[layer], art)
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

    @property
    def choices(self) -> dict[str, list[str]]:
        """The traits that a character has to have, by part, from bottom to top."""
        return {"background": list(self.backgrounds), "body": self.bodies, "head": self.heads, "glasses": self.glasses}

    def sample(self, rng: random.Random, accessories: float, held_out: float = 0.0) -> Noun:
        """A random character.

        Args:
            accessories: share that wears one, 0 to 1.
            held_out: share of those that are held out for scoring, 0 to 1.
        """
        is_held_out = rng.random() < held_out
        while True:
            accessory = rng.choice(self.accessories) if rng.random() < accessories else NO_ACCESSORY
            noun = Noun(accessory=accessory, **{part: rng.choice(names) for part, names in self.choices.items()})
            if held_out_pair(noun.head, noun.glasses) == is_held_out:
                return noun

    def vary(self, noun: Noun, rng: random.Random, parts: Collection[str]) -> Noun:
        """The character with random traits in these parts, such as "head"."""
        return replace(noun, **{part: rng.choice(self.choices[part]) for part in parts})

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


def training_caption(noun: Noun, rng: random.Random) -> tuple[str, set[str]]:
    """A caption as the model learns from, of any wording, and the parts that it names. It always names an accessory."""
    share = rng.choice((1.0, 1.0, 1.0, 0.7, 0.4, 0.0))
    # Some glasses differ only in one lens. Where a caption leaves them open, the model has to learn which lenses match.
    named = {part for part in PARTS if rng.random() < (share / 2 if part == "glasses" else share)}
    if rng.random() < 0.1:  # "a cow" alone, which must not be mixed up with "a cow accessory"
        named = {rng.choice(PARTS)}
    style = rng.random()
    if style < 0.4 and noun.accessory == NO_ACCESSORY:
        return caption(noun, set(PARTS) - named), named
    return (varied_caption if style < 0.7 else short_caption)(noun, rng, named), named


def short_caption(noun: Noun, rng: random.Random, named: Collection[str] = PARTS) -> str:
    """A caption as people type it: "a fox with red glasses", "frog, pink background"."""
    head = plain_words(noun.head)
    text = rng.choice(["a character", "character", ""])
    if "head" in named:
        text = rng.choice(["an " if head[0] in "aeiou" else "a ", ""]) + head
    clauses = [f"{plain_words(noun.glasses)} glasses"] if "glasses" in named else []
    if "body" in named:
        clauses.append(rng.choice(["a ", ""]) + f"{plain_words(noun.body)} body")
    if noun.accessory != NO_ACCESSORY:
        clauses.append(f"{rng.choice([file_words, plain_words])(noun.accessory)} accessory")
    if clauses:
        joined = rng.choice([" and ", ", "]).join(clauses)
        text = rng.choice([f"{text} with {joined}", f"{text}, {joined}"]) if text else joined
    if "background" in named:
        name = f"{noun.background} background"
        text += rng.choice([f" on {noun.background}", f" on a {name}", f", {name}"])
    return text.removeprefix(", ").strip()


def varied_caption(noun: Noun, rng: random.Random, named: Collection[str] = PARTS) -> str:
    """A caption in random wording."""
    name = rng.choice([file_words, plain_words])
    glasses = f"{name(noun.glasses)} glasses" if "glasses" in named else None
    head = rng.choice([f"a {name(noun.head)}-shaped head", f"a {name(noun.head)} head"]) if "head" in named else None
    body = rng.choice([f"a {name(noun.body)}-colored body", f"a {name(noun.body)} body"]) if "body" in named else None
    accessory = f"a {name(noun.accessory)} accessory" if noun.accessory != NO_ACCESSORY else None
    clauses = [clause for clause in (glasses, head, body, accessory) if clause]
    if rng.random() < 0.5:
        rng.shuffle(clauses)
    start = rng.choice(["a pixel art character", "pixel art of a character", "a character", "pixel art", ""])
    text = enumerate_clauses(clauses)
    text = f"{start} with {text}" if start and text else start or text
    if "background" in named:
        text += rng.choice([f" on a {noun.background} background", f", {noun.background} background"])
    return text.removeprefix(", ").strip()


def enumerate_clauses(clauses: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(clauses[:-1]), *clauses[-1:]]))


def caption_words(nouns: Nouns) -> list[str]:
    """All words that captions use, sorted."""
    rng = random.Random(0)
    noun = Noun("cool", nouns.traits["bodies"][0], NO_ACCESSORY, nouns.traits["heads"][0], nouns.traits["glasses"][0])
    texts = [file_words(trait) for traits in nouns.traits.values() for trait in traits]
    texts += [*BACKGROUNDS, *PLAIN.values(), caption(noun), "accessory"]
    texts += [varied_caption(noun, rng) for _ in range(100)]
    return sorted({word for text in texts for word in text.replace("-", " ").replace(",", " ").split()})


def known_traits(nouns: Nouns) -> Vocabulary:
    """The traits of the bundled checkpoint: all of the data."""
    names = {trait: plain_words(trait) for traits in nouns.traits.values() for trait in traits}
    return Vocabulary(
        backgrounds=BACKGROUNDS,
        bodies=nouns.traits["bodies"],
        accessories=[name for name in nouns.traits["accessories"] if name != NO_ACCESSORY],
        heads=nouns.traits["heads"],
        glasses=nouns.traits["glasses"],
        words={trait: name for trait, name in names.items() if name != file_words(trait)},
    )
