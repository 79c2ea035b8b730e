"""Run ffmpeg with a deadline, limits on memory and CPU time, and no process left behind.

ffmpeg-python only builds graphs; its own `run` has no deadline and no limits, and deadlocks on
unread pipes. Here the graph is compiled to an argument list. The tool runs in a session of its own,
so that the whole process group can be killed. `sh` sets the limits between fork and exec: Python's
`preexec_fn` is unsafe with threads. Cost: about a millisecond more than a plain start.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from videoar.core.errors import ConfigError, MediaError
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

    Raises:
        ConfigError: ffmpeg is not installed.
        MediaError: the tool failed (`CRASH`) or exceeded its time (`TIMEOUT`).
    """
    import ffmpeg

    graph = graph.global_args("-nostdin", "-v", "error")
    run_tool(ffmpeg.compile(graph, overwrite_output=True), data, limits)


def run_tool(argv: list[str], data: Iterable[bytes], limits: Limits) -> None:
    """Run a command under limits, with `data` as its standard input; raises as `run_graph`."""
    shell = ["/bin/sh", "-c", _LIMIT, "sh", str(limits.memory_bytes >> 10), str(limits.cpu_s)]
    with tempfile.TemporaryFile() as stderr:  # a full pipe would block the tool
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, limited by the shell line
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
            what = f"exceeded the time limit of {limits.wall_s:g} s"
            raise MediaError(argv[0], "TIMEOUT", what)
        _raise_for(process.returncode, argv[0], tail(stderr))


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


def _raise_for(code: int, tool: str, message: str) -> None:
    if code == 127:  # the shell found no such command
        raise ConfigError(tool, "cannot be run", "install ffmpeg and put it on PATH")
    if code != 0:
        raise MediaError(tool, "CRASH", f"exited with status {code}: {message or 'no message'}")
