"""One side of a comparison as a process: reads JSON requests from stdin and writes JSON timings to stdout, by line.

`python -m amused.benchmark.worker amused|diffusers MODEL DTYPE [--quantize int8] [--compile MODE]`
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

Generate = Callable[[dict[str, Any]], str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("amused", "diffusers"))
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantize")
    parser.add_argument("--compile", default="off")
    options = parser.parse_args()
    generate = load_amused(options) if options.side == "amused" else load_diffusers(options)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if options.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        note = generate(request)
        if options.device == "cuda":
            torch.cuda.synchronize()
        reply = {"seconds": time.monotonic() - start, "peak": peak_memory(options.device), "note": note}
        print(json.dumps(reply), flush=True)


def peak_memory(device: str) -> int:
    """Peak memory in bytes: of the last request, reserved on a GPU, with what CUDA graphs keep; resident on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    # getrusage would include the peak of the parent process.
    return int(Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()[0]) * 1024


def gradient_image(size: int) -> Image.Image:
    """An input image with smooth colours."""
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((size, size))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def center_mask(size: int) -> Image.Image:
    """A mask of the central quarter of the image."""
    from PIL import Image

    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    return mask


def load_amused(options: argparse.Namespace) -> Generate:
    """A function that runs a request with this package."""
    import amused
    from amused.memory import keep_freed_memory

    keep_freed_memory()  # as app.py does
    model = amused.load(
        options.model, device=options.device, dtype=options.dtype, quantize=options.quantize, compile=options.compile
    )
    as_reference = {name: getattr(amused.Recipe, name) for name in model.defaults if name != "model_version"}

    batch: int | None = None  # asked for; the model halves its own when memory runs out

    def generate(request: dict[str, Any]) -> str:
        nonlocal batch
        batch = request.get("batch", batch)
        if request.get("batch", 1) != 1:
            model.batch_size = request["batch"]
        prompt, size = request["prompt"], model.size
        settings = {**as_reference, "seeds": range(request["num_images"]), "steps": request["steps"]}
        if request["task"] == "text_to_image":
            model.text_to_image(prompt, **settings)
        elif request["task"] == "image_to_image":
            model.image_to_image(prompt, gradient_image(size), **settings)
        else:
            model.inpaint(prompt, gradient_image(size), center_mask(size), **settings)
        if request.get("compile"):
            model.compile()
        reduced = "" if batch in (None, model.batch_size) else f"; sampled {model.batch_size} at a time"
        return f"{model.compile_status}{reduced}"

    return generate


def load_diffusers(options: argparse.Namespace) -> Generate:
    """A function that runs a request with diffusers' pipelines."""
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    classes: dict[str, Any] = {
        "text_to_image": diffusers.AmusedPipeline,
        "image_to_image": diffusers.AmusedImg2ImgPipeline,
        "inpaint": diffusers.AmusedInpaintPipeline,
    }
    dtype = getattr(torch, options.dtype)
    first = classes["text_to_image"].from_pretrained(options.model, variant="fp16", torch_dtype=dtype)
    first.to(options.device)
    if options.compile != "off":
        first.transformer.compile(dynamic=False)
    pipelines = {task: pipeline_class(**first.components) for task, pipeline_class in classes.items()}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    size = first.transformer.config.sample_size * 2 ** (len(first.vqvae.config.block_out_channels) - 1)

    def generate(request: dict[str, Any]) -> str:
        inputs = {} if request["task"] == "text_to_image" else {"image": gradient_image(size)}
        if request["task"] == "inpaint":
            inputs["mask_image"] = center_mask(size)
        pipelines[request["task"]](
            request["prompt"],
            num_inference_steps=request["steps"],
            num_images_per_prompt=request["num_images"],
            generator=torch.Generator(options.device).manual_seed(0),
            **inputs,
        )
        return ""

    return generate


if __name__ == "__main__":
    main()
