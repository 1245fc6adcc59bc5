"""A complete aMUSEd checkpoint of a few hundred kilobytes with random weights, for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from amused.benchmark.weights import WORDS, byte_tokenizer, scale_logits
from amused.checkpoints.save import save_checkpoint
from amused.model.text import TextConfig, build_text_encoder, num_ids
from amused.model.transformer import UViT, UViTConfig
from amused.model.vqgan import VQGAN, VQGANConfig

CODEBOOK = 64
MASK_TOKEN_ID = 79


def tiny_checkpoint(
    folder: Path,
    downsample: bool = False,
    seed: int = 2,
    masking_schedule: str = "cosine",
    dtype: torch.dtype = torch.float16,
    variant: str | None = "fp16",
    traits: dict | None = None,
    max_shard_size: int | str = "10GB",
) -> Path:
    """Write the checkpoint and return its folder. Pictures are 64 pixels a side, 128 with `downsample`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer(WORDS)
        transformer = tiny_transformer(downsample)
        vqgan = tiny_vqgan()
        text_encoder = tiny_text_encoder(num_ids(tokenizer), tokenizer.eos_token_id)
        scale_logits(transformer)
    save_checkpoint(
        folder,
        transformer=transformer,
        vqgan=vqgan,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        masking_schedule=masking_schedule,
        traits=traits,
        dtype=dtype,
        variant=variant,
        max_shard_size=max_shard_size,
    )
    return Path(folder)


def tiny_transformer(downsample: bool = False) -> UViT:
    config = UViTConfig(
        hidden_size=32,
        cond_embed_dim=32,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=32,
        vocab_size=MASK_TOKEN_ID + 1,
        codebook_size=CODEBOOK,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        downsample=downsample,
        upsample=downsample,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        sample_size=8 if downsample else 4,
    )
    return roughen(UViT(config))


def tiny_vqgan() -> VQGAN:
    levels = (8, 8, 8, 16, 16)
    config = VQGANConfig(
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        block_out_channels=levels,
        latent_channels=8,
        sample_size=64,
        num_vq_embeddings=CODEBOOK,
        norm_num_groups=4,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    )
    vqgan = roughen(VQGAN(config))
    with torch.no_grad():
        latents = vqgan.quant_conv(vqgan.encoder(torch.rand(4, 3, 64, 64)))
        vqgan.quant_conv.bias.sub_(latents.mean(dim=(0, 2, 3)))  # codes of all the codebook, not the one nearest to 0
        vqgan.quant_conv.weight.div_(latents.std())
        vqgan.quant_conv.bias.div_(latents.std())
        vqgan.decoder.conv_out.bias.fill_(0.5)  # pictures around middle grey
        vqgan.decoder.conv_out.weight.div_(2)
    return vqgan


def tiny_text_encoder(vocab_size: int, eos_token_id: int) -> CLIPTextModelWithProjection:
    config = TextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=eos_token_id - 1,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )
    return build_text_encoder(config, initializer_factor=2.0).eval()  # different prompts have to look different


def roughen(module: nn.Module) -> nn.Module:
    """Move the weights that start at exactly 0 or 1, which would hide what a test looks for."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or parameter.unique().numel() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()
