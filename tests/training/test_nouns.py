"""The bundled checkpoint as a person meets it, and the data that it was made from."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference import Reference, results
from PIL import Image
from safetensors.torch import save_file

import amused
from amused.checkpoints.catalog import BUNDLED, FORMER
from amused.model.text import is_truncated, tokenize
from amused.recipe.words import PARTS
from amused.training import score_nouns, style_example, train_nouns
from amused.training.nouns import data
from amused.training.nouns.data import (
    BACKGROUNDS,
    NO_ACCESSORY,
    PLAIN,
    Noun,
    Nouns,
    Vocabulary,
    caption,
    decode_run_lengths,
    held_out_pair,
    known_traits,
    plain_words,
    training_caption,
    varied_caption,
)
from amused.training.nouns.model import LENGTH, MASK, Art, Examples, Masker, others
from amused.training.nouns.scores import coherence, difference
from amused.training.nouns.text import prepare_tokenizer

pytestmark = pytest.mark.slow

FOLDER = BUNDLED / "nouns"


@pytest.fixture(scope="module")
def model() -> amused.Amused:
    return amused.load("nouns", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def known(model) -> Vocabulary:
    return Vocabulary(**model.traits)


def test_is_small_and_safe() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 10_000_000 for path in files)
    former = sum(path.stat().st_size for path in (FOLDER / FORMER).rglob("*") if path.is_file())
    assert former < 20_000_000 and sum(path.stat().st_size for path in files) - former < 20_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md"}


def test_knows_enough_traits(known) -> None:
    assert len(known.heads) == 254 and len(known.glasses) == 23 and len(known.bodies) == 30
    assert len(known.accessories) == 142
    assert (
        len(known.backgrounds) >= 6 and known.backgrounds["cool"] == "d5d7e1" and known.backgrounds["warm"] == "e1d7d5"
    )


def test_each_word_of_a_caption_is_one_token(model, known) -> None:
    tokenizer = model.checkpoint.load_tokenizer()
    for noun in known.evaluation(50):
        text = caption(noun)
        words = re.findall(r"[a-z]+|[^a-z ]+", text)
        ids = tokenize(tokenizer, [text])[0].tolist()
        assert not is_truncated(tokenizer, text)
        if not re.search("[0-9]", text):
            assert ids.index(tokenizer.eos_token_id) == len(words) + 1, text


def test_gives_the_background_that_was_asked_for(model, known) -> None:
    for seed, (name, colour) in enumerate(known.backgrounds.items()):
        noun = Noun(name, known.bodies[0], NO_ACCESSORY, known.heads[seed], known.glasses[seed])
        (image,) = model.text_to_image(caption(noun), seeds=[seed])
        corner = np.asarray(image.crop((8, 8, 56, 56)), dtype=float).reshape(-1, 3)
        seen = np.median(corner, axis=0)
        colours = {key: np.array(list(bytes.fromhex(value))) for key, value in known.backgrounds.items()}
        assert min(colours, key=lambda key: np.abs(colours[key] - seen).sum()) == name, (seen, colour)


def test_diffusers_reads_it_and_gives_the_same_tokens(model) -> None:
    reference = Reference(FOLDER)
    version = model.defaults["model_version"]
    for result in results(model, "text_to_image", seeds=[8, 9], steps=6, model_version=version):
        assert torch.equal(result.tokens, reference.tokens("text_to_image", result.seed, num_inference_steps=6))


def test_an_art_pixel_is_a_token_and_comes_back_bit_for_bit(model, known) -> None:
    """So that inpainting keeps all pixels but those of the mask."""
    (image,) = model.text_to_image(caption(known.evaluation(1)[0]), seeds=[0])
    art = np.asarray(image)[::8, ::8].copy()
    before = model.encode(image)
    assert before.shape[-2:] == (32, 32)
    assert np.array_equal(np.asarray(model.decode(before)), np.asarray(image))
    art[10, 20] = art[0, 0] if (art[10, 20] != art[0, 0]).any() else art[16, 16]
    after = model.encode(Image.fromarray(art).resize((256, 256), Image.Resampling.NEAREST))
    assert (before != after).nonzero().tolist() == [[10, 20]]


# The data.


@pytest.fixture(scope="module")
def nouns() -> Nouns:
    """A made-up set of traits in the package's form: one dot of colour each."""

    def image(name: str, row: int) -> dict[str, str]:
        return {"filename": name, "data": "0x00" + bytes([row, 5, row + 1, 3, 2, 1]).hex()}

    return Nouns(
        {
            "palette": ["", "ff0000", "00ff00"],
            "images": {
                "bodies": [image("body-orange", 20), image("body-red", 21)],
                "accessories": [{"filename": NO_ACCESSORY, "data": "0x0000000000"}, image("accessory-heart", 25)],
                "heads": [image(f"head-h{i}", 3 + i % 8) for i in range(30)],
                "glasses": [image(f"glasses-square-g{i}", 11 + i % 5) for i in range(10)],
            },
        }
    )


def test_decodes_run_lengths() -> None:
    art = decode_run_lengths("0x00" + bytes([4, 8, 6, 5, 2, 7, 1, 0, 3, 9]).hex())
    assert art[4:6, 5:8].tolist() == [[7, 7, 0], [9, 9, 9]] and np.count_nonzero(art) == 5


def test_composes_layers_over_the_background(nouns) -> None:
    art = nouns.render(Noun("dark", "body-orange", NO_ACCESSORY, "head-h0", "glasses-square-g0"))
    assert art[0, 0].tolist() == list(bytes.fromhex(BACKGROUNDS["dark"]))
    assert art[20, 3].tolist() == art[3, 4].tolist() == art[11, 3].tolist() == [255, 0, 0]


def test_the_sky_of_the_style_lies_behind_the_character(nouns) -> None:
    characters = [
        Noun(background, "body-red", "accessory-heart", "head-h1", "glasses-square-g1") for background in BACKGROUNDS
    ]
    plain = np.stack([nouns.render(character) for character in characters])
    dusk = np.stack([style_example.in_style(image) for image in plain])
    assert np.array_equal(dusk, style_example.in_style(plain))
    assert style_example.sky_share(dusk.astype(np.float32), plain) == 1
    assert style_example.sky_share(plain.astype(np.float32), plain) < 0.3
    is_character = ~style_example.is_sky(plain)
    assert is_character.any((1, 2)).all() and np.array_equal(dusk[is_character], plain[is_character])
    sky = dusk[:, :, 0]  # left of all characters
    assert (sky == sky[0]).all() and len(np.unique(sky[0], axis=0)) == 4


def test_captions() -> None:
    noun = Noun("dark", "body-orange", NO_ACCESSORY, "head-baseball-gameball", "glasses-square-red")
    assert caption(noun) == (
        "a pixel art character with square red glasses, a baseball gameball-shaped head "
        "and a orange-colored body on a dark background"
    )
    assert caption(noun, ("glasses", "background")) == (
        "a pixel art character with a baseball gameball-shaped head and a orange-colored body"
    )
    assert caption(noun, PARTS) == "a pixel art character"
    assert "baseball" not in varied_caption(noun, random.Random(0), named=())
    texts = {varied_caption(noun, random.Random(i)) for i in range(50)}
    assert len(texts) > 30


def test_training_captions_leave_out_any_traits_and_name_a_worn_accessory() -> None:
    noun = Noun("dark", "body-grayscale-1", NO_ACCESSORY, "head-owl", "glasses-square-red")
    rng = random.Random(0)
    captions = [training_caption(noun, rng) for _ in range(8000)]
    words = {"glasses": r"\bred\b", "head": "owl", "body": "scale|white", "background": "dark"}
    for text, named in captions:
        assert named == {part for part, word in words.items() if re.search(word, text)}, text
    assert len({*map(frozenset, (named for _, named in captions))}) == 16
    assert min(Counter(frozenset(named) for _, named in captions).values()) > 20
    texts = {text for text, _ in captions}
    assert {"an owl with red glasses", "a character", "a pixel art character on a dark background"} < texts
    wearing = replace(noun, accessory="accessory-heart")
    assert all("heart accessory" in training_caption(wearing, rng)[0] for _ in range(200))


def test_traits_have_plain_names() -> None:
    assert plain_words("head-burger-dollarmenu") == "burger" and plain_words("glasses-square-red") == "red"
    assert plain_words("body-grayscale-9") == "black" and plain_words("head-cow") == "cow"
    for kind in ("glasses", "body", "head", "accessory"):
        names = [name for trait, name in PLAIN.items() if trait.startswith(kind)]
        assert len(names) == len(set(names))


def test_no_two_traits_have_the_same_name(known) -> None:
    for traits in (known.glasses, known.heads, known.bodies, known.accessories):
        assert len({plain_words(trait) for trait in traits}) == len(traits)
        assert all(re.fullmatch("[a-z ]+", plain_words(trait)) for trait in (*known.glasses, *known.bodies))


@pytest.fixture
def examples(nouns, tmp_path) -> Examples:
    tokenizer = prepare_tokenizer(nouns, tmp_path / "tokenizer")
    return Examples(Art(nouns), known_traits(nouns), tokenizer, size=64, step=10_000, seed=0, held_out=0.0)


def test_characters_as_tokens_are_their_renderings(nouns) -> None:
    art, vocabulary, rng = Art(nouns), known_traits(nouns), random.Random(0)
    for _ in range(20):
        noun = vocabulary.sample(rng, accessories=0.5)
        (tokens,) = art.compose(torch.tensor([art.traits(noun)]))
        assert np.array_equal(art.palette[tokens].view(32, 32, 3).numpy(), nouns.render(noun))


def test_examples_do_not_depend_on_the_number_of_workers(examples) -> None:
    drawn = iter(examples)
    steps = [next(drawn)["traits"] for _ in range(3)]
    assert torch.equal(steps[2], examples.draw(10_002)["traits"]) and not torch.equal(steps[0], steps[1])


def test_examples_go_from_few_traits_to_all(examples) -> None:
    heads = [len(set(examples.draw(step)["traits"][:, 0, 3].tolist())) for step in (0, 500)]
    assert heads[0] <= 8 < heads[1]


def test_an_image_is_mixed_up_with_what_its_caption_fits(nouns) -> None:
    vocabulary, rng = known_traits(nouns), random.Random(0)
    noun = vocabulary.sample(rng, accessories=0.0)
    fitting = [other for _ in range(20) for other in others(noun, {"head", "body"}, vocabulary, rng, index=1)]
    assert {(other.head, other.body) for other in fitting} == {(noun.head, noun.body)}
    assert len({other.glasses for other in fitting}) > 3 and len({other.background for other in fitting}) > 3
    (different,) = set(others(noun, set(PARTS), vocabulary, rng, index=3))
    assert sum(a != b for a, b in zip(astuple(noun), astuple(different))) <= 1


OTHERS_OF_A_SEED = """
import json, random
from amused.checkpoints.catalog import BUNDLED
from amused.training.nouns.data import Vocabulary
from amused.training.nouns.model import others
known, rng = Vocabulary(**json.loads((BUNDLED / "nouns/traits.json").read_text("utf-8"))), random.Random(0)
print(others(known.sample(rng, accessories=0.0), {"head"}, known, rng, index=1))
"""


@pytest.mark.slow
def test_examples_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = set()
    for hash_seed in "12":
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        run = subprocess.run([sys.executable, "-c", OTHERS_OF_A_SEED], capture_output=True, text=True, check=True)
        printed.add(run.stdout)
    assert len(printed) == 1


def test_masker_masks_and_misleads(examples) -> None:
    masker = Masker(examples.art, torch.device("cpu"), seed=0)
    batch = masker.draw(examples.draw(10_000))
    inputs, visible = batch.inputs.flatten(1), batch.inputs.flatten(1) != MASK
    wrong = visible & (inputs != batch.tokens)
    assert (~visible[::4]).all() and (~visible).sum(dim=1).min() < LENGTH // 4
    assert not wrong[::2].any() and wrong[1::4].any() and wrong[3::4].any()
    assert (batch.weights[~visible] > 0).all() and not batch.weights[::2][visible[::2]].any()
    assert (batch.weights[1::2] > 0).all()
    assert batch.weights[1::2][visible[1::2]].mean() < batch.weights[1::2][~visible[1::2]].mean() / 2


def test_difficult_positions_are_masked_more_often(examples) -> None:
    masker, drawn = Masker(examples.art, torch.device("cpu"), seed=0), examples.draw(10_000)
    errors = torch.zeros(64, LENGTH)
    errors[:, :100] = 9.0
    for _ in range(200):
        masker.update_difficulty(errors, torch.full((64, 32, 32), MASK))
    masked = (masker.draw(drawn).inputs[1::2] == MASK).flatten(1).float().mean(dim=0)
    assert masked[:100].mean() > 0.95 > 0.8 > masked[100:].mean()


def test_coherence_finds_the_real_character_and_what_is_wrong_with_it(nouns) -> None:
    vocabulary = known_traits(nouns)
    nouns.palette[2] = (0, 0, 255)
    real = np.stack([nouns.render(noun) for noun in vocabulary.evaluation(4)]) / 255.0
    assert coherence(nouns, vocabulary, real) == {**dict.fromkeys((*PARTS, "whole", "exact"), 1.0), "specks": 0.0}

    speck, blue, split = real.copy(), real.copy(), real.copy()
    speck[0, 28, 28] = 0.5
    blue[:2, 11:16, 3:5] = np.where(real[:2, 11:16, 3:5] == (1, 0, 0), (0, 0, 1), real[:2, 11:16, 3:5])
    split[3, :16] = 0.0
    scores = coherence(nouns, vocabulary, speck)
    assert scores["specks"] == 0.25 and scores["exact"] == 1 - 1 / (4 * 1024)
    scores = coherence(nouns, vocabulary, blue)
    assert (scores["glasses"], scores["head"], scores["whole"]) == (0.5, 1.0, 1.0)
    scores = coherence(nouns, vocabulary, split)
    assert (scores["background"], scores["body"], scores["whole"]) == (0.75, 1.0, 0.75)
    assert difference(real, split) == 0.125


def test_a_resumed_run_keeps_its_tokenizer(nouns, tmp_path) -> None:
    first, second = (prepare_tokenizer(nouns, tmp_path / "tokenizer") for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    ids = tokenize(first, ["heart shaped head"])[0].tolist()
    assert ids.index(first.eos_token_id) == 4


def test_training_never_shows_what_is_kept_back(nouns) -> None:
    vocabulary, rng = known_traits(nouns), random.Random(0)
    kept_back = vocabulary.evaluation(40)
    assert kept_back == vocabulary.evaluation(40) and all(held_out_pair(noun.head, noun.glasses) for noun in kept_back)
    shown = {(noun.head, noun.glasses) for noun in (vocabulary.sample(rng, 0.5) for _ in range(3000))}
    assert not shown & {(noun.head, noun.glasses) for noun in kept_back}
    assert len(shown) > 250
    last = [vocabulary.sample(rng, 0.5, held_out=0.5) for _ in range(400)]
    assert 150 < sum(held_out_pair(noun.head, noun.glasses) for noun in last) < 250


def test_the_model_card_is_there() -> None:
    assert Path(FOLDER / "README.md").is_file()


@pytest.mark.parametrize(
    "steps, arguments, says",
    [
        (None, ["--export", "exported"], "nothing to export in .*: train first"),
        (300, ["--steps", "200"], "nothing to do: .* has 300 steps, --steps is 200"),
    ],
)
def test_a_run_with_nothing_to_do_writes_nothing(tmp_path, monkeypatch, steps, arguments, says) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_nouns, "fetch_assets", lambda _: pytest.fail("the run began"))
    if steps is not None:
        save_file({"step": torch.tensor(steps)}, tmp_path / "state.safetensors")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["train_nouns", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match=says):
        train_nouns.main()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", (train_nouns, score_nouns, style_example))
@pytest.mark.parametrize("content", (None, b"half a file"))
def test_trait_images_that_cannot_be_had_are_a_sentence(tmp_path, monkeypatch, command, content) -> None:
    if content is not None:
        (tmp_path / "nouns-assets.tgz").write_bytes(content)
    monkeypatch.setattr(data, "ASSETS_URL", "http://127.0.0.1:9/assets.tgz")
    folder = "--output" if command is train_nouns else "--cache"
    monkeypatch.setattr(sys, "argv", [command.__name__, folder, str(tmp_path)])
    with pytest.raises(SystemExit, match="check the connection" if content is None else "delete it and try again"):
        command.main()


def test_a_checkpoint_that_cannot_be_scored_is_a_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["score_nouns", "--model", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="There is no such model"):
        score_nouns.main()
