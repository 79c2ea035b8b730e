"""Identity of a process, comparable from the same machine only.

A pid alone does not identify a process: the kernel reuses pids, and containers of one host name
count them from 1 each. A process is known to be gone only on evidence; what cannot be inspected
from here is not.
"""

import os
import resource
import socket
from functools import cache
from pathlib import Path

from videoar.core.types import Stored


class ProcessId(Stored):
    """A process, as other processes of its machine can find it."""

    host: str
    machine: str = ""
    """Boot and pid namespace: pids of another one say nothing. Empty: not known."""
    pid: int
    born: str
    """Start time in clock ticks since boot. Empty: not known."""

    def is_gone(self) -> bool:
        """Return whether it is known that this process no longer exists."""
        is_here = bool(self.machine and self.born) and self.machine == _machine()
        return is_here and start_ticks(self.pid) != self.born


def this_process() -> ProcessId:
    """Return the identity of this process."""
    pid = os.getpid()
    return ProcessId(host=socket.gethostname(), machine=_machine(), pid=pid, born=start_ticks(pid))


def start_ticks(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, "" if it does not exist.

    Source: proc(5), field 22 of /proc/<pid>/stat.
    """
    fields = _stat_fields(pid)
    # a zombie does nothing more; its parent has not read its exit status yet
    return fields[19] if fields and fields[0] != "Z" else ""


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third on, none for an unknown process."""
    try:
        # the second field is in parentheses and may contain spaces
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def cpu_s_of(pid: int) -> float:
    """Return the CPU time of a process, 0 if it does not exist or cannot be inspected.

    Source: proc(5), fields 14 and 15 of /proc/<pid>/stat, in clock ticks.
    """
    fields = _stat_fields(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def used_cpu_s() -> float:
    """Return the CPU time of this process, and of children that it has waited for."""
    # process_time() has no children
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_gib(who: int = resource.RUSAGE_SELF) -> float:
    """Return the most memory (RSS) that this process, or the largest child that ended, has had.

    Args:
        who: `resource.RUSAGE_SELF` or `resource.RUSAGE_CHILDREN`.
    """
    return resource.getrusage(who).ru_maxrss / 2**20  # in KiB on Linux


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux, or a sandbox that hides it: nothing is known of other processes
        return ""
