"""Token for token what diffusers gives with the same weights, in fp32 on the CPU, wherever diffusers is right.

diffusers works on one seed at a time here: its one generator for a whole batch is one of the things that we mend.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.reference import PROMPT, SEEDS, Reference, grid_mask, picture, results
from helpers.tiny import tiny_checkpoint
from PIL import Image

import amused
from amused.errors import UserError
from amused.generation import components, sampling
from amused.generation.placement import INT8_UNITS
from amused.model.packed import can_pack
from amused.model.quantized import Int8Linear
from amused.model.transformer import Attention, attend

pytestmark = pytest.mark.slow

warnings.filterwarnings("ignore")


@pytest.fixture(scope="module", params=["plain", "downsample", "linear"])
def both(request, tmp_path_factory):
    folder = tiny_checkpoint(
        tmp_path_factory.mktemp(request.param),
        downsample=request.param == "downsample",
        masking_schedule="linear" if request.param == "linear" else "cosine",
    )
    return amused.load(folder, device="cpu", dtype="float32"), Reference(folder)


OPTIONS = [
    {"steps": 1},
    {"steps": 12},
    {"steps": 20},
    {"steps": 12, "guidance_scale": 1.0},
    {"steps": 12, "negative_prompt": "a blue dog"},
    {"steps": 7, "temperature": (4.5, 0.5), "aesthetic_score": 4.5, "crop": (16, 3), "guidance_scale": 3.0},
]


def for_reference(options: dict) -> dict:
    names = {
        "steps": "num_inference_steps",
        "aesthetic_score": "micro_conditioning_aesthetic_score",
        "crop": "micro_conditioning_crop_coord",
    }
    return {names.get(key, key): value for key, value in options.items() if key != "composite"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_text_to_image(both, options) -> None:
    model, reference = both
    for result in results(model, "text_to_image", **options):
        assert torch.equal(result.tokens, reference.tokens("text_to_image", result.seed, **for_reference(options)))


@pytest.mark.parametrize("size", [(96, 160), (192, 64)])
def test_other_sizes(both, size) -> None:
    model, reference = both
    options = {"width": size[0], "height": size[1]}
    for result in results(model, "text_to_image", **options):
        assert torch.equal(result.tokens, reference.tokens("text_to_image", result.seed, **options))


@pytest.mark.parametrize(
    ("options", "strength"), [*((options, 0.5) for options in OPTIONS[1:]), ({}, 0.2), ({}, 0.7), ({}, 0.99)], ids=str
)
def test_image_to_image(both, options, strength) -> None:
    model, reference = both
    options = {**options, "strength": strength}
    image = picture(model.size)
    for result in results(model, "image_to_image", image, **options):
        expected = reference.tokens("image_to_image", result.seed, image=image, **for_reference(options))
        assert torch.equal(result.tokens, expected)


def test_image_to_image_of_odd_size(both) -> None:
    """Cut down to whole tokens, as the reference does."""
    model, reference = both
    image = picture(model.size + 7, height=2 * model.size + 1)
    (result,) = results(model, "image_to_image", image, seeds=[3])
    assert torch.equal(result.tokens, reference.tokens("image_to_image", 3, image=image))


BOXES = [(0, 0, 128, 32), (16, 64, 192, 256), (0, 0, 256, 256)]


@pytest.mark.parametrize(
    ("options", "strength", "box"),
    [
        *((options, 1.0, BOXES[1]) for options in OPTIONS[1:]),
        *(({}, strength, box) for strength, box in zip((0.3, 0.6, 0.9), BOXES)),
    ],
    ids=str,
)
def test_inpaint_with_a_grid_aligned_mask(both, options, strength, box) -> None:
    model, reference = both
    options = {**options, "strength": strength, "composite": False}
    # The reference fails on smaller pictures: it cuts its mask's grid down to multiples of 16 tokens.
    image, mask = picture(256), grid_mask(256, box)
    for result in results(model, "inpaint", image, mask, seeds=SEEDS[:2], **options):
        expected = reference.tokens("inpaint", result.seed, image=image, mask_image=mask, **for_reference(options))
        assert torch.equal(result.tokens, expected)


def test_a_picture_is_the_same_bytes_alone_and_in_any_sweep(both) -> None:
    model, _ = both
    image, mask = picture(model.size), grid_mask(model.size, (0, 0, 32, 32))
    for task, given in {"text_to_image": (), "image_to_image": (image,), "inpaint": (image, mask)}.items():
        sweep = results(model, task, *given, seeds=[5, 8, 2**32 - 1, 8])
        for result in sweep:
            (alone,) = results(model, task, *given, seeds=[result.seed])
            assert alone.image.tobytes() == result.image.tobytes()
            assert torch.equal(alone.tokens, result.tokens)
        assert len({result.image.tobytes() for result in sweep}) > 1


@pytest.mark.parametrize("quickly", [True, False])
@pytest.mark.parametrize("length, rows", [(1, [0]), (64, None), (100, [0, 31, 32, 99]), (100, [40]), (70, range(70))])
def test_draws_are_those_of_multinomial(length, rows, quickly, monkeypatch) -> None:
    """Of the positions asked for; the generator is left where it would be after all of them."""
    if not quickly:
        monkeypatch.setattr(sampling, "clocks_are_logarithms", lambda: False)
    probabilities = torch.randn(3, length, 1000).softmax(dim=-1)
    ours, theirs = ([torch.Generator().manual_seed(seed) for seed in (5, 6, 5)] for _ in range(2))
    wanted = list(range(length) if rows is None else rows)
    masked_idx = None if rows is None else torch.tensor(wanted).repeat(3, 1)
    drawn = sampling.sample_multinomial(probabilities[:, wanted], length, ours, masked_idx)
    for i in range(3):
        assert torch.equal(drawn[i], torch.multinomial(probabilities[i], 1, generator=theirs[i])[wanted, 0])
        assert torch.equal(ours[i].get_state(), theirs[i].get_state())


def test_vqgan_agrees(both) -> None:
    model, reference = both
    vqgan, other = model.checkpoint.load_vqgan("cpu", torch.float32), reference.text_to_image.vqvae
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = other.encode(pixels).latents
        tokens = other.quantize(latents)[2][2].view(2, 4, 6)
        assert torch.equal(vqgan.encode(pixels), tokens)
        assert (vqgan.quant_conv(vqgan.encoder(pixels)) - latents).abs().max() < 1e-4
        decoded = other.decode(tokens, force_not_quantize=True, shape=(2, 4, 6, latents.shape[1])).sample
        for one in (
            vqgan,
            model.checkpoint.load_vqgan("cpu", torch.float32, "decoder"),
        ):
            assert (one.decode(tokens) - decoded).abs().max() < 1e-4


def test_pictures_agree(both) -> None:
    """The whole path to 8-bit pixels; a rounding error may tip one value in 255."""
    model, reference = both
    (ours,) = model.text_to_image(PROMPT, seeds=[8])
    theirs = reference.text_to_image(PROMPT, generator=torch.Generator().manual_seed(8)).images[0]
    difference = torch.tensor(list(ours.tobytes())).int() - torch.tensor(list(theirs.tobytes())).int()
    assert difference.abs().max() <= 1


# Where the reference is wrong.


def test_strength_one_repaints_all(both) -> None:
    model, _ = both
    first = results(model, "image_to_image", picture(model.size, 1), strength=1.0)
    second = results(model, "image_to_image", picture(model.size, 2), strength=1.0)
    for a, b in zip(first, second):
        assert torch.equal(a.tokens, b.tokens)  # nothing of either picture is left


def test_a_tiny_strength_still_changes_something(both) -> None:
    model, _ = both
    recipe = amused.Recipe("image_to_image", PROMPT, (1,), model=model.name, strength=0.01)
    steps = [event for event in model.generate(recipe, picture(model.size)) if isinstance(event, amused.Step)]
    assert len(steps) == 1


@pytest.mark.parametrize("dot", [(0, 0), (17, 5), (63, 63), (31, 32)])
def test_one_painted_pixel_repaints_exactly_its_cell(both, dot) -> None:
    model, _ = both
    image, mask = picture(model.size), Image.new("L", (model.size, model.size))
    mask.putpixel(dot, 255)
    before = model.encode(image)
    recipe = amused.Recipe("inpaint", PROMPT, SEEDS, model=model.name, steps=2, composite=False)
    changed = torch.zeros_like(before, dtype=torch.bool)
    for event in model.generate(recipe, image, mask):
        if isinstance(event, amused.Picture):
            changed |= event.tokens != before
        elif event.step == 1:
            # "Never fewer than one stays masked" (as in the reference): a single cell is drawn at the last step.
            assert event.masked.nonzero().tolist() == [[dot[1] // 16, dot[0] // 16]]
    assert changed.nonzero().tolist() in ([], [[dot[1] // 16, dot[0] // 16]])


def test_pixels_outside_the_mask_come_back_identical(both) -> None:
    model, _ = both
    image, mask = picture(model.size), Image.new("L", (model.size, model.size))
    mask.paste(255, (5, 9, 40, 30))
    (result,) = model.inpaint(PROMPT, image, mask, seeds=[4])
    outside = Image.composite(Image.new("RGB", image.size), result, mask)
    assert outside.tobytes() == Image.composite(Image.new("RGB", image.size), image, mask).tobytes()
    (whole,) = model.inpaint(PROMPT, image, mask, seeds=[4], composite=False)
    assert Image.composite(Image.new("RGB", image.size), whole, mask).tobytes() != outside.tobytes()
    assert result.crop((5, 9, 40, 30)).tobytes() == whole.crop((5, 9, 40, 30)).tobytes()


def test_pictures_are_the_same_before_and_after_weights_are_packed(tmp_path, monkeypatch) -> None:
    tiny_checkpoint(tmp_path / "model")
    packed = amused.load(tmp_path / "model", device="cpu", dtype="bfloat16")
    first, second = (packed.text_to_image(PROMPT, seeds=[1, 2], steps=2) for _ in range(2))
    weights = [parameter.is_mkldnn for parameter in packed.components.transformer.get().parameters()]
    assert any(weights) == can_pack(packed.device, packed.dtype) and not all(weights)
    monkeypatch.setattr(components, "can_pack", lambda device, dtype: False)
    plain = amused.load(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert first == second == plain.text_to_image(PROMPT, seeds=[1, 2], steps=2)


@pytest.mark.parametrize("length", [1, 31, 64, 77])
def test_attention_in_bfloat16_sees_every_key_and_nothing_else(length) -> None:
    """Whatever length a processor likes best."""
    given = [torch.randn(2, 3, n, 8).bfloat16() for n in (5, length, length)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*(tensor.float() for tensor in given))
    assert (attend(*given).float() - wanted).abs().max() < 0.03


def test_joined_projections_are_those_that_they_join() -> None:
    attention, x = Attention(16, 2, bias=True), torch.randn(2, 5, 16)
    apart = attention.self_attention(x)
    attention.fuse_qkv()
    torch.testing.assert_close(attention.self_attention(x), apart)
    assert len(list(attention.parameters())) == 4


@pytest.mark.skipif(
    not any(torch.cpu.get_capabilities().get(unit) for unit in INT8_UNITS),
    reason="needs VNNI: elsewhere 8-bit products saturate, and int8 is refused",
)
def test_quantized_layers_are_near_what_they_stand_for() -> None:
    linear, x = torch.nn.Linear(64, 96), torch.randn(2, 5, 64)
    exact, near = linear(x), Int8Linear(linear)(x)
    assert near.shape == exact.shape and 0 < (near - exact).std() / exact.std() < 0.02


def test_a_quantized_model_makes_pictures_of_its_own(tmp_path, monkeypatch) -> None:
    tiny_checkpoint(tmp_path / "model")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    quantized = amused.load(tmp_path / "model", device="cpu", dtype="float32", quantize="int8")
    plain = amused.load(tmp_path / "model", device="cpu", dtype="float32")
    pictures = [model.text_to_image("a red cat", seeds=[1, 2]) for model in (quantized, plain, quantized)]
    assert pictures[0] == pictures[2] != pictures[1]
    assert quantized.made.startswith("cpu float32 int8 ") and " int8 " not in plain.made


def test_what_would_be_slower_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    with pytest.raises(UserError, match="would be slower"):
        amused.load("nouns", device="cpu", quantize="int8")
    with pytest.raises(UserError, match="int8"):
        amused.load("nouns", device="cpu", quantize="int4")
