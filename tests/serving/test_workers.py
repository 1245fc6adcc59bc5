"""Workers in place of a model in the page's process: who samples what, what a loss costs, and that Ray is locked up."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake import FakeModel, Turnstile, load_fake, numbers

from amused.batch.job import read_job
from amused.batch.shards import Folder, ShardWriter, encode
from amused.errors import UserError
from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
from amused.serving import workers as pool_module
from amused.serving.jobs import Progress, Request, Result, Summary
from amused.serving.queue import ReportProgress
from amused.serving.ray_workers import RayWorkers, check_workers
from amused.serving.runtime import Runtime
from amused.serving.worker import ModelHost, WorkerLostError, WorkerMemoryError
from amused.serving.worker_run import MAX_UNREAD
from amused.serving.workers import MAX_LOSSES, InProcess, WorkerPool

ROOT = Path(__file__).parents[2]
WAIT = 60.0
NUM_IMAGES, NUM_KILLS = 60, 6  # for a proof: 200, 20


def recipes(count: int, model: str = "nouns", first: int = 0, **options: Any) -> list[Recipe]:
    return [Recipe(TEXT_TO_IMAGE, "a cow", (first + i,), model, **options) for i in range(count)]


def expected(recipe: Recipe) -> bytes:
    *_, image = FakeModel(recipe.model).generate(recipe)
    return image.image.tobytes()


def sampled(pool: WorkerPool, images: list[Recipe], previews: bool = False) -> Generator[Result]:
    """The results of a run, in the order in which they come."""
    with pool.enter(images[0].model, previews) as run:
        for _ in run.wait_for_model():
            pass
        with contextlib.closing(run.sample(enumerate(images))) as events:
            for event in events:
                if isinstance(event, Result):
                    yield event


def check_complete(results: list[Result], images: list[Recipe]) -> None:
    """Every image once, with the right bytes."""
    assert sorted(result.index for result in results) == list(range(len(images)))
    for result in results:
        assert result.recipe == images[result.index]
        assert result.image.tobytes() == expected(result.recipe)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The scheduling, with workers that are threads


class Thread(ModelHost):
    """A worker in a thread, which a test can break: `broken` is raised by its next step."""

    def __init__(self, number: int, engine: Threads) -> None:
        super().__init__(partial(self.load_model, engine))
        self.place, self.engine, self.number = f"thread {number}", engine, number
        self.broken: Exception | None = None

    def load_model(self, engine: Threads, name: str, report: ReportProgress) -> FakeModel:
        engine.loads.append((self.number, name))
        if name == "broken":
            raise UserError("This model is broken.")
        if name == "fatal":
            raise WorkerLostError("killed for memory")
        return FakeModel(name, before_step=engine.gate)

    def sample(self, recipe: Recipe, inputs: Any, previews: bool) -> Generator[Progress | Result]:
        self.engine.tasks.append((self.number, recipe.prompt, recipe.seeds))
        for event in super().sample(recipe, inputs, previews):
            if self.broken is not None:
                raise self.broken
            yield event


class Threads:
    """An engine without processes."""

    def __init__(self, count: int) -> None:
        self.count, self.gate = count, Turnstile()
        self.workers: dict[int, Thread] = {}
        self.tasks: list[tuple[int, str, tuple[int, ...]]] = []
        self.loads: list[tuple[int, str]] = []
        self.num_started = 0

    def start(self) -> int:
        return self.count

    def new_worker(self, number: int) -> Thread:
        self.num_started += 1
        self.workers[number] = Thread(number, self)
        return self.workers[number]

    def share(self, inputs: Any) -> Any:
        return inputs

    def stop(self) -> None:
        self.gate.open.set()

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RESTART_SECONDS", 0.01)


def test_images_are_made_once_by_all_workers() -> None:
    engine, images = Threads(3), recipes(30)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool:
        found: list[Result] = []
        thread = threading.Thread(target=lambda: found.extend(sampled(pool, images)))
        thread.start()
        wait_until(lambda: len(engine.tasks) == 3)
        engine.gate.open.set()
        thread.join(WAIT)
        check_complete(found, images)
    assert {number for number, *_ in engine.tasks} == {0, 1, 2}
    assert len(engine.tasks) == 30


def test_a_single_image_does_not_wait_for_a_sweep() -> None:
    engine = Threads(1)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool:
        sweep = threading.Thread(target=lambda: list(sampled(pool, recipes(20, steps=1))))
        sweep.start()
        wait_until(lambda: len(engine.tasks) == 1)
        single = Recipe(TEXT_TO_IMAGE, "single", (5,), steps=1)
        thread = threading.Thread(target=lambda: list(sampled(pool, [single])))
        thread.start()
        wait_until(lambda: len(pool._runs) == 2)
        engine.gate.open.set()
        thread.join(WAIT)
        sweep.join(WAIT)
    assert [prompt for _, prompt, _ in engine.tasks].index("single") <= 2


def test_two_sweeps_share_the_workers() -> None:
    engine = Threads(2)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool:
        threads = [
            threading.Thread(target=lambda first=first: list(sampled(pool, recipes(10, first=first, steps=1))))
            for first in (0, 100)
        ]
        threads[0].start()
        wait_until(lambda: len(engine.tasks) == 2)
        threads[1].start()
        wait_until(lambda: len(pool._runs) == 2)
        engine.gate.open.set()
        for thread in threads:
            thread.join(WAIT)
    assert sum(seeds[0] >= 100 for _, _, seeds in engine.tasks[2:12]) >= 4


def test_the_images_of_a_lost_worker_go_to_another_one() -> None:
    engine, images = Threads(2), recipes(10)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool, pool.enter("nouns") as run:
        for _ in run.wait_for_model():
            pass
        events = run.sample(enumerate(images))
        first = next(events)
        wait_until(lambda: len(engine.tasks) == 2)
        lost = engine.workers[0]
        lost.broken = WorkerLostError("gone")
        engine.gate.open.set()
        results = [event for event in [first, *events] if isinstance(event, Result)]
        check_complete(results, images)
        assert (run.num_moved, pool.num_losses, pool.num_moved) == (1, 1, 1)
        wait_until(lambda: len(pool.places()) == 2)
    seeds = [seeds for _, _, seeds in engine.tasks]
    assert len(seeds) == 11 and len(set(seeds)) == 10
    again = max(set(seeds), key=seeds.count)
    assert [number for number, _, made in engine.tasks if made == again] == [0, 1]
    assert engine.workers[0] is not lost


def test_a_worker_without_memory_lives_on_and_another_one_makes_its_image() -> None:
    engine, images = Threads(2), recipes(6)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool:
        found: list[Result] = []
        thread = threading.Thread(target=lambda: found.extend(sampled(pool, images)))
        thread.start()
        wait_until(lambda: len(engine.tasks) == 2)
        engine.workers[1].broken = WorkerMemoryError("No memory.")
        engine.gate.open.set()
        thread.join(WAIT)
        check_complete(found, images)
    assert engine.num_started == 2


def test_an_image_that_no_worker_has_memory_for_is_refused() -> None:
    engine = Threads(2)
    with WorkerPool(engine, "nouns") as pool:
        wait_until(lambda: len(pool.places()) == 2)
        for worker in engine.workers.values():
            worker.broken = WorkerMemoryError("No memory.")
        with pytest.raises(UserError, match="No memory"):
            list(sampled(pool, recipes(1)))
        assert len(engine.tasks) == 3


def test_a_worker_that_always_fails_is_given_up() -> None:
    class Failing(Threads):
        def new_worker(self, number: int) -> Thread:
            self.num_started += 1
            raise WorkerLostError("not today")

    engine = Failing(1)
    with WorkerPool(engine, "nouns") as pool:
        with pytest.raises(UserError, match="All workers failed too often"):
            list(sampled(pool, recipes(1)))
        assert engine.num_started == MAX_LOSSES + 1
        with pytest.raises(UserError, match="All workers failed too often"):  # later runs too
            list(sampled(pool, recipes(1)))
        assert "amused_workers" in "".join(metric.name for metric in pool.collect())


def test_different_models_are_on_different_workers() -> None:
    engine = Threads(2)
    with WorkerPool(engine, "nouns") as pool:
        wait_until(lambda: len(pool.places()) == 2)
        check_complete(list(sampled(pool, recipes(3, "amused-256"))), recipes(3, "amused-256"))
        check_complete(list(sampled(pool, recipes(3))), recipes(3))
        assert sorted(seat.model for seat in pool._seats) == ["amused-256", "nouns"]
        assert pool.is_loaded("nouns") and pool.is_loaded("amused-256")
    assert len(engine.loads) == 3  # two at the start


def test_a_model_in_demand_gets_a_second_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "DEMAND_SECONDS", 0.05)
    monkeypatch.setattr(pool_module, "STATUS_SECONDS", 0.05)
    engine = Threads(2)
    with WorkerPool(engine, "nouns") as pool:
        list(sampled(pool, recipes(1, "amused-256")))
        engine.gate.open.clear()
        thread = threading.Thread(target=lambda: list(sampled(pool, recipes(9))))
        thread.start()
        wait_until(lambda: [seat.model for seat in pool._seats] == ["nouns", "nouns"])
        engine.gate.open.set()
        thread.join(WAIT)
    assert {number for number, _, seeds in engine.tasks[1:]} == {0, 1}


def test_a_model_that_cannot_be_loaded_fails_only_its_own_run() -> None:
    engine = Threads(1)
    with WorkerPool(engine, "nouns") as pool:
        with pytest.raises(UserError, match="broken"):
            list(sampled(pool, recipes(1, "broken")))
        check_complete(list(sampled(pool, recipes(2))), recipes(2))
    assert engine.num_started == 1


def test_a_model_that_ends_its_workers_is_refused_and_the_workers_live_on() -> None:
    engine = Threads(2)
    with WorkerPool(engine, "nouns") as pool:
        with pytest.raises(UserError, match="fatal cannot be loaded"):
            list(sampled(pool, recipes(1, "fatal")))
        check_complete(list(sampled(pool, recipes(4))), recipes(4))
        assert pool.num_losses == 3


def test_a_run_that_is_closed_stops_its_worker_within_an_image() -> None:
    engine = Threads(1)
    engine.gate.open.clear()
    with WorkerPool(engine, "nouns") as pool:
        with pool.enter("nouns") as run:
            for _ in run.wait_for_model():
                pass
            events = run.sample(enumerate(recipes(3, steps=100)))
            while not isinstance(next(events), Progress):
                engine.gate.passes.release()
        num_steps = 0

        def is_stopped() -> bool:
            nonlocal num_steps
            num_steps += 1
            engine.gate.passes.release()
            return pool._seats[0].state == "ready"

        wait_until(is_stopped)
        assert num_steps < 90  # not all that the image had
        assert len(engine.tasks) == 1


def test_images_that_nobody_takes_are_not_piled_up() -> None:
    engine = Threads(2)
    with WorkerPool(engine, "nouns") as pool, pool.enter("nouns", previews=False) as run:
        for _ in run.wait_for_model():
            pass
        read = 0

        def images() -> Iterator[tuple[int, Recipe]]:
            nonlocal read
            for read, recipe in enumerate(recipes(MAX_UNREAD + 40, steps=1)):  # noqa: UP028
                yield read, recipe

        events = run.sample(images())
        next(events)
        wait_until(lambda: len(run._results) >= MAX_UNREAD and not run.in_work)
        assert read < MAX_UNREAD + 10
        assert sum(isinstance(event, Result) for event in events) >= MAX_UNREAD + 39


# The page's side


def test_a_run_of_the_page_counts_steps_over_all_workers() -> None:
    engine = Threads(2)
    runtime = Runtime(default="nouns", engine=engine)
    assert runtime.workers is not None
    runtime.warm_up().join(WAIT)
    recipe = Recipe(TEXT_TO_IMAGE, "a cow", (1, 2, 3, 4))
    events = list(runtime.run(lambda: Request((recipe,))))
    shares = [event.share for event in events if isinstance(event, Progress)]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
    results = {event.index: event for event in events if isinstance(event, Result)}
    assert [results[index].seed for index in range(4)] == [1, 2, 3, 4]
    summary = events[-1]
    assert isinstance(summary, Summary) and summary.num_done == 4 and not summary.num_moved
    assert numbers(runtime)['amused_workers{model="nouns",state="ready"}'] == 2
    assert runtime.is_loaded("nouns") and runtime.compile_status() == "2 of 2 workers are ready."
    runtime.workers.close()


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_workers("auto", None) is None and check_workers("3", None) == 3
    assert check_workers(None, "10.0.0.1:6379") is None
    for workers, address in (("0", None), ("two", None), ("1000", None), ("auto", "nowhere")):
        with pytest.raises(UserError, match="--"):
            check_workers(workers, address)
    monkeypatch.setattr("amused.serving.ray_workers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="ray-requirements"):
        check_workers("2", None)


# Ray itself


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[WorkerPool]:
    engine = RayWorkers(partial(load_fake, step_seconds=0.002), 2, silence=5)
    with WorkerPool(engine, "nouns") as pool:
        wait_until(lambda: len(pool.places()) == 2)
        yield pool


def pids(pool: WorkerPool) -> list[int]:
    return [int(match[0]) for place in pool.places() if (match := re.search(r"\d+", place))]


@pytest.mark.slow
def test_no_port_is_open_to_others(ray_pool: WorkerPool) -> None:
    own = {inode for pid in [os.getpid(), *ray_processes(os.getpid())] for inode in sockets(pid)}
    listening = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(file).read_text("ascii").splitlines()[1:]:
            _, address, _, state, *_ = fields = row.split()
            if state == "0A" and fields[9] in own:
                listening.append(address.partition(":")[0])
    assert len(listening) >= 5
    loopback = {"0100007F", "0" * 16 + "FFFF0000" + "0100007F", "0" * 24 + "01000000"}  # 127.0.0.1, twice, and ::1
    assert set(listening) <= loopback


@pytest.mark.slow
def test_ray_refuses_whoever_has_no_token(ray_pool: WorkerPool) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 10}
    code = f"import ray; ray.init(address='{address}', logging_level='error'); print('connected')"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=WAIT)
    assert run.returncode and "connected" not in run.stdout and "uthentication" in run.stderr


@pytest.mark.slow
def test_workers_that_are_killed_cost_no_image(ray_pool: WorkerPool) -> None:
    """At random, in the middle of steps."""
    images, kills = recipes(NUM_IMAGES), NUM_KILLS
    chance, results, losses = random.Random(1), [], ray_pool.num_losses
    for result in sampled(ray_pool, images, previews=True):
        results.append(result)
        if len(results) % 9 == 0 and kills and (living := pids(ray_pool)):
            kills -= 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(living), signal.SIGKILL)
    check_complete(results, images)
    assert ray_pool.num_losses - losses >= NUM_KILLS // 2  # a worker may be killed twice before it is missed


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_costs_no_image(ray_pool: WorkerPool) -> None:
    wait_until(lambda: len(pids(ray_pool)) == 2)
    images, results = recipes(30), []
    hanging = pids(ray_pool)[0]
    for result in sampled(ray_pool, images):
        results.append(result)
        if len(results) == 5:
            os.kill(hanging, signal.SIGSTOP)
    check_complete(results, images)
    wait_until(lambda: len(pids(ray_pool)) == 2 and hanging not in pids(ray_pool))


@pytest.mark.slow
def test_a_batch_survives_the_loss_of_workers(tmp_path: Path, ray_pool: WorkerPool) -> None:
    (tmp_path / "prompts.txt").write_text("a cow\na fox")
    job = read_job(tmp_path / "prompts.txt", "0-19", {"model": "nouns"}, {}, "webdataset", 15)
    contents = []
    for name, pool in (("workers", ray_pool), ("alone", WorkerPool(InProcess(load_fake), "nouns"))):
        if pool is not ray_pool:
            pool.start()
        num_seen = 0
        with Folder(tmp_path / name, job) as folder:
            for shard in range(job.num_shards):
                writer = ShardWriter(folder, shard)
                first = job.shard(shard).start
                for result in sampled(pool, [job.recipe(index) for index in job.shard(shard)]):
                    writer.add(encode(replace(result, index=first + result.index)))
                    num_seen += 1
                    if name == "workers" and num_seen in (5, 12, 25) and (living := pids(pool)):
                        os.kill(living[0], signal.SIGKILL)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).glob("*.tar"))])
        if pool is not ray_pool:
            pool.close()
    assert contents[0] == contents[1] and len(contents[0]) == 3


@pytest.mark.slow
def test_nothing_is_left_when_the_page_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "app.py", "--workers", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": "/tmp", "GRADIO_TEMP_DIR": str(tmp_path)}
    environment.pop("RAY_AUTH_TOKEN", None)
    page = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert page.stderr is not None
    lines: list[str] = []
    for line in page.stderr:
        lines.append(line)
        if "worker 1 runs" in line or "worker 0 runs" in line:
            break
    before = ray_processes(page.pid)
    page.kill()
    page.communicate()
    assert before, lines
    wait_until(lambda: not any(is_running(pid) for pid in before))


def ray_processes(page: int) -> list[int]:
    """Those that a page's process has started, by the mark that they inherit; other tests start some, too."""
    marks: dict[int, str] = {}
    own: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark := re.search(rb"AMUSED_RAY_SESSION=(\w+)", (folder / "environ").read_bytes()):
                marks[int(folder.name)] = mark[1].decode()
                if int((folder / "stat").read_text("ascii").rpartition(")")[2].split()[1]) == page:
                    own.add(mark[1].decode())
    return [pid for pid, mark in marks.items() if mark in own]


def sockets(pid: int) -> Iterator[str]:
    """The inodes of a process's sockets."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)):
                yield match[1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
