"""Run a media tool so that it can neither hang, nor eat the machine, nor leave a child behind.

ffmpeg-python only builds graphs; its own `run` has no deadline, no limits and deadlocks on unread
pipes. Here a graph becomes an argument list, the tool gets its own session, memory and CPU limits
(set by `sh` between fork and exec, so that nothing runs unlimited), a wall-clock deadline, and a
kill of the whole process group. Cost: about a millisecond over a plain start.
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

if TYPE_CHECKING:
    from ffmpeg.nodes import OutputStream

TAIL_BYTES = 8 << 10
_LIMIT = 'ulimit -c 0; ulimit -v "$1"; ulimit -t "$2"; shift 2; exec "$@"'


@dataclass(frozen=True)
class Limits:
    """What one tool call may use."""

    wall_s: float = 120.0
    cpu_s: int = 120
    memory_bytes: int = 2 << 30


def run_graph(graph: "OutputStream", data: Iterable[bytes], limits: Limits) -> None:
    """Run an ffmpeg-python graph that reads pieces of data on standard input and writes files.

    Raises:
        ConfigError: ffmpeg is not installed.
        MediaError: the tool failed (`CRASH`) or ran out of time (`TIMEOUT`).
    """
    import ffmpeg

    graph = graph.global_args("-nostdin", "-v", "error")
    run_tool(ffmpeg.compile(graph, overwrite_output=True), data, limits)


def run_tool(argv: list[str], data: Iterable[bytes], limits: Limits) -> None:
    """Run a command under limits with `data` on its standard input. Raises as `run_graph`."""
    shell = ["/bin/sh", "-c", _LIMIT, "sh", str(limits.memory_bytes >> 10), str(limits.cpu_s)]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, limited by the shell line
            [*shell, *argv], stdin=subprocess.PIPE, stderr=stderr, start_new_session=True
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
            raise MediaError(argv[0], "TIMEOUT", f"no end after {limits.wall_s:g} s")
        _raise_for(process.returncode, argv[0], tail(stderr))


def _kill_on_timeout(process: subprocess.Popen[bytes], is_late: threading.Event) -> None:
    is_late.set()
    kill_group(process)


def _feed(process: subprocess.Popen[bytes], data: Iterable[bytes]) -> None:
    """Write all data; a tool that stops reading says why by its exit status."""
    if process.stdin is None:
        raise ValueError("the tool's standard input is not a pipe")
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        for piece in data:
            pipe.write(piece)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a session leader and all that it started; no effect on one that is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(stream: IO[bytes]) -> str:
    """Return the last kilobytes of a file as text."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - TAIL_BYTES))
    return stream.read().decode("utf-8", "replace").strip()


def _raise_for(code: int, tool: str, message: str) -> None:
    if code == 127:
        raise ConfigError(tool, "cannot be run", "install ffmpeg and put it on PATH")
    if code != 0:
        raise MediaError(tool, "CRASH", f"exit status {code}: {message or 'no message'}")
