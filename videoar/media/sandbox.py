"""Fetch and decode sources in child processes that can be killed at any time.

Decoders crash, hang and exhaust memory on hostile files; network drives and servers stop answering.
None of that may reach the worker. One child of each kind serves many sources, because a start costs
0.5 s. It runs in a session of its own, under limits on memory and CPU time. A `Watchdog` kills it
at the deadline, and the next source gets a new child. A decoder is confined, too: `confinement`.

The child is not trusted: after a hostile file it may send anything. So messages are JSON and raw
pixels, never pickles, and as many bytes are read as the announced shape has, within bounds.

    worker                                  child (`python -m videoar.media.sandbox`)
    SandboxedDecoder.scan                   main
      -> {"path": .., "plan": ..}             -> scan(path, plan)
      <- {"kind": "clip", ..}, pixels         for each clip
      <- {"kind": "source", ..}               at the end of the source
      <- {"kind": "end"} or {"kind": "error", "code": .., "what": ..}
      <- {"kind": "fault", "code": .., "what": .., "hint": ..}   of a disk or a store

What a machine does to a child is no verdict on the source that it was reading. A child that was
killed, or that waited for a disk until the deadline, raises an error of the machine, which engines
retry. Only a child that reports a fault of the file, crashes in the decoder, or computes until its
limit of CPU time or memory makes the source a rejected one (`MediaError`), and not before a fresh
child has ended in the same way (`second_try`).
"""

import gc
import json
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np

from videoar.core.errors import (
    ConfigError,
    DiskError,
    MediaError,
    OutOfMemoryError,
    SourceChangedError,
    StorageError,
    ThrottledError,
    TransientStorageError,
    VideoARError,
    WorkerLostError,
)
from videoar.core.settings import child_environment, settings
from videoar.core.types import Json
from videoar.media.confinement import confine
from videoar.media.fetch import SOURCE, Fetched, Identity, fetch, require_unchanged
from videoar.media.process import Limits, kill_group, message_file, tail
from videoar.media.scan import DecodedClip, ScanPlan, scan
from videoar.media.source_decoder import SourceMetadata
from videoar.media.synthetic import SCHEME, render_file
from videoar.media.watchdog import Watchdog

_START_S = 120  # chosen: importing the decoders takes 0.5 s on an idle machine
_FETCH_MEMORY_BYTES = 4 << 30  # chosen: address space, most of it libraries; data comes in MiB
_SCAN = "scan"
_DOWNLOAD = "download"  # the only kind of child that receives S3 credentials
_RECYCLE_AFTER = 1000  # chosen: sources per child; bounds what a leaking decoder accumulates
_OF_DECODER = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL}
_FAULTS = {
    c.code: c for c in (DiskError, SourceChangedError, ThrottledError, TransientStorageError)
}
_Item = DecodedClip | SourceMetadata | Fetched
T = TypeVar("T")


def second_try(work: Callable[[], T]) -> T:
    """Call `work`; once more if its child died, which starts a fresh one, or its file changed."""
    try:
        return work()
    except MediaError as error:
        if not (error.retryable or error.code == "CRASH"):
            raise
    except (OutOfMemoryError, WorkerLostError):
        pass
    return work()


class SandboxedDecoder:
    """Fetches and decodes sources, one at a time. Exiting the context terminates the children."""

    def __init__(self, plan: ScanPlan, limits: Limits) -> None:
        self.plan, self.limits = plan, limits
        self._children: dict[str, _Child] = {}
        self._fetched: tuple[Path, Identity | None, str] | None = None

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
        """Fetch a source into a folder; return its path there and its SHA-256.

        The wall-clock limit restarts with every 64 MiB. Fetching has a child of its own: one that
        has decoded a hostile file could report a false digest for the next source, and decoders
        receive no credentials.

        Raises:
            MediaError: the source does not exist or is no regular file.
            StorageError: the store or the disk failed, or denies access.
            WorkerLostError: no progress within the limit, or the child was killed.
        """
        if uri.startswith(SCHEME):  # drawn in this process, by tools that have their own limits
            uri = render_file(uri, into).as_uri()
        limits = replace(self.limits, memory_bytes=_FETCH_MEMORY_BYTES)
        kind = "fetch"
        if uri.startswith("s3://"):
            kind = _DOWNLOAD
            # a server that does not answer is no fault of the source: the client waits for it
            limits = replace(limits, wall_s=limits.wall_s + settings().store_wait_s)
        *_, last = self._request(kind, limits, uri, {"uri": uri, "into": str(into)})
        self._fetched = into / SOURCE, last.identity, uri
        return into / SOURCE, last.sha256

    def scan(
        self, path: Path, part: int = 0, parts: int = 1
    ) -> Iterator[DecodedClip | SourceMetadata]:
        """Yield what `videoar.media.scan.scan` yields of a source, or of one part of it.

        Raises:
            MediaError: the source is unusable, or its decoder crashed (`CRASH`) or exceeded its CPU
                time (`TIMEOUT`) or address space (`MEM`), or the file is not the one any more that
                was fetched (`IO_TRANSIENT`).
            StorageError: the disk failed.
            WorkerLostError: the decoder waited until the deadline, or was ended from outside.
            OutOfMemoryError: the decoder was killed.
        """
        yield from self.run(path, self.plan.model_copy(update={"part": part, "parts": parts}))

    def run(self, path: Path, plan: ScanPlan) -> Iterator[DecodedClip | SourceMetadata]:
        """Yield what `videoar.media.scan.scan` yields with another plan; raises as `scan`."""
        expected, name = None, path.name
        if self._fetched and self._fetched[0] == path:  # its name says nothing of the source
            _, expected, name = self._fetched
        request = {"path": str(path), "plan": plan.model_dump(), "identity": expected}
        yield from self._request(_SCAN, self.limits, name, request)

    def _request(
        self, kind: str, limits: Limits, name: str, request: dict[str, Any]
    ) -> Iterator[Any]:
        """Yield the items of one request, from the child of this kind.

        A child that failed, or whose items were not read to the end, is not used again: its
        socket may still hold items of the old request.
        """
        child = self._children.get(kind)
        if child is None or child.num_served >= _RECYCLE_AFTER:
            if child is not None:
                child.end()
            child = self._children[kind] = _Child(limits, kind)
        is_reusable = False
        try:
            yield from child.serve(name, request)
            is_reusable = True
        except VideoARError:
            is_reusable = child.process.poll() is None  # the child itself has reported the error
            raise
        finally:
            if not is_reusable:
                self._children.pop(kind).end()


class _Child:
    """One child process and the socket to it."""

    def __init__(self, limits: Limits, kind: str) -> None:
        ours, theirs = socket.socketpair()
        self.limits = limits
        self.num_served = 0
        self.stderr = message_file()  # closed with the child
        environment = child_environment(
            for_s3=kind == _DOWNLOAD,
            PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
            OMP_NUM_THREADS="1",
            MALLOC_ARENA_MAX="1",  # an arena per thread would reserve 64 MiB of RLIMIT_AS each
        )
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", __name__),
                    *(str(theirs.fileno()), str(limits.memory_bytes), kind),
                ],
                stdin=subprocess.DEVNULL,
                stderr=self.stderr,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.pipe = Connection(ours.detach())
        self._watchdog = Watchdog(self.process, limits.wall_s)
        self.end = weakref.finalize(
            self, _end, self.process, self.pipe, self.stderr, self._watchdog
        )

    def serve(self, name: str, request: dict[str, Any]) -> Iterator[_Item]:
        if self.num_served == 0 and not self.pipe.poll(_START_S):
            raise ConfigError("decoding process", f"did not start within {_START_S} s")
        self.num_served += 1
        remaining_s = self.limits.wall_s
        self._watchdog.begin()
        try:
            self.pipe.send_bytes(json.dumps({**request, "cpu_s": self.limits.cpu_s}).encode())
            while True:
                start = time.monotonic()
                with self._watchdog.within(remaining_s):
                    item = self._receive(name)
                # time in the consumer does not count
                remaining_s = max(remaining_s - time.monotonic() + start, self.limits.wall_s / 10)
                if item is None:
                    return
                if isinstance(item, Fetched):
                    remaining_s = self.limits.wall_s
                yield item
        except (EOFError, OSError) as error:
            raise self._exit_error(name) from error

    def _receive(self, name: str) -> _Item | None:
        reply = json.loads(self.pipe.recv_bytes())
        if reply["kind"] == "ready":  # sent once, at the start
            reply = json.loads(self.pipe.recv_bytes())
        if reply["kind"] == "error":
            raise MediaError(name, reply["code"], reply["what"])
        if reply["kind"] == "fault":
            kind = _FAULTS.get(reply["code"], StorageError)
            raise kind(name, str(reply["what"]), str(reply["hint"]))
        if reply["kind"] == "end":
            return None
        if reply["kind"] == "source":
            return SourceMetadata(**reply["columns"])
        if reply["kind"] == "fetched":
            return Fetched(**reply["columns"])
        if math.prod(reply["shape"]) > self.limits.memory_bytes:
            raise ValueError("its decoder announces more pixels than it can hold")
        frames_THWC = np.empty(reply["shape"], np.uint8)
        left = frames_THWC.reshape(-1).data
        while left:
            count = os.readv(self.pipe.fileno(), [left])
            if count == 0:
                raise EOFError
            left = left[count:]
        return DecodedClip(frames_THWC, reply["columns"])

    def _exit_error(self, name: str) -> VideoARError:
        """Return the error for a child that has exited, by its exit status."""
        status = self.process.wait()
        message = (tail(self.stderr).splitlines() or [""])[-1]
        limit = f"the time limit of {self.limits.wall_s:g} s"
        computed_s = self._watchdog.computed_s
        if computed_s is not None and computed_s <= self.limits.wall_s / 2:
            return WorkerLostError(
                name, f"its reader waited until {limit}", "check the drive or server it is on"
            )
        if computed_s is not None or status == -signal.SIGXCPU:  # RLIMIT_CPU was reached
            return MediaError(name, "TIMEOUT", f"exceeded {limit}")
        if status == -signal.SIGKILL:  # not by us, so by the kernel's OOM killer or an operator
            what = "its decoder was killed, probably for lack of memory"
            return OutOfMemoryError(name, what, "fewer workers, or more memory")
        if status >= 0 or status in _OF_DECODER:
            what = f"decoder exited with status {status} {message}".strip()
            return MediaError(name, "CRASH", what)
        return WorkerLostError(name, f"its decoder was ended by {signal.Signals(-status).name}")


def _end(
    process: subprocess.Popen[bytes], pipe: Connection, stderr: IO[bytes], watchdog: Watchdog
) -> None:
    # a function, not a method: a finalizer that refers to its object would keep it alive
    watchdog.stop()
    kill_group(process)
    pipe.close()
    stderr.close()


def main(fd: int, memory_bytes: int, *, decodes: bool) -> None:
    """Serve requests from a socket until it is closed. Runs in the child.

    Args:
        fd: the socket.
        memory_bytes: limit of address space.
        decodes: confine this process; a fetch uses the network and writes files.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if decodes:
        confine()  # before the first thread, which inherits it
    pipe = Connection(fd)
    threading.Thread(target=_exit_with_parent, args=(fd,), daemon=True).start()
    gc.freeze()  # what is imported stays: without this, each full collection looks at all of it
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
            plan = ScanPlan(**request["plan"])
            _answer_scan(pipe, Path(request["path"]), plan, request["identity"])


def _exit_with_parent(fd: int) -> None:
    """Exit when the worker has exited: a busy decoder reads the socket late or never."""
    poll = select.poll()
    poll.register(fd, 0)  # no events are requested; POLLHUP is always reported
    poll.poll()
    os._exit(1)


def _allow_cpu(seconds: int) -> None:
    """Limit the CPU time of this process to so much more than it has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    # the soft limit only: the hard one cannot be raised again for the next source
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, hard))


def _answer_scan(pipe: Connection, path: Path, plan: ScanPlan, expected: Identity | None) -> None:
    try:
        try:
            for item in scan(path, plan):
                if isinstance(item, SourceMetadata):
                    _send(pipe, "source", columns=asdict(item))
                else:
                    _send(pipe, "clip", columns=item.columns, shape=item.frames_THWC.shape)
                    _send_pixels(pipe, item.frames_THWC)
        finally:  # nothing may have the digest of one file and the frames or faults of another
            if expected is not None:
                require_unchanged(path, expected, path.name)
        _send(pipe, "end")
    except MediaError as error:
        _send(pipe, "error", code=error.code, what=error.what)
    except MemoryError:
        _send(pipe, "error", code="MEM", what="out of memory while decoding")
    except StorageError as error:
        _send_fault(pipe, error)


def _answer_fetch(pipe: Connection, request: dict[str, Any]) -> None:
    try:
        for progress in fetch(request["uri"], Path(request["into"])):
            _allow_cpu(request["cpu_s"])
            _send(pipe, "fetched", columns=asdict(progress))
        _send(pipe, "end")
    except MediaError as error:
        _send(pipe, "error", code=error.code, what=error.what)
    except StorageError as error:
        _send_fault(pipe, error)


def _send_fault(pipe: Connection, error: StorageError) -> None:
    _send(pipe, "fault", code=error.code, what=error.what, hint=error.hint)


def _send(pipe: Connection, kind: str, **content: Json) -> None:
    pipe.send_bytes(json.dumps({"kind": kind, **content}).encode())


def _send_pixels(pipe: Connection, frames_THWC: np.ndarray) -> None:
    """Send pixels as they are: a message of this size would be copied twice more."""
    left = frames_THWC.reshape(-1).data
    while left:
        left = left[os.write(pipe.fileno(), left) :]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), decodes=sys.argv[3] == _SCAN)
