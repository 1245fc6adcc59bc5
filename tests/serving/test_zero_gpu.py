"""`app.py` on ZeroGPU: the real `spaces` package, a stub of the service that lends GPUs, and CPUs in their place."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from helpers.tiny import tiny_checkpoint
from helpers.zero_gpu import VISITOR, Space, zero_gpu_space
from PIL import Image

import amused
from amused.recipe.recipe import TEXT_TO_IMAGE
from amused.serving.zero_gpu import LOAD_SECONDS, MAX_LEASE_SECONDS, START_SECONDS

pytestmark = pytest.mark.slow

LONG = {"seeds": "0-7", "steps": 30}  # a few seconds


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have: half precision rounds otherwise with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def space(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with zero_gpu_space(tmp_path_factory.mktemp("space"), "--model", str(tiny)) as space:
        yield space


@pytest.fixture
def new_space(tiny: Path, tmp_path: Path) -> Iterator[Space]:
    """One in which nothing was measured yet."""
    with zero_gpu_space(tmp_path, "--model", str(tiny)) as space:
        yield space


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image and a mask."""
    folder = tmp_path_factory.mktemp("files")
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(folder / "image.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(folder / "mask.png")
    return folder / "image.png", folder / "mask.png"


def client_of(space: Space) -> Client:
    return Client(space.address, headers=VISITOR, verbose=False)


def replay(client: Client, **settings: Any) -> list[dict[str, Any]]:
    recipe = {"version": 2, "task": TEXT_TO_IMAGE, "prompt": "a fox", **settings}
    gallery, _ = client.predict(recipe=json.dumps(recipe), api_name="/recipe")
    return gallery


def images_of(gallery: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery]


def assert_same_images(gallery: list[dict[str, Any]], expected: list[Image.Image]) -> None:
    """Up to the rounding of decoders: another token changes 256 pixels by far more."""
    found = images_of(gallery)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert np.abs(one.astype(int) - np.asarray(other, dtype=int)).max() <= 1


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_weights_are_packed_before_the_page_opens(space: Space, tiny: Path) -> None:
    weights = sum(path.stat().st_size for path in tiny.rglob("*.safetensors"))
    assert space.service.started.is_set()
    (packed,) = space.offloaded.iterdir()
    assert packed.stat().st_size >= 0.9 * weights  # safetensors have headers


def test_every_task_gives_the_images_of_the_model(space: Space, tiny: Path, files: tuple[Path, Path]) -> None:
    client, (image, mask) = client_of(space), files
    model = amused.load(tiny, device="cpu", dtype="float16")
    gallery = client.predict(prompt="a red cat", seeds="1, 2", steps=8, api_name="/text_to_image")
    assert_same_images(gallery, model.text_to_image("a red cat", seeds=[1, 2], steps=8))
    gallery = client.predict(
        prompt="a red cat", image=handle_file(image), seeds="3", steps=4, api_name="/image_to_image"
    )
    assert_same_images(gallery, model.image_to_image("a red cat", image, seeds=[3], steps=4, width=64, height=64))
    gallery = client.predict(
        prompt="a red cat", image=handle_file(image), mask=handle_file(mask), seeds="3", steps=4, api_name="/inpaint"
    )
    assert_same_images(gallery, model.inpaint("a red cat", image, mask, seeds=[3], steps=4, width=64, height=64))
    assert {lease.visitor for lease in space.service.leases} == {VISITOR["X-IP-Token"]}
    assert all(lease.released.is_set() and not lease.failed for lease in space.service.leases)


def test_a_refusal_in_the_worker_is_a_sentence(space: Space) -> None:
    leases = len(space.service.leases)
    with pytest.raises(Exception, match="multiples of 32"):  # which the model's configuration says
        replay(client_of(space), seeds=[1], model="nouns", width=272, height=256)
    assert len(space.service.leases) == leases + 1


def test_another_model_during_a_sweep_harms_neither(space: Space, tiny: Path) -> None:
    before, other_client = len(space.service.leases), client_of(space)
    sweep = client_of(space).submit(prompt="a fox", **LONG, api_name="/text_to_image")
    wait_for(lambda: len(space.service.leases) > before)
    nouns, same = (
        other_client.predict(prompt="a fox", seeds="5", steps=2, api_name="/text_to_image", model=name)
        for name in ("nouns", "tiny")
    )
    assert_same_images(
        nouns, amused.load("nouns", device="cpu", dtype="float16").text_to_image("a fox", seeds=[5], steps=2)
    )
    model = amused.load(tiny, device="cpu", dtype="float16")
    assert_same_images(same, model.text_to_image("a fox", seeds=[5], steps=2))
    gallery = sweep.result(timeout=300)
    assert len(gallery) == 8
    assert_same_images(gallery[-1:], model.text_to_image("a fox", seeds=[7], steps=30))
    _, other, _ = leases = space.service.leases[before:]
    assert not any(lease.failed for lease in leases)
    assert other.num_others and other.seconds >= START_SECONDS + LOAD_SECONDS


def test_a_cancelled_run_gives_its_gpu_back(space: Space) -> None:
    run = client_of(space).submit(prompt="a fox", **LONG, api_name="/text_to_image")
    wait_for(run.outputs)
    lease = space.service.leases[-1]
    assert not lease.released.is_set()
    run.cancel()
    wait_for(lease.released.is_set, seconds=30)
    assert not lease.failed


def test_a_killed_worker_costs_no_image(space: Space) -> None:
    before = len(space.service.leases)
    run = client_of(space).submit(prompt="a fox", **LONG, api_name="/text_to_image")
    wait_for(lambda: run.outputs() and run.outputs()[-1])  # an image is finished
    lease = space.service.leases[before]
    assert lease.pid is not None
    os.kill(lease.pid, signal.SIGKILL)
    assert len(run.result(timeout=300)) == 8
    assert [lease.failed for lease in space.service.leases[before:]] == [True, False]


def test_a_long_sweep_takes_several_leases_and_stops_where_the_quota_ends(new_space: Space, tiny: Path) -> None:
    service, client = new_space.service, client_of(new_space)
    large = {"steps": 6, "width": 256, "height": 256}  # 16 times the pixels of the native size
    gallery = replay(client, seeds=list(range(8)), model="tiny", **large)
    model = amused.load(tiny, device="cpu", dtype="float16")
    assert_same_images(gallery, model.text_to_image("a fox", seeds=range(8), **large))
    assert len(service.leases) == 2 and all(lease.seconds <= MAX_LEASE_SECONDS for lease in service.leases)
    service.quota = START_SECONDS - 1
    with pytest.raises(Exception, match=r"You have exceeded your free ZeroGPU quota \(11s requested vs\. 9s left\)"):
        client.predict(prompt="a fox", seeds="0-7", steps=1, api_name="/text_to_image")
    assert len(service.refused) == 4  # for 8, 4, 2 and 1 seeds
