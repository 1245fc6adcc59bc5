"""Open the page: flags and environment variables, nothing else."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from amused.errors import UserError
from amused.limits import switched_on
from amused.runtime import ON_ZERO_GPU, Runtime
from amused.ui.page import build_page, launch_options


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make pictures with aMUSEd in a browser.",
        epilog="Each flag can also be given as an environment variable: AMUSED_HOST, AMUSED_PORT, AMUSED_SHARE=1, "
        "AMUSED_MODEL. Limits and what only the owner sees: see the README.",
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
    return parser.parse_args(arguments)


def main() -> None:
    flags = parse_flags()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    runtime = Runtime(default=flags.model or None)
    try:
        options = launch_options(runtime)
    except UserError as error:
        sys.exit(str(error))
    page = build_page(runtime)
    warming = runtime.warm_up()
    if ON_ZERO_GPU:
        # Weights must be in place before the launch there: it packs them for the processes that get the GPU.
        warming.join()
    page.launch(server_name=flags.host or None, server_port=flags.port, share=flags.share, **options)


if __name__ == "__main__":
    main()
