"""The options of fine-tuning: names and defaults of the published script, so its command lines run unchanged.

The help says where a default differs. Invalid values are refused before anything is read.
"""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from amused.errors import UserError

Number = TypeVar("Number", int, float)

SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
ATTENTION = ("to_q", "to_k", "to_v")
USAGE = "%(prog)s --pretrained_model_name_or_path MODEL --instance_data_dir FOLDER [options], see --help"


def number(kind: type[Number], allowed: Callable[[float], bool], rule: str) -> Callable[[str], Number]:
    """The type of an option: a finite number that follows a rule."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not (math.isfinite(value) and allowed(value)):
            raise argparse.ArgumentTypeError(f"must be {rule}")
        return value

    parse.__name__ = kind.__name__  # argparse names it
    return parse


positive = number(float, lambda value: value > 0, "greater than 0")
positive_int = number(int, lambda value: value > 0, "greater than 0")
not_negative = number(float, lambda value: value >= 0, "0 or more")
not_negative_int = number(int, lambda value: value >= 0, "0 or more")
share = number(float, lambda value: 0 <= value <= 1, "between 0 and 1")
seed = number(int, lambda value: 0 <= value < 2**32, f"between 0 and {2**32 - 1}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check a command line, `sys.argv` by default."""
    options = new_parser().parse_args(arguments)
    check(options)
    options.new_seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    options.cache_dir = options.cache_dir or options.output_dir / "cache"
    return options


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="amused.training.finetune", usage=USAGE)

    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help='"nouns", "amused-256", "amused-512", a folder, or "owner/name" on the Hub',
    )
    group.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    group.add_argument("--variant", help="ignored: half-precision files are preferred")

    group = parser.add_argument_group("data, one of the first three")
    group.add_argument("--instance_data_dir", type=Path, help="a folder of images")
    group.add_argument("--instance_data_image", type=Path, help="a single image; its file name is its caption")
    group.add_argument("--instance_data_dataset", help="a Hub dataset, or anything datasets.load_dataset reads")
    group.add_argument("--image_key", help="column of images in the dataset")
    group.add_argument("--prompt_key", help="column of captions in the dataset, or their key in metadata.jsonl")
    group.add_argument("--prompt_prefix", default="", help="prepended to every caption")
    group.add_argument("--resolution", type=positive_int, help="side in pixels (default: the model's own)")
    group.add_argument("--split_vae_encode", type=positive_int, default=4, help="images encoded at once")
    group.add_argument("--cache_dir", type=Path, help="for tokens and embeddings (default: OUTPUT_DIR/cache)")
    group.add_argument("--dataloader_num_workers", type=int, default=0, help="ignored: all data is in memory")

    group = parser.add_argument_group("what to train")
    group.add_argument("--use_lora", action="store_true", help="train LoRA adapters instead of the whole network")
    group.add_argument("--lora_r", type=positive_int, default=16)
    group.add_argument("--lora_alpha", type=positive_int, default=32)
    group.add_argument("--lora_target_modules", nargs="+", default=list(ATTENTION))
    group.add_argument("--train_text_encoder", action="store_true")
    group.add_argument("--text_encoder_use_lora", action="store_true")
    group.add_argument("--text_encoder_lora_r", type=positive_int, default=16)
    group.add_argument("--text_encoder_lora_alpha", type=positive_int, default=32)
    group.add_argument("--text_encoder_lora_target_modules", nargs="+", default=list(ATTENTION))
    group.add_argument("--use_ema", action="store_true", help="average the weights (EMA) and save the average")
    group.add_argument("--ema_decay", type=share, default=0.9999)
    group.add_argument("--ema_update_after_step", type=not_negative_int, default=0)
    group.add_argument("--min_masking_rate", type=share, default=0.0)
    group.add_argument("--cond_dropout_prob", type=share, default=0.0, help="share of captions that are dropped")

    group = parser.add_argument_group("steps")
    group.add_argument("--train_batch_size", type=positive_int, default=16, help="images per device and pass")
    group.add_argument("--gradient_accumulation_steps", type=positive_int, default=1)
    group.add_argument("--max_train_steps", type=positive_int, default=1000)
    group.add_argument("--learning_rate", type=positive, default=3e-4)
    group.add_argument("--scale_lr", action="store_true", help="multiply the rate by the images per step")
    group.add_argument("--lr_scheduler", choices=SCHEDULERS, default="constant")
    group.add_argument("--lr_warmup_steps", type=not_negative_int, default=500)
    group.add_argument("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    group.add_argument("--adam_beta1", type=share, default=0.9)
    group.add_argument("--adam_beta2", type=share, default=0.999)
    group.add_argument("--adam_weight_decay", type=not_negative, default=1e-2)
    group.add_argument("--adam_epsilon", type=positive, default=1e-8)
    group.add_argument("--max_grad_norm", type=positive)
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"))
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower steps")
    group.add_argument("--allow_tf32", action="store_true")
    group.add_argument("--seed", type=seed, help="of batches and masks (default: random, kept on resuming)")

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, default=Path("muse_training"))
    group.add_argument("--logging_dir", type=Path, default=Path("logs"), help="of the tracker, in OUTPUT_DIR")
    group.add_argument("--logging_steps", type=positive_int, default=50, help="steps between reports to the tracker")
    group.add_argument("--report_to", default="wandb", help="tracker, if installed; loss.csv is always written")
    group.add_argument("--checkpointing_steps", type=positive_int, default=500)
    group.add_argument("--checkpoints_total_limit", type=positive_int)
    group.add_argument("--resume_from_checkpoint", help='a folder "checkpoint-N", or "latest"')
    group.add_argument("--validation_prompts", nargs="*", default=[])
    group.add_argument("--validation_steps", type=positive_int, default=100)

    return parser


def check(options: argparse.Namespace) -> None:
    sources = ("instance_data_dir", "instance_data_image", "instance_data_dataset")
    if sum(getattr(options, source) is not None for source in sources) != 1:
        raise UserError(f"Give one of {', '.join(f'--{source}' for source in sources)}.")
    if options.instance_data_dataset and not (options.image_key and options.prompt_key):
        raise UserError("--instance_data_dataset needs --image_key and --prompt_key, the names of its columns.")
    if options.output_dir.is_file():
        raise UserError(f"--output_dir {options.output_dir} is a file: give a folder.")
    if options.text_encoder_use_lora and not options.train_text_encoder:
        raise UserError("--text_encoder_use_lora needs --train_text_encoder.")
