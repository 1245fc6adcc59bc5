"""Train the bundled checkpoint from scratch: `python -m amused.training.train_nouns --output FOLDER`.

Seeded and resumable: the same command continues from the last state. Writes `log.csv` with trait scores on held-out
characters, since the loss alone misleads: it falls by local context even while captions are ignored.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amused.atomic import atomic_file, sweep
from amused.checkpoints.catalog import FORMER, GENERATION_CONFIG
from amused.checkpoints.hub import locate
from amused.checkpoints.save import save_checkpoint
from amused.errors import UserError
from amused.memory import keep_freed_memory
from amused.model.text import tokenize
from amused.model.transformer import ConvNextBlock, CrossAttentionBlock, TransformerLayer
from amused.training.nouns.data import SIZE, Nouns, caption, fetch_assets, known_traits
from amused.training.nouns.model import LAST_PHASE, Art, Batch, Examples, Masker, TextToTokens, losses
from amused.training.nouns.muon import Muon
from amused.training.nouns.scores import coherence, trait_scores
from amused.training.nouns.text import new_text_encoder, prepare_tokenizer
from amused.training.nouns.vqgan import construct_vqgan
from amused.training.sampling import sample_tokens

STATE = "state.safetensors"
SCORED = 32  # characters
MAX_SHARD_SIZE = 9_000_000  # bytes: the Hub takes no file over 10 MiB from a plain `git push`
EMA = 0.999


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for states, log and results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20_000, help="optimizer steps in total")
    parser.add_argument("--cooldown", type=int, default=8_000, help="number of last steps that decay the learning rate")
    parser.add_argument("--batch-size", type=int, default=512, help="a multiple of 16")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--evaluate-every", type=int, default=1000, help="steps between scores and saved states")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw examples; 0: this one does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initialize", help="checkpoint, by name or folder, whose weights a new run starts from")
    parser.add_argument("--vqgan-seconds", type=float, help="without effect: the VQ-GAN is no longer trained")
    parser.add_argument("--refine-decoder", action="store_true", help="likewise")
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
    torch.manual_seed(options.seed)
    source = locate(options.initialize) if options.initialize else None
    tokenizer = source.load_tokenizer() if source else prepare_tokenizer(nouns, folder / "tokenizer")
    model = TextToTokens(tokenizer, new_text_encoder(tokenizer))
    if source:
        model.transformer.load_state_dict(source.load_transformer("cpu", torch.float32).state_dict())
        model.text_encoder.load_state_dict(source.load_text_encoder("cpu", torch.float32).state_dict())
    trainer = Trainer(model, options, nouns)
    print(f"{sum(p.numel() for p in trainer.model.transformer.parameters()):,} parameters in the transformer")
    trainer.restore()
    if options.export:
        export(options.export, trainer)
        return
    trainer.run()


def saved_step(folder: Path) -> int:
    """Steps of the saved state, 0 if there is none."""
    if not (folder / STATE).exists():
        return 0
    with safe_open(folder / STATE, framework="pt") as stream:
        return int(stream.get_tensor("step"))


class Trainer:
    """The training loop of text encoder and transformer."""

    def __init__(self, model: TextToTokens, options: argparse.Namespace, nouns: Nouns) -> None:
        self.device = torch.device(options.device)
        self.model, self.options, self.nouns = model.to(self.device), options, nouns
        self.known, self.art = known_traits(nouns), Art(nouns)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = new_optimizers(model, options.learning_rate)
        self.state_file: Path = options.output / STATE
        self.step = 0

    def run(self) -> None:
        options = self.options
        start, first_step, loss = time.monotonic(), self.step, torch.zeros((), device=self.device)
        phase = LAST_PHASE if options.initialize else 0
        examples = Examples(
            self.art,
            self.known,
            self.model.tokenizer,
            size=options.batch_size,
            step=self.step + phase,
            seed=options.seed,
            held_out=options.held_out,
        )
        loader = iter(DataLoader(examples, batch_size=None, num_workers=options.workers))
        masker = Masker(self.art, self.device, options.seed + self.step)
        if self.device.type == "cuda":
            speed_up(self.model)
        while self.step < options.steps:
            loss.lerp_(self.train_step(masker.draw(next(loader)), masker), 0.02 if self.step > first_step else 1.0)
            self.step += 1
            update_ema(self.ema, self.model, self.step)
            if self.step % 50 == 0:
                speed = (self.step - first_step) * options.batch_size / (time.monotonic() - start)
                print(f"step {self.step}/{options.steps}, loss {loss:.4f}, {speed:.1f} images per second", flush=True)
            if self.step % options.evaluate_every == 0 or self.step == options.steps:
                self.save()
                self.evaluate(loss.item())

    def train_step(self, batch: Batch, masker: Masker) -> Tensor:
        """One optimizer step: the mean cross-entropy given the caption."""
        guidance_scale = 1 + 3 * random.Random(self.step).random()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            errors, loss = losses(self.model, batch, guidance_scale)
        masker.update_difficulty(errors, batch.inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.options)
            optimizer.step()
            optimizer.zero_grad()
        return errors.mean()

    def evaluate(self, loss: float) -> None:
        """Score the averaged weights; print the scores and append them to `log.csv`."""
        asked = self.known.evaluation(SCORED)
        scores = trait_scores(self.nouns, self.known, asked, self.sample([caption(noun) for noun in asked]))
        bare = coherence(self.nouns, self.known, self.sample(["a pixel art character"] * SCORED))
        row = {"step": self.step, "loss": round(loss, 5), **scores, "whole": bare["whole"]}
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        append_row(self.options.output / "log.csv", row)

    @torch.no_grad()
    def sample(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """An image per caption, of seeds 0, 1, 2, ..., (captions, 32, 32, 3) in [0, 1]."""
        texts = tokenize(self.model.tokenizer, ["", *captions]).to(self.device)
        captioned = torch.arange(1, len(texts), device=self.device)
        without, with_captions = (
            self.ema.condition(texts, index) for index in (torch.zeros_like(captioned), captioned)
        )
        seeds = range(len(captions))
        tokens = sample_tokens(self.ema.transformer, without, with_captions, SIZE, seeds, guidance_scale=1.0)
        return self.art.palette[tokens.cpu()].numpy().astype(np.float32) / np.float32(255)

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


def speed_up(model: TextToTokens) -> None:
    """Compile the layers, each kind of them once, and let float32 products use tensor cores."""
    torch.backends.cuda.matmul.allow_tf32 = True
    for module in model.transformer.modules():
        if isinstance(module, (ConvNextBlock, CrossAttentionBlock, TransformerLayer)):
            module.compile()


def new_optimizers(model: TextToTokens, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms and convolutions."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() == 2 and "embed" not in name and "position" not in name
        (matrices if hidden else others).append(parameter)
    return [Muon(matrices, lr=rate), torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Warm-up, constant, then linear to zero over the cooldown."""
    left = (options.steps - step) / max(1, options.cooldown)
    return options.learning_rate * min(1.0, (step + 1) / 100, max(left, 0.005))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Average the weights after optimizer step number `step`, counted from 1."""
    decay = min(EMA, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


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


def export(target: Path, trainer: Trainer) -> None:
    """Write a checkpoint in the published layout and half precision.

    An existing model card, settings and former version are kept.
    """
    paths = [target / "README.md", target / GENERATION_CONFIG, *(target / FORMER).rglob("*")]
    kept = {path: path.read_bytes() for path in paths if path.is_file()}
    save_checkpoint(
        target,
        transformer=trainer.ema.transformer,
        vqgan=construct_vqgan(trainer.art.palette),
        text_encoder=trainer.ema.text_encoder,
        tokenizer=trainer.ema.tokenizer,
        masking_schedule="cosine",
        traits=dataclasses.asdict(trainer.known),
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
