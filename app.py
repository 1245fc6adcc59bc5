"""Open the page: flags and environment variables, nothing else."""

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
        description="Make pictures with aMUSEd in a browser.",
        epilog="Each flag can also be given as an environment variable: AMUSED_HOST, AMUSED_PORT, AMUSED_SHARE=1, "
        "AMUSED_MODEL, AMUSED_ADAPTERS. Limits and what only the owner sees: see the README.",
    )
    parser.add_argument(
        "--host", default=os.environ.get("AMUSED_HOST"), help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=os.environ.get("AMUSED_PORT"), help="port (default: the first free from 7860 on)"
    )
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=switched_on("AMUSED_SHARE"),
        help="make a public link that lasts a week",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("AMUSED_MODEL"),
        help='model to start with: "nouns", "amused-256", "amused-512", a folder, or "owner/name" on the hub '
        "(default: amused-512 where there is CUDA, otherwise nouns)",
    )
    parser.add_argument(
        "--quantize",
        default=os.environ.get("AMUSED_QUANTIZE"),
        help='"int8" is faster on a CPU that has the units for it; the pictures are others than without',
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        default=os.environ.get("AMUSED_ADAPTERS") or None,
        help="folder of fine-tuned adapters that the page offers",
    )
    return parser.parse_args(arguments)


def main() -> None:
    keep_freed_memory()
    flags = parse_flags()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if flags.adapters is not None and not flags.adapters.is_dir():
        sys.exit("There is no folder of adapters of that name: give one that exists as --adapters.")
    load = partial(load_model, quantize=flags.quantize or None, adapters=flags.adapters)
    runtime = Runtime(load=load, default=flags.model or None, adapters=flags.adapters)
    try:
        options = launch_options(runtime)
    except UserError as error:
        sys.exit(str(error))
    page = build_page(runtime)
    if ON_ZERO_GPU:
        # Weights must be in place before the launch there: it packs them for the processes that get the GPU.
        runtime.warm_up().join()
    page.launch(
        server_name=flags.host or None,
        server_port=flags.port,
        share=flags.share,
        prevent_thread_lock=True,
        **options,
    )
    if not ON_ZERO_GPU:
        runtime.warm_up()  # not before: importing torch would keep the first visitor waiting for the page
    page.block_thread()


if __name__ == "__main__":
    main()
