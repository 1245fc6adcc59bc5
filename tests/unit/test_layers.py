"""One way through: each module imports only from those beneath it, and the page alone knows gradio."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    ["errors", "memory", "atomic", "wording"],
    ["limits"],
    ["recipe"],
    ["model"],
    ["checkpoints"],
    ["generation"],
    ["serving"],
    ["ui", "training", "benchmark", "batch"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in (ROOT / "amused").rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_beneath(path: Path) -> None:
    own = path.relative_to(ROOT / "amused").with_suffix("").parts[0]
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "diffusers" or own == "benchmark", "diffusers is what results are compared with"
        assert parts[0] not in ("peft", "accelerate") or own == "training", "they are slow to import"
        assert name != "transformers" or own == "training", "import the modules that are needed"
        assert parts[0] != "gradio" or own == "ui", "only the page knows gradio"
        if parts[0] == "amused" and len(parts) > 1 and parts[1] in LEVEL:
            assert parts[1] == own or LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name}"


def test_every_module_has_its_layer() -> None:
    names = {path.relative_to(ROOT / "amused").with_suffix("").parts[0] for path in FILES}
    assert names <= set(LEVEL)


def printed(code: str) -> str:
    """What a fresh process prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_importing_amused_is_light() -> None:
    code = "import sys, amused; print(sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    assert printed(code) == "[]"


@pytest.mark.slow
def test_transformers_is_imported_with_the_weights() -> None:
    """It takes longer to import than torch, so it must not keep `load` waiting."""
    code = (
        "import sys, amused; model = amused.load('nouns', device='cpu'); "
        "print(sorted({'transformers', 'diffusers', 'gradio'} & set(sys.modules))); "
        "model.text_to_image('a red cat', steps=1); "
        "print(sorted({'transformers', 'diffusers', 'gradio', 'torchvision'} & set(sys.modules)))"
    )
    assert printed(code).splitlines() == ["[]", "['transformers']"]


@pytest.mark.slow
def test_the_page_comes_before_torch_and_transformers() -> None:
    code = (
        "import sys, app; app.build_page(app.Runtime(default='nouns')); "
        "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    assert printed(code) == "[]"


@pytest.mark.slow
def test_importing_the_page_makes_no_stubs() -> None:
    """Gradio would parse each component for one, Gradio's own and ours, and take twice as long to import."""
    printed("import ast; ast.walk = None; import amused.ui.page")


def test_no_pickles() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        assert not re.search(r"torch\.(load|save)\(|import pickle", text), path


def test_no_test_imports_another() -> None:
    """What several test modules use lives in a conftest.py or in tests/helpers."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert not [name for name in imports(path) if any(part.startswith("test_") for part in name.split("."))], path


def test_the_ci_runs_the_readme_s_test_command(tmp_path: Path) -> None:
    """With stand-ins for python3, Chromium and the programs in .venv that write down how they are called."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "README.md", tmp_path)
    for program in ("bin/python3", "bin/chromium-headless-shell", ".venv/bin/pip", ".venv/bin/python"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >> called\n')
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", tmp_path / ".ci/run"], check=True, env={**os.environ, "PATH": path})
    assert (tmp_path / "called").read_text().splitlines() == [
        "bin/python3 -m venv .venv",
        ".venv/bin/pip install -r tests/requirements.txt",
        ".venv/bin/python -m pytest -n auto",
    ]
