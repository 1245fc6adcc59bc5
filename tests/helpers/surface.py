"""The public surface, described as plain data: HTTP API, Python signatures, command lines, and what a recipe makes.

The fixtures in `fixtures/v0.4.0` are what these functions gave with version 0.4.0.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from gradio_client import Client
from PIL import Image

import amused
from amused.benchmark.startup import free_port, wait_for_page

REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures" / "v0.4.0"
EXAMPLES = REPOSITORY / "examples"
ADAPTERS = FIXTURES / "adapters"

COMMANDS = (
    "app.py",
    "amused.benchmark",
    "amused.training.finetune",
    "amused.training.train_nouns",
    "amused.training.score_nouns",
    "amused.training.style_example",
)
METHODS = ("text_to_image", "image_to_image", "inpaint", "generate", "decode", "preview")
ATTRIBUTES = ("name", "size", "traits", "device", "dtype", "dtype_reason")


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text("utf-8"))


# The page


@contextlib.contextmanager
def launched_page() -> Iterator[str]:
    """The address of `python app.py` with the bundled model, in a process of its own."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AMUSED_")}
        process = subprocess.Popen(
            [sys.executable, "app.py", "--model", "nouns", "--port", str(port), "--adapters", str(ADAPTERS)],
            cwd=REPOSITORY,
            env={**environment, "GRADIO_TEMP_DIR": str(Path(folder) / "files"), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            try:
                wait_for_page(address, process)
            except RuntimeError as error:
                raise RuntimeError(Path(log.name).read_text()) from error
            yield address
        finally:
            process.terminate()
            process.wait(30)


def describe_api(client: Client) -> dict[str, Any]:
    """The named endpoints: the parameters in order, with defaults and types, and the types of what they return.

    Descriptions, labels, example inputs and the names of Gradio components are left out: no request depends on them.
    """
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    return {
        name: {
            "parameters": [
                [
                    one["parameter_name"],
                    repr(one["parameter_default"]) if one["parameter_has_default"] else "required",
                    one["python_type"]["type"],
                ]
                for one in endpoint["parameters"]
            ],
            "returns": [one["python_type"]["type"] for one in endpoint["returns"]],
        }
        for name, endpoint in sorted(endpoints.items())
    }


def without_result(query: str) -> str:
    """The query of a recipe without what says how its image came out: `digest` and `made`."""
    return urlencode([(name, value) for name, value in parse_qsl(query, True) if name not in ("digest", "made")])


# Python


def describe_python() -> dict[str, Any]:
    """Names, kinds and defaults of parameters and fields. Annotations are left out: their types may be renamed."""
    return {
        "all": sorted(amused.__all__),
        "load": parameters(amused.load),
        "Amused": {name: parameters(getattr(amused.Amused, name)) for name in METHODS},
        "Recipe": fields_of(amused.Recipe),
        "Step": fields_of(amused.Step),
        "Picture": fields_of(amused.Picture),
        "errors": {
            error.__name__: [base.__name__ for base in error.__mro__]
            for error in (amused.UserError, amused.CheckpointError)
        },
    }


def parameters(function: Any) -> list[list[str]]:
    return [
        [one.name, one.kind.name, "required" if one.default is one.empty else repr(one.default)]
        for one in inspect.signature(function).parameters.values()
    ]


def fields_of(kind: Any) -> list[list[str]]:
    return [
        [one.name, "required" if one.default is dataclasses.MISSING else repr(one.default)]
        for one in dataclasses.fields(kind)
    ]


# Command lines

READ_HELP = """
import contextlib, io, json, runpy, sys
helps = {}
for command in sys.argv[1:]:
    sys.argv, printed = [command, "--help"], io.StringIO()
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        run(command, run_name="__main__")
    helps[command] = printed.getvalue()
print(json.dumps(helps))
"""


def describe_commands() -> dict[str, dict[str, Any]]:
    """By command and option: how many values it takes, as in argparse's `nargs`, and the choices, if it has any.

    All commands print their help in one process, since importing torch takes most of the time.
    """
    printed = subprocess.run(
        [sys.executable, "-c", READ_HELP, *COMMANDS],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    return {command: options_in(text) for command, text in json.loads(printed.splitlines()[-1]).items()}


def options_in(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in re.findall(r"^  (-.*)", text, re.MULTILINE):
        listed = re.split(r"\s{2,}", line)[0]
        choices = re.search(r"\{([^}]*)\}", listed)
        values = re.sub(r"--?[\w-]+,?", "", listed.rpartition(", ")[2]).split()
        takes = "any" if any("..." in value for value in values) else len(values)
        for option in re.findall(r"(?:^|, )(--?[\w-]+)", listed):
            found[option] = {"values": takes, "choices": choices[1].split(",") if choices else None}
    return found


# Images


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Two threads round some convolutions differently: tokens are the same, the last bit of a pixel may not be."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def events_of(model: amused.Amused, recipe: amused.Recipe, inputs: list[str]) -> list[dict[str, Any]]:
    """What a recipe makes, one entry per seed. `inputs` are files in `examples`: an image, and a mask."""
    made: list[dict[str, Any]] = []
    masked: list[int] = []
    for event in model.generate(recipe, *(Image.open(EXAMPLES / name) for name in inputs)):
        if isinstance(event, amused.Step):
            masked.append(int(event.masked.sum()))
        else:
            tokens = event.tokens.numpy().astype("<i2")
            made.append(
                {
                    "seed": event.seed,
                    "masked": masked,
                    "size": list(event.image.size),
                    "tokens": base64.b64encode(tokens.tobytes()).decode(),
                    "digest": digest_of_pixels(event.image),
                }
            )
            masked = []
    return made


def tokens_in(made: dict[str, Any]) -> list[int]:
    return np.frombuffer(base64.b64decode(made["tokens"]), "<i2").tolist()


def digest_of_pixels(image: Image.Image) -> str:
    """The digest in links and PNG files, written out again here: it must not change either."""
    return hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode() + image.tobytes()).hexdigest()[:16]


def kind_of_machine() -> dict[str, Any]:
    """What rounding depends on: the CPU's vector units, and the version of torch that uses them."""
    units = re.compile(r"avx|amx|fma|f16c|sse|neon|asimd|sve|bf16")
    return {
        "torch": torch.__version__.partition("+")[0],
        "architecture": platform.machine(),
        "units": sorted(
            name for name, here in torch.cpu.get_capabilities().items() if here is True and units.match(name)
        ),
    }
