"""Processes to send signals to, also those of a tree. Linux: reads /proc."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_POLL_S = 0.01


def _stat(pid: int) -> list[str]:
    """Return state, parent and more of a process, see proc(5); empty if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children and so on; parents first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(folder.name)):
            children.setdefault(int(stat[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def processes_with(mark: str) -> dict[int, str]:
    """Return the processes that inherited a mark in their environment, with their names.

    Also those whose parent has ended, which are nobody's descendants.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().strip("\0 ")
    return found


def send(number: signal.Signals, *pids: int) -> None:
    """Send a signal to processes that may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants; stopped first, so that none starts another meanwhile."""
    send(signal.SIGSTOP, pid)
    while missed := [child for child in descendants(pid) if _stat(child)[:1] not in (["T"], ["Z"])]:
        send(signal.SIGSTOP, *missed)
        time.sleep(_POLL_S)
    send(signal.SIGKILL, pid, *descendants(pid))


def wait_until_stopped(pid: int, timeout_s: float) -> bool:
    """Wait until a process is stopped, as by SIGSTOP at a crash point; False if it has ended."""
    end = time.monotonic() + timeout_s
    while (stat := _stat(pid)) and stat[0] not in {"T", "Z"} and time.monotonic() < end:
        time.sleep(_POLL_S)
    return stat[:1] == ["T"]


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Stop a process for the duration of a block; then it goes on."""
    send(signal.SIGSTOP, pid)
    try:
        yield
    finally:
        send(signal.SIGCONT, pid)
