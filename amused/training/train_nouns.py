"""Train the bundled checkpoint from scratch: `python -m amused.training.train_nouns --output FOLDER`.

Resumable: run the same command again and it goes on from its last state. Seeded. Writes `log.csv` and prints trait
scores on characters that training never shows, since the loss alone misleads: it falls on local context while captions
go unused.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amused.checkpoints.save import save_checkpoint
from amused.model.vqgan import VQGAN
from amused.training.finetune.muon import Muon
from amused.training.nouns.data import Nouns, Vocabulary, all_traits, caption, fetch_assets, known_traits
from amused.training.nouns.model import Batches, TextToTokens, losses, raw_art, sample_tokens
from amused.training.nouns.scores import trait_scores
from amused.training.nouns.text import new_text_encoder, train_tokenizer
from amused.training.nouns.vqgan import CONFIG as VQGAN_CONFIG
from amused.training.nouns.vqgan import new_vqgan, train_decoder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for states, log and results")
    parser.add_argument("--steps", type=int, default=20_000, help="optimizer steps of the U-ViT in all")
    parser.add_argument("--cooldown", type=int, default=3_000, help="how many of the last steps decay the rate")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--vqgan-seconds", type=float, default=600, help="time for the VQ-GAN's decoder")
    parser.add_argument("--refine-decoder", action="store_true", help="train the VQ-GAN's decoder on, and stop")
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write the averaged weights there as a checkpoint, and stop")
    return parser.parse_args()


def stage(step: int, known: Vocabulary) -> tuple[Vocabulary, dict[str, float]]:
    """What is taught when: few traits in one wording first, then more traits, then varied wordings and accessories."""
    if step < 250:
        few = Vocabulary(known.backgrounds, known.bodies[:8], known.accessories, known.heads[:8], known.glasses[:8])
        return few, {"varied": 0.0, "accessories": 0.0}
    if step < 1600:
        return known, {"varied": 0.0, "accessories": 0.0}
    return known, {"varied": 0.4, "accessories": 0.1}


def optimizers(model: TextToTokens, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms and convolutions."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() == 2 and "embed" not in name and "position" not in name
        (matrices if hidden else others).append(parameter)
    return [
        Muon(matrices, lr=rate),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Warm-up, constant, then linear to zero over the cooldown."""
    left = (options.steps - step) / max(1, options.cooldown)
    return options.learning_rate * min(1.0, (step + 1) / 100, max(left, 0.005))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(0.998, (step + 1) / (step + 10))
    for target, source in zip(average.parameters(), model.parameters()):
        target.lerp_(source, 1 - decay)


def evaluate(model: TextToTokens, nouns: Nouns, known: Vocabulary, codebook: Tensor, count: int) -> dict[str, float]:
    """Trait scores on held-out characters."""
    asked = known.evaluation(count)
    tokens = sample_tokens(model, [caption(noun) for noun in asked])
    art = raw_art(codebook, tokens).permute(0, 2, 3, 1).numpy()
    scores = trait_scores(nouns, known, asked, art)
    return {kind: sum(right) / len(right) for kind, right in scores.items()}


@torch.no_grad()
def caption_gain(model: TextToTokens, batches: Batches, known: Vocabulary) -> float:
    """How much lower the cross-entropy is with the caption than without, wholly masked: 0 if captions go unused."""
    batch = batches.draw(known, 32, varied=0.0, accessories=0.0, sampled=64)
    batch.inputs.fill_(model.transformer.config.vocab_size - 1)
    with_caption, _ = losses(model, batch, guidance_scale=1.0)
    batch.captions = [""] * len(batch.captions)
    return (losses(model, batch, guidance_scale=1.0)[0].mean() - with_caption.mean()).item()


def pack(prefix: str, value: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flatten nested dictionaries of tensors and numbers into `tensors`, under dotted names."""
    if isinstance(value, dict):
        for key, item in value.items():
            pack(f"{prefix}.{key}", item, tensors)
    else:
        tensors[prefix] = torch.as_tensor(value).clone()
    return tensors


def unpack_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def strip(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    os.replace(partial, path)


def train(options: argparse.Namespace) -> None:
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    nouns = Nouns(fetch_assets(folder))
    known = known_traits(nouns)
    vqgan = VQGAN(VQGAN_CONFIG)
    weights = folder / "vqgan.safetensors"
    if weights.exists():
        vqgan.load_state_dict(load_file(weights))
    else:
        vqgan = new_vqgan(nouns, known, all_traits(nouns))
    if options.refine_decoder or not weights.exists():
        train_decoder(vqgan, nouns, known, all_traits(nouns), options.vqgan_seconds, print, seed=options.seed + 1)
        save_atomically(vqgan.state_dict(), weights)
    if options.refine_decoder:
        return
    codebook = vqgan.quantize.embedding.weight.detach()

    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(nouns, folder / "tokenizer")
    model = TextToTokens(tokenizer, new_text_encoder(tokenizer))
    average = copy.deepcopy(model).eval().requires_grad_(False)
    updates = optimizers(model, options.learning_rate)
    print(f"{sum(p.numel() for p in model.transformer.parameters()):,} parameters in the U-ViT")
    state_file = folder / "state.safetensors"
    step = 0
    if state_file.exists():
        state = load_file(state_file)
        step = int(state["step"])
        model.load_state_dict(strip("model.", state))
        average.load_state_dict(strip("average.", state))
        for i, optimizer in enumerate(updates):
            unpack_optimizer(optimizer, f"optimizer{i}", state)
        print(f"going on from step {step}")
    if options.export:
        export(options.export, average, vqgan, known, folder / "tokenizer")
        return
    batches = Batches(nouns, codebook, seed=options.seed + step)
    start, start_step, running = time.monotonic(), step, 0.0
    while step < options.steps:
        vocabulary, mix = stage(step, known)
        batch = batches.draw(vocabulary, options.batch_size, sampled=64, **mix)
        rate = learning_rate(step, options)
        errors, loss = losses(model, batch, guidance_scale=batches.rng.uniform(2, 12))
        batches.note(batch.positions, errors)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in updates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        update_average(average, model, step)
        running += 0.02 * (errors.mean().item() - running) if running else errors.mean().item()
        if step % 50 == 0:
            speed = (step - start_step) * options.batch_size / (time.monotonic() - start)
            print(f"step {step}/{options.steps}, loss {running:.3f}, {speed:.1f} pictures a second", flush=True)
        if step % options.evaluate_every == 0 or step == options.steps:
            state = {"step": torch.tensor(step)}
            pack("model", model.state_dict(), state)
            pack("average", average.state_dict(), state)
            for i, optimizer in enumerate(updates):
                pack(f"optimizer{i}", optimizer.state_dict()["state"], state)
            save_atomically(state, state_file)
            scores = evaluate(average, nouns, known, codebook, 32)
            gain = caption_gain(average, batches, known)
            row = {"step": step, "loss": round(running, 4), "caption_gain": round(gain, 3), **scores}
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            append_row(folder / "log.csv", row)


def export(target: Path, model: TextToTokens, vqgan: VQGAN, known: Vocabulary, tokenizer: Path) -> None:
    """Write a checkpoint of the published layout in half precision; its model card stays."""
    card = target / "README.md"
    text = card.read_text("utf-8") if card.exists() else None
    save_checkpoint(
        target,
        transformer=model.transformer,
        vqgan=vqgan,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        masking_schedule="cosine",
        traits=dataclasses.asdict(known),
    )
    if text is not None:
        card.write_text(text, "utf-8")


def append_row(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    train(arguments())
