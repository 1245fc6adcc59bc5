"""Work on the tokens of a result: vary it, touch it up. Nothing is encoded again, and a recipe replays it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from helpers.reference import grid_mask, picture
from helpers.tiny import tiny_checkpoint
from PIL import Image, ImageChops

import amused
from amused.generation.images import digest
from amused.recipe.links import from_query, to_query
from amused.serving import jobs

pytestmark = pytest.mark.slow

PARENT = amused.Recipe("text_to_image", "a red cat", (8,), steps=4, model="tokens", width=128, height=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tokens")


@pytest.fixture
def model(folder) -> amused.Amused:
    return amused.load(folder, device="cpu", dtype="float32")


def run(model, recipe, *given) -> list[amused.Picture]:
    return [event for event in model.generate(recipe, *given) if isinstance(event, amused.Picture)]


def test_touching_up_changes_only_its_cells(model) -> None:
    (parent,) = run(model, PARENT)
    recipe = amused.Recipe("touch_up", "a blue dog", (1, 2, 3), model="tokens", parent=PARENT, cells=(0, 9, 10))
    changed = torch.zeros(32, dtype=torch.bool)
    for child in run(model, recipe):
        assert child.tokens.shape == (4, 8)
        changed |= (child.tokens != parent.tokens).flatten()
    assert set(changed.nonzero().flatten().tolist()) <= {0, 9, 10}
    assert changed.any()


def test_varying_masks_about_the_share_that_was_asked_for(model) -> None:
    run(model, PARENT)
    recipe = amused.Recipe("vary", "a red cat", tuple(range(20)), model="tokens", parent=PARENT, share=0.25, steps=1)
    (parent,) = run(model, PARENT)
    kept = torch.stack([child.tokens == parent.tokens for child in run(model, recipe)]).float().mean().item()
    assert 0.68 < kept < 0.88


def test_a_share_of_one_keeps_nothing(model) -> None:
    other = amused.Recipe("text_to_image", "a hat", (9,), steps=4, model="tokens", width=128, height=64)
    children = [
        run(model, amused.Recipe("vary", "a cat", (5,), model="tokens", parent=parent, share=1.0))[0]
        for parent in (PARENT, other)
    ]
    assert torch.equal(children[0].tokens, children[1].tokens)


def test_a_chain_replays_in_a_new_process_s_model(model, folder) -> None:
    varied = amused.Recipe("vary", "a cat", (5,), model="tokens", parent=PARENT, share=0.5)
    touched = amused.Recipe("touch_up", "a hat", (6,), model="tokens", parent=varied, cells=(1, 2, 3))
    run(model, PARENT), run(model, varied)
    (first,) = run(model, touched)
    (again,) = run(amused.load(folder, device="cpu", dtype="float32"), touched)
    assert digest(again.image) == digest(first.image)


def test_a_chain_from_a_picture_asks_for_that_picture(model) -> None:
    image, mask = picture(64, 1), grid_mask(64, (0, 0, 32, 32))
    parent = amused.Recipe("inpaint", "a cat", (5,), model="tokens", image=digest(image), mask=digest(mask))
    child = amused.Recipe("vary", "a cat", (5,), model="tokens", parent=parent, share=0.5)
    (first,) = run(model, child, image, mask)
    (again,) = run(model, child, image, mask)  # the parent's tokens are remembered
    assert digest(first.image) == digest(again.image)
    with pytest.raises(amused.UserError, match="Upload an image"):
        run(model, child)
    with pytest.raises(amused.UserError, match="another image"):
        run(model, parent, picture(64, 2), mask)
    with pytest.raises(amused.UserError, match="another mask"):
        run(model, parent, image, grid_mask(64, (0, 0, 16, 32)))


def blank(mask: Image.Image, image: Image.Image) -> bytes:
    """What lies outside a mask."""
    return Image.composite(Image.new("RGB", image.size), image, mask.point(lambda value: 255 if value else 0)).tobytes()


@pytest.mark.parametrize("size, options", [(64, {}), (64, {"feather": 8}), (300, {"only_masked": True})], ids=str)
def test_going_on_from_an_inpainted_picture_keeps_what_lies_outside_the_mask(model, size, options) -> None:
    image, mask = picture(size, 1), grid_mask(size, (0, 0, 32, 32))
    parent = amused.Recipe("inpaint", "a cat", (5,), model="tokens", **options)
    child = amused.Recipe("vary", "a dog", (7,), model="tokens", parent=parent, share=1.0)
    (before,), (after,) = run(model, parent, image, mask), run(model, child, image, mask)
    assert after.image.size == image.size and blank(mask, after.image) == blank(mask, image)
    assert after.image.tobytes() != before.image.tobytes()


def test_a_cell_outside_the_mask_is_drawn_anew_where_asked_for_and_stays_so(model) -> None:
    image, mask = picture(64, 1), grid_mask(64, (0, 0, 32, 32))
    parent = amused.Recipe("inpaint", "a cat", (5,), model="tokens")
    touched = amused.Recipe("touch_up", "a hat", (8,), model="tokens", parent=parent, cells=(15,))
    varied = amused.Recipe("vary", "a dog", (9,), model="tokens", parent=touched, share=1.0)
    (first,), (last,) = run(model, touched, image, mask), run(model, varied, image, mask)
    corner = (48, 48, 64, 64)
    both = ImageChops.lighter(mask, grid_mask(64, corner))
    for result in (first, last):
        assert blank(both, result.image) == blank(both, image)
        assert result.image.crop(corner).tobytes() != image.crop(corner).tobytes()
    assert torch.equal(last.tokens[2:], first.tokens[2:]) and torch.equal(last.tokens[:, 2:], first.tokens[:, 2:])
    assert (last.tokens[:2, :2] != first.tokens[:2, :2]).any()


def test_a_link_of_the_first_version_gives_its_own_picture(model) -> None:
    """Where tasks on tokens decoded all of an inpainted picture anew."""
    image, mask = picture(64, 1), grid_mask(64, (0, 0, 32, 32))
    parent = amused.Recipe("inpaint", "a cat", (5,), model="tokens")
    child = amused.Recipe("vary", "a dog", (7,), model="tokens", parent=parent, share=1.0)
    recipe = from_query(to_query(child).replace("v=2", "v=1").replace("v%3D2", "v%3D1")).recipe
    assert recipe == replace(child, composite=False) == from_query(to_query(recipe)).recipe
    (old,), (encoded,) = run(model, recipe, image, mask), run(model, parent, image, mask)
    assert old.image.tobytes() == model.decode(old.tokens).tobytes()
    assert (old.tokens != encoded.tokens)[2:].any()


@pytest.mark.parametrize("feather", [0, 8])
def test_the_masked_part_alone_keeps_a_photograph_s_size_and_sharpness(model, feather) -> None:
    image, mask = picture(300, 1, height=217), Image.new("L", (300, 217))
    mask.paste(255, (250, 10, 290, 60))
    recipe = amused.Recipe("inpaint", "a cat", (5,), model="tokens", only_masked=True, feather=feather)
    (result,) = run(model, recipe, image, mask)
    assert result.image.size == (300, 217) and result.tokens.shape == (4, 4)
    assert blank(mask, result.image) == blank(mask, image)
    assert result.image.tobytes() != image.tobytes()


def test_feathering_blends_within_the_mask(model) -> None:
    image, mask = Image.new("RGB", (64, 64), "white"), grid_mask(64, (16, 16, 48, 48))
    hard, soft = (
        run(model, amused.Recipe("inpaint", "a cat", (5,), model="tokens", feather=feather), image, mask)[0].image
        for feather in (0, 12)
    )
    assert blank(mask, soft) == blank(mask, image)
    edge, centre = (16, 32), (32, 32)
    assert sum(soft.getpixel(edge)) > sum(hard.getpixel(edge))
    assert soft.getpixel(centre) == hard.getpixel(centre)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_of_any_shape_is_fitted(model, fit) -> None:
    image, mask = picture(90, 1, height=200), Image.new("L", (90, 200))
    mask.paste(255, (40, 90, 50, 110))
    recipe = amused.Recipe("inpaint", "a cat", (5,), model="tokens", width=64, height=64, fit=fit)
    (result,) = run(model, recipe, image, mask)
    assert result.image.size == (64, 64)


def test_says_when_the_mask_is_cut_off(model) -> None:
    image, mask = picture(64, 1, height=200), Image.new("L", (64, 200))
    mask.paste(255, (0, 0, 9, 9))
    recipe = amused.Recipe("inpaint", "a cat", (5,), model="tokens", width=64, height=64)
    with pytest.raises(amused.UserError, match="cropped away"):
        run(model, recipe, image, mask)


def test_refuses_cells_outside_the_picture(model) -> None:
    with pytest.raises(amused.UserError, match="below 32"):
        run(model, amused.Recipe("touch_up", "a", (1,), model="tokens", parent=PARENT, cells=(32,)))


def test_a_prompt_that_is_cut_gives_a_warning(model) -> None:
    long = "cat " * 200
    with pytest.warns(UserWarning, match="^The prompt is longer than the model can read"):
        model.text_to_image(long, steps=1)
    with pytest.warns(UserWarning, match="^The negative prompt is longer than the model can read"):
        model.text_to_image("a cat", negative_prompt=long, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.text_to_image("a cat", negative_prompt=long, guidance_scale=1, steps=1)  # it is not used


def test_a_stream_names_what_is_cut_instead(model, monkeypatch) -> None:
    """So that a page shows it and its log does not; asked for once per text."""
    asked, long = [], "cat " * 200
    is_cut = type(model).prompt_is_cut
    monkeypatch.setattr(type(model), "prompt_is_cut", lambda self, text: asked.append(text) or is_cut(self, text))
    recipe = amused.Recipe("text_to_image", long, (1, 2), model="tokens", negative_prompt=long, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for changed, cut in (
            (recipe, ("prompt", "negative prompt")),
            (replace(recipe, guidance_scale=1), ("prompt",)),
            (replace(recipe, prompt="a cat"), ("negative prompt",)),
        ):
            results = [event for event in jobs.sample(model, [changed], None, None) if isinstance(event, jobs.Result)]
            assert [result.cut for result in results] == [cut, cut]
    assert asked == [long, long, long, long, "a cat"]
