"""Reads an untrusted JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amused.errors import CheckpointError

MAX_BYTES = 1_000_000


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """Raises CheckpointError: `file` is missing, too large, or holds no JSON object."""
    path = folder / file
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_BYTES // 1_000_000} MB.")
        data = json.loads(path.read_text("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{file} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read.") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, a number of 5,000 digits
        raise CheckpointError(f"{file} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return data
