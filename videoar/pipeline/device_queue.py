"""Serializes device access across the concurrent shards of a worker, and measures its utilization.

A worker that runs several shards at once keeps its device busy: while one shard computes, others
read, pack and write. The oldest shard is served first, so that shards finish one after the other;
served in turn, they would all finish, and all write, at the same time.

Shard metrics are sums, because the metrics of shards are added up: seconds of work, and seconds
between two pieces of work, from the first shard of the worker to its last use of the device.
`summary` computes fractions from them.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from videoar.core.errors import StageError


class DeviceQueue:
    """A lock with priorities: one holder at a time, the oldest shard first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._queue: list[int] = []
        self._is_held = self._is_stopped = False
        self._idle_since = 0.0

    def start_shard(self) -> "DeviceUsage":
        """Return the usage of a new shard, behind all earlier ones."""
        number = next(self._numbers)
        # loading weights, before the first shard, is no idle time
        if number == 0:
            self._idle_since = time.monotonic()
        return DeviceUsage(self, number)

    def stop(self) -> None:
        """Make every current and later `acquire` raise."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def acquire(self, number: int) -> float:
        """Block until the device is free for a shard; return the seconds that it was idle.

        Raises:
            StageError: the queue was stopped.
        """
        with self._changed:
            heapq.heappush(self._queue, number)
            self._changed.wait_for(
                lambda: self._is_stopped or (not self._is_held and self._queue[0] == number)
            )
            self._queue.remove(number)
            heapq.heapify(self._queue)  # remove() breaks the order of a heap
            if self._is_stopped:
                raise StageError("device", "stopped, because another shard failed or was cancelled")
            self._is_held = True
            # since the last release: the time that another shard held the device is not idle
            return time.monotonic() - self._idle_since

    def release(self) -> None:
        """Free the device for the next shard."""
        with self._changed:
            self._is_held = False
            self._idle_since = time.monotonic()
            # all, because each thread has a condition of its own: notify() could wake a younger
            # shard only
            self._changed.notify_all()


class DeviceUsage:
    """The use that one shard makes of the device."""

    def __init__(self, queue: DeviceQueue, number: int) -> None:
        self._queue, self._number = queue, number
        self._busy_s = self._idle_s = 0.0
        self._items = 0

    @contextmanager
    def acquire(self, items: int) -> Iterator[None]:
        """Hold the device for a block. Its work must be complete at the end, not only queued.

        Args:
            items: clips that the block processes; counted if it succeeds.
        """
        self._idle_s += self._queue.acquire(self._number)
        start = time.monotonic()
        try:
            yield
            self._busy_s += time.monotonic() - start
            self._items += items
        finally:
            self._queue.release()

    def metrics(self) -> dict[str, float]:
        """Return the sums of this shard: items, busy seconds, idle seconds."""
        return {
            "accelerator_items": float(self._items),
            "accelerator_busy_s": self._busy_s,
            "accelerator_idle_s": self._idle_s,
        }


def summary(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add utilization (percent) and throughput (items per second) to the sums of all shards."""
    wall_s = metrics.get("accelerator_busy_s", 0.0) + metrics.get("accelerator_idle_s", 0.0)
    if not wall_s:
        return dict(metrics)
    return {
        **metrics,
        "accelerator_busy_percent": round(100 * metrics["accelerator_busy_s"] / wall_s, 2),
        "accelerator_items_per_s": round(metrics["accelerator_items"] / wall_s, 3),
    }
