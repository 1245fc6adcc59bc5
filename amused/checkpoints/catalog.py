"""The models that can be had by name. What is published is pinned here. Imports nothing that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUNDLED = Path(__file__).parent

INDEX = "model_index.json"  # what makes a folder a checkpoint
TRAITS = "traits.json"  # the words that a model knows


@dataclass(frozen=True)
class Published:
    repo: str
    revision: str
    download: str  # about as much as is read at first use, for people


# The revision should be the hash of a commit, so that nobody can change the weights under us; it is not known here yet.
PUBLISHED = {
    "amused-256": Published(repo="amused/amused-256", revision="main", download="1.6 GB"),
    "amused-512": Published(repo="amused/amused-512", revision="main", download="1.6 GB"),
}


def bundled_names() -> list[str]:
    return sorted(path.name for path in BUNDLED.iterdir() if (path / INDEX).is_file()) if BUNDLED.is_dir() else []
