"""A pool of workers in front of many runs: which worker samples which images, and what happens when one is lost.

Each worker holds one model and samples for one run at a time, an image on a CPU, a batch on a GPU. A free worker serves
the run that has the fewest images in work, so a sweep spreads over idle workers and does not hold up a single image.
Images of a lost worker are given to another one; a seed gives the same image on any worker of the same kind.

    with pool.enter("nouns") as run:
        for status in run.wait_for_model():
            ...
        for event in run.sample(enumerate(recipes), image, mask):
            ...

A thread of this process serves each worker. All state is behind one lock, which nothing slow is done under.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Result
from amused.serving.queue import STATUS_SECONDS, SWITCH_TIMEOUT, Status
from amused.serving.worker import Engine, Loaded, LoadModel, ModelHost, Worker, WorkerLostError, WorkerMemoryError
from amused.serving.worker_run import MAX_ATTEMPTS, Run, Seat, Task

log = logging.getLogger(__name__)

MAX_LOSSES = 5  # of a worker in a row, with no image in between; then it is given up
RESTART_SECONDS = 1.0  # before a worker is started for the second time in a row; doubled each time, up to 30 s
DEMAND_SECONDS = 5.0  # that images wait until a second worker loads their model

STARTING = "Starting the workers"
ALL_LOST = "All workers failed too often and were shut down: ask the owner of this page."


class WorkerPool(Collector):
    """Workers, and the runs that they sample for.

    Args:
        engine: starts workers.
        default: the model that workers load first; "" for that of the first run.
        source_of: what to load for a model's name.
        on_loaded: called, by any thread, when a worker has loaded a model.
        on_pace: called with a recipe, the seconds of one of its steps and the images that were sampled together.
    """

    def __init__(
        self,
        engine: Engine,
        default: str = "",
        source_of: Callable[[str], str] = lambda name: name,
        on_loaded: Callable[[str, Loaded], None] = lambda name, loaded: None,
        on_pace: Callable[[Recipe, float, int], None] = lambda recipe, seconds, count: None,
    ) -> None:
        self.engine, self.default = engine, default
        self.source_of, self.on_loaded, self.on_pace = source_of, on_loaded, on_pace
        self.lock = threading.RLock()
        self.work_changed = threading.Condition(self.lock)
        self._runs: list[Run] = []
        self._seats: list[Seat] = []
        self._loads: dict[str, Status] = {}
        self._load_losses: dict[str, int] = {}  # in a row
        self._known: set[str] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.num_losses = self.num_moved = 0
        self.compile_status = ""

    def start(self) -> None:
        """Start the workers in the background."""
        # Not a short-lived thread: the system ends Ray's processes with the thread that started them.
        self._thread = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all workers and what started them."""
        self._closed.set()
        with self.lock:
            self.work_changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> WorkerPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, model: str, previews: bool = True) -> Run:
        """A run of images of one model. `previews`: steps come with previews."""
        run = Run(self, model, previews)
        with self.lock:
            if self._failure is not None:
                run.failure = self._failure
            self._runs.append(run)
            self.work_changed.notify_all()
        return run

    # For the page and its owner

    def is_loaded(self, model: str) -> bool:
        with self.lock:
            return any(seat.model == model and seat.state != "loading" for seat in self._seats)

    def knows(self, model: str) -> bool:
        """Whether any worker has loaded the model so far."""
        return model in self._known

    def num_active_runs(self) -> int:
        """Runs with images in work."""
        with self.lock:
            return sum(bool(run.in_work) for run in self._runs)

    def places(self) -> list[str]:
        """Where the workers run."""
        with self.lock:
            return [seat.place for seat in self._seats if seat.state not in ("starting", "given up")]

    def status(self) -> str:
        """How the workers are, for the foot of the page."""
        with self.lock:
            ready = sum(seat.state in ("ready", "busy") for seat in self._seats)
            if not self._seats:
                return f"{STARTING}."
            return " ".join(filter(None, [f"{ready} of {len(self._seats)} workers are ready.", self.compile_status]))

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        with self.lock:
            workers = GaugeMetricFamily("amused_workers", "Workers by state and model", labels=["state", "model"])
            for state, model in sorted({(seat.state, seat.model) for seat in self._seats}):
                count = sum((seat.state, seat.model) == (state, model) for seat in self._seats)
                workers.add_metric([state, model], count)
            waiting = GaugeMetricFamily("amused_worker_runs", "Runs at the workers by model", labels=["model"])
            for model in sorted({run.model for run in self._runs}):
                waiting.add_metric([model], sum(run.model == model for run in self._runs))
            in_work = sum(len(run.in_work) for run in self._runs)
            yield workers
            yield waiting
            yield GaugeMetricFamily("amused_worker_images", "Images that workers are sampling", in_work)
            yield CounterMetricFamily("amused_worker_losses", "Workers that were lost", value=self.num_losses)
            yield CounterMetricFamily("amused_images_moved", "Images of lost workers", value=self.num_moved)

    # Threads

    def _keep(self) -> None:
        try:
            count = self.engine.start()
        except Exception as error:
            log.error("the workers could not be started", exc_info=error)
            sentence = str(error) if isinstance(error, UserError) else "The workers of this page could not be started."
            self._fail_all(UserError(sentence))
            with contextlib.suppress(Exception):
                self.engine.close()
            return
        with self.lock:
            self._seats = [Seat(number) for number in range(count)]
        threads = [
            threading.Thread(target=self._serve, args=(seat,), name=f"worker {seat.number}", daemon=True)
            for seat in self._seats
        ]
        for thread in threads:
            thread.start()
        self._closed.wait()
        self.engine.stop()
        for thread in threads:
            thread.join()
        self.engine.close()

    def _serve(self, seat: Seat) -> None:
        """Serve a worker and those that come in its place."""
        wanted = self.default
        while not self._closed.is_set():
            try:
                worker = self.engine.new_worker(seat.number)
                seat.place = worker.place
                log.info("worker %d runs in %s", seat.number, seat.place)
                self._serve_one(seat, worker, wanted)
            except Exception as error:
                if self._closed.is_set():
                    return
                if not isinstance(error, WorkerLostError):
                    log.error("worker %d failed", seat.number, exc_info=error)
                wanted = self.default if seat.state == "loading" else seat.model
                if not self._note_loss(seat, error):
                    return
            self._closed.wait(min(30.0, RESTART_SECONDS * 2 ** (seat.losses - 2)) if seat.losses > 1 else 0.0)

    def _note_loss(self, seat: Seat, error: Exception) -> bool:
        """Whether to start it again."""
        with self.lock:
            self.num_losses += 1
            seat.losses += 1
            seat.state, seat.model = "starting", ""
            if seat.losses > MAX_LOSSES:
                seat.state = "given up"
            log.warning("worker %d was lost (%s); %s", seat.number, error, seat.state)
            if not self.living():
                self._fail_all(UserError(ALL_LOST))
            for run in self._runs:
                run.changed.notify()
            self.work_changed.notify_all()
            return seat.state != "given up"

    def _fail_all(self, error: UserError) -> None:
        with self.lock:
            self._failure = error
            for run in self._runs:
                run.fail(error)

    def _serve_one(self, seat: Seat, worker: Worker, wanted: str) -> None:
        """Serve a worker until it is lost.

        Raises:
            WorkerLostError: it is.
        """
        if wanted:
            with self.lock:
                seat.model = wanted
            self._load(seat, worker, wanted)
        else:
            seat.state = "ready"
        while (work := self._next_work(seat)) is not None:
            if isinstance(work, Task):
                self._sample(seat, worker, work)
            else:
                self._load(seat, worker, work)

    def _load(self, seat: Seat, worker: Worker, model: str) -> None:
        """Load a model; runs that need it fail with it, unless another worker has it."""
        with self.lock:
            seat.state, self._loads[model] = "loading", Status(f"Loading {model}")
        try:
            with contextlib.closing(worker.load(self.source_of(model))) as news:
                for event in news:
                    if isinstance(event, Status):
                        self._loads[model] = event
                    else:
                        seat.batch_size = event.batch_size
                        self.compile_status = event.compile_status
                        self.on_loaded(model, event)
            with self.lock:
                self._known.add(model)
                seat.state, seat.since = "ready", time.monotonic()
                self._wake(model)
            self._load_losses.pop(model, None)
        except WorkerLostError:
            with self.lock:
                self._load_losses[model] = self._load_losses.get(model, 0) + 1
                if self._load_losses[model] >= MAX_ATTEMPTS:
                    del self._load_losses[model]
                    self._fail_runs(model, UserError(f"{model} cannot be loaded here: choose another model."))
            raise
        except Exception as error:
            log.warning("worker %d could not load %s: %s", seat.number, model, error)
            with self.lock:
                seat.state, seat.model = "ready", ""
                if not self._holders(model):
                    self._fail_runs(model, error)
        finally:
            with self.lock:
                self._loads.pop(model, None)

    def _fail_runs(self, model: str, error: Exception) -> None:
        for run in self._runs:
            if run.model == model:
                run.fail(error)

    def _wake(self, model: str) -> None:
        for run in self._runs:
            if run.model == model:
                run.changed.notify()

    def _sample(self, seat: Seat, worker: Worker, task: Task) -> None:
        run, began = task.run, time.monotonic()
        try:
            with contextlib.closing(worker.sample(task.recipe, run.inputs, run.previews)) as events:
                for event in events:
                    with self.lock:
                        if run.closed or run.failure is not None or self._closed.is_set():
                            break
                        if isinstance(event, Result):
                            seat.losses = 0
                        run.put(replace(event, index=task.indices[event.index]))
                else:
                    self.on_pace(task.recipe, (time.monotonic() - began) / task.recipe.passes, len(task.indices))
        except WorkerLostError:
            self._move(task, seat)
            raise
        except WorkerMemoryError as error:
            log.warning("worker %d is out of memory for %d images", seat.number, len(task.indices))
            self._move(task, seat, str(error))
        except Exception as error:
            with self.lock:
                run.fail(error)
        finally:
            with self.lock:
                run.worked += time.monotonic() - began
                for index in task.indices:  # of a run that was closed or has failed
                    run.in_work.pop(index, None)
                run.changed.notify()
                seat.state = "ready"

    def _move(self, task: Task, seat: Seat, sentence: str = "") -> None:
        with self.lock:
            before = task.run.num_moved
            if sentence and task.run.is_last_attempt(task.indices):
                task.run.fail(UserError(sentence))
            task.run.give_back(task, seat)
            self.num_moved += task.run.num_moved - before
            self.work_changed.notify_all()

    # Who is next. Called with the lock held, but for the first.

    def _next_work(self, seat: Seat) -> Task | str | None:
        """Wait for images to sample or a model to load; None when the pool is closed."""
        with self.work_changed:
            while not self._closed.is_set():
                work = self._choose(seat)
                if work is not None:
                    return work
                # Some rules depend on how long a run has waited.
                self.work_changed.wait(STATUS_SECONDS if self._runs else None)
            return None

    def _choose(self, seat: Seat) -> Task | str | None:
        now = time.monotonic()
        own = [run for run in self._runs if run.model == seat.model and run.wants(seat)]
        others = [run for run in self._runs if run.model != seat.model and run.needs_model()]
        has_twin = len(self._holders(seat.model)) > 1
        for run in sorted(others, key=lambda run: run.since):
            # A model that no worker has: from a worker that is free, that has a twin, or after a while.
            waited = now - max(run.since, seat.since)
            if not self._holders(run.model) and (not own or has_twin or waited > SWITCH_TIMEOUT):
                return self._switch(seat, run.model)
        if own:
            run = min(own, key=lambda run: (len(run.in_work), run.served))
            seat.state = "busy"
            return run.take(seat)
        for run in others:
            # A model in demand: this worker has nothing else to do.
            if run.wants(seat) and now - run.since > DEMAND_SECONDS:
                return self._switch(seat, run.model)
        return None

    def _switch(self, seat: Seat, model: str) -> str:
        seat.model, seat.state = model, "loading"
        return model

    def _holders(self, model: str) -> list[Seat]:
        return [seat for seat in self._seats if seat.model == model]

    def living(self) -> Collection[Seat]:
        return [seat for seat in self._seats if seat.state != "given up"]

    def status_of(self, run: Run) -> Status:
        """Why a run has no images in work."""
        if not self._seats:
            return Status(STARTING)
        if run.model in self._loads:
            return self._loads[run.model]
        ahead = sum(other.model == run.model and bool(other.in_work) for other in self._runs if other is not run)
        return Status(f"Queued: {ahead} ahead of you" if ahead else "Waiting for a worker")

    def leave(self, run: Run) -> None:
        with self.lock:
            run.closed = True
            if run in self._runs:
                self._runs.remove(run)


class InProcess:
    """One worker in this process, without Ray: for batches on a machine with one device."""

    def __init__(self, load: LoadModel) -> None:
        self._load = load

    def start(self) -> int:
        return 1

    def new_worker(self, number: int) -> Worker:
        return ModelHost(self._load)

    def share(self, inputs: Any) -> Any:
        return inputs

    def stop(self) -> None: ...

    def close(self) -> None: ...
