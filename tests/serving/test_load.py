"""Many people at once, in short: `tests/measure/load.py` on the fake model. And what becomes of those who go away."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake import fake_runtime, numbers, sampled
from helpers.serve import serve

from amused.generation.images import digest
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving.jobs import Job, Result
from amused.serving.queue import BUSY, Slot
from amused.serving.runtime import Runtime
from tests.measure import endure, load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return fake_runtime(step_seconds=0.002, load_seconds=0.5, at_once=4, queue=6)


@pytest.fixture(scope="module")
def address(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = {"state_session_capacity": 20}  # each takes 0.6 MB: reached within a second
    with serve(runtime, tmp_path_factory.mktemp("cache"), **options) as address:
        yield address


def test_what_the_page_holds_levels_off(
    address: str, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few seconds of `tests/measure/endure.py`."""
    cache = Path(os.environ["GRADIO_TEMP_DIR"])
    curve = asyncio.run(endure.endure(address, os.getpid(), cache, 6, 1, "nouns"))
    middle, last = curve[len(curve) // 2], curve[-1]
    assert last["requests"] > middle["requests"] > 0
    assert last["threads"] <= middle["threads"] + 8 and last["open files"] <= middle["open files"] + 8
    assert last["memory MB"] <= middle["memory MB"] + 40
    assert not list(cache.glob(".*"))  # no half-written file
    wait_for(lambda: idle(runtime))
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Job | Slot)]


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within a minute")


def idle(runtime: Runtime) -> bool:
    return numbers(runtime)["amused_runs"] == 0


def test_everybody_gets_their_own_picture_and_a_sweep_holds_nobody_up(address: str) -> None:
    given = asyncio.run(load.crowd(address, people=6, requests=2, steps=4, model="nouns", sweep=24))
    load.check([*given["people"], *given["sweep"], *(one for one in given["late"] if not one.error)])
    (sweep,) = given["sweep"]
    assert max(one.seconds for one in given["people"]) < sweep.seconds
    assert all(BUSY in one.error or not one.error for one in given["late"])
    alone = fake_runtime()
    for one in [*given["people"], sweep]:
        if one.recipe.task == TEXT_TO_IMAGE:
            made = [event for event in sampled(alone, one.recipe) if isinstance(event, Result)]
            assert [name for _, name in one.made] == [digest(event.image) for event in made]


def test_a_full_queue_says_so_at_once_and_loses_nobody(address: str, runtime: Runtime) -> None:
    async def burst() -> list[load.Asked]:
        page = load.Page(address)
        await page.read()
        recipes = [Recipe(TEXT_TO_IMAGE, f"a fox {index}", (index,), model="nouns", steps=50) for index in range(25)]
        return await asyncio.gather(*(page.ask(load.Asked(recipe), {}) for recipe in recipes))

    asked = asyncio.run(burst())
    busy = [one for one in asked if BUSY in one.error]
    load.check([one for one in asked if one not in busy])
    assert 1 <= len(busy) <= 15
    assert max(one.seconds for one in busy) < min(max(one.seconds for one in asked), 10)
    wait_for(lambda: idle(runtime))


@pytest.mark.parametrize("seed", range(4))
def test_those_who_go_away_leave_the_model_to_the_others(address: str, runtime: Runtime, seed: int) -> None:
    """Cancelled or with the connection dropped, while waiting or working, at a random moment."""
    random = np.random.default_rng(seed)
    left = numbers(runtime)['amused_requests_total{outcome="left"}']

    def go_away(delay: float, cancels: bool) -> None:
        session = f"{seed}-{delay}"
        with httpx.Client(base_url=f"{address}gradio_api/", timeout=60) as client:
            info = client.get("info").json()["named_endpoints"]["/text_to_image"]["parameters"]
            data = [parameter.get("parameter_default") for parameter in info]
            data[:4] = ["a fox", "0-63", "", 100]
            index = next(
                one["id"]
                for one in client.get(f"{address}config").json()["dependencies"]
                if one["api_name"] == "text_to_image"
            )
            asked = {"data": data, "session_hash": session, "fn_index": index}
            event = client.post("queue/join", json=asked).json()["event_id"]
            with client.stream("GET", "queue/data", params={"session_hash": session}) as stream:
                lines = stream.iter_lines()
                # Gradio forgets a request that is cancelled before it has called us.
                while "process_generating" not in next(lines):
                    pass
                began = time.monotonic()
                while time.monotonic() - began < delay:
                    next(lines)
                if cancels:
                    fields = {"session_hash": session, "fn_index": index, "event_id": event}
                    httpx.post(f"{address}gradio_api/cancel", json=fields, timeout=60)

    delays = random.uniform(0, 1, 6)
    threads = [
        threading.Thread(target=go_away, args=(delay, bool(index % 2)), daemon=True)
        for index, delay in enumerate(delays)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    made = [event for event in sampled(runtime, Recipe(TEXT_TO_IMAGE, "next", (1,), steps=2))]
    assert isinstance(made[-1], Result)
    wait_for(lambda: numbers(runtime)['amused_requests_total{outcome="left"}'] == left + 6)
    wait_for(lambda: idle(runtime))
