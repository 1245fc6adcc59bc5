"""Fine-tune a model on your own images: `accelerate launch -m amused.training.finetune --help`.

Takes the options of the published script. Images and captions are encoded once, and the encoders are freed before the
network to train is loaded. Writes `adapter` (LoRA) or `model` (all weights), `loss.csv`, `loss.png`, `validation` and
`checkpoint-N`, each atomically. A run can be stopped at any time; with `--resume_from_checkpoint latest` it continues
to the same losses.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from amused.atomic import sweep
from amused.checkpoints.adapters import FINISHED
from amused.checkpoints.catalog import PUBLISHED, Published
from amused.checkpoints.hub import fetch_checkpoint, locate
from amused.checkpoints.json_file import read_json
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.placement import place
from amused.training.finetune.captions import CaptionEncoder
from amused.training.finetune.data import AESTHETIC_SCORE, Batches, Sample, encode_images
from amused.training.finetune.examples import read_examples
from amused.training.finetune.model import (
    EMA,
    TrainingModel,
    build_model,
    new_optimizer,
    write_adapter,
    write_model,
)
from amused.training.finetune.options import parse_options
from amused.training.finetune.report import LossLog, sample, save_images
from amused.training.finetune.state import PROGRESS, find_state, list_states, read_state, write_state

log = logging.getLogger(__name__)

PROMPTS_PER_BATCH = 4


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(parse_options())
    except UserError as error:
        sys.exit(f"{error}")


def train(options: argparse.Namespace) -> None:
    """Fine-tune from `parse_options` to results in `options.output_dir`.

    Raises:
        UserError: options, data or checkpoint are unusable, or the loss is not finite.
    """
    accelerator = new_accelerator(options)
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    checkpoint = find_model(options)
    resolution = check_resolution(checkpoint, options.resolution)
    if accelerator.is_main_process:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        sweep(options.output_dir)
        sweep(options.cache_dir)
    accelerator.wait_for_everyone()
    resumed = find_state(options.output_dir, options.resume_from_checkpoint)
    progress: dict[str, Any]
    progress = read_json(resumed, PROGRESS) if resumed else {"step": 0, "seed": share_seed(accelerator, options)}
    seed = progress["seed"] if options.seed is None else options.seed
    batches, captions = load_data(options, accelerator, checkpoint, resolution, seed)
    free_memory()

    torch.manual_seed(seed)  # new adapters are random
    model = build_model(checkpoint, options, accelerator.device)
    batch_size = options.train_batch_size * accelerator.num_processes * options.gradient_accumulation_steps
    learning_rate = options.learning_rate * (batch_size if options.scale_lr else 1)
    optimizer = new_optimizer(model, options, learning_rate)
    ema = EMA(model, options.ema_decay, options.ema_update_after_step) if options.use_ema else None
    if resumed:
        read_state(resumed, model, optimizer, ema)
        log.info("Resuming from step %d", progress["step"])
    trainer = Trainer(
        options=options,
        accelerator=accelerator,
        checkpoint=checkpoint,
        resolution=resolution,
        seed=seed,
        batches=batches,
        captions=captions,
        model=model,
        optimizer=optimizer,
        ema=ema,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    trainer.run(progress["step"], progress.get("scaler"))


def load_data(
    options: argparse.Namespace, accelerator: Accelerator, checkpoint: Checkpoint, resolution: int, seed: int
) -> tuple[Batches, CaptionEncoder]:
    """Encode images and captions, or read them from the cache. One process per machine encodes, the others wait."""
    with accelerator.local_main_process_first():
        examples = read_examples(options)
        images = encode_images(
            checkpoint, examples, resolution, options.cache_dir, accelerator.device, options.split_vae_encode
        )
        captions = [example.caption for example in examples]
        encoder = CaptionEncoder(
            checkpoint,
            captions,
            options.validation_prompts,
            cache=options.cache_dir,
            device=accelerator.device,
            dtype=torch.float32 if accelerator.mixed_precision == "no" else torch.float16,
            train_text_encoder=options.train_text_encoder,
        )
    log.info("%d images, %d crops", len(examples), len(images.tokens))
    return Batches(images, captions, options, seed), encoder


@dataclass
class Trainer:
    """The training loop, and what it reports and saves.

    Attributes:
        resolution: side of the images in pixels.
        batch_size: images per step, over all devices and accumulated passes.
        learning_rate: before the schedule.
    """

    options: argparse.Namespace
    accelerator: Accelerator
    checkpoint: Checkpoint
    resolution: int
    seed: int
    batches: Batches
    captions: CaptionEncoder
    model: TrainingModel
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    batch_size: int
    learning_rate: float
    saved_step: int = 0
    losses: LossLog | None = None  # on the main process only

    def run(self, first_step: int, scaler: dict[str, Any] | None) -> None:
        """Train from `first_step` to the end and write the results.

        Args:
            scaler: state of the gradient scaler to resume from, if there is one.
        """
        if self.accelerator.is_main_process:
            self.losses = LossLog(self.options.output_dir, first_step)
        self.loop(first_step, scaler)
        # Release the wrapped model before the process group: as its last owner it would wait for threads that wait
        # for Python.
        self.accelerator.free_memory()
        self.finish()

    def loop(self, first_step: int, scaler: dict[str, Any] | None) -> None:
        options = self.options
        # Computes factors only; the optimizer takes the rate from `step`.
        schedule: Callable[[int], float] = get_scheduler(
            options.lr_scheduler, self.optimizer, options.lr_warmup_steps, options.max_train_steps
        ).lr_lambdas[0]
        wrapped, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        with tqdm(
            total=options.max_train_steps,
            initial=first_step,
            desc="Training",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            for step in range(first_step, options.max_train_steps):
                row = self.step(wrapped, optimizer, step, self.learning_rate * schedule(step))
                self.report(row)
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}")

    def step(self, wrapped: Any, optimizer: Any, step: int, learning_rate: float) -> dict[str, float]:
        """One optimizer step.

        Args:
            wrapped: the model as accelerate wraps it.
            optimizer: the optimizer as accelerate wraps it.
            step: counted from 0.

        Returns:
            A row of `loss.csv`.
        """
        options, accelerator = self.options, self.accelerator
        start = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        # The loss is the mean over all masked tokens of a step, however they are split over devices and passes.
        samples = self.batches.draw(step, range(self.batch_size), self.batch_size)
        num_masked = sum(int(one.masked.sum()) for one in samples)
        total = torch.zeros((), device=accelerator.device)
        for part in self.split(samples):
            with accelerator.accumulate(wrapped):
                tensors = (tensor.to(accelerator.device) for tensor in self.batches.tensors(part))
                errors = wrapped(*tensors, self.captions.encode_captions([one.caption for one in part]))
                total += errors.detach()
                self.check_loss(errors, step)
                passes = accelerator.num_processes * options.gradient_accumulation_steps  # accelerate takes their mean
                accelerator.backward(errors * (passes / num_masked))
                if options.max_grad_norm is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.model.trainable().values(), options.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step + 1)
        return {
            "step": step + 1,
            "loss": accelerator.reduce(total, "sum").item() / num_masked,
            "learning_rate": learning_rate,
            "masking_rate": sum(one.mask_ratio for one in samples) / self.batch_size,
            "seconds": time.monotonic() - start,
        }

    def split(self, samples: list[Sample]) -> list[list[Sample]]:
        """This process's part of a step's samples, by pass."""
        size = self.options.train_batch_size
        passes = range(self.options.gradient_accumulation_steps)
        starts = [(i * self.accelerator.num_processes + self.accelerator.process_index) * size for i in passes]
        return [samples[start : start + size] for start in starts]

    def check_loss(self, loss: Tensor, step: int) -> None:
        """Stop all processes if the loss of one is not finite.

        Raises:
            UserError: it is not.
        """
        bad = (~torch.isfinite(loss.detach())).float()
        if self.accelerator.reduce(bad, "sum").item():
            raise UserError(
                f"Training stopped: the loss of step {step + 1} is not finite. Earlier checkpoints are kept. "
                "Try a lower --learning_rate, or --max_grad_norm 1."
            )

    def report(self, row: dict[str, float]) -> None:
        """Log a step; save a checkpoint and validation images when they are due."""
        options, step = self.options, int(row["step"])
        if self.losses is not None:
            self.losses.add(row)
        if step % options.logging_steps == 0:
            self.accelerator.log({"step_loss": row["loss"], "lr": row["learning_rate"]}, step=step)
        if step % options.checkpointing_steps == 0:
            self.save(step)
        if options.validation_prompts and step % options.validation_steps == 0 and self.accelerator.is_main_process:
            self.validate(step)

    def save(self, step: int) -> None:
        """Write `checkpoint-N`, then delete the oldest ones above the limit."""
        self.saved_step = step
        if self.losses is None:  # only the main process writes
            return
        folder, limit = self.options.output_dir, self.options.checkpoints_total_limit
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        write_state(folder, step, self.seed, self.model, self.optimizer, self.ema, scaler)
        self.losses.draw()
        for old in list_states(folder)[:-limit] if limit else ():
            shutil.rmtree(old)

    def validate(self, step: int) -> None:
        """Write `validation/step-N`: one image per validation prompt, with the averaged weights if there are any."""
        prompts, device = self.options.validation_prompts, self.accelerator.device
        self.model.eval()
        if self.ema is not None:
            self.ema.swap(self.model)
        tokens = self.sample(prompts)
        if self.ema is not None:
            self.ema.swap(self.model)
        self.model.train()
        vqgan = self.checkpoint.load_vqgan(device, torch.float32)
        folder = self.options.output_dir / "validation" / f"step-{step:06}"
        images = save_images(folder, vqgan, tokens, prompts)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": images}, step=step)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str]) -> Tensor:
        """Tokens of one image per prompt, (prompts, height, width)."""
        side = self.resolution // self.checkpoint.vqgan.scale_factor
        micro = torch.tensor(
            [[self.resolution, self.resolution, 0, 0, AESTHETIC_SCORE]], device=self.accelerator.device
        )
        tokens = []
        with self.accelerator.autocast():
            empty = self.captions.encode_prompts([""], self.model.text_encoder)
            for start in range(0, len(prompts), PROMPTS_PER_BATCH):
                batch = prompts[start : start + PROMPTS_PER_BATCH]
                texts = self.captions.encode_prompts(batch, self.model.text_encoder)
                tokens.append(sample(self.model.transformer, texts, empty, side, micro))
        return torch.cat(tokens)

    def finish(self) -> None:
        """Save the last state and write the adapter or the model."""
        if self.saved_step != self.options.max_train_steps:
            self.save(self.options.max_train_steps)
        if self.accelerator.is_main_process:
            if self.ema is not None:
                self.ema.swap(self.model)
            self.ema = None
            self.optimizer.state.clear()
            free_memory()
            write_results(self.options, self.model, self.checkpoint)
        self.accelerator.end_training()


def write_results(options: argparse.Namespace, model: TrainingModel, checkpoint: Checkpoint) -> None:
    """Write `adapter` if only adapters were trained, else `model`."""
    only_adapters = options.use_lora and (options.text_encoder_use_lora or not options.train_text_encoder)
    folder: Path = options.output_dir / (FINISHED if only_adapters else "model")
    if only_adapters:
        write_adapter(folder, model, checkpoint.name)
    else:
        write_model(folder, model, checkpoint)
    log.info("The %s is in %s.", "adapter" if only_adapters else "model", folder)


# Before the first step


def new_accelerator(options: argparse.Namespace) -> Accelerator:
    """The accelerator, with a precision that this machine has and a tracker that is installed."""
    precision = options.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "bf16" if place("cpu").dtype == torch.bfloat16 else "no"
        log.info("There is no GPU: %s is used instead of fp16.", {"no": "float32"}.get(precision, precision))
    tracker = options.report_to
    if tracker not in ("none", "all") and importlib.util.find_spec(tracker) is None:
        log.info("%s is not installed: losses and images go to files only.", tracker)
        tracker = "none"
    accelerator = Accelerator(
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        mixed_precision=precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=options.output_dir / options.logging_dir,
    )
    if tracker != "none":
        accelerator.init_trackers("amused", config={key: str(value) for key, value in vars(options).items()})
    if not accelerator.is_main_process:
        logging.disable(logging.INFO)
    return accelerator


def find_model(options: argparse.Namespace) -> Checkpoint:
    """The checkpoint to start from, downloaded if need be.

    Raises:
        UserError: it cannot be found.
    """
    name = options.pretrained_model_name_or_path
    if options.revision is None or os.path.isdir(name):
        return locate(name)
    published = PUBLISHED.get(name, Published(name))
    return fetch_checkpoint(name, replace(published, revision=options.revision), None)


def check_resolution(checkpoint: Checkpoint, resolution: int | None) -> int:
    """The resolution in pixels, by default the model's own.

    Raises:
        UserError: the model cannot be trained at it.
    """
    if resolution is None:
        return checkpoint.size
    if resolution % checkpoint.multiple:
        raise UserError(
            f"--resolution must be a multiple of {checkpoint.multiple}; the model's own is {checkpoint.size}."
        )
    return resolution


def share_seed(accelerator: Accelerator, options: argparse.Namespace) -> int:
    """The main process's seed, on all processes."""
    seed = torch.tensor(options.new_seed if accelerator.is_main_process else 0, device=accelerator.device)
    return int(accelerator.reduce(seed, "sum"))


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
