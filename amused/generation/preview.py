"""Previews of images that are still being sampled. Masked cells are a grey checkerboard."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amused.generation.images import to_image
from amused.generation.pixel_masks import mask_of_cells, to_pixels
from amused.model.vqgan import VQGAN

FAST_DECODER = 20_000_000  # parameters; larger ones are too slow for previews on a CPU
GREYS = (209, 224)  # of the checkerboard
GREY = 128


class Previewer:
    """Decodes the known tokens where that is fast.

    Elsewhere (the published models on a CPU, where decoding takes as long as several steps) each token becomes one flat
    colour. Those colours are fitted to the first image that is decoded; until then known cells are plain grey.
    """

    def __init__(self, decoder: VQGAN, pixels_per_token: int) -> None:
        self.decoder, self.pixels_per_token = decoder, pixels_per_token
        parameters = list(decoder.decoder.parameters())
        self.decodes = parameters[0].device.type != "cpu" or sum(p.numel() for p in parameters) <= FAST_DECODER
        self.code_colors: np.ndarray | None = None  # (codebook, 3) uint8

    def observe(self, tokens: Tensor, pixels: Tensor) -> None:
        """Learn the colours of codes from tokens (h, w) and their decoded pixels (3, height, width), once."""
        if not self.decodes and self.code_colors is None:
            codes = self.decoder.quantize.embedding.weight
            self.code_colors = fit_code_colors(codes, tokens, pixels, self.pixels_per_token)

    @torch.inference_mode()
    def preview(self, tokens: Tensor, masked: Tensor) -> Image.Image:
        """An image of tokens (h, w) of which those where `masked` are not known yet."""
        known = tokens.masked_fill(masked, 0)
        if self.decodes:
            image = to_image(self.decoder.decode(known[None])[0])
        else:
            cells = known.cpu().numpy()
            colors = np.full((*cells.shape, 3), GREY, np.uint8) if self.code_colors is None else self.code_colors[cells]
            image = Image.fromarray(to_pixels(colors, self.pixels_per_token))
        rows, columns = np.indices(masked.shape)
        checkerboard = np.where((rows + columns) % 2, GREYS[1], GREYS[0]).astype(np.uint8)
        image.paste(
            Image.fromarray(to_pixels(checkerboard, self.pixels_per_token)).convert("RGB"),
            mask=mask_of_cells(masked.cpu().numpy(), self.pixels_per_token),
        )
        return image


def fit_code_colors(codes: Tensor, tokens: Tensor, pixels: Tensor, pixels_per_token: int) -> np.ndarray:
    """One colour per code: (codebook, 3) uint8.

    A linear map from code vectors to the mean colour of their cells, by ridge regression on one decoded image.

    Args:
        codes: the codebook, (codebook, channels).
        tokens: (h, w).
        pixels: the decoded tokens, (3, height, width), meant for [0, 1].
    """
    codes = torch.cat([codes.float(), codes.new_ones((len(codes), 1), dtype=torch.float32)], dim=1)
    seen = codes[tokens.flatten()]
    colors = torch.nn.functional.avg_pool2d(pixels.float()[None], pixels_per_token)[0].flatten(1).mT
    ridge = 1e-3 * torch.eye(codes.shape[1], device=codes.device)
    fitted = codes @ torch.linalg.solve(seen.mT @ seen + ridge, seen.mT @ colors)
    return (fitted.clamp(0, 1) * 255).round().byte().cpu().numpy()
