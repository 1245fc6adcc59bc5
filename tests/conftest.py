import gc
import os

import pytest

from amused.memory import keep_freed_memory

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may ask a hub
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # threads that outnumber the cores spin while they wait for each other
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
keep_freed_memory()
pytest.register_assert_rewrite("helpers", "tests.measure")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    # The longest first, or one process does them at the end while the others have nothing left.
    items.sort(key=lambda item: item.path.name != "test_true_size.py")


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """A change of models collects garbage, which takes a second among all that the libraries hold for good."""
    gc.collect()
    gc.freeze()
