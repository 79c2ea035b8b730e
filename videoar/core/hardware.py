"""One line about this machine, for run records and benchmark results."""

import os
import platform
from functools import lru_cache
from pathlib import Path

_NVIDIA = Path("/proc/driver/nvidia/gpus")


@lru_cache(maxsize=1)
def hardware() -> str:
    """Return processor, usable cores, memory and GPUs of this machine."""
    # of this process: containers and taskset allow fewer than the machine has
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # ARM has no "model name" in /proc/cpuinfo
    processor = _read_field(Path("/proc/cpuinfo"), "model name") or platform.machine()
    # those of the driver: querying CUDA takes seconds and a context
    names = [_read_field(path, "Model") for path in sorted(_NVIDIA.glob("*/information"))]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
    return f"{processor}, {cores} cores, {memory_gib:.0f} GiB, {gpus}"


def _read_field(path: Path, name: str) -> str:
    """Return the first `name: value` of a file of /proc, empty if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
