import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may ask a hub
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    """A change of models collects garbage: a second each time among all that the libraries here hold for good."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
