"""Models available by name, bundled or published. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUNDLED = Path(__file__).parent

INDEX = "model_index.json"  # marks a folder as a checkpoint
TRAITS = "traits.json"  # the words a model was trained on


@dataclass(frozen=True)
class Published:
    repo: str
    revision: str
    download: str  # approximate size, for people


# TODO: pin each revision to a commit hash, so that the weights cannot change.
PUBLISHED = {
    "amused-256": Published(repo="amused/amused-256", revision="main", download="1.6 GB"),
    "amused-512": Published(repo="amused/amused-512", revision="main", download="1.6 GB"),
}


def bundled_names() -> list[str]:
    return sorted(path.name for path in BUNDLED.iterdir() if (path / INDEX).is_file()) if BUNDLED.is_dir() else []
