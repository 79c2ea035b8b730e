"""Run ffmpeg with a deadline, limits on memory and CPU time, and no process left behind.

ffmpeg-python only builds graphs; its own `run` has no deadline and no limits, and deadlocks on
unread pipes. Here the graph is compiled to an argument list. The tool runs in a session of its own,
so that the whole process group can be killed. `sh` sets the limits between fork and exec: Python's
`preexec_fn` is unsafe with threads. Cost: about a millisecond more than a plain start.
"""

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from videoar.core.errors import (
    ConfigError,
    OutOfMemoryError,
    StageError,
    TransientStorageError,
    VideoARError,
    WorkerLostError,
)
from videoar.core.settings import child_environment

if TYPE_CHECKING:
    from ffmpeg.nodes import OutputStream

TAIL_BYTES = 8 << 10
_LIMIT = 'ulimit -c 0; ulimit -v "$1"; ulimit -t "$2"; shift 2; exec "$@"'


@dataclass(frozen=True)
class Limits:
    """Limits of one child process: wall-clock and CPU seconds, bytes of address space."""

    wall_s: float = 120.0
    cpu_s: int = 120
    memory_bytes: int = 2 << 30


def run_graph(graph: "OutputStream", data: Iterable[bytes], limits: Limits) -> None:
    """Run an ffmpeg-python graph that reads `data` from standard input and writes files.

    Its input is our own, so no failure says anything about a video of the user.

    Raises:
        ConfigError: ffmpeg is not installed.
        TransientStorageError: the disk is full.
        OutOfMemoryError: it needed more memory than there was, or was killed.
        WorkerLostError: it exceeded its time, or was ended from outside.
        StageError: it failed otherwise, or printed an error.
    """
    import ffmpeg

    # -xerror: without it, ffmpeg 5.1 writes "No space left on device" and exits with status 0
    graph = graph.global_args("-nostdin", "-xerror", "-v", "error")
    run_tool(ffmpeg.compile(graph, overwrite_output=True), data, limits)


def run_tool(argv: list[str], data: Iterable[bytes], limits: Limits) -> None:
    """Run a command under limits, with `data` as its standard input; raises as `run_graph`."""
    shell = ["/bin/sh", "-c", _LIMIT, "sh", str(limits.memory_bytes >> 10), str(limits.cpu_s)]
    with message_file() as stderr:
        process = subprocess.Popen(
            [*shell, *argv],
            stdin=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(),
            start_new_session=True,
        )
        is_late = threading.Event()
        deadline = threading.Timer(limits.wall_s, _kill_on_timeout, (process, is_late))
        deadline.start()
        try:
            _feed(process, data)
            process.wait()
        finally:
            deadline.cancel()
            kill_group(process)
        if is_late.is_set():
            raise WorkerLostError(argv[0], f"exceeded the time limit of {limits.wall_s:g} s")
        message = tail(stderr)
        if message or process.returncode != 0:
            raise _exit_error(process.returncode, argv[0], message)


def _kill_on_timeout(process: subprocess.Popen[bytes], is_late: threading.Event) -> None:
    is_late.set()
    kill_group(process)


def _feed(process: subprocess.Popen[bytes], data: Iterable[bytes]) -> None:
    """Write all data; if the tool stops reading, its exit status tells the error."""
    if process.stdin is None:
        raise ValueError("the tool's standard input is not a pipe")
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        for chunk in data:
            pipe.write(chunk)


def message_file() -> IO[bytes]:
    """Return a file in memory for the messages of a child.

    A full pipe would block the child, and a full disk would lose the message that says so.
    """
    return os.fdopen(os.memfd_create("stderr"), "w+b")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a session leader and its descendants; no effect if it has exited."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(stream: IO[bytes]) -> str:
    """Return the last 8 KiB of a file as text."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - TAIL_BYTES))
    return stream.read().decode("utf-8", "replace").strip()


def _exit_error(code: int, tool: str, message: str) -> VideoARError:
    """Return the error for a tool that failed, by its exit status and its last words."""
    if code == 127:  # the shell found no such command
        return ConfigError(tool, "cannot be run", "install ffmpeg and put it on PATH")
    what = f"exited with status {code}: {message or 'no message'}"
    if os.strerror(errno.ENOSPC) in message:
        return TransientStorageError(tempfile.gettempdir(), what, "free space there, or set TMPDIR")
    if code == -signal.SIGKILL or os.strerror(errno.ENOMEM) in message:
        return OutOfMemoryError(tool, what, "fewer workers, or more memory")
    return (WorkerLostError if code < 0 else StageError)(tool, what)
