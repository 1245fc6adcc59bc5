"""Parse the flags, build the page and launch it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

from amused.errors import UserError
from amused.limits import switched_on
from amused.memory import keep_freed_memory
from amused.serving.runtime import Runtime, load_model
from amused.serving.zero_gpu import ON_ZERO_GPU
from amused.ui.page import build_page, launch_options


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Generate images with aMUSEd in a browser.",
        epilog="Each flag can also be set by an environment variable: AMUSED_HOST, AMUSED_PORT, AMUSED_SHARE=1, "
        "AMUSED_MODEL, AMUSED_QUANTIZE, AMUSED_ADAPTERS. For limits and metrics see amused/serving/README.md.",
    )
    parser.add_argument(
        "--host", default=os.environ.get("AMUSED_HOST"), help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=os.environ.get("AMUSED_PORT"), help="port (default: the first free one from 7860)"
    )
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=switched_on("AMUSED_SHARE"),
        help="create a public link, valid for a week",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("AMUSED_MODEL"),
        help='model to start with: "nouns", "amused-256", "amused-512", a folder, or "owner/name" on the Hub '
        "(default: amused-512 with CUDA, else nouns)",
    )
    parser.add_argument(
        "--quantize",
        default=os.environ.get("AMUSED_QUANTIZE"),
        help='"int8": faster on CPUs with VNNI; output differs from the unquantized model',
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        default=os.environ.get("AMUSED_ADAPTERS") or None,
        help="folder of fine-tuned adapters to offer on the page",
    )
    return parser.parse_args(arguments)


def main() -> None:
    keep_freed_memory()
    flags = parse_flags()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if flags.adapters is not None and not flags.adapters.is_dir():
        sys.exit("The --adapters folder does not exist.")
    load = partial(load_model, quantize=flags.quantize or None, adapters=flags.adapters)
    runtime = Runtime(load=load, default=flags.model or None, adapters=flags.adapters)
    try:
        options = launch_options(runtime)
    except UserError as error:
        sys.exit(str(error))
    page = build_page(runtime)
    if ON_ZERO_GPU:
        runtime.load_for_workers()
    page.launch(
        server_name=flags.host or None,
        server_port=flags.port,
        share=flags.share,
        prevent_thread_lock=True,
        **options,
    )
    if not ON_ZERO_GPU:
        runtime.warm_up()  # after the launch, so that importing torch does not delay the first page
    page.block_thread()


if __name__ == "__main__":
    main()
