"""The exactness at the true sizes of amused-256 and amused-512, with random weights, through files on disk.

Slow and large: about 7 GB of memory and a few minutes on two cores.
"""

from __future__ import annotations

import gc

import pytest
import torch
from test_exactness import Reference, grid_mask, picture, results
from tiny import scale_logits, tiny_tokenizer

import amused
from amused.model.transformer import UViT, UViTConfig
from amused.model.vqgan import VQGAN, VQGANConfig
from amused.saving import save_checkpoint

LEVELS = 5
VQGAN_CONFIG = VQGANConfig(
    down_block_types=("DownEncoderBlock2D",) * LEVELS,
    up_block_types=("UpDecoderBlock2D",) * LEVELS,
    block_out_channels=(128, 256, 256, 512, 768),
    layers_per_block=2,
    latent_channels=64,
    sample_size=256,
    num_vq_embeddings=8192,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
)
SIZES = {
    256: UViTConfig(sample_size=16),
    512: UViTConfig(sample_size=32, downsample=True, upsample=True),
}


def true_checkpoint(folder, size: int) -> None:
    """A checkpoint of the published shapes; random weights scaled so that the logits are not degenerate."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(size)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):
        transformer, vqgan = UViT(SIZES[size]), VQGAN(VQGAN_CONFIG)
    for network in (transformer, vqgan):
        network.to_empty(device="cpu").requires_grad_(False)
        fill(network)
    scale_logits(transformer)
    save_checkpoint(
        folder,
        transformer=transformer,
        vqgan=vqgan,
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
    )


def fill(network: torch.nn.Module) -> None:
    """Random weights that keep the scale of what passes through; norms near 1, codes near unit length."""
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            parameter.uniform_(-0.05, 0.05)
            if name.endswith("weight"):
                parameter.add_(1.0)
        else:
            fan_in = parameter.shape[1] if "embedding" in name else parameter[0].numel()
            parameter.uniform_(-1, 1).mul_((1 / fan_in) ** 0.5)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_the_reference_s(size, tmp_path) -> None:
    true_checkpoint(tmp_path / "model", size)
    gc.collect()
    model, reference = amused.load(tmp_path / "model", device="cpu", dtype="float32"), Reference(tmp_path / "model")
    assert model.size == size
    assert sum(p.numel() for p in model._transformer.parameters()) // 100_000 in (6034, 6035, 6082, 6083)

    (result,) = results(model, "text_to_image", seeds=[8], steps=3, guidance_scale=2.0)
    expected = reference.tokens("text_to_image", 8, num_inference_steps=3, guidance_scale=2.0)
    assert torch.equal(result.tokens, expected)
    assert result.tokens.unique().numel() > size // 8  # not degenerate

    image = picture(size)
    (result,) = results(model, "image_to_image", image, seeds=[3], steps=4, strength=0.5)
    expected = reference.tokens("image_to_image", 3, image=image, num_inference_steps=4)
    assert torch.equal(result.tokens, expected)

    mask = grid_mask(size, (64, 96, 160, 256))
    (result,) = results(model, "inpaint", image, mask, seeds=[0], steps=4, strength=0.5, composite=False)
    expected = reference.tokens("inpaint", 0, image=image, mask_image=mask, num_inference_steps=4, strength=0.5)
    assert torch.equal(result.tokens, expected)

    vqgan, other = model.checkpoint.load_vqgan("cpu", torch.float32), reference.text_to_image.vqvae
    with torch.no_grad():
        pixels = torch.rand(1, 3, 64, 96)
        latents = other.encode(pixels).latents
        assert torch.equal(vqgan.encode(pixels), other.quantize(latents)[2][2].view(1, 4, 6))
        tokens = torch.randint(8192, (1, 4, 6))
        decoded = other.decode(tokens, force_not_quantize=True, shape=(1, 4, 6, 64)).sample
        assert (vqgan.decode(tokens) - decoded).abs().max() < 1e-4
