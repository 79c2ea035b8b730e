"""A server with a small model of random weights in a process of its own, and one client of it."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from videoar.bench.result import processes
from videoar.bench.stores import commit_model
from videoar.core.errors import StageError
from videoar.core.types import Json
from videoar.storage.store import open_store

MODEL = "model"
TOKENIZER, SHAPE = "demo", {"depth": 8, "width": 256, "heads": 4}
"""About a second of CPU time for a video of 17 frames at 64 px."""
_START_S, _STOP_S = 300.0, 120.0
_PROMPT = "a red circle moves to the left"


class ServerProcess:
    """A running server, and a client of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.port = process, port

    def call(self, method: str, path: str, body: Json = None, **headers: str) -> tuple[int, Any]:
        """Return status and document of an answer; bytes if it is no JSON.

        Raises:
            OSError: there is no connection to the server.
            HTTPException: it ended while it answered.
        """
        # a connection per call: the server closes those that are idle for some seconds
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            headers["Content-Type"] = "application/json"
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, headers)
            reply = connection.getresponse()
            data = reply.read()
        is_json = reply.headers.get_content_type() == "application/json"
        return reply.status, json.loads(data) if is_json else data

    def is_ready(self) -> bool:
        """Return whether the server takes requests."""
        try:
            return self.call("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def one_video(self, seed: int) -> tuple[float, float]:
        """Request a video; return seconds until `POST` was answered, and until it was completed.

        Raises:
            StageError: it is not made.
        """
        start = time.perf_counter()
        status, job = self.call("POST", "/v1/videos", {"prompt": _PROMPT, "seed": seed})
        posted = time.perf_counter()
        while status == 200 and job["status"] in {"queued", "in_progress"}:
            time.sleep(0.01)
            status, job = self.call("GET", f"/v1/videos/{job['id']}")
        if status != 200 or job["status"] != "completed":
            raise StageError("video", f"answer {status}: {job}")
        return posted - start, time.perf_counter() - start

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, the oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            _, page = self.call("GET", f"/v1/videos?order=asc&limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    def wait_idle(self, limit_s: float) -> None:
        """Wait until no job waits or runs.

        Raises:
            StageError: it takes too long.
        """
        until = time.monotonic() + limit_s
        while any(job["status"] in {"queued", "in_progress"} for job in self.jobs()):
            if time.monotonic() > until:
                raise StageError("server", f"has unfinished jobs after {limit_s:g} s")
            time.sleep(0.5)

    def pids(self, deployment: str) -> list[int]:
        """Return the processes of a deployment: `model` or `http`."""
        running = processes()
        parents = {pid: int(fields[1]) for pid, (_, fields) in running.items()}
        own = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in own} - own:
            own |= more
        pattern = re.compile(rf"ray::ServeReplica:[^:]*:{deployment}\b")
        return sorted(pid for pid in own if pid in running and pattern.match(running[pid][0]))


@contextmanager
def serving(folder: Path, max_queue: int, replicas: int = 1) -> Iterator[ServerProcess]:
    """Serve the model that `publish` has put into a store; yield when the server is ready.

    Args:
        folder: of the store; `server.log` is written beside it.
        max_queue: jobs that may wait.
        replicas: of the model.

    Raises:
        StageError: the server ends, or is not ready in time.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
    log_path = folder.parent / "server.log"
    options = {
        "--store": folder.as_uri(), "--target": "local", "--model": MODEL, "--port": port,
        "--max-queue": max_queue, "--replicas": replicas,
        "--rate": 1e4,  # aiperf is one client and polls every job
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    with log_path.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "videoar", "serve", *words], stdout=log, stderr=log
        )
    server, until = ServerProcess(process, port), time.monotonic() + _START_S
    try:
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > until:
                raise StageError("server", f"is not ready: {log_path.read_text()[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(_STOP_S)


def publish(folder: Path) -> None:
    """Publish a tokenizer and a transformer with random weights, under a ref."""
    import torch

    from videoar.model.tokenizer.config import TOKENIZERS
    from videoar.model.tokenizer.network import VideoTokenizer
    from videoar.model.transformer.config import OF_TOKENIZER, PRESETS
    from videoar.model.transformer.network import VideoAR
    from videoar.pipeline.presets import with_overrides

    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TOKENIZERS[TOKENIZER])
    shape = SHAPE | {name: getattr(tokenizer.cfg, name) for name in OF_TOKENIZER}
    net = VideoAR(with_overrides(PRESETS["tiny"], shape))
    commit_model(open_store(folder.as_uri()), net, tokenizer)
