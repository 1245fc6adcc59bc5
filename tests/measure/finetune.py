"""Peak memory and seconds a step of fine-tuning at true size, ours and with diffusers' parts: one table.

python -m tests.measure.finetune --size 256 --work FOLDER

Random weights of the published shapes, half precision on disk, batch 1. Every line is a process of its own, and its
memory all that the process ever held (the operating system's count of resident pages), from start to finish: reading,
encoding, steps, saving. "diffusers" is what the published script does at each step, built of diffusers' networks in
single precision, all of them resident, with torch's AdamW.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = {
    "LoRA": ["--use_lora"],
    "LoRA, checkpointing": ["--use_lora", "--gradient_checkpointing"],
    "full, 8-bit Adam, checkpointing": ["--use_8bit_adam", "--gradient_checkpointing"],
    "full, checkpointing": ["--gradient_checkpointing"],
}
WHO = ("amused", "diffusers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=(256, 512), default=256)
    parser.add_argument("--work", type=Path, required=True, help="for the checkpoint (1.6 GB) and the runs")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.work / f"true-{options.size}"
    if options.one:
        who, recipe = options.one
        run = ours if who == "amused" else published
        seconds = run(model, options, RECIPES[recipe])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"peak": peak, "seconds": seconds}))
        return
    if not model.is_dir():
        make = "import pathlib, sys; from amused.benchmark.weights import random_checkpoint; "
        make += "random_checkpoint(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", make, str(model), str(options.size)], check=True, cwd=ROOT)
    draw_picture(options.work, options.size)
    print("| recipe | by | peak memory | seconds a step |\n|---|---|---|---|")
    for recipe in options.recipes:
        for who in options.who:
            command = [sys.executable, "-m", "tests.measure.finetune", *sys.argv[1:], "--one", who, recipe]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                print(f"| {recipe} | {who} | {result.stderr.strip().splitlines()[-1]} | |", flush=True)
                continue
            found = json.loads(result.stdout.splitlines()[-1])
            print(f"| {recipe} | {who} | {found['peak'] / 1e9:.2f} GB | {found['seconds']:.1f} |", flush=True)


def draw_picture(folder: Path, size: int) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a red cat.png")


def ours(model: Path, options: argparse.Namespace, recipe: list[str]) -> float:
    from amused.training.finetune.options import parse_options
    from amused.training.finetune.train import train

    output = options.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    train(parse_options([
        "--pretrained_model_name_or_path", str(model), "--instance_data_image", str(options.work / "a red cat.png"),
        "--output_dir", str(output), "--train_batch_size", "1", "--max_train_steps", str(options.steps),
        "--checkpointing_steps", str(options.steps), "--report_to", "none", "--seed", "0", *recipe,
    ]))  # fmt: skip
    with (output / "loss.csv").open() as stream:
        seconds = [float(row["seconds"]) for row in csv.DictReader(stream)]
    shutil.rmtree(output)
    return statistics.median(seconds)


def published(model: Path, options: argparse.Namespace, recipe: list[str]) -> float:
    import torch
    import torch.nn.functional as F
    from diffusers import UVit2DModel, VQModel
    from PIL import Image
    from torch.utils.checkpoint import checkpoint
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from amused.generation.images import to_tensor

    part = {"variant": "fp16", "torch_dtype": torch.float32}
    text_encoder = CLIPTextModelWithProjection.from_pretrained(model, subfolder="text_encoder", **part)
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    vqgan = VQModel.from_pretrained(model, subfolder="vqvae", **part).requires_grad_(False)
    network = UVit2DModel.from_pretrained(model, subfolder="transformer", **part)
    text_encoder.requires_grad_(False)
    if "--use_lora" in recipe:
        from peft import LoraConfig

        network.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules=["to_q", "to_k", "to_v"]))
    if "--gradient_checkpointing" in recipe:
        # Its own switch ends in a TypeError (keyword arguments that its wrapper does not take).
        for layer in network.transformer_layers:
            layer.forward = lambda *args, forward=layer.forward, **keywords: checkpoint(
                forward, *args, use_reentrant=False, **keywords
            )
    network.train()
    kind = torch.optim.AdamW
    if "--use_8bit_adam" in recipe:
        from bitsandbytes.optim import AdamW8bit as kind
    optimizer = kind([p for p in network.parameters() if p.requires_grad], lr=3e-4, weight_decay=1e-2)
    pixels = to_tensor(Image.open(options.work / "a red cat.png"))
    size = options.size
    micro = torch.tensor([[size, size, 0, 0, 6.0]])
    seconds = []
    for _ in range(options.steps):
        began = time.monotonic()
        with torch.no_grad():
            tokens = vqgan.quantize(vqgan.encode(pixels).latents)[2][2].reshape(1, -1)
            masked = torch.rand(tokens.shape) < torch.cos(torch.rand(()) * torch.pi / 2)
            ids = tokenizer("a red cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
            text = text_encoder(ids, output_hidden_states=True)
        inputs = torch.where(masked, network.config.vocab_size - 1, tokens).view(1, size // 16, size // 16)
        logits = network(inputs, text.hidden_states[-2], text.text_embeds, micro)
        labels = torch.where(masked, tokens, -100).view(1, size // 16, size // 16)
        F.cross_entropy(logits, labels, ignore_index=-100).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
