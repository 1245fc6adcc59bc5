"""Parse the flags, build the page and launch it."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import socket
import sys
from functools import partial
from pathlib import Path

from amused.checkpoints.catalog import PUBLISHED, bundled_names
from amused.errors import UserError
from amused.limits import COMPILE_MODES, switched_on
from amused.memory import keep_freed_memory
from amused.serving.ray_workers import RayWorkers, check_workers
from amused.serving.runtime import Runtime, load_model
from amused.serving.worker import LoadModel
from amused.serving.zero_gpu import ON_ZERO_GPU
from amused.ui.page import build_page, launch_options


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Flags, and environment variables for those that are left out. An empty value is none."""
    parser = argparse.ArgumentParser(
        description="Generate images with aMUSEd in a browser.",
        epilog="Each flag can also be set by an environment variable: AMUSED_HOST, AMUSED_PORT, AMUSED_SHARE=1, "
        "AMUSED_MODEL, AMUSED_QUANTIZE, AMUSED_ADAPTERS, AMUSED_COMPILE, AMUSED_WORKERS, AMUSED_RAY_ADDRESS. "
        "For limits and metrics see amused/serving/README.md.",
    )
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=switched_on("AMUSED_SHARE"),
        help="create a public link, valid for a week",
    )
    parser.add_argument(
        "--model",
        help='model to start with: "nouns", "amused-256", "amused-512", a folder, or "owner/name" on the Hub '
        "(default: amused-512 with CUDA, else nouns)",
    )
    parser.add_argument(
        "--quantize", help='"int8": faster on CPUs with VNNI; output differs from the unquantized model'
    )
    parser.add_argument("--adapters", help="folder of fine-tuned adapters to offer on the page")
    parser.add_argument(
        "--compile",
        metavar="{auto,off,graph,inductor}",
        help="what may speed up the network on a GPU, in the background (default: auto, which changes no image)",
    )
    parser.add_argument(
        "--workers",
        metavar="{auto,N}",
        help="sample in this many processes, or one per GPU, instead of in the page's own; needs Ray, see "
        "amused/serving/README.md",
    )
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="run the workers in an existing Ray cluster")
    flags = parser.parse_args(arguments)
    for name in ("host", "port", "model", "quantize", "adapters", "compile", "workers", "ray_address"):
        value = getattr(flags, name)
        value = os.environ.get(f"AMUSED_{name.upper()}") if value is None else value
        setattr(flags, name, (value or "").strip() or None)
    return flags


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse what would end in a traceback, or in a page that answers every visitor with an error. Loads no model.

    Raises:
        UserError: with a sentence that names the flag.
    """
    if flags.port is not None:
        if not (re.fullmatch("[0-9]{1,5}", flags.port) and 1 <= int(flags.port) <= 65535):
            raise UserError("--port must be a whole number from 1 to 65535.")
        flags.port = int(flags.port)
    check_address(flags.host, flags.port)
    if flags.model is not None:
        check_model(flags.model)
    if flags.quantize is not None:
        from amused.generation.placement import place  # imports torch

        try:
            place(quantize=flags.quantize)
        except UserError as error:
            raise UserError(f"--quantize {flags.quantize}: {error}") from error
    flags.compile = flags.compile or "auto"
    if flags.compile not in COMPILE_MODES:
        raise UserError(f"--compile must be one of {', '.join(COMPILE_MODES)}.")
    if flags.adapters is not None:
        flags.adapters = Path(flags.adapters)
        if not flags.adapters.is_dir():
            raise UserError("The --adapters folder does not exist.")
    if flags.workers is not None or flags.ray_address is not None:
        if ON_ZERO_GPU:
            raise UserError("--workers cannot be used on ZeroGPU, where each run has a process of its own.")
        flags.num_workers = check_workers(flags.workers, flags.ray_address)


def make_engine(flags: argparse.Namespace, load: LoadModel) -> RayWorkers | None:
    """What starts the workers that the flags ask for, if they do."""
    if flags.workers is None and flags.ray_address is None:
        return None
    return RayWorkers(load, flags.num_workers, flags.ray_address)


def check_address(host: str | None, port: int | None) -> None:
    try:
        found = socket.getaddrinfo((host or "127.0.0.1").strip("[]"), port or 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host} is not the name or address of a machine.") from error
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"--port {port} is in use: choose another one.",
            errno.EADDRNOTAVAIL: f"--host {host} is not an address of this machine.",
            errno.EACCES: f"--port {port} needs root privileges: choose 1024 or above.",
        }
        sentence = reasons.get(error.errno or 0, f"--host and --port cannot be used: {error.strerror}.")
        raise UserError(sentence) from error


def check_model(model: str) -> None:
    """Names of the Hub ("owner/name") are taken as they are: the Hub is asked once the page is served."""
    if model in (*bundled_names(), *PUBLISHED):
        return
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "transformer" / "config.json").is_file():
            raise UserError(f"--model {model}: this folder has no transformer/config.json, so it is not a model.")
    elif not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model, re.ASCII):
        raise UserError(f"--model {model}: there is no such folder, nor a model of that name.")


def bypass_proxy(host: str | None) -> None:
    """Gradio requests its own page at start-up: a proxy must not get that request."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [others, "localhost,127.0.0.1,::1", host]))


def main() -> None:
    keep_freed_memory()
    flags = parse_flags()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        check_flags(flags)
        compiled = "off" if ON_ZERO_GPU else flags.compile
        load = partial(load_model, quantize=flags.quantize, adapters=flags.adapters, compile=compiled)
        engine = make_engine(flags, load)
        runtime = Runtime(load=load, default=flags.model, adapters=flags.adapters, engine=engine)
        options = launch_options(runtime)
    except UserError as error:
        sys.exit(str(error))
    bypass_proxy(flags.host)
    page = build_page(runtime)
    if ON_ZERO_GPU:
        runtime.load_for_workers()
    try:
        page.launch(
            server_name=flags.host, server_port=flags.port, share=flags.share, prevent_thread_lock=True, **options
        )
    except OSError as error:  # Gradio finds no free port
        sys.exit(f"--port: {error}")
    if not ON_ZERO_GPU:
        runtime.warm_up()  # after the launch, so that importing torch does not delay the first page
    try:
        page.block_thread()
    finally:
        if runtime.workers is not None:
            runtime.workers.close()


if __name__ == "__main__":
    main()
