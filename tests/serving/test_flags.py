"""What an owner can get wrong on the command line is said at once, in one sentence that names the flag."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from amused.benchmark.startup import free_port
from amused.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AMUSED_")]:
        monkeypatch.delenv(name)


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        app.check_flags(app.parse_flags(list(arguments)))
    return str(refused.value)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--port", "70000", "from 1 to 65535"),
        ("--port", "0", "from 1 to 65535"),
        ("--port", "eight", "from 1 to 65535"),
        ("--port", "²", "from 1 to 65535"),
        ("--host", "203.0.113.7", "not an address of this machine"),
        ("--host", "no.such.host.invalid", "not the name or address of a machine"),
        ("--host", "a" * 300, "not the name or address of a machine"),
        ("--model", "/no/such/folder", "no such folder"),
        ("--model", "nuons", "nor a model of that name"),
        ("--model", "a/b/c", "no such folder"),
        ("--model", str(ROOT / "examples"), "not a model"),
        ("--quantize", "int4", "int8"),
        ("--adapters", "/no/such/folder", "does not exist"),
        ("--compile", "fast", "auto, off, graph, inductor"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(
    flag: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = refusal(flag, value)
    assert flag in sentence and words in sentence and "\n" not in sentence
    monkeypatch.setenv(f"AMUSED_{flag[2:].upper()}", value)
    assert refusal() == sentence


@pytest.mark.parametrize("host", [None, "127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_in_use_is_refused(used_port: int, host: str | None) -> None:
    assert refusal("--port", str(used_port), *(["--host", host] if host else [])) == (
        f"--port {used_port} is in use: choose another one."
    )


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = app.parse_flags([])
    for name in ("HOST", "PORT", "SHARE", "MODEL", "QUANTIZE", "ADAPTERS", "COMPILE"):
        monkeypatch.setenv(f"AMUSED_{name}", value)
    assert app.parse_flags([]) == unset == app.parse_flags(["--host", value, "--model", value])
    app.check_flags(unset)


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMUSED_MODEL", "amused-256")
    assert app.parse_flags([]).model == "amused-256" and app.parse_flags(["--model", "nouns"]).model == "nouns"


@pytest.mark.parametrize(
    "model", ["nouns", "amused-256", "someone/some-model", str(ROOT / "amused" / "checkpoints" / "nouns")]
)
def test_a_valid_model_is_taken_without_being_loaded(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amused.serving.runtime.load_model", lambda *_: pytest.fail("it was loaded"))
    app.check_flags(app.parse_flags(["--model", model]))


@pytest.mark.slow
def test_the_program_ends_with_the_sentence_alone(used_port: int) -> None:
    command = [sys.executable, "app.py", "--port", str(used_port)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and run.stderr == f"--port {used_port} is in use: choose another one.\n"


@pytest.mark.slow
def test_the_page_starts_where_requests_go_through_a_proxy(tmp_path: Path) -> None:
    """Which is not there, as seen from this test; the page needs none for itself."""
    port = free_port()
    proxy = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")}
    environment = {**os.environ, **proxy, "NO_PROXY": "example.org", "GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, "app.py", "--port", str(port), "--model", "nouns"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert any("nouns is ready" in line for line in process.stdout)
        finally:
            process.kill()
