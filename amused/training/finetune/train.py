"""Fine-tune a model on your own images: `accelerate launch -m amused.training.finetune --help`.

Takes the options of the published script. Images and captions are encoded once, and the encoders are freed before the
network to train is loaded. Writes `adapter` (LoRA) or `model` (all weights), `loss.csv`, `loss.png`, `validation` and
`checkpoint-N`, each atomically. A run can be stopped at any time; with `--resume_from_checkpoint latest` it continues
to the same losses.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from amused.atomic import sweep
from amused.checkpoints.adapters import FINISHED
from amused.checkpoints.hub import locate
from amused.checkpoints.json_file import read_json
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.placement import place
from amused.training.finetune.captions import CaptionEncoder
from amused.training.finetune.data import AESTHETIC_SCORE, Batches, Sample, encode_images
from amused.training.finetune.examples import read_examples
from amused.training.finetune.model import EMA, TrainingModel, build_model, new_optimizer, write_adapter, write_model
from amused.training.finetune.options import parse_options
from amused.training.finetune.report import LossLog, save_images
from amused.training.finetune.state import (
    PROGRESS,
    add_to_history,
    find_state,
    is_inside,
    read_state,
    start_history,
    write_state,
)
from amused.training.sampling import sample_tokens

log = logging.getLogger(__name__)

CANNOT_WRITE = ("No space left", "quota exceeded", "Permission denied", "Read-only file system")
PROMPTS_PER_BATCH = 4
VALIDATION_SEED = 0  # of every validation image, so that those of different steps can be compared


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(parse_options())
    except UserError as error:
        sys.exit(f"{error}")
    except (OSError, SafetensorError) as error:
        if any(text in f"{error}" for text in CANNOT_WRITE):
            sys.exit(f"Training stopped, since a file cannot be written; earlier checkpoints are kept. {error}")
        raise


def train(options: argparse.Namespace) -> None:
    """Fine-tune from `parse_options` to results in `options.output_dir`."""
    Trainer(options).run()


class Trainer:
    """Everything that a run needs, its loop, and what it reports and saves."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
        self.options, self.accelerator = options, new_accelerator(options)
        if self.accelerator.is_main_process:
            sweep(options.output_dir)
            sweep(options.cache_dir)
        self.accelerator.wait_for_everyone()
        self.resumed = resumed = find_state(options.output_dir, options.resume_from_checkpoint)
        new_seed = broadcast(torch.tensor(options.new_seed, device=self.accelerator.device))  # the main process's
        progress: dict[str, Any] = read_json(resumed, PROGRESS) if resumed else {"step": 0, "seed": int(new_seed)}
        self.first_step: int = progress["step"]
        if resumed and self.first_step > options.max_train_steps:
            raise UserError(
                f"There is nothing to do: {resumed.name} has {self.first_step} steps, "
                f"--max_train_steps is {options.max_train_steps}."
            )
        self.checkpoint = locate(options.pretrained_model_name_or_path, revision=options.revision)
        self.resolution = check_resolution(self.checkpoint, options.resolution)
        self.scaler_state: dict[str, Any] | None = progress.get("scaler")
        self.seed: int = progress["seed"] if options.seed is None else options.seed
        self.load_data()
        self.accelerator.free_memory()

        torch.manual_seed(self.seed)  # new adapters are random
        self.model = build_model(self.checkpoint, options, self.accelerator.device)
        self.passes = self.accelerator.num_processes * options.gradient_accumulation_steps  # per step, on all devices
        self.batch_size = self.passes * options.train_batch_size  # images per step
        self.learning_rate = options.learning_rate * (self.batch_size if options.scale_lr else 1)  # before the schedule
        self.optimizer = new_optimizer(self.model, options, self.learning_rate)
        self.ema = EMA(self.model, options.ema_decay, options.ema_update_after_step) if options.use_ema else None
        if resumed:
            read_state(resumed, self.model, self.optimizer, self.ema)
            log.info("Resuming from step %d", self.first_step)
        self.saved_step = self.first_step if is_inside(options.output_dir, resumed) else 0
        self.losses: LossLog | None = None  # on the main process only

    def load_data(self) -> None:
        """Encode images and captions, or read them from the cache. One process per machine encodes, the others wait."""
        options, device = self.options, self.accelerator.device
        with self.accelerator.local_main_process_first():
            examples = read_examples(options)
            images = encode_images(
                self.checkpoint, examples, self.resolution, options.cache_dir, device, options.split_vae_encode
            )
            captions = [example.caption for example in examples]
            self.captions = CaptionEncoder(
                self.checkpoint,
                captions,
                options.validation_prompts,
                cache=options.cache_dir,
                device=device,
                dtype=torch.float32 if self.accelerator.mixed_precision == "no" else torch.float16,
                train_text_encoder=options.train_text_encoder,
            )
        log.info("%d images, %d crops", len(examples), len(images.tokens))
        self.batches = Batches(images, captions, options, self.seed)

    def run(self) -> None:
        """Train to the end and write the results."""
        options = self.options
        if self.accelerator.is_main_process:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            start_history(options.output_dir, self.resumed)
            self.losses = LossLog(options.output_dir, self.first_step)
        self.accelerator.init_trackers("amused", {name: public(value) for name, value in vars(options).items()})
        self.loop()
        # Release the wrapped model before the process group: as its last owner it would wait for threads that wait
        # for Python.
        self.accelerator.free_memory()
        self.finish()

    def loop(self) -> None:
        options = self.options
        # Computes factors only; the optimizer takes the rate from `step`.
        schedule: Callable[[int], float] = get_scheduler(
            options.lr_scheduler, self.optimizer, options.lr_warmup_steps, options.max_train_steps
        ).lr_lambdas[0]
        wrapped, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.scaler_state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.scaler_state)
        with tqdm(
            total=options.max_train_steps,
            initial=self.first_step,
            desc="Training",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            for step in range(self.first_step, options.max_train_steps):
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
        samples = self.batches.draw(step, self.batch_size)
        num_masked = sum(int(one.masked.sum()) for one in samples)
        total = torch.zeros((), device=accelerator.device)
        for part in self.split(samples):
            with accelerator.accumulate(wrapped):
                tensors = (tensor.to(accelerator.device) for tensor in self.batches.tensors(part))
                errors = wrapped(*tensors, self.captions.encode_captions([one.caption for one in part]))
                total += errors.detach()
                self.check_loss(errors, step)
                accelerator.backward(errors * (self.passes / num_masked))  # accelerate takes the mean of all passes
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
        """Stop all processes if the loss of one is not finite."""
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
        """Write `checkpoint-N`, then delete the oldest ones of this run above the limit."""
        self.saved_step = step
        if self.losses is None:  # only the main process writes
            return
        folder, limit = self.options.output_dir, self.options.checkpoints_total_limit
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        state = write_state(folder, step, self.seed, self.model, self.optimizer, self.ema, scaler)
        self.losses.draw()
        add_to_history(folder, state, limit)

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
        side, transformer = self.resolution // self.checkpoint.vqgan.scale_factor, self.model.transformer
        conditions = [self.resolution, self.resolution, 0, 0, AESTHETIC_SCORE]
        tokens = []
        with self.accelerator.autocast():
            for start in range(0, len(prompts), PROMPTS_PER_BATCH):
                batch = prompts[start : start + PROMPTS_PER_BATCH]
                micro = torch.tensor([conditions], device=self.accelerator.device).expand(len(batch), -1)
                unconditional, conditional = (
                    transformer.condition(*self.captions.encode_prompts(texts, self.model.text_encoder), micro)
                    for texts in ([""] * len(batch), batch)
                )
                seeds = [VALIDATION_SEED] * len(batch)
                tokens.append(sample_tokens(transformer, unconditional, conditional, side, seeds))
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
            self.accelerator.free_memory()
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
    log.info("The %s is in %s.", folder.name, folder)


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
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
    return accelerator


def public(value: object) -> str:
    """An option as a tracker, which may be on the internet, gets it: of a path, only its last part."""
    text = str(value)
    return Path(text).resolve().name if isinstance(value, Path) or os.path.exists(text) else text


def check_resolution(checkpoint: Checkpoint, resolution: int | None) -> int:
    """The resolution in pixels, by default the model's own."""
    if resolution is None:
        return checkpoint.size
    if resolution % checkpoint.multiple:
        raise UserError(
            f"--resolution must be a multiple of {checkpoint.multiple}; the model's own is {checkpoint.size}."
        )
    return resolution
