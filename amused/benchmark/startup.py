"""Start-up times: from a fresh process to its first image, and from `app.py` to its first response."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from amused.benchmark.sides import Side, summarize

ROOT = Path(__file__).parents[2]
EMPTY_PAGE = """import gradio
with gradio.Blocks(analytics_enabled=False) as page:
    pass
page.launch(ssr_mode=False)"""
TIMEOUT = 120  # seconds


def first_image(
    model: str, dtypes: tuple[str, str], device: str, requests: Iterator[list[dict[str, Any]]], repeats: int
) -> dict[str, float]:
    """Seconds from the start of a process to its first image, and its peak memory. The sides take turns."""
    timings: list[list[dict[str, Any]]] = [[], []]
    for _ in range(repeats):
        for library, dtype, request, timed in zip(("amused", "diffusers"), dtypes, next(requests), timings):
            start = time.monotonic()
            with Side(library, model, dtype, device) as side:
                timing = side.generate(request)
                timed.append({**timing, "seconds": time.monotonic() - start})
    return summarize(timings)


def first_page(repeats: int) -> dict[str, float]:
    """Seconds until the app and an empty Gradio app serve their page, and their memory at that time."""
    timings: list[list[dict[str, Any]]] = [[], []]
    for _ in range(repeats):
        for arguments, timed in zip(([str(ROOT / "app.py")], ["-c", EMPTY_PAGE]), timings):
            timed.append(time_page([sys.executable, *arguments]))
    return summarize(timings)


def time_page(command: list[str]) -> dict[str, Any]:
    """Start a server and wait for its page.

    Raises:
        RuntimeError: there is none after `TIMEOUT` seconds.
    """
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "AMUSED_PORT": str(port), "GRADIO_SERVER_PORT": str(port)}
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_page(f"http://127.0.0.1:{port}/", process)
        return {"seconds": time.monotonic() - start, "peak": resident_bytes(process.pid)}
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for_page(address: str, process: subprocess.Popen[bytes], seconds: float = TIMEOUT) -> None:
    """Wait until a server responds.

    Raises:
        RuntimeError: it has ended, or does not respond within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(address, timeout=seconds) as response:
            response.read()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{address} has ended or does not respond within {seconds:g} seconds.")


def resident_bytes(pid: int | str) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
