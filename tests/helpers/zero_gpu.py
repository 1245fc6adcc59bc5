"""ZeroGPU on this machine: `app.py` under the real `spaces` package, with a stub of the service that lends GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from amused.benchmark.startup import free_port, wait_for_page

ROOT = Path(__file__).parents[2]
VISITOR = {"X-IP-Token": "header.e30.signature"}  # what Hugging Face's proxy adds; e30 is {} in base64


@dataclass
class Lease:
    token: str
    index: int
    seconds: int
    visitor: str | None
    num_others: int  # lent at that time
    pid: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    failed: bool = False


class DeviceService:
    """The calls of `spaces.zero.api.APIClient`, with the bookkeeping that its answers need.

    Attributes:
        leases: one per GPU lent, in order.
        quota: seconds that a visitor may ask for at once, None for any.
    """

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.quota: int | None = None
        self.refused: list[int] = []
        self.started = threading.Event()
        self._lock = threading.Lock()
        self._idle: set[int] = set()
        self._busy: set[int] = set()
        self._pids: dict[int, int] = {}  # of the workers, by the index of their GPU
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for lease in self.leases:
            if lease.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(lease.pid, signal.SIGKILL)

    def schedule(self, query: dict[str, str]) -> tuple[int, dict[str, str], object]:
        seconds = int(query["durationSeconds"])
        with self._lock:
            if self.quota is not None and seconds > self.quota:
                self.refused.append(seconds)
                headers = {"X-Approve-Result": "quota-exceeded", "X-Authenticated": "regular"}
                return 429, headers, {"left": self.quota, "wait": 3000}
            index = min(set(range(len(self.leases) + 1)) - self._busy)
            lease = Lease(f"lease-{len(self.leases)}", index, seconds, query.get("token"), len(self._busy))
            idle = index in self._idle
            if idle:
                lease.pid = self._pids[index]
            self._busy.add(index)
            self._idle.discard(index)
            self.leases.append(lease)
        answer = {"idle": idle, "nvidiaIndex": index, "nvidiaUUID": f"MIG-{index}", "allowToken": lease.token}
        return 200, {"X-Authenticated": "regular"}, answer

    def allow(self, query: dict[str, str]) -> tuple[int, dict[str, str], object]:
        lease = self._lease(query)
        lease.pid = self._pids[lease.index] = int(query["pid"])
        return 200, {}, {}

    def release(self, query: dict[str, str]) -> tuple[int, dict[str, str], object]:
        lease = self._lease(query)
        with self._lock:
            lease.failed = query["fail"] == "true"
            self._busy.discard(lease.index)
            if not lease.failed:
                self._idle.add(lease.index)
        lease.released.set()
        return 200, {}, {}

    def _lease(self, query: dict[str, str]) -> Lease:
        return next(lease for lease in self.leases if lease.token == query["allowToken"])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                url = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                if url.path == "/startup-report":
                    service.started.set()
                    status, headers, answer = 200, {}, {}
                else:
                    action: Callable[[dict[str, str]], tuple[int, dict[str, str], object]]
                    action = {"/schedule": service.schedule, "/allow": service.allow, "/release": service.release}[
                        url.path
                    ]
                    status, headers, answer = action(query)
                body = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Type": "application/json"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@dataclass
class Space:
    """A running page: its address, the device service, and the log so far."""

    address: str
    service: DeviceService
    log: Path
    offloaded: Path


@contextmanager
def zero_gpu_space(folder: Path, *arguments: str) -> Iterator[Space]:
    """`python app.py ARGUMENTS` as on a ZeroGPU Space. Temporary files are in `folder`.

    Raises:
        RuntimeError: the page does not start; with its log.
    """
    service = DeviceService()
    log, offloaded = folder / "log.txt", folder / "tensors"
    port = free_port()
    environment = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": service.address,
        "ZEROGPU_OFFLOAD_DIR": str(offloaded),
        "GRADIO_TEMP_DIR": str(folder / "cache"),
        "AMUSED_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "AMUSED_BATCH": "1",  # the memory of a GPU cannot be measured here
        "OMP_NUM_THREADS": "1",  # as a Space's two cores have, and threads of OpenMP do not survive a fork
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    start = "from helpers.zero_process import main; main()"
    command = [sys.executable, "-c", start, str(ROOT / "app.py"), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)
    try:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for_page(address, process, seconds=300)
        except RuntimeError as error:
            raise RuntimeError(log.read_text("utf-8", "replace")) from error
        yield Space(address, service, log, offloaded)
    finally:
        process.terminate()
        process.wait(30)
        service.close()
