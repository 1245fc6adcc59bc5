"""The constructed decoder draws every code's art pixels exactly, in images of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amused.checkpoints.catalog import BUNDLED
from amused.checkpoints.hub import locate
from amused.model.vqgan import VQGAN
from amused.training.nouns.vqgan import CONFIG, construct_vqgan

CODES = CONFIG.num_vq_embeddings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codebook() -> Tensor:
    return torch.rand(CODES, 12, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def vqgan(codebook: Tensor) -> VQGAN:
    """In the precision of the files, but for the codes themselves."""
    model = construct_vqgan(codebook)
    model.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    model.quantize.embedding.weight.copy_(codebook)
    return model


def expected(codebook: Tensor, tokens: Tensor) -> Tensor:
    """Each token's 2x2 art pixels, enlarged 8 times: (3, height, width)."""
    art = codebook[tokens].unflatten(-1, (2, 2, 3)).permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
    return (art * 0.5 + 0.5).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


@pytest.mark.parametrize("size", [(16, 16), (1, 3), (6, 8), (20, 35)], ids=str)
def test_every_pixel_is_that_of_the_code(vqgan: VQGAN, codebook: Tensor, size: tuple[int, int]) -> None:
    tokens = torch.randint(CODES, size, generator=torch.Generator().manual_seed(1))
    decoded = vqgan.decode(tokens[None])[0]
    assert decoded.shape == (3, size[0] * 16, size[1] * 16)
    assert (decoded - expected(codebook, tokens)).abs().max() < 1 / 255


def test_images_of_a_batch_do_not_mix(vqgan: VQGAN, codebook: Tensor) -> None:
    tokens = torch.randint(CODES, (2, 17, 16), generator=torch.Generator().manual_seed(1))
    for image, decoded in zip(tokens, vqgan.decode(tokens)):
        assert (decoded - expected(codebook, image)).abs().max() < 1 / 255


def test_what_is_encoded_is_decoded(vqgan: VQGAN, codebook: Tensor) -> None:
    tokens = torch.randint(CODES, (16, 16), generator=torch.Generator().manual_seed(2))
    assert torch.equal(vqgan.encode(expected(codebook, tokens)[None])[0], tokens)


def test_the_bundled_decoder_is_this_one(codebook: Tensor) -> None:
    bundled = locate(BUNDLED / "nouns").load_vqgan("cpu", torch.float32)
    constructed = construct_vqgan(bundled.quantize.embedding.weight).state_dict()
    for name, weight in bundled.state_dict().items():
        torch.testing.assert_close(weight, constructed[name].half().float(), rtol=2e-3, atol=1e-3)
