"""Train the bundled checkpoint from scratch: `python -m amused.training.train_nouns --output FOLDER`.

Seeded and resumable: the same command continues from the last state. Writes `log.csv` with trait scores on held-out
characters, since the loss alone misleads: it falls by local context even while captions are ignored.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amused.atomic import atomic_file, sweep
from amused.checkpoints.catalog import FORMER, GENERATION_CONFIG
from amused.checkpoints.hub import locate
from amused.checkpoints.save import save_checkpoint
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.memory import keep_freed_memory
from amused.model.vqgan import VQGAN
from amused.training.nouns.data import Nouns, Vocabulary, all_traits, caption, fetch_assets, known_traits
from amused.training.nouns.model import (
    MASK,
    Batches,
    TextToTokens,
    codebook_art,
    initialize_from,
    losses,
    sample,
)
from amused.training.nouns.muon import Muon
from amused.training.nouns.scores import trait_scores
from amused.training.nouns.text import new_text_encoder, prepare_tokenizer
from amused.training.nouns.vqgan import construct_vqgan, new_vqgan

STATE = "state.safetensors"
SAMPLED = 64  # positions per image whose loss is computed
SCORED = 32  # characters
FINAL_PHASE = 1600  # the step at which the curriculum ends
MAX_SHARD_SIZE = 9_000_000  # bytes: the Hub takes no file over 10 MiB from a plain `git push`


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for states, log and results")
    parser.add_argument("--steps", type=int, default=20_000, help="optimizer steps of the transformer in total")
    parser.add_argument("--cooldown", type=int, default=3_000, help="number of last steps that decay the learning rate")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--vqgan-seconds", type=float, help="without effect: the decoder is no longer trained")
    parser.add_argument("--refine-decoder", action="store_true", help="likewise")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps between scores and saved states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initialize", help="checkpoint, by name or folder, whose weights a new run starts from")
    parser.add_argument(
        "--held-out", type=float, default=0.0,
        help="share of characters that are otherwise held out, 0 to 1: for the last steps, once all is scored",
    )  # fmt: skip
    parser.add_argument("--export", type=Path, help="only write the averaged weights to this folder, as a checkpoint")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    keep_freed_memory()
    try:
        train(options)
    except UserError as error:
        sys.exit(f"{error}")


def train(options: argparse.Namespace) -> None:
    folder: Path = options.output
    step = saved_step(folder)
    if options.export and not step:
        raise UserError(f"There is nothing to export in {folder}: train first.")
    if not options.export and step >= options.steps:
        raise UserError(f"There is nothing to do: {folder} has {step} steps, --steps is {options.steps}.")
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    nouns = Nouns(fetch_assets(folder))
    vqgan = prepare_vqgan(options, nouns)
    torch.manual_seed(options.seed)
    source = locate(options.initialize) if options.initialize else None
    tokenizer = source.load_tokenizer() if source else prepare_tokenizer(nouns, folder / "tokenizer")
    model = TextToTokens(tokenizer, new_text_encoder(tokenizer))
    if source:
        take_over(model, vqgan, source)
    trainer = Trainer(model, options, nouns, vqgan)
    print(f"{sum(p.numel() for p in trainer.model.transformer.parameters()):,} parameters in the transformer")
    trainer.restore()
    if options.export:
        export(options.export, trainer.ema, vqgan, trainer.known)
        return
    trainer.run()


def take_over(model: TextToTokens, vqgan: VQGAN, source: Checkpoint) -> None:
    """Start from the weights of a checkpoint."""
    cpu = ("cpu", torch.float32)
    parts = {"text_encoder": source.load_text_encoder(*cpu), "transformer": source.load_transformer(*cpu)}
    state = {f"{part}.{name}": tensor for part, net in parts.items() for name, tensor in net.state_dict().items()}
    old_codebook = source.load_vqgan(*cpu).quantize.embedding.weight
    initialize_from(model, vqgan.quantize.embedding.weight, state, old_codebook)


def saved_step(folder: Path) -> int:
    """Steps of the saved state, 0 if there is none."""
    if not (folder / STATE).exists():
        return 0
    with safe_open(folder / STATE, framework="pt") as stream:
        return int(stream.get_tensor("step"))


def prepare_vqgan(options: argparse.Namespace, nouns: Nouns) -> VQGAN:
    """The VQ-GAN of the output folder, constructed if it is new."""
    weights: Path = options.output / "vqgan.safetensors"
    if weights.exists():
        return construct_vqgan(load_file(weights)["quantize.embedding.weight"])
    vqgan = new_vqgan(nouns, known_traits(nouns), all_traits(nouns))
    with atomic_file(weights) as part:
        save_file(vqgan.state_dict(), part)
    return vqgan


class Trainer:
    """The training loop of text encoder and transformer."""

    def __init__(self, model: TextToTokens, options: argparse.Namespace, nouns: Nouns, vqgan: VQGAN) -> None:
        self.model, self.options, self.nouns, self.known = model, options, nouns, known_traits(nouns)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = new_optimizers(model, options.learning_rate)
        self.codebook = vqgan.quantize.embedding.weight.detach()
        self.state_file: Path = options.output / STATE
        self.step = 0

    def run(self) -> None:
        options = self.options
        batches = Batches(self.nouns, self.codebook, seed=options.seed + self.step)
        start, first_step, loss = time.monotonic(), self.step, 0.0
        while self.step < options.steps:
            error = self.train_step(batches)
            loss += 0.02 * (error - loss) if loss else error
            if self.step % 50 == 0:
                speed = (self.step - first_step) * options.batch_size / (time.monotonic() - start)
                print(f"step {self.step}/{options.steps}, loss {loss:.3f}, {speed:.1f} images per second", flush=True)
            if self.step % options.evaluate_every == 0 or self.step == options.steps:
                self.save()
                self.evaluate(batches, loss)

    def train_step(self, batches: Batches) -> float:
        """One optimizer step: the mean cross-entropy given the caption."""
        options = self.options
        step = self.step + FINAL_PHASE if options.initialize else self.step
        vocabulary, varied, accessories = curriculum(step, self.known)
        batch = batches.draw(
            vocabulary,
            options.batch_size,
            varied=varied,
            accessories=accessories,
            sampled=SAMPLED,
            held_out=options.held_out,
        )
        errors, loss = losses(self.model, batch, guidance_scale=batches.rng.uniform(1, 4))
        batches.update_difficulty(batch.positions, errors)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, options)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        update_ema(self.ema, self.model, self.step)
        return errors.mean().item()

    def evaluate(self, batches: Batches, loss: float) -> None:
        """Score the averaged weights; print the scores and append them to `log.csv`."""
        asked = self.known.evaluation(SCORED)
        tokens = sample(self.ema, [caption(noun) for noun in asked])
        art = codebook_art(self.codebook, tokens).permute(0, 2, 3, 1).numpy()
        scores = trait_scores(self.nouns, self.known, asked, art)
        gain = caption_gain(self.ema, batches, self.known)
        row = {"step": self.step, "loss": round(loss, 4), "caption_gain": round(gain, 3), **scores}
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        append_row(self.options.output / "log.csv", row)

    def save(self) -> None:
        """Write the state: `step`, `model.NAME`, `average.NAME` and `optimizerI.INDEX.KEY`."""
        state = {"step": torch.tensor(self.step)}
        state |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"average.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            state |= {f"optimizer{i}.{name}": tensor for name, tensor in optimizer_tensors(optimizer)}
        with atomic_file(self.state_file) as part:
            save_file({name: tensor.clone() for name, tensor in state.items()}, part)

    def restore(self) -> None:
        """Continue from the state, if there is one."""
        if not self.state_file.exists():
            return
        state = load_file(self.state_file)
        self.step = int(state["step"])
        self.model.load_state_dict(with_prefix("model.", state))
        self.ema.load_state_dict(with_prefix("average.", state))
        for i, optimizer in enumerate(self.optimizers):
            load_optimizer(optimizer, with_prefix(f"optimizer{i}.", state))
        print(f"Resuming from step {self.step}")


def curriculum(step: int, known: Vocabulary) -> tuple[Vocabulary, bool, float]:
    """What a step teaches: few traits in one wording first, then all traits, then any wording and accessories.

    Returns:
        The traits, whether captions vary and leave out traits, and the share of characters with an accessory.
    """
    if step < 250:
        few = Vocabulary(known.backgrounds, known.bodies[:8], known.accessories, known.heads[:8], known.glasses[:8])
        return few, False, 0.0
    if step < FINAL_PHASE:
        return known, False, 0.0
    return known, True, 0.03


def new_optimizers(model: TextToTokens, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms and convolutions."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
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
def update_ema(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Average the weights after optimizer step number `step`, counted from 1."""
    decay = min(0.99, (step + 1) / (step + 10))
    for target, source in zip(ema.parameters(), model.parameters()):
        target.lerp_(source, 1 - decay)


@torch.no_grad()
def caption_gain(model: TextToTokens, batches: Batches, known: Vocabulary) -> float:
    """By how much the caption lowers the cross-entropy of fully masked images: 0 if captions are ignored."""
    batch = batches.draw(known, 32, varied=False, accessories=0.0, sampled=SAMPLED)
    batch = dataclasses.replace(batch, inputs=torch.full_like(batch.inputs, MASK))
    unconditional = dataclasses.replace(batch, captions=[""] * len(batch.captions))
    with_caption, _ = losses(model, batch, guidance_scale=1.0)
    without, _ = losses(model, unconditional, guidance_scale=1.0)
    return (without.mean() - with_caption.mean()).item()


# State


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The state of an optimizer as tensors named `INDEX.KEY`."""
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            yield f"{index}.{key}", torch.as_tensor(value)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name has a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# Results


def export(target: Path, model: TextToTokens, vqgan: VQGAN, known: Vocabulary) -> None:
    """Write a checkpoint in the published layout and half precision.

    An existing model card, settings and former version are kept.
    """
    paths = [target / "README.md", target / GENERATION_CONFIG, *(target / FORMER).rglob("*")]
    kept = {path: path.read_bytes() for path in paths if path.is_file()}
    save_checkpoint(
        target,
        transformer=model.transformer,
        vqgan=vqgan,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        masking_schedule="cosine",
        traits=dataclasses.asdict(known),
        max_shard_size=MAX_SHARD_SIZE,
    )
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
