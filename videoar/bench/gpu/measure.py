"""Times, memory and host synchronisations of work on a device."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Return memory that no tensor uses: the next measurement begins with none."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def first_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of the first call, which compiles."""
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def median_ms(
    work: Callable[[], object], device: torch.device, *, seconds: float = 2.0, most: int = 20
) -> float:
    """Return the median milliseconds of a call, by events of the device.

    Args:
        work: is called at least three times, after one call that does not count.
        device: where it runs.
        seconds: stop calling after this wall time.
        most: calls.
    """
    times: list[float] = []
    first_seconds(work, device)
    started = time.perf_counter()
    while len(times) < 3 or (len(times) < most and time.perf_counter() - started < seconds):
        times.append(_elapsed_ms(work, device))
    return statistics.median(times)


def _elapsed_ms(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        return 1000 * first_seconds(work, device)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


@contextmanager
def peak_memory(device: torch.device, into: dict[str, Any]) -> Iterator[None]:
    """Add the peak of allocated and of reserved GiB to a result."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    into["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    into["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / 2**30, 2)


def clip_rate(
    work: Callable[[], object],
    device: torch.device,
    batch: int,
    seconds: float,
    into: dict[str, Any],
) -> float:
    """Measure a call on a batch of clips: time, clips per second, memory; return milliseconds."""
    with peak_memory(device, into):
        ms = median_ms(work, device, seconds=seconds)
    into |= {"batch": batch, "ms": round(ms, 2), "clips_per_s": round(1000 * batch / ms, 2)}
    return ms


def step_rate(
    step: Callable[[], object],
    device: torch.device,
    batch: int,
    seconds: float,
    into: dict[str, Any],
) -> float:
    """Measure a training step, as `clip_rate`; also its first call, and host synchronisations."""
    into["first_step_s"] = round(first_seconds(step, device), 3)
    ms = clip_rate(step, device, batch, seconds, into)
    into["step_ms"] = into.pop("ms")
    into |= host_syncs(step, device)
    return ms


def host_syncs(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return how often a call waits for the device, and where."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing CUDA" in str(warning.message)]
    places: dict[str, int] = {}
    for warning in waits:
        place = f"{'/'.join(warning.filename.split('/')[-3:])}:{warning.lineno}"
        places[place] = places.get(place, 0) + 1
    return {"host_syncs": len(waits), "host_syncs_at": places}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference over that of the reference; NaN if either has one."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))
