"""Workers as Ray actors, on this machine or in a cluster. The one module that imports Ray, once it is started.

An open Ray port is remote code execution. So a token is always required, and what is started here listens on the
loopback interface only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from importlib.util import find_spec
from typing import Any

import amused
from amused.errors import UserError
from amused.limits import WORKER_SECONDS
from amused.memory import keep_freed_memory
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Result
from amused.serving.queue import Status
from amused.serving.worker import Inputs, Loaded, LoadModel, ModelHost, Worker, WorkerLostError

log = logging.getLogger(__name__)

MAX_WORKERS = 256
UNREAD_EVENTS = 16  # that a worker may be ahead of the page
LOAD_SECONDS = 600.0  # without news of a load
POLL_SECONDS = 0.5
MAX_REASON = 160  # characters
OBJECT_STORE_BYTES = 200_000_000  # for the images that runs start from
INLINE_BYTES = 1_200_000  # images up to 600x600 come with the message, which saves 15 ms over the object store
MISSING = "--workers needs Ray: pip install -r amused/serving/ray-requirements.txt"
NO_TOKEN = "--ray-address needs the token of the cluster in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH."
SESSION = "AMUSED_RAY_SESSION"  # marks the processes that a page has started
# Ray's agents outlive a page that is killed by a minute: end what carries our mark once the page has closed its pipe.
GUARD = f"""cat; for _ in 1 2 3; do for pid in $(grep -lsF "{SESSION}=$0" /proc/[0-9]*/environ | cut -d/ -f3); do
kill -9 "$pid"; done; sleep 1; done; rm -rf "$1\""""


def check_workers(workers: str | None, address: str | None) -> int | None:
    """The number of workers that `--workers` asks for, None for "auto".

    Raises:
        UserError: the flags cannot be used.
    """
    if find_spec("ray") is None:
        raise UserError(MISSING)
    if address is not None and ":" not in address:
        raise UserError("--ray-address must be HOST:PORT.")
    if workers in (None, "auto"):
        return None
    if not (workers.isascii() and workers.isdigit() and 1 <= int(workers[:6]) <= MAX_WORKERS):
        raise UserError(f'--workers must be "auto" or a whole number from 1 to {MAX_WORKERS}.')
    return int(workers)


class RayWorkers:
    """An `Engine`: one actor per worker, each with a GPU where there are some, else with its share of the cores.

    Args:
        load: what each worker loads models with; its process imports it by name.
        count: of workers; None for one per GPU, or one where there is none.
        address: HOST:PORT of a cluster that runs; None to start Ray on this machine.
        silence: seconds without a sign of life after which a worker is killed.
    """

    def __init__(
        self, load: LoadModel, count: int | None, address: str | None = None, silence: float = WORKER_SECONDS
    ) -> None:
        self._load, self._count, self._address, self._silence = load, count, address, silence
        self._resources: dict[str, float] = {}
        self._actors: dict[int, Any] = {}
        self._stopped = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def start(self) -> int:
        prepare_environment(self._address)
        import ray

        started = time.monotonic()
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self._address is not None:
                ray.init(address=self._address, **quiet)
            else:
                self._start_here(quiet)
        except Exception as error:
            log.error("Ray: %s", error)
            where = f"the cluster at {self._address} does not answer" if self._address else "Ray does not start"
            raise UserError(f"The workers of this page could not be started: {where}.") from error
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0))
        count = self._count or max(1, gpus)
        if gpus:
            self._resources = {"num_gpus": 1 / math.ceil(count / gpus), "num_cpus": 1}
        else:
            self._resources = {"num_cpus": max(1, int(have.get("CPU", 1)) // count)}
        log.info("Ray is ready after %.1f s; %d workers", time.monotonic() - started, count)
        return count

    def _start_here(self, quiet: dict[str, Any]) -> None:
        import ray

        session = secrets.token_hex(16)
        self._folder = tempfile.mkdtemp(prefix="amused-ray-")  # mode 0700
        own = {SESSION: session, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # what this process can import
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            ray.init(
                address="local",
                num_cpus=max(self._count or 1, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=self._folder,
                **quiet,
            )
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
        if sys.platform == "linux":
            command = ["sh", "-c", GUARD, session, self._folder]
            self._guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def new_worker(self, number: int) -> Worker:
        import ray

        if (former := self._actors.pop(number, None)) is not None:
            with contextlib.suppress(Exception):
                ray.kill(former)
        actor: Any = ray.remote(Actor).options(**self._resources).remote(self._load)
        self._actors[number] = actor
        try:
            ready = actor.hello.remote()
            while not ray.wait([ready], timeout=POLL_SECONDS)[0]:  # a cluster may have no room at the moment
                self._check_open()
            version, place = ray.get(ready)
        except ray.exceptions.RayError as error:
            raise WorkerLostError(in_a_line(error)) from None
        if version != amused.__version__:
            raise WorkerLostError(f"{place} has version {version} of amused, not {amused.__version__}")
        return RemoteWorker(actor, place, self._silence, self._check_open)

    def _check_open(self) -> None:
        if self._stopped.is_set():
            raise WorkerLostError("the pool is closed")

    def share(self, inputs: Inputs) -> Any:
        import ray

        return inputs if inputs == (None, None) else ray.put(inputs)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        import ray

        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        ray.shutdown()
        if self._guard is not None:
            self._guard.communicate()  # closes its input
        shutil.rmtree(self._folder, ignore_errors=True)


class Actor:
    """A `ModelHost` in a process of its own."""

    def __init__(self, load: LoadModel) -> None:
        keep_freed_memory()
        self._host = ModelHost(load)

    def hello(self) -> tuple[str, str]:
        import ray

        return amused.__version__, f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def load(self, source: str) -> Generator[Status | Loaded]:
        yield from until_cancelled(self._host.load(source))

    def sample(self, recipe: Recipe, inputs: Inputs, previews: bool) -> Generator[Progress | Result]:
        yield from until_cancelled(self._host.sample(recipe, inputs, previews))


def until_cancelled(events: Generator[Any]) -> Generator[Any]:
    """The events of an actor's method, up to the moment when nobody wants them any more."""
    import ray

    context = ray.get_runtime_context()
    with contextlib.closing(events):
        for event in events:
            if context.is_canceled():
                return
            yield event


class RemoteWorker:
    """A `Worker` that is an actor."""

    def __init__(self, actor: Any, place: str, silence: float, check_open: Callable[[], None]) -> None:
        self._actor, self.place, self._silence, self._check_open = actor, place, silence, check_open

    def load(self, source: str) -> Generator[Status | Loaded]:
        return self._stream(self._actor.load, LOAD_SECONDS, (source,), Loaded)

    def sample(self, recipe: Recipe, inputs: Any, previews: bool) -> Generator[Progress | Result]:
        return self._stream(self._actor.sample, self._silence, (recipe, inputs, previews), Result, len(recipe.seeds))

    def _stream(
        self, method: Any, silence: float, arguments: tuple[Any, ...], last: type, count: int = 1
    ) -> Generator[Any]:
        """The events of an actor's method. Ends with the last one, so that the next call is sent while this returns.

        Args:
            silence: seconds without an event after which the worker is lost.
            last, count: the last event is the `count`th of this type.
        """
        import ray

        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": UNREAD_EVENTS}
        is_over = False
        stream = method.options(**options).remote(*arguments)
        try:
            while not is_over:
                deadline = time.monotonic() + silence
                while not ray.wait([stream], timeout=POLL_SECONDS)[0]:
                    self._check_open()
                    if time.monotonic() > deadline:
                        is_over = True
                        ray.kill(self._actor)
                        raise WorkerLostError(f"no sign of life for {silence:g} s")
                event = ray.get(next(stream), timeout=silence)
                count -= isinstance(event, last)
                is_over = count == 0
                yield event
        except ray.exceptions.RayTaskError as error:
            is_over = True
            raise error.cause from None
        except ray.exceptions.RayError as error:
            is_over = True
            raise WorkerLostError(in_a_line(error)) from None
        finally:
            if not is_over:
                with contextlib.suppress(Exception):
                    ray.cancel(stream)


def in_a_line(error: Exception) -> str:
    """An error of Ray, whose text ends with the cause if it has one."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()[:MAX_REASON]}"


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported, here and in the processes that it starts.

    Raises:
        UserError: there is no token for a cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else any call after the end starts another Ray
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a worker without GPUs changes no variable
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_max_direct_call_object_size", str(INLINE_BYTES))
    elif not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise UserError(NO_TOKEN)
    if address is None or address.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        # Off, it makes 127.0.0.1 the address of this node, which all of Ray's servers then bind to: on Linux too, and
        # unlike `_node_ip_address`, which is replaced by the machine's own address (Ray 2.60).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
