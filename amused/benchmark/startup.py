"""What a fresh process needs: to its first picture, and the page to its first answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amused.benchmark.sides import Side, summary

ROOT = Path(__file__).parents[2]
EMPTY_PAGE = """import gradio
with gradio.Blocks(analytics_enabled=False) as page:
    pass
page.launch(ssr_mode=False)"""
LONGEST = 120  # seconds to wait for a page


def first_picture(
    model: str, dtypes: tuple[str, str], device: str, requests: Iterator[list[dict[str, Any]]], repeats: int
) -> dict[str, float]:
    """Seconds from the start of a process to its picture, and what it held at most, for either side in turns."""
    found: list[list[dict[str, Any]]] = [[], []]
    for _ in range(repeats):
        for library, dtype, request, answers in zip(("amused", "diffusers"), dtypes, next(requests), found):
            began = time.monotonic()
            with Side(library, model, dtype, device) as side:
                answer = side.make(request)
                answers.append({**answer, "seconds": time.monotonic() - began})
    return summary(found)


def first_page(repeats: int) -> dict[str, float]:
    """The same of the app and of an empty Gradio page, until the page has come; the memory is that of this moment."""
    found: list[list[dict[str, Any]]] = [[], []]
    for _ in range(repeats):
        for command, answers in zip(([str(ROOT / "app.py")], ["-c", EMPTY_PAGE]), found):
            answers.append(wait_for_page([sys.executable, *command]))
    return summary(found)


def wait_for_page(command: list[str]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "AMUSED_PORT": str(port), "GRADIO_SERVER_PORT": str(port)}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.monotonic() - began < LONGEST:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LONGEST) as answer:
                    answer.read()
                return {"seconds": time.monotonic() - began, "peak": memory(process.pid)}
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the page did not come")
    finally:
        process.terminate()
        process.wait()


def memory(pid: int) -> int:
    """Bytes that a process holds now."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
