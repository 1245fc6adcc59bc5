"""Workers on two nodes of a Ray cluster, both on this machine; one of them is killed."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fake import FakeModel, load_fake

from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Result
from amused.serving.ray_workers import RayWorkers, prepare_environment
from amused.serving.workers import WorkerPool

ROOT = Path(__file__).parents[2]
WAIT = 90.0

pytestmark = pytest.mark.slow


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_goes_on_when_a_node_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    prepare_environment("127.0.0.1:0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        engine = RayWorkers(partial(load_fake, step_seconds=0.005), 2, address=cluster.address)
        images = [Recipe(TEXT_TO_IMAGE, "a cow", (seed,)) for seed in range(60)]
        with WorkerPool(engine, "nouns") as pool:
            wait_until(lambda: len(pool.places()) == 2)
            results = []
            with pool.enter("nouns") as run:
                for event in run.sample(enumerate(images)):
                    if isinstance(event, Result):
                        results.append(event)
                        if len(results) == 10:
                            cluster.remove_node(nodes[0], allow_graceful=False)
                            nodes.append(cluster.add_node(num_cpus=1, wait=False))
            assert sorted(result.index for result in results) == list(range(60))
            for result in results:
                *_, expected = FakeModel("nouns").generate(result.recipe)
                assert result.image.tobytes() == expected.image.tobytes()
            assert pool.num_losses
            wait_until(lambda: len(pool.places()) == 2)  # on the node that came later
    finally:
        cluster.shutdown()
        assert sys.modules["ray"].is_initialized() is False
