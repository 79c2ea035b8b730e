"""Limits of child processes that work on media, and their end: no process stays behind."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import IO

TAIL_BYTES = 8 << 10


@dataclass(frozen=True)
class Limits:
    """Limits of one child process: wall-clock and CPU seconds, bytes of address space."""

    wall_s: float = 120.0
    cpu_s: int = 120
    memory_bytes: int = 2 << 30


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
