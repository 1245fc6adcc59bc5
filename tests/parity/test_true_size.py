"""The exactness at the true sizes of amused-256 and amused-512, with random weights, through files on disk.

Slow and large: about 7 GB of memory and a few minutes on two cores.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.reference import PROMPT, Reference, grid_mask, picture

import amused
from amused.benchmark.weights import SIZES, random_checkpoint
from amused.recipe.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=SIZES)
def size(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def folder(size, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(str(size)) / "model"
    random_checkpoint(folder, size)
    gc.collect()
    return folder


ONE_PICTURE = """
import sys
import amused
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Request, Result
from amused.serving.metrics import MemoryCollector
from amused.serving.runtime import Runtime
runtime = Runtime(load=lambda name, report: amused.load(name, dtype="float32"), default=sys.argv[1])
recipe = Recipe("text_to_image", "a cat", (0,), model=runtime.default, steps=2)
(last,) = (event for event in runtime.run(lambda: Request((recipe,))) if isinstance(event, Result))
assert last.image.size == (int(sys.argv[2]),) * 2
peak = next(family for family in MemoryCollector().collect() if family.name == "amused_memory_peak_bytes")
print(int(peak.samples[0].value), last.fingerprint)
"""


@pytest.mark.parametrize("size", [512], indirect=True)
def test_a_picture_fits_into_a_free_space(size, folder) -> None:
    """A free Space has 2 cores and 16 GB; in float32, which takes the most."""
    command = [sys.executable, "-c", ONE_PICTURE, str(folder), str(size)]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    peak = int(run.stdout.split()[0])
    print(f"{size}: {peak / 1e9:.1f} GB at the most, {run.stdout.split(maxsplit=1)[1].strip()}")
    assert peak < 8e9


def sampled(model: amused.Amused, task: str, *given: object, seed: int, **options: object) -> torch.Tensor:
    """The tokens after the last step; the picture is not decoded."""
    steps = model.generate(Recipe(task, PROMPT, (seed,), model=model.name, **options), *given)
    return next(step.tokens for step in steps if step.step == step.steps)


def test_tokens_are_the_reference_s(size, folder) -> None:
    model, reference = amused.load(folder, device="cpu", dtype="float32"), Reference(folder)
    assert model.size == size
    assert sum(p.numel() for p in model.components.transformer.get().parameters()) // 100_000 in (
        6034,
        6035,
        6082,
        6083,
    )

    steps = 2  # of which image to image and inpainting run one at strength 0.5
    tokens = sampled(model, "text_to_image", seed=8, steps=steps, guidance_scale=2.0)
    expected = reference.tokens("text_to_image", 8, num_inference_steps=steps, guidance_scale=2.0)
    assert torch.equal(tokens, expected)
    assert tokens.unique().numel() > size // 8  # not degenerate

    image = picture(size)
    tokens = sampled(model, "image_to_image", image, seed=3, steps=steps, strength=0.5)
    expected = reference.tokens("image_to_image", 3, image=image, num_inference_steps=steps)
    assert torch.equal(tokens, expected)

    mask = grid_mask(size, (64, 96, 160, 256))
    tokens = sampled(model, "inpaint", image, mask, seed=0, steps=steps, strength=0.5, composite=False)
    given = {"image": image, "mask_image": mask}
    expected = reference.tokens("inpaint", 0, **given, num_inference_steps=steps, strength=0.5)
    assert torch.equal(tokens, expected)

    encoder, decoder = (model.checkpoint.load_vqgan("cpu", torch.float32, half) for half in ("encoder", "decoder"))
    other = reference.text_to_image.vqvae
    with torch.no_grad():
        pixels = torch.rand(1, 3, 64, 96)
        latents = other.encode(pixels).latents
        assert torch.equal(encoder.encode(pixels), other.quantize(latents)[2][2].view(1, 4, 6))
        tokens = torch.randint(8192, (1, 4, 6))
        decoded = other.decode(tokens, force_not_quantize=True, shape=(1, 4, 6, 64)).sample
        assert (decoder.decode(tokens) - decoded).abs().max() < 1e-4
