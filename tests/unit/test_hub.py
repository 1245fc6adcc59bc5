"""Where checkpoints come from: names, and downloads from a hub that is played by a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from helpers.checkpoints import CPU, FLOAT, TRANSFORMER, VQGAN, load, refused
from helpers.tiny import tiny_checkpoint

from amused.checkpoints import hub as hubs
from amused.checkpoints.catalog import PUBLISHED
from amused.checkpoints.config import REQUIRED_FILES
from amused.checkpoints.hub import locate
from amused.checkpoints.weights import WEIGHTS, weight_files
from amused.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


# Names


@pytest.mark.parametrize(
    "name",
    ["", "nonsense", "../secrets", "/etc/none", "a/b/c", "https://example.com/x", "owner/name?x", "owner/..",
     "./x", "owner/na me", "owner/name\n", "nul\x00l", "\udcff/x", "x" * 10_000, "owner/" + "x" * 10_000],
)  # fmt: skip
def test_refuses_names_that_name_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="amused-256") as caught:
        locate(name)
    assert len(str(caught.value)) < 300


def test_finds_bundled_names_before_all_others(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs.catalog, "BUNDLED", original.parent)
    assert locate("tiny").name == "tiny" and hubs.bundled_names() == ["tiny"]
    assert locate(str(original)).folder == original


# The hub, played by a server on this machine


class Hub:
    """As much of the hub's interface as a download needs. `status` other than 200 is its answer to everything."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, folder: Path) -> None:
        self.folder, self.status, self.served = folder, 200, []
        self.share, self.breaks = 1.0, 0  # how much of a file of weights is sent, so many times, before it breaks off
        self.ranges: list[int] = []  # where the answers about weights began
        self.broken, self.hold = threading.Event(), threading.Event()
        self.hold.set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if self.status != 200:
            code = {"X-Error-Code": "RepoNotFound"} if self.status == 404 else {"Retry-After": "0"}
            return self.send(request, self.status, b"{}", code)
        if path.startswith("/api/models/owner/name/revision/"):
            return self.send(request, 200, json.dumps({"id": "owner/name", "sha": self.commit}).encode())
        if path.startswith("/api/models/owner/name/tree/"):
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.folder)),
                    "size": file.stat().st_size,
                    "oid": file.name,
                }
                for file in files
            ]
            return self.send(request, 200, json.dumps(tree).encode())
        name = path.partition(f"/resolve/{self.commit}/")[2]
        file = self.folder / name
        if not name or not file.is_file():
            return self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
        if request.command == "GET":
            self.served.append(name)
        data = file.read_bytes()
        headers = {"ETag": f'"{name}"'.replace("/", "-"), "X-Repo-Commit": self.commit}
        if request.command == "HEAD" or not name.endswith(".safetensors"):
            return self.send(request, 200, data, headers)
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.ranges.append(start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        end = len(data)
        if self.breaks > 0:
            self.breaks -= 1
            end = max(start, int(end * self.share))
        return self.send(request, 206 if start else 200, data[start:], headers, end - start)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict | None = None,
        end: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:end])
        if end is not None and end < len(body):
            request.wfile.flush()
            self.broken.set()
            self.hold.wait(60)

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    hub = Hub(Path(shutil.copytree(original, tmp_path / "hub")))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    yield hub
    hub.close()


def test_downloads_the_small_files_first_and_weights_when_needed(hub: Hub, original: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = locate("owner/name", progress=lambda *report: seen.append(report))
    assert checkpoint.name == "owner/name" and not seen
    assert not [file for file in hub.served if file.endswith(".safetensors")]
    network = checkpoint.load_transformer(CPU, FLOAT)
    assert [file for file in hub.served if file.endswith(".safetensors")] == [TRANSFORMER]
    size = (original / TRANSFORMER).stat().st_size
    assert seen[-1] == (TRANSFORMER, size, size)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), load(original).parameters(), strict=True))
    checkpoint.load_transformer(CPU, FLOAT)
    assert hub.served.count(TRANSFORMER) == 1


def test_works_offline_with_what_is_there_and_says_what_to_do_about_the_rest(hub: Hub) -> None:
    locate("owner/name").load_transformer(CPU, FLOAT)
    hub.close()
    checkpoint = locate("owner/name")
    checkpoint.load_transformer(CPU, FLOAT)
    with pytest.raises(UserError, match="cannot be reached"):
        checkpoint.load_vqgan(CPU, FLOAT)
    with pytest.raises(UserError, match="cannot be reached"):
        locate("owner/other")


SMALL = ["scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/vocab.json"]


@pytest.mark.parametrize("file", [*SMALL, VQGAN])
@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no connection"])
def test_says_which_file_is_not_on_this_machine(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, file: str, offline: bool
) -> None:
    from huggingface_hub import constants

    checkpoint = locate("owner/name")
    checkpoint.fetch_weights()
    cached = checkpoint.folder / file
    cached.resolve().unlink()
    cached.unlink()
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.close()
    with pytest.raises(UserError) as caught:
        locate("owner/name").load_vqgan(CPU, FLOAT)
    says = str(caught.value)
    assert f"{file} of the model owner/name is not on this machine" in says and "repository" not in says
    assert ("unset it" if offline else "check the connection") in says


def test_downloads_weights_in_several_files(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tiny_checkpoint(tmp_path / "shards", max_shard_size="20KB")
    checkpoint = locate("owner/name")
    checkpoint.load_transformer(CPU, FLOAT)
    assert not list((checkpoint.folder / "vqvae").glob("*.safetensors"))
    checkpoint.fetch_weights()
    hub.close()
    for file in (TRANSFORMER, VQGAN):
        load(checkpoint.folder, file)


def test_downloads_full_precision_where_there_is_no_other(hub: Hub) -> None:
    (hub.folder / TRANSFORMER).rename(hub.folder / TRANSFORMER.replace(".fp16", ""))
    (hub.folder / VQGAN).unlink()
    checkpoint = locate("owner/name")
    checkpoint.load_transformer(CPU, FLOAT)
    refused(lambda: checkpoint.load_vqgan(CPU, FLOAT), "vqvae/diffusion_pytorch_model.safetensors is missing")


@pytest.mark.parametrize(("status", "words"), [(404, "check the spelling"), (429, "few minutes")])
def test_says_what_to_do_when_the_hub_refuses(hub: Hub, status: int, words: str) -> None:
    hub.status = status
    with pytest.raises(UserError, match=words) as caught:
        locate("owner/name")
    assert "127.0.0.1" not in str(caught.value)
    hub.status = 200
    checkpoint = locate("owner/name")
    hub.status = status
    with pytest.raises(UserError):
        checkpoint.load_transformer(CPU, FLOAT)
    hub.status = 200
    checkpoint.load_transformer(CPU, FLOAT)


def test_says_what_is_missing_from_a_repository(hub: Hub) -> None:
    (hub.folder / "scheduler/scheduler_config.json").unlink()
    refused(lambda: locate("owner/name"), "scheduler/scheduler_config.json is missing")


@pytest.mark.parametrize(("number", "words"), [(28, "disk is full"), (30, "HF_HOME"), (13, "HF_HOME")])
def test_says_what_to_do_about_the_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, "as the system says", "/home/someone/.cache")

    checkpoint = locate("owner/name")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(UserError, match=words) as caught:
            checkpoint.load_transformer(CPU, FLOAT)
    assert "someone" not in str(caught.value) and "GB" not in str(caught.value)  # the size is not known
    checkpoint.load_transformer(CPU, FLOAT)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_connection_that_breaks_is_taken_up_where_it_stopped(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    size = (hub.folder / TRANSFORMER).stat().st_size
    hub.share, hub.breaks = share, 1
    seen: list[tuple[str, int, int]] = []
    checkpoint = locate("owner/name", progress=lambda *report: seen.append(report))
    checkpoint.load_transformer(CPU, FLOAT)
    first, second = hub.ranges
    assert first == 0 and size * share - 1000 <= second <= size * share
    assert seen[-1] == (TRANSFORMER, size, size)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_download_that_breaks_off_leaves_nothing_half_and_works_the_next_time(hub: Hub, share: float) -> None:
    checkpoint = locate("owner/name")
    checkpoint.load_vqgan(CPU, FLOAT)
    hub.share, hub.breaks = share, 100
    with pytest.raises(UserError, match="Finished files are kept"):
        checkpoint.fetch_weights()
    assert not (checkpoint.folder / TRANSFORMER).exists()
    hub.breaks = 0
    locate("owner/name").load_transformer(CPU, FLOAT)
    assert hub.served.count(VQGAN) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_after_a_process_is_killed_in_the_middle_of_a_download_the_next_one_works(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.share, hub.breaks = share, 1
    hub.hold.clear()
    child = os.fork()
    if child == 0:
        try:
            locate("owner/name").fetch_weights()
        finally:
            os._exit(1)
    try:
        assert hub.broken.wait(60)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    hub.hold.set()
    checkpoint = locate("owner/name")
    assert not (checkpoint.folder / TRANSFORMER).exists()
    leftovers = list(checkpoint.folder.parent.parent.glob("blobs/*.incomplete"))
    assert leftovers
    for file in leftovers:
        os.utime(file, (0, 0))
    network = locate("owner/name").load_transformer(CPU, FLOAT)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), load(hub.folder).parameters(), strict=True))
    assert not any(file.exists() for file in leftovers)


def test_a_read_only_cache_is_explained_and_what_is_there_goes_on_working(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate("owner/name").fetch_weights()
    files = locate("owner/name")

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/someone/.cache")

    monkeypatch.setattr("huggingface_hub.file_download.WeakFileLock", fail)
    files.load_transformer(CPU, FLOAT)
    (files.folder / VQGAN).unlink()
    with pytest.raises(UserError, match="HF_HOME"):
        files.load_vqgan(CPU, FLOAT)


def test_the_space_downloads_before_it_starts_what_a_first_picture_needs() -> None:
    """The README's front matter names the files that are fetched, no more and no fewer, at the pinned revision."""
    front = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split("---")[1]
    (line,) = (line for line in front.splitlines() if line.startswith("  - amused/amused-512 "))
    repo, files, *revision = line.removeprefix("  - ").split(" ")
    published = PUBLISHED["amused-512"]
    assert repo == published.repo and (revision or ["main"]) == [published.revision]
    listed = files.split(",")
    assert set(listed) >= {*REQUIRED_FILES, *(weight_files(component)[0] for component in WEIGHTS)}
    assert set(listed) <= {*hubs.SMALL_FILES, *(weight_files(component)[0] for component in WEIGHTS)}
