"""Fine-tune a model on your own pictures: `accelerate launch -m amused.training.finetune --help`.

The options are those of the published script. Pictures and captions are encoded once; the networks that did it are
freed before the one that is trained is read. Writes `adapter` (LoRA) or `model` (all weights), `loss.csv`, `loss.png`,
`validation` and `checkpoint-N`, each whole or not at all. A run can be stopped at any time and goes on with
`--resume_from_checkpoint latest`, to the same losses.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from amused.atomic import atomic_dir, sweep, write_json
from amused.checkpoints.adapters import FINISHED
from amused.checkpoints.catalog import PUBLISHED, Published
from amused.checkpoints.config import read_json
from amused.checkpoints.hub import fetch_checkpoint, is_folder, locate
from amused.checkpoints.weights import Checkpoint
from amused.errors import UserError
from amused.generation.placement import place
from amused.model.text import encode_text, tokenize
from amused.training.finetune.data import (
    AESTHETIC_SCORE,
    Batches,
    Draw,
    Texts,
    encode_pictures,
    encode_texts,
    read_examples,
)
from amused.training.finetune.model import (
    Average,
    Trainee,
    build,
    check_finite,
    new_optimizer,
    write_adapter,
    write_model,
)
from amused.training.finetune.options import arguments
from amused.training.finetune.report import LossLog, sample, save_pictures

log = logging.getLogger(__name__)

STATE, ABOUT = "state.safetensors", "state.json"
PROMPTS_AT_A_TIME = 4
SMALL = 1024
OTHER_SETTINGS = "{} was made with other settings: give the same recipe options again."


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(arguments())
    except UserError as error:
        sys.exit(f"{error}")


def train(options: argparse.Namespace) -> None:
    accelerator = new_accelerator(options)
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    checkpoint = find_model(options)
    resolution = check_resolution(checkpoint, options.resolution)
    if accelerator.is_main_process:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        sweep(options.output_dir)
        sweep(options.cache_dir)
    accelerator.wait_for_everyone()
    resumed = find_state(options)
    about = read_json(resumed, ABOUT) if resumed else {"step": 0, "seed": share_seed(accelerator, options.new_seed)}
    seed = about["seed"] if options.seed is None else options.seed

    with accelerator.local_main_process_first():
        examples = read_examples(options)
        device = accelerator.device
        pictures = encode_pictures(
            checkpoint, examples, resolution, options.cache_dir, device, options.split_vae_encode
        )
        captions = [example.caption for example in examples]
        batches = Batches(pictures, captions, options, seed)
        words = Words(checkpoint, options, captions, accelerator)
    free_memory()
    log.info("%d pictures, %d rows of tokens", len(examples), len(pictures.tokens))

    torch.manual_seed(seed)  # adapters begin at random
    trainee = build(checkpoint, options, device)
    devices = accelerator.num_processes
    size = options.train_batch_size * devices * options.gradient_accumulation_steps
    rate = options.learning_rate * (size if options.scale_lr else 1)
    optimizer = new_optimizer(trainee, options, rate)
    average = Average(trainee, options.ema_decay, options.ema_update_after_step) if options.use_ema else None
    steps_done = about["step"]
    if resumed:
        read_state(resumed, trainee, optimizer, average)
        log.info("going on from step %d", steps_done)
    schedule = get_scheduler(
        options.lr_scheduler, optimizer, options.lr_warmup_steps, options.max_train_steps
    ).lr_lambdas[0]
    prepared, stepper = accelerator.prepare(trainee, optimizer)
    if resumed and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(about["scaler"])
    losses = LossLog(options.output_dir, steps_done) if accelerator.is_main_process else None
    run = Run(options, accelerator, checkpoint, trainee, optimizer, average, words, losses, seed, resolution)

    bar = tqdm(
        total=options.max_train_steps, initial=steps_done, desc="Training", disable=not accelerator.is_main_process
    )
    for step in range(steps_done, options.max_train_steps):
        began = time.monotonic()
        for group in stepper.param_groups:
            group["lr"] = rate * schedule(step)
        # The loss is the mean over all masked tokens of a step, however they are spread over devices and passes.
        everything = batches.draw(step, range(size), size)
        masked = sum(int(draw.masked.sum()) for draw in everything)
        total = torch.zeros((), device=device)
        for part in range(options.gradient_accumulation_steps):
            first = (part * devices + accelerator.process_index) * options.train_batch_size
            draws = everything[first : first + options.train_batch_size]
            with accelerator.accumulate(prepared):
                errors = prepared(*(t.to(device) for t in batches.tensors(draws)), words.of(draws))
                total += errors.detach()
                run.check_loss(errors, step)
                accelerator.backward(errors * (devices * options.gradient_accumulation_steps / masked))
                if options.max_grad_norm is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trainee.trained().values(), options.max_grad_norm)
                stepper.step()
                stepper.zero_grad()
        if average is not None:
            average.update(trainee, step + 1)
        loss = accelerator.reduce(total, "sum").item() / masked
        run.after(
            {
                "step": step + 1,
                "loss": loss,
                "learning_rate": rate * schedule(step),
                "masking_rate": sum(draw.rate for draw in everything) / size,
                "seconds": time.monotonic() - began,
            }
        )
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
    bar.close()
    # The wrapper goes before the process group: as the last to hold it, it would wait for threads that wait for Python.
    del prepared, stepper
    accelerator.free_memory()
    run.finish()


class Words:
    """The captions and the validation prompts in the form that the trained networks take."""

    def __init__(
        self, checkpoint: Checkpoint, options: argparse.Namespace, captions: list[str], accelerator: Accelerator
    ) -> None:
        self.device, self.prompts = accelerator.device, options.validation_prompts
        self.tokenizer = checkpoint.load_tokenizer() if options.train_text_encoder else None
        if self.tokenizer is None:
            dtype = torch.float32 if accelerator.mixed_precision == "no" else torch.float16
            cache = options.cache_dir
            self.captions = encode_texts(checkpoint, ["", *captions], cache, self.device, dtype)
            self.others = encode_texts(checkpoint, ["", *self.prompts], cache, self.device, dtype)

    def of(self, draws: list[Draw]) -> tuple[Tensor, ...]:
        """What `Trainee.forward` takes as its texts."""
        captions = [draw.caption for draw in draws]
        if self.tokenizer is not None:
            return (tokenize(self.tokenizer, captions).to(self.device),)
        return self.read(self.captions, captions)

    def read(self, texts: Texts, wanted: list[str]) -> tuple[Tensor, ...]:
        return tuple(part.to(self.device, torch.float32) for part in texts.read(wanted))

    def validation(self, prompts: list[str], trainee: Trainee) -> tuple[Tensor, ...]:
        if self.tokenizer is None:
            return self.read(self.others, prompts)
        return encode_text(trainee.text_encoder, tokenize(self.tokenizer, prompts).to(self.device))


class Run:
    """What happens between two steps and in the end: reports, checkpoints, pictures, results."""

    def __init__(
        self,
        options: argparse.Namespace,
        accelerator: Accelerator,
        checkpoint: Checkpoint,
        trainee: Trainee,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        words: Words,
        losses: LossLog | None,
        seed: int,
        resolution: int,
    ) -> None:
        self.options, self.accelerator, self.checkpoint = options, accelerator, checkpoint
        self.trainee, self.optimizer, self.average = trainee, optimizer, average
        self.words, self.losses, self.seed, self.resolution = words, losses, seed, resolution
        self.saved = 0

    def check_loss(self, errors: Tensor, step: int) -> None:
        """Stop at a loss that is not a number, on all processes together; what was written stays as it is."""
        bad = (~torch.isfinite(errors.detach())).float()
        if self.accelerator.reduce(bad, "sum").item():
            raise UserError(
                f"The loss of step {step + 1} is not a number, so training stops; what was saved before is kept. "
                "Try a lower --learning_rate or --max_grad_norm 1."
            )

    def after(self, row: dict[str, float]) -> None:
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
        """Write `checkpoint-N`; then, and not before, remove those that are too many."""
        self.saved = step
        if not self.accelerator.is_main_process:
            return
        options = self.options
        write_state(options.output_dir, step, self.seed, self.trainee, self.optimizer, self.average, self.accelerator)
        self.losses.draw()
        limit = options.checkpoints_total_limit
        for old in states(options.output_dir)[:-limit] if limit else ():
            shutil.rmtree(old)

    def validate(self, step: int) -> None:
        options, side = self.options, self.resolution // self.checkpoint.vqgan.scale_factor
        device = self.accelerator.device
        micro = torch.tensor([[self.resolution, self.resolution, 0, 0, AESTHETIC_SCORE]], device=device)
        self.trainee.eval()
        if self.average is not None:
            self.average.swap(self.trainee)
        with torch.no_grad(), self.accelerator.autocast():
            empty = self.words.validation([""], self.trainee)
            tokens = []
            for start in range(0, len(options.validation_prompts), PROMPTS_AT_A_TIME):
                prompts = options.validation_prompts[start : start + PROMPTS_AT_A_TIME]
                texts = self.words.validation(prompts, self.trainee)
                tokens.append(sample(self.trainee.transformer, texts, empty, side, micro))
        if self.average is not None:
            self.average.swap(self.trainee)
        self.trainee.train()
        vqgan = self.checkpoint.load_vqgan(device, torch.float32)
        folder = options.output_dir / "validation" / f"step-{step:06}"
        images = save_pictures(folder, vqgan, torch.cat(tokens), options.validation_prompts)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": images}, step=step)

    def finish(self) -> None:
        options, folder = self.options, self.options.output_dir
        if self.saved != options.max_train_steps:
            self.save(options.max_train_steps)
        if self.accelerator.is_main_process:
            if self.average is not None:
                self.average.swap(self.trainee)
            self.average = None
            self.optimizer.state.clear()
            free_memory()
            write_results(folder, self.trainee, self.checkpoint, options)
        self.accelerator.end_training()


def write_results(folder: Path, trainee: Trainee, checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """`adapter` where only adapters were trained, `model` where whole networks were."""
    if options.use_lora and (options.text_encoder_use_lora or not options.train_text_encoder):
        write_adapter(folder / FINISHED, trainee, checkpoint.name)
        log.info("The adapter is in %s.", folder / FINISHED)
    else:
        write_model(folder / "model", trainee, checkpoint)
        log.info("The model is in %s.", folder / "model")


# Before the first step


def new_accelerator(options: argparse.Namespace) -> Accelerator:
    precision = options.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "bf16" if place("cpu").dtype == torch.bfloat16 else "no"
        log.info("There is no GPU: %s is used in the place of fp16.", {"no": "float32"}.get(precision, precision))
    tracker = options.report_to
    if tracker not in ("none", "all") and importlib.util.find_spec(tracker) is None:
        log.info("%s is not installed: losses and pictures go to files only.", tracker)
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
    name = options.pretrained_model_name_or_path
    if options.revision is None or is_folder(name):
        return locate(name)
    published = PUBLISHED.get(name, Published(repo=name, revision="main", download="1.6 GB"))
    return fetch_checkpoint(name, replace(published, revision=options.revision), None)


def check_resolution(checkpoint: Checkpoint, resolution: int | None) -> int:
    if resolution is None:
        return checkpoint.size
    multiple = checkpoint.vqgan.scale_factor * (2 if checkpoint.transformer.downsample else 1)
    if resolution % multiple:
        raise UserError(
            f"--resolution must be a multiple of {multiple} for this model, which was made for {checkpoint.size}."
        )
    return resolution


def share_seed(accelerator: Accelerator, seed: int) -> int:
    """The first process's, on all."""
    mine = torch.tensor(seed if accelerator.is_main_process else 0, device=accelerator.device)
    return int(accelerator.reduce(mine, "sum"))


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# States to go on from


def states(folder: Path) -> list[Path]:
    """Folders `checkpoint-N`, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def find_state(options: argparse.Namespace) -> Path | None:
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == "latest":
        found = states(options.output_dir)
        if not found:
            log.info("There is no checkpoint yet: training starts from the beginning.")
        return found[-1] if found else None
    for path in (Path(wanted), options.output_dir / wanted):
        if (path / ABOUT).is_file():
            return path
    raise UserError(f"There is no checkpoint {wanted} to go on from.")


def write_state(
    folder: Path,
    step: int,
    seed: int,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    accelerator: Accelerator,
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainee.trained().items():
        tensors[f"weights/{name}"] = parameter.detach()
        if average is not None:
            tensors[f"average/{name}"] = average.weights[name]
        for key, value in optimizer.state[parameter].items():
            # Small ones are copied: bitsandbytes shares its tables between all parameters.
            tensor = torch.as_tensor(value)
            tensors[f"optimizer/{name}/{key}"] = tensor.clone() if tensor.numel() <= SMALL else tensor
    check_finite(tensor for tensor in tensors.values() if tensor.is_floating_point())
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    with atomic_dir(folder / f"checkpoint-{step}") as part:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part / STATE)
        write_json(part / ABOUT, {"step": step, "seed": seed, "scaler": scaler})
    log.debug("saved checkpoint-%d", step)


def read_state(folder: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, average: Average | None) -> None:
    """Put a state back, tensor by tensor; refuse one of other settings."""
    trained = trainee.trained()
    with safe_open(folder / STATE, framework="pt") as stream:
        names = set(stream.keys())
        for kind, targets in (("weights", trained), ("average", average.weights if average else {})):
            saved = {name for name in names if name.startswith(f"{kind}/")}
            if saved != {f"{kind}/{name}" for name in targets}:
                raise UserError(OTHER_SETTINGS.format(folder.name))
            for name, target in targets.items():
                tensor = stream.get_tensor(f"{kind}/{name}")
                if tensor.shape != target.shape:
                    raise UserError(OTHER_SETTINGS.format(folder.name))
                target.detach().copy_(tensor)
        for name in names:
            kind, _, rest = name.partition("/")
            if kind != "optimizer":
                continue
            owner, key = rest.split("/")
            value = stream.get_tensor(name)
            parameter = trained[owner]
            if key != "step":
                value = value.to(parameter.device)
            elif not value.is_floating_point():  # bitsandbytes counts in a plain integer
                value = int(value)
            optimizer.state[parameter][key] = value


if __name__ == "__main__":
    main()
