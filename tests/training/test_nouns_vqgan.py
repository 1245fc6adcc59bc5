"""The constructed VQ-GAN gives pixel art back bit for bit, in images of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amused.checkpoints.catalog import BUNDLED
from amused.checkpoints.hub import locate
from amused.model.vqgan import VQGAN
from amused.training.nouns.vqgan import construct_vqgan

pytestmark = pytest.mark.slow

CODES = 240


@pytest.fixture(scope="module")
def palette() -> Tensor:
    """Random colours, some of them next to each other or at the ends of the range."""
    colors = torch.randint(256, (CODES, 3), generator=torch.Generator().manual_seed(3))
    colors[:3] = torch.tensor([[0, 0, 0], [255, 255, 255], [0, 0, 2]])
    return colors


@pytest.fixture(scope="module", params=(torch.float32, torch.float16), ids=str)
def vqgan(palette: Tensor, request) -> VQGAN:
    """In the precision of the files."""
    model = construct_vqgan(palette).half()
    return model.to(request.param)


def art(palette: Tensor, tokens: Tensor) -> Tensor:
    """Each token as 8x8 pixels of its colour: (batch, 3, height, width), 0 to 255."""
    return palette[tokens].permute(0, 3, 1, 2).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def to_bytes(pixels: Tensor) -> Tensor:
    return (pixels.float().clamp(0, 1) * 255).round().long()


@pytest.mark.parametrize("size", [(2, 32, 32), (1, 1, 3), (1, 12, 16), (1, 40, 70)], ids=str)
def test_every_pixel_is_that_of_the_code(vqgan: VQGAN, palette: Tensor, size: tuple[int, ...]) -> None:
    tokens = torch.randint(CODES, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_bytes(vqgan.decode(tokens)), art(palette, tokens))


def test_fused_upsampling_draws_the_same(palette: Tensor) -> None:
    model = construct_vqgan(palette)
    model.fuse_upsampling()
    tokens = torch.randint(CODES, (1, 32, 32), generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_bytes(model.decode(tokens)), art(palette, tokens))


@pytest.mark.parametrize("color", range(3))
def test_flat_images_do_not_change_what_a_code_means(palette: Tensor, color: int) -> None:
    """Group norms take statistics of the whole image."""
    model, tokens = construct_vqgan(palette), torch.full((1, 32, 32), color)
    tokens[0, 5, 7] = 100
    pixels = art(palette, tokens)
    assert torch.equal(model.encode(pixels / 255), tokens) and torch.equal(to_bytes(model.decode(tokens)), pixels)


def test_what_is_drawn_is_encoded(palette: Tensor) -> None:
    model = construct_vqgan(palette)
    tokens = torch.randint(CODES, (1, 32, 32), generator=torch.Generator().manual_seed(2))
    assert torch.equal(palette[model.encode(art(palette, tokens) / 255)], palette[tokens])


def test_a_photo_gets_the_nearest_colours(palette: Tensor) -> None:
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(4))
    mean = pixels.unflatten(3, (8, 8)).unflatten(2, (8, 8)).mean(dim=(3, 5)).permute(0, 2, 3, 1) * 255
    distances = torch.cdist(mean.reshape(-1, 3), palette.float())
    found = distances.gather(1, construct_vqgan(palette).encode(pixels).reshape(-1, 1))[:, 0]
    np.testing.assert_allclose(found, distances.amin(dim=1), atol=0.1)


def test_the_bundled_vqgan_is_this_one() -> None:
    bundled = locate(BUNDLED / "nouns").load_vqgan("cpu", torch.float32)
    codes = torch.arange(bundled.config.num_vq_embeddings).view(1, 1, -1)
    palette = to_bytes(bundled.decode(codes))[0, :, 0, ::8].T
    for name, weight in construct_vqgan(palette).half().float().state_dict().items():
        assert torch.equal(weight, bundled.state_dict()[name]), name
