"""The tools that read the code: ruff, and mypy in strict mode."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*command: str, folder: Path = ROOT) -> None:
    run = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", ".")
    check("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy_finds_nothing(tmp_path: Path) -> None:
    """In a copy without the stubs that Gradio writes beside components: mypy would read those instead."""
    for name in ("amused", "tests"):
        skip = shutil.ignore_patterns("*.pyi", "*.safetensors", "fixtures", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    for name in ("app.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    check("mypy", folder=tmp_path)
