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


# A browser that draws without a GPU on two busy cores may stand still for longer than anybody waits: once more, and
# reported as such. What is wrong on the page is an AssertionError and fails at once. For other tests the plugin is off:
# it asks the main process before and after each test, which takes 40 ms.
ONCE_MORE = pytest.mark.flaky(reruns=1, only_rerun="^TimeoutError: Locator")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker(ONCE_MORE)
    # The longest first, or one process does them at the end while the others have nothing left.
    items.sort(key=lambda item: item.path.name != "test_true_size.py")


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """A change of models collects garbage, which takes a second among all that the libraries hold for good."""
    gc.collect()
    gc.freeze()
