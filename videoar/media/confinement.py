"""What a decoding child cannot do: use the network, start programs, send signals, write files.

As a command, `python -m videoar.media.confinement CPU_S MEMORY_BYTES PROGRAM...` becomes a program
under the same rules; without arguments it prints what this machine cannot forbid.

Two mechanisms of Linux, which hold until the process ends and for all of its threads: a seccomp
filter, loaded through libseccomp, and a Landlock ruleset without a rule. Where a machine lacks one
(no libseccomp2, a kernel before 5.13, a container that forbids it), the child decodes without it,
and `videoar doctor` says so.
Source: seccomp(2), landlock(7), libseccomp's `seccomp_rule_add(3)`.
"""

import ctypes
import errno
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Collection, Iterable
from functools import partial

from videoar.core.settings import child_environment

_DENIED = (
    "socket", "connect", "bind", "sendto", "sendmsg", "execve", "execveat", "kill", "tkill",
    "tgkill", "pidfd_send_signal", "pidfd_getfd", "ptrace", "process_vm_readv",
    "process_vm_writev", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "keyctl",
    "add_key", "request_key", "mount", "umount2", "unshare", "setns", "pivot_root", "chroot",
    "init_module", "finit_module", "kexec_load",
)  # fmt: skip
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # of Landlock, the same on every architecture
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
# LANDLOCK_ACCESS_FS_WRITE_FILE; REMOVE_DIR, REMOVE_FILE and all of MAKE_*
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))


def confine(allowed: Collection[str] = ()) -> list[str]:
    """Confine this thread and those that it starts, until they end.

    Args:
        allowed: system calls that are not denied.

    Returns:
        What this machine cannot forbid, with the reason; nothing if it can forbid all.
    """
    missing = []
    filter_calls = partial(_filter_calls, [name for name in _DENIED if name not in allowed])
    for what, forbid in (("system calls", filter_calls), ("writing", _forbid_writes)):
        try:
            forbid()
        except OSError as error:
            missing.append(f"{what}: {error.strerror or error}")
    return missing


def _filter_calls(denied: Iterable[str]) -> None:
    library = ctypes.CDLL("libseccomp.so.2")  # OSError: not installed
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(_ALLOW))
    try:
        for name in denied:
            number = library.seccomp_syscall_resolve_name(name.encode())
            _check(library.seccomp_rule_add(rules, _ERRNO | errno.EACCES, number, 0))
        _check(library.seccomp_load(rules))
    finally:
        library.seccomp_release(rules)


def _forbid_writes() -> None:
    system = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("Q", _WRITES)
    ruleset = system.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    _check(ruleset, ctypes.get_errno())
    try:
        _check(system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), ctypes.get_errno())
        _check(system.syscall(_RESTRICT_SELF, ruleset, 0), ctypes.get_errno())
    finally:
        os.close(ruleset)


def _check(result: int, number: int = 0) -> None:
    """Raise OSError for a negative result: of libseccomp it is the error number itself."""
    if result < 0:
        number = number or -result
        raise OSError(number, os.strerror(number))


def unconfined() -> str:
    """Return what decoding children of this machine are not denied, as text; "" if all is."""
    command = [sys.executable, "-m", __name__]
    environment = child_environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return f"it ends with status {done.returncode}" if done.returncode else done.stdout.strip()


def _become(cpu_s: str, memory_bytes: str, program: str, *arguments: str) -> None:
    confine(allowed={"execve"})
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (int(value), int(value)))
    os.execv(program, [program, *arguments])  # noqa: S606 - of `videoar.media.ffmpeg_program`


if __name__ == "__main__":  # of `unconfined`: a process of its own to be confined
    if sys.argv[1:]:
        _become(*sys.argv[1:])
    sys.stdout.write("; ".join(confine()))
