"""diffusers' pipelines, and what both libraries are given."""

from __future__ import annotations

import torch
from PIL import Image

import amused

PROMPT = "a red cat"
SEEDS = (8, 9, 10)


class Reference:
    """diffusers' three pipelines over one folder."""

    def __init__(self, folder) -> None:
        from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline

        self.text_to_image = AmusedPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)
        parts = self.text_to_image.components
        self.image_to_image = AmusedImg2ImgPipeline(**parts)
        schedule = parts["scheduler"].config.masking_schedule
        self.inpaint = AmusedInpaintPipeline(**parts)
        # Its inpainting sets the shared scheduler to linear: give the others back their own.
        parts["scheduler"].register_to_config(masking_schedule=schedule)
        for pipeline in (self.text_to_image, self.image_to_image, self.inpaint):
            pipeline.set_progress_bar_config(disable=True)

    def tokens(self, task: str, seed: int, **options) -> torch.Tensor:
        pipeline = getattr(self, task)
        schedule = pipeline.scheduler.config.masking_schedule
        if task == "inpaint":
            pipeline.scheduler.register_to_config(masking_schedule="linear")
        try:
            generator = torch.Generator("cpu").manual_seed(seed)
            return pipeline(PROMPT, generator=generator, output_type="latent", return_dict=False, **options)[0][0]
        finally:
            pipeline.scheduler.register_to_config(masking_schedule=schedule)


def results(model, task: str, image=None, mask=None, seeds=SEEDS, **options) -> list[amused.Picture]:
    recipe = amused.Recipe(task, PROMPT, seeds, model=model.name, **options)
    return [event for event in model.generate(recipe, image, mask) if isinstance(event, amused.Picture)]


def picture(size: int, seed: int = 0, height: int | None = None) -> Image.Image:
    pixels = torch.randint(256, (height or size, size, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def grid_mask(size: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, box)
    return mask
