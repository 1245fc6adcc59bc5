"""The bundled checkpoint as a person meets it, and the data that it was made from."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from dataclasses import replace
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
    all_traits,
    caption,
    decode_run_lengths,
    held_out_pair,
    plain_words,
    training_caption,
    varied_caption,
)
from amused.training.nouns.model import CODES, MASK, Batches, TextToTokens, initialize_from
from amused.training.nouns.scores import coherence, difference
from amused.training.nouns.text import new_text_encoder, prepare_tokenizer
from amused.training.nouns.vqgan import fit_codebook, patches, sample_art, weighted_kmeans

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
    assert len(known.heads) >= 24 and len(known.glasses) >= 12 and len(known.bodies) >= 12
    assert (
        len(known.backgrounds) >= 6 and known.backgrounds["cool"] == "d5d7e1" and known.backgrounds["warm"] == "e1d7d5"
    )


def test_each_word_of_a_caption_is_one_token(model, known) -> None:
    tokenizer = model.checkpoint.load_tokenizer()
    for noun in known.evaluation(50):
        words = caption(noun).replace("-", " - ").replace(",", " ,").split()
        ids = tokenize(tokenizer, [caption(noun)])[0].tolist()
        assert ids.index(tokenizer.eos_token_id) == len(words) + 1 and not is_truncated(tokenizer, caption(noun))


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


def test_a_patch_is_the_same_token_wherever_it_stands(model) -> None:
    """So that inpainting keeps all tokens but those of the mask."""
    rng = np.random.default_rng(0)
    art = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
    before = model.encode(Image.fromarray(art).resize((256, 256), Image.Resampling.NEAREST))
    art[10:12, 20:22] = 255 - art[10:12, 20:22]
    after = model.encode(Image.fromarray(art).resize((256, 256), Image.Resampling.NEAREST))
    assert (before != after).nonzero().tolist() == [[5, 10]]


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
    assert "baseball" not in varied_caption(noun, random.Random(0), keep=0.0)
    texts = {varied_caption(noun, random.Random(i), keep=0.8) for i in range(50)}
    assert len(texts) > 30


def test_training_captions_leave_out_any_traits_and_name_a_worn_accessory() -> None:
    noun = Noun("dark", "body-grayscale-1", NO_ACCESSORY, "head-owl", "glasses-square-red")
    rng = random.Random(0)
    texts = [training_caption(noun, rng) for _ in range(8000)]
    named = [
        tuple(re.search(word, text) is not None for word in ("red", "owl", "scale|white", "dark")) for text in texts
    ]
    assert len(set(named)) == 16 and min(Counter(named).values()) > 20
    assert {"an owl with red glasses", "a character", "a pixel art character on a dark background"} < set(texts)
    wearing = replace(noun, accessory="accessory-heart")
    assert all("heart accessory" in training_caption(wearing, rng) for _ in range(200))


def test_traits_have_plain_names() -> None:
    assert plain_words("head-burger-dollarmenu") == "burger" and plain_words("glasses-square-red") == "red"
    assert plain_words("body-grayscale-9") == "black" and plain_words("head-cow") == "cow"
    for kind in ("glasses", "body", "head"):
        names = [name for trait, name in PLAIN.items() if trait.startswith(kind)]
        assert len(names) == len(set(names))


def test_codes_are_common_patches_and_means_of_rare_ones(nouns) -> None:
    codes = torch.from_numpy(fit_codebook(nouns, all_traits(nouns), all_traits(nouns), 64, characters=1000))
    rng = random.Random(1)
    art = sample_art(nouns, all_traits(nouns), rng, 200, accessories=0.3)
    real = patches(art * 2 - 1).reshape(-1, 12)
    nearest = torch.cdist(real, codes).min(dim=1).values
    assert (nearest < 1e-3).float().mean() > 0.9 and nearest.max() < 1


def test_kmeans_leaves_fixed_centres_their_points() -> None:
    points, weights = torch.tensor([[0.0], [0.2], [5.0], [5.4], [9.0]]), torch.tensor([1.0, 0.01, 3.0, 1.0, 2.0])
    centres = weighted_kmeans(points, weights, torch.tensor([[0.0]]), 2, rounds=10, seed=0)
    assert sorted(centres.flatten().tolist()) == pytest.approx([5.1, 9.0])


@pytest.fixture
def batches(nouns) -> Batches:
    return Batches(nouns, torch.rand(CODES, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1, seed=0)


def test_batches_mask_and_mislead(nouns, batches) -> None:
    batch = batches.draw(all_traits(nouns), 64, varied=True, accessories=0.0, sampled=64)
    inputs, visible = batch.inputs.flatten(1), batch.inputs.flatten(1) != MASK
    wrong = visible & (inputs != batch.tokens)
    assert (~visible[::4]).all() and (~visible).sum(dim=1).min() < 64
    assert not wrong[::2].any() and wrong[1::2].any()
    asked = visible.gather(1, batch.positions)
    assert not asked[::2].any() and 0 < asked[1::2].float().mean() < 0.5
    plain = batches.draw(all_traits(nouns), 64, varied=False, accessories=0.0, sampled=64)
    inputs = plain.inputs.flatten(1)
    assert torch.equal(torch.where(inputs == MASK, plain.tokens, inputs), plain.tokens)


def test_a_new_run_can_start_from_a_model_with_other_codes(nouns, batches, tmp_path) -> None:
    tokenizer = prepare_tokenizer(nouns, tmp_path / "tokenizer")
    old, new = (TextToTokens(tokenizer, new_text_encoder(tokenizer)) for _ in range(2))
    order = torch.randperm(CODES, generator=torch.Generator().manual_seed(1))
    initialize_from(new, batches.codebook[order], old.state_dict(), batches.codebook)
    tokens = torch.randint(CODES, (1, 16, 16), generator=torch.Generator().manual_seed(2)).index_fill(
        2, torch.tensor([3]), MASK
    )
    was = torch.where(tokens == MASK, MASK, order[tokens.clamp(max=CODES - 1)])
    with torch.no_grad():
        expected = old.transformer(was, old.condition(["a heart"]))[..., order]
        torch.testing.assert_close(new.transformer(tokens, new.condition(["a heart"])), expected)


def test_coherence_finds_the_real_character_and_what_is_wrong_with_it(nouns) -> None:
    vocabulary = all_traits(nouns)
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
    vocabulary, rng = all_traits(nouns), random.Random(0)
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
