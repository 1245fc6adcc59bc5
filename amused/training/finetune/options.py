"""The options of fine-tuning: names and defaults of the published script, so its command lines run unchanged.

The help says where a default differs. Invalid values are refused before anything is read.
"""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Sequence
from pathlib import Path

from amused.errors import UserError

SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
ATTENTION = ("to_q", "to_k", "to_v")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check a command line, `sys.argv` by default.

    Raises:
        UserError: a value is out of range, or options do not go together.
        SystemExit: from argparse, for unknown or missing options.
    """
    parser = argparse.ArgumentParser(
        prog="amused.training.finetune", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for add_group in (add_model, add_data, add_recipe, add_steps, add_output):
        add_group(parser)
    options = parser.parse_args(arguments)
    check(options)
    options.new_seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    options.cache_dir = options.cache_dir or options.output_dir / "cache"
    return options


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help='"nouns", "amused-256", "amused-512", a folder, or "owner/name" on the Hub',
    )
    group.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    group.add_argument("--variant", help="ignored: half-precision files are preferred")


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data, one of the first three")
    group.add_argument("--instance_data_dir", type=Path, help="a folder of images")
    group.add_argument("--instance_data_image", type=Path, help="a single image; its file name is its caption")
    group.add_argument("--instance_data_dataset", help="a Hub dataset, or anything datasets.load_dataset reads")
    group.add_argument("--image_key", help="column of images in the dataset")
    group.add_argument("--prompt_key", help="column of captions in the dataset, or their key in metadata.jsonl")
    group.add_argument("--prompt_prefix", default="", help="prepended to every caption")
    group.add_argument("--resolution", type=int, help="side in pixels (default: the model's own)")
    group.add_argument("--split_vae_encode", type=int, default=4, help="images encoded at once")
    group.add_argument("--cache_dir", type=Path, help="for tokens and embeddings (default: OUTPUT_DIR/cache)")
    group.add_argument("--dataloader_num_workers", type=int, default=0, help="ignored: all data is in memory")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to train")
    group.add_argument("--use_lora", action="store_true", help="train LoRA adapters instead of the whole network")
    group.add_argument("--lora_r", type=int, default=16)
    group.add_argument("--lora_alpha", type=int, default=32)
    group.add_argument("--lora_target_modules", nargs="+", default=list(ATTENTION))
    group.add_argument("--train_text_encoder", action="store_true")
    group.add_argument("--text_encoder_use_lora", action="store_true")
    group.add_argument("--text_encoder_lora_r", type=int, default=16)
    group.add_argument("--text_encoder_lora_alpha", type=int, default=32)
    group.add_argument("--text_encoder_lora_target_modules", nargs="+", default=list(ATTENTION))
    group.add_argument("--use_ema", action="store_true", help="average the weights (EMA) and save the average")
    group.add_argument("--ema_decay", type=float, default=0.9999)
    group.add_argument("--ema_update_after_step", type=int, default=0)
    group.add_argument("--min_masking_rate", type=float, default=0.0)
    group.add_argument("--cond_dropout_prob", type=float, default=0.0, help="share of captions that are dropped")


def add_steps(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steps")
    group.add_argument("--train_batch_size", type=int, default=16, help="images per device and pass")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--max_train_steps", type=int, default=1000)
    group.add_argument("--learning_rate", type=float, default=3e-4)
    group.add_argument("--scale_lr", action="store_true", help="multiply the rate by the images per step")
    group.add_argument("--lr_scheduler", choices=SCHEDULERS, default="constant")
    group.add_argument("--lr_warmup_steps", type=int, default=500)
    group.add_argument("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=1e-2)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float)
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"))
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower steps")
    group.add_argument("--allow_tf32", action="store_true")
    group.add_argument("--seed", type=int, help="of batches and masks (default: random, kept on resuming)")


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, default=Path("muse_training"))
    group.add_argument("--logging_dir", type=Path, default=Path("logs"), help="of the tracker, in OUTPUT_DIR")
    group.add_argument("--logging_steps", type=int, default=50, help="steps between reports to the tracker")
    group.add_argument("--report_to", default="wandb", help="tracker, if installed; loss.csv is always written")
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int)
    group.add_argument("--resume_from_checkpoint", help='a folder "checkpoint-N", or "latest"')
    group.add_argument("--validation_prompts", nargs="*", default=[])
    group.add_argument("--validation_steps", type=int, default=100)


def check(options: argparse.Namespace) -> None:
    sources = ("instance_data_dir", "instance_data_image", "instance_data_dataset")
    if sum(getattr(options, source) is not None for source in sources) != 1:
        raise UserError(f"Give one of {', '.join(f'--{source}' for source in sources)}.")
    if options.instance_data_dataset and not (options.image_key and options.prompt_key):
        raise UserError("--instance_data_dataset needs --image_key and --prompt_key, the names of its columns.")
    if options.text_encoder_use_lora and not options.train_text_encoder:
        raise UserError("--text_encoder_use_lora needs --train_text_encoder.")
    positive = (
        *("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "lora_r", "lora_alpha"),
        *("text_encoder_lora_r", "text_encoder_lora_alpha", "split_vae_encode", "learning_rate"),
        *("logging_steps", "checkpointing_steps", "validation_steps", "checkpoints_total_limit", "resolution"),
        *("max_grad_norm", "adam_epsilon"),
    )
    for name in positive:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be greater than 0.")
    for name in ("min_masking_rate", "cond_dropout_prob", "ema_decay", "adam_beta1", "adam_beta2"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name} must be between 0 and 1.")
    for name in ("lr_warmup_steps", "adam_weight_decay", "ema_update_after_step"):
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"--{name} must not be negative.")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UserError("--seed must be between 0 and 4294967295.")
