"""Models available by name, bundled or published. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUNDLED = Path(__file__).parent

INDEX = "model_index.json"  # marks a folder as a checkpoint
TRAITS = "traits.json"  # the words a model was trained on


@dataclass(frozen=True)
class Published:
    """A repository on the Hub.

    Attributes:
        download: its approximate size, for people; None if unknown.
        size, multiple: in pixels, as of `CheckpointConfig`, known before the download.
    """

    repo: str
    revision: str = "main"
    download: str | None = None
    size: int = 256
    multiple: int = 32


# TODO: pin each revision to a commit hash, so that the weights cannot change.
PUBLISHED = {
    "amused-256": Published("amused/amused-256", download="1.6 GB", size=256, multiple=16),
    "amused-512": Published("amused/amused-512", download="1.6 GB", size=512, multiple=32),
}


def bundled_names() -> list[str]:
    return sorted(path.name for path in BUNDLED.iterdir() if (path / INDEX).is_file())
