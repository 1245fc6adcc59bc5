"""Adapters in use: what they change and what they leave alone, links that name them, and hostile folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake import sampled
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers.serve import serve
from helpers.tiny import tiny_checkpoint
from safetensors.torch import load_file, save_file

import amused
from amused.checkpoints.adapters import CONFIG, WEIGHTS, list_adapters
from amused.checkpoints.lora import read_adapter
from amused.errors import UserError
from amused.generation import components
from amused.generation.images import digest, load_image
from amused.generation.pipeline import Amused, Picture
from amused.recipe.links import from_query, to_query
from amused.recipe.metadata import from_json, to_json
from amused.recipe.recipe import TEXT_TO_IMAGE, VARY, Recipe
from amused.serving.runtime import Choice, Runtime

pytestmark = pytest.mark.slow

PLAIN = Recipe(TEXT_TO_IMAGE, "a red cat", (1,), model="tiny", steps=4)
LAYER = "transformer_layers.{}.attn1.{}"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("adapters") / "tiny", seed=3)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "adapters"
    write(folder / "dusk", seed=1)
    write(folder / "dawn", seed=2)
    return folder


def write(place: Path, seed: int = 0, base: str | None = "me/tiny", size: int = 32, **config: object) -> Path:
    """An adapter as peft writes it, of large random changes."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for target in ("to_q", "to_v"):
            name = f"base_model.model.{LAYER.format(layer, target)}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, size, generator=random)
            tensors[f"{name}.lora_B.weight"] = torch.randn(32, 4, generator=random)
    place.mkdir(parents=True)
    save_file(tensors, place / WEIGHTS)
    settings = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "base_model_name_or_path": base, **config}
    (place / CONFIG).write_text(json.dumps(settings))
    return place


def load(model: Path, folder: Path | None) -> Amused:
    return amused.load(model, device="cpu", dtype="float32", adapters=folder)


def made(model: Amused, recipe: Recipe) -> str:
    (picture,) = [event for event in model.generate(recipe) if isinstance(event, Picture)]
    return digest(picture.image)


def test_one_model_with_several_adapters_in_turns(model, folder) -> None:
    kinds = [PLAIN, replace(PLAIN, adapter="dusk"), replace(PLAIN, adapter="dawn", adapter_strength=0.5)]
    alone = [made(load(model, folder), recipe) for recipe in kinds]
    assert len(set(alone)) == 3
    shared = load(model, folder)
    assert [made(shared, recipe) for recipe in [*kinds, *kinds]] == alone * 2
    assert [digest(event.image) for event in last_of(shared, kinds)] == alone


def last_of(model: Amused, recipes: list[Recipe]) -> list[Picture]:
    """The pictures of several runs that are worked on step by step in turn."""
    *_, last = zip(*(model.generate(recipe) for recipe in recipes), strict=True)
    return list(last)


def test_at_strength_0_it_is_the_model_alone(model, folder) -> None:
    shared = load(model, folder)
    assert made(shared, replace(PLAIN, adapter="dusk", adapter_strength=0)) == made(load(model, None), PLAIN)
    half, whole = (made(shared, replace(PLAIN, adapter="dusk", adapter_strength=s)) for s in (0.5, 1.0))
    assert half != whole


@pytest.mark.parametrize("warm", [False, True])
def test_an_adapter_changes_weights_that_are_packed_as_others(model, folder, monkeypatch, warm) -> None:
    recipe = replace(PLAIN, steps=12, adapter="dusk")
    monkeypatch.setattr(components, "can_pack", lambda device, dtype: False)
    plain = amused.load(model, device="cpu", dtype="bfloat16", adapters=folder)
    expected = made(plain, recipe)
    monkeypatch.undo()
    packed = amused.load(model, device="cpu", dtype="bfloat16", adapters=folder)
    if warm:
        made(packed, PLAIN)
    assert made(packed, recipe) == expected != made(packed, replace(recipe, adapter=None))
    own = {id(weight) for weight in packed.components.transformer.get().parameters()}
    others = [weight for weight in packed.components.networks(recipe).transformer.parameters() if id(weight) not in own]
    assert len(others) == 4  # those that it changes: a queries' and a values' weight in each of two layers


def test_a_picture_with_an_adapter_is_varied_without_it(model, folder) -> None:
    parent = replace(PLAIN, adapter="dusk")
    child = Recipe(VARY, "a red cat", (2,), model="tiny", steps=4, parent=parent, share=0.3)
    first = load(model, folder)
    made(first, parent)
    assert made(first, child) == made(load(model, folder), child) != made(first, replace(child, adapter="dusk"))


def test_an_adapter_of_the_text_encoder(model, folder) -> None:
    place = write(folder / "both")
    (place / "text_encoder").mkdir()
    for file in (CONFIG, WEIGHTS):
        (place / "text_encoder" / file).write_bytes((place / file).read_bytes())
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    pair = {f"{name}.lora_A.weight": torch.randn(4, 32), f"{name}.lora_B.weight": torch.randn(32, 4)}
    before = list_adapters(folder)
    save_file(pair, place / "text_encoder" / WEIGHTS)
    assert [one.digest for one in list_adapters(folder)] != [one.digest for one in before]
    write(folder / "one")
    shared = load(model, folder)
    assert made(shared, replace(PLAIN, adapter="both")) != made(shared, replace(PLAIN, adapter="one"))


# Recipes


def test_a_recipe_carries_its_adapter_and_older_ones_have_none() -> None:
    recipe = replace(PLAIN, adapter="my style", adapter_digest="0123456789abcdef", adapter_strength=0.7)
    assert from_query(to_query(recipe)).recipe == recipe and from_json(to_json(recipe)).recipe == recipe
    assert "adapter" not in to_query(PLAIN) and "adapter" not in to_json(PLAIN)
    assert replace(PLAIN, adapter="", adapter_strength=0.3) == PLAIN
    for wrong in (
        {"adapter": "../x"},
        {"adapter": "a", "adapter_strength": 3},
        {"adapter": "a", "adapter_digest": "z"},
    ):
        with pytest.raises(UserError):
            replace(PLAIN, **wrong)


@pytest.fixture
def runtime(model, folder) -> Runtime:
    return Runtime(
        [Choice("tiny", "small", size=64, multiple=16)], lambda *_: load(model, folder), "tiny", adapters=folder
    )


def test_a_link_names_the_one_adapter_that_it_was_made_with(runtime, folder) -> None:
    recipe = runtime.freeze_recipe(replace(PLAIN, adapter="dusk"), None, None)
    (listed,) = [one for one in list_adapters(folder) if one.name == "dusk"]
    assert recipe.adapter_digest == listed.digest
    first = [*sampled(runtime, recipe)][-1]
    assert digest([*sampled(runtime, recipe)][-1].image) == digest(first.image)
    with pytest.raises(UserError, match="no adapter night here"):
        [*sampled(runtime, replace(PLAIN, adapter="night"))]
    (folder / "dusk" / CONFIG).write_text((folder / "dusk" / CONFIG).read_text().replace("8", "9"))
    with pytest.raises(UserError, match="dusk has changed since"):
        [*sampled(runtime, recipe)]


@pytest.fixture
def address(runtime, tmp_path) -> Iterator[str]:
    with serve(runtime, tmp_path / "cache") as address:
        yield address


def test_programs_choose_adapters_and_replay_them(address, folder) -> None:
    client = Client(address, verbose=False)
    given = {"prompt": "a red cat", "seeds": "1", "steps": 4, "api_name": "/text_to_image"}
    plain, dusk = (client.predict(**given, adapter=name)[0]["image"] for name in ("", "dusk"))
    assert digest_of_file(plain) != digest_of_file(dusk)
    query = to_query(replace(PLAIN, adapter="dusk"), digest_of_file(dusk))
    _, results = client.predict(query, api_name="/recipe")
    assert results[0]["same"] is True and "adapter_digest=" in results[0]["query"]
    write(folder / "later", seed=3)
    assert client.predict(**given, adapter="later")
    with pytest.raises(AppError, match="There is no adapter night here"):
        client.predict(**given, adapter="night")


def digest_of_file(path: str) -> str:
    return digest(load_image(Path(path)))


def test_the_page_lists_those_that_fit(runtime, folder) -> None:
    write(folder / "other", base="amused/amused-256")
    write(folder / "any", base=None)
    assert runtime.adapters_for("tiny") == ["any", "dawn", "dusk"]
    assert Runtime([Choice("tiny", "small")], default="tiny").adapters_for("tiny") == []


# Hostile folders


def test_what_is_no_adapter_is_left_out(folder, tmp_path) -> None:
    outside = write(tmp_path / "outside")
    os.symlink(outside, folder / "linked")
    half = write(folder / "half")
    (half / WEIGHTS).unlink()
    file_link = write(folder / "file link")
    (file_link / WEIGHTS).unlink()
    os.symlink(outside / WEIGHTS, file_link / WEIGHTS)
    write(folder / ".hidden")
    (write(folder / "no json") / CONFIG).write_text("{" * 100_000)
    (folder / "file").write_text("x")
    assert [one.name for one in list_adapters(folder)] == ["dawn", "dusk"]
    for name in ("..", "../outside", "linked", "/etc", "", "dusk/../dawn", "dusk\0"):
        with pytest.raises(UserError):
            read_adapter(folder, name)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensors: {**tensors, next(iter(tensors)): torch.full((4, 32), float("nan"))}, "not a finite number"),
        (lambda tensors: {**tensors, next(iter(tensors)): torch.zeros(3, 32)}, "do not fit each other"),
        (lambda tensors: {name: t for name, t in tensors.items() if "lora_A" in name}, "do not fit each other"),
        (lambda tensors: {"base_model.model.mlm.weight": torch.zeros(2, 2)}, "not part of a LoRA adapter"),
        (lambda tensors: {}, "holds no adapter"),
    ],
)
def test_hostile_weights_are_refused(model, folder, change, says) -> None:
    save_file(change(load_file(folder / "dusk" / WEIGHTS)), folder / "dusk" / WEIGHTS)
    with pytest.raises(UserError, match=says):
        made(load(model, folder), replace(PLAIN, adapter="dusk"))


def test_other_sizes_headers_and_kinds_are_refused(model, folder) -> None:
    write(folder / "large", size=64)
    write(folder / "dora", use_dora=True)
    (write(folder / "header") / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    shared = load(model, folder)
    for name, says in (("large", "does not fit this model"), ("dora", "use_dora"), ("header", "header")):
        with pytest.raises(UserError, match=says) as refused:
            made(shared, replace(PLAIN, adapter=name))
        assert str(folder) not in str(refused.value)
    assert made(shared, PLAIN) == made(load(model, None), PLAIN)
