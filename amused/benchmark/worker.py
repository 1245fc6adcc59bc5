"""One side of a comparison, in a process of its own: requests as lines of JSON in, times as lines of JSON out.

`python -m amused.benchmark.worker amused|diffusers MODEL DTYPE [--quantize int8] [--compiled]`

Knows the two libraries and nothing of what is compared. diffusers is imported only where it is asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[[dict[str, Any]], None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("amused", "diffusers"))
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantize")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    make = ours(options) if options.side == "amused" else reference(options)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        make(request)
        if options.device == "cuda":
            import torch

            torch.cuda.synchronize()
        print(json.dumps({"seconds": time.monotonic() - began, "peak": peak(options.device)}), flush=True)


def peak(device: str) -> int:
    """Bytes that this process has held at most: on the GPU, or of memory on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum is passed on from the process that started this one.
    return int(Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()[0]) * 1024


def picture(size: int) -> Any:
    """Something to start from: colours that run, not noise."""
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((size, size))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def mask(size: int) -> Any:
    """The middle, a quarter of the picture."""
    from PIL import Image

    found = Image.new("L", (size, size))
    found.paste(255, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    return found


def ours(options: argparse.Namespace) -> Make:
    import amused
    from amused.memory import keep_freed_memory

    keep_freed_memory()  # as app.py does
    if options.compiled:
        compile_layers()
    model = amused.load(options.model, device=options.device, dtype=options.dtype, quantize=options.quantize)

    def make(request: dict[str, Any]) -> None:
        recipe = {"seeds": range(request["pictures"]), "steps": request["steps"]}
        if request["task"] == "text_to_image":
            model.text_to_image(request["prompt"], **recipe)
        elif request["task"] == "image_to_image":
            model.image_to_image(request["prompt"], picture(model.size), **recipe)
        else:
            model.inpaint(request["prompt"], picture(model.size), mask(model.size), **recipe)

    return make


def compile_layers() -> None:
    """Have torch compile the layers that repeat: each kind once, which takes seconds, and is kept on disk."""
    import torch

    from amused.generation import components
    from amused.model.transformer import ConvNextBlock, CrossAttentionBlock, TransformerLayer

    components.can_pack = lambda *_: False  # the compiler lays weights out itself
    for kind in (ConvNextBlock, CrossAttentionBlock, TransformerLayer):
        kind.forward = torch.compile(kind.forward, dynamic=False)


def reference(options: argparse.Namespace) -> Make:
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    kinds = {
        "text_to_image": diffusers.AmusedPipeline,
        "image_to_image": diffusers.AmusedImg2ImgPipeline,
        "inpaint": diffusers.AmusedInpaintPipeline,
    }
    dtype = getattr(torch, options.dtype)
    first = kinds["text_to_image"].from_pretrained(options.model, variant="fp16", torch_dtype=dtype)
    first.to(options.device)
    if options.compiled:
        first.transformer.compile(dynamic=False)
    pipelines = {task: kind(**first.components) for task, kind in kinds.items()}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    size = first.transformer.config.sample_size * 2 ** (len(first.vqvae.config.block_out_channels) - 1)

    def make(request: dict[str, Any]) -> None:
        given = {} if request["task"] == "text_to_image" else {"image": picture(size)}
        if request["task"] == "inpaint":
            given["mask_image"] = mask(size)
        pipelines[request["task"]](
            request["prompt"],
            num_inference_steps=request["steps"],
            num_images_per_prompt=request["pictures"],
            generator=torch.Generator(options.device).manual_seed(0),
            **given,
        )

    return make


if __name__ == "__main__":
    main()
