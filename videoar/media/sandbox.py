"""Fetch and scan sources in child processes that may be killed at any time.

Decoders crash, hang and swallow memory on hostile files, drives and servers stop answering; none of
that may reach the worker. One child of each kind serves many sources (a start costs 0.5 s) under
memory and CPU limits, in its own session; a timer kills it at the deadline, and the next source
gets a new one. The child is not trusted: only JSON and raw pixels come back, never pickles.
"""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from videoar.core.errors import ConfigError, MediaError, TransientStorageError
from videoar.core.settings import child_environment
from videoar.core.types import Json
from videoar.media.fetch import SOURCE, Fetched, fetch
from videoar.media.process import Limits, kill_group, tail
from videoar.media.scan import DecodedClip, ScanPlan, scan
from videoar.media.source_decoder import SourceMetadata

_START_S = 120  # chosen: importing the decoders takes 0.5 s on an idle machine
_FETCH_MEMORY_BYTES = 4 << 30  # address space, most of it of libraries; it reads in small pieces
_RECYCLE_AFTER = 1000  # chosen: bounds what a leaking decoder can pile up


class SandboxedDecoder:
    """Fetches and scans sources, one at a time; a context manager that leaves no child behind."""

    def __init__(self, plan: ScanPlan, limits: Limits) -> None:
        self.plan, self.limits = plan, limits
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> "SandboxedDecoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes."""
        for kind in list(self._children):
            self._children.pop(kind).end()

    def fetch(self, uri: str, into: Path) -> tuple[Path, str]:
        """Bring a source into a folder; return its path there and its SHA-256.

        The wall-clock limit counts anew for every piece of some megabytes. A child of its own does
        it: one that has decoded a hostile file could lie about the next file's identity.

        Raises:
            MediaError: it is gone or no regular file, or does not answer (`TIMEOUT`).
            TransientStorageError: the store may answer later.
        """
        from videoar.media import synthetic

        if uri.startswith("rendered://"):  # drawn here, by tools that have their own limits
            uri = synthetic.render_file(uri, into).as_uri()
        limits = replace(self.limits, memory_bytes=_FETCH_MEMORY_BYTES)
        try:
            *_, last = self._ask("fetch", limits, uri, {"uri": uri, "into": str(into)})
        except MediaError as error:
            if error.code == "IO_TRANSIENT":
                raise TransientStorageError(uri, error.what) from error
            raise
        return into / SOURCE, last.sha256

    def scan(
        self, path: Path, part: int = 0, parts: int = 1
    ) -> Iterator[DecodedClip | SourceMetadata]:
        """Yield what `videoar.media.scan.scan` yields of a source, or of a part of a long one.

        Raises:
            MediaError: the source is unusable, or its decoder hung (`TIMEOUT`), died (`CRASH`) or
                outgrew its memory (`MEM`).
        """
        yield from self.run(path, self.plan.model_copy(update={"part": part, "parts": parts}))

    def run(self, path: Path, plan: ScanPlan) -> Iterator[DecodedClip | SourceMetadata]:
        """Yield what `videoar.media.scan.scan` yields under another plan; raises as `scan`."""
        request = {"path": str(path), "plan": plan.model_dump()}
        yield from self._ask("scan", self.limits, path.name, request)

    def _ask(self, kind: str, limits: Limits, name: str, request: dict[str, Any]) -> Iterator[Any]:
        """Let the child of a kind answer; one that failed us is not asked again."""
        child = self._children.get(kind)
        if child is None or child.num_served >= _RECYCLE_AFTER:
            if child is not None:
                child.end()
            child = self._children[kind] = _Child(limits)
        is_done = False
        try:
            yield from child.serve(name, request)
            is_done = True
        except MediaError as error:
            is_done = error.code not in {"TIMEOUT", "CRASH", "MEM"}
            raise
        finally:
            if not is_done:
                self._children.pop(kind).end()


class _Child:
    """One child process and the socket to it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        self.limits = limits
        self.num_served = 0
        self.is_late = False
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        environment = child_environment(
            PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
            OMP_NUM_THREADS="1",
            MALLOC_ARENA_MAX="1",  # another thread's arena would take from the address space
        )
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(limits.memory_bytes)],
                stdin=subprocess.DEVNULL,
                stderr=self.stderr,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.pipe = Connection(ours.detach())
        self.end = weakref.finalize(self, _end, self.process, self.pipe, self.stderr)

    def serve(
        self, name: str, request: dict[str, Any]
    ) -> Iterator[DecodedClip | SourceMetadata | Fetched]:
        if self.num_served == 0 and not self.pipe.poll(_START_S):
            raise ConfigError("scanning process", f"did not start within {_START_S} s")
        self.num_served += 1
        left_s = self.limits.wall_s
        try:
            self.pipe.send_bytes(json.dumps({**request, "cpu_s": self.limits.cpu_s}).encode())
            while True:
                start = time.monotonic()
                item = self._wait(name, left_s)
                left_s -= time.monotonic() - start  # what the reader does meanwhile is not counted
                if item is None:
                    return
                if isinstance(item, Fetched):
                    left_s = self.limits.wall_s
                yield item
        except (EOFError, OSError) as error:
            raise self._exit_error(name) from error

    def _wait(self, name: str, left_s: float) -> DecodedClip | SourceMetadata | Fetched | None:
        """Receive one item; a child that takes longer dies while it is waited for."""
        deadline = threading.Timer(left_s, self._kill_on_timeout)
        deadline.start()
        try:
            return self._receive(name)
        finally:
            deadline.cancel()

    def _kill_on_timeout(self) -> None:
        self.is_late = True
        kill_group(self.process)

    def _receive(self, name: str) -> DecodedClip | SourceMetadata | Fetched | None:
        reply = json.loads(self.pipe.recv_bytes())
        if reply["kind"] == "ready":
            reply = json.loads(self.pipe.recv_bytes())
        if reply["kind"] == "error":
            raise MediaError(name, reply["code"], reply["what"])
        if reply["kind"] == "end":
            return None
        if reply["kind"] == "source":
            return SourceMetadata(**reply["columns"])
        if reply["kind"] == "fetched":
            return Fetched(**reply["columns"])
        pixels = np.frombuffer(self.pipe.recv_bytes(), np.uint8)
        return DecodedClip(pixels.reshape(reply["shape"]), reply["columns"])

    def _exit_error(self, name: str) -> MediaError:
        code = self.process.wait()
        last_words = tail(self.stderr).splitlines()[-1:] or [""]
        if self.is_late or code == -signal.SIGXCPU:
            return MediaError(name, "TIMEOUT", f"no end after {self.limits.wall_s:g} s")
        if code == -signal.SIGKILL:
            return MediaError(name, "MEM", "killed from outside, as when memory runs out")
        return MediaError(name, "CRASH", f"decoder died with status {code} {last_words[0]}".strip())


def _end(process: subprocess.Popen[bytes], pipe: Connection, stderr: IO[bytes]) -> None:
    kill_group(process)
    pipe.close()
    stderr.close()


def main(fd: int, memory_bytes: int) -> None:
    """Serve scans over a socket until it closes: the child's side."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    pipe = Connection(fd)
    threading.Thread(target=_exit_with_parent, args=(fd,), daemon=True).start()
    _send(pipe, "ready")
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        _allow_cpu(request["cpu_s"])
        if "uri" in request:
            _answer_fetch(pipe, request)
        else:
            _answer(pipe, Path(request["path"]), ScanPlan(**request["plan"]))


def _exit_with_parent(fd: int) -> None:
    """Die when the worker does: a busy decoder looks at the socket too late or never."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _allow_cpu(seconds: int) -> None:
    """Let this process use that much CPU time from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, hard))


def _answer(pipe: Connection, path: Path, plan: ScanPlan) -> None:
    try:
        for item in scan(path, plan):
            if isinstance(item, SourceMetadata):
                _send(pipe, "source", columns=asdict(item))
            else:
                _send(pipe, "clip", columns=item.columns, shape=item.frames_THWC.shape)
                pipe.send_bytes(item.frames_THWC.tobytes())
        _send(pipe, "end")
    except MediaError as error:
        _send(pipe, "error", code=error.code, what=error.what)
    except MemoryError:
        _send(pipe, "error", code="MEM", what="out of memory while decoding")


def _answer_fetch(pipe: Connection, request: dict[str, Any]) -> None:
    try:
        for state in fetch(request["uri"], Path(request["into"])):
            _allow_cpu(request["cpu_s"])
            _send(pipe, "fetched", columns=asdict(state))
        _send(pipe, "end")
    except MediaError as error:
        _send(pipe, "error", code=error.code, what=error.what)
    except TransientStorageError as error:
        _send(pipe, "error", code="IO_TRANSIENT", what=str(error))


def _send(pipe: Connection, kind: str, **content: Json) -> None:
    pipe.send_bytes(json.dumps({"kind": kind, **content}).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
