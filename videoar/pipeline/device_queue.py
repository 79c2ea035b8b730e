"""Turns at the accelerator of a worker, and how busy it was.

A worker that runs several shards at once keeps its accelerator busy: while one shard computes,
others read, pack and write. The earliest shard has the first claim, so that shards end one after
the other; with equal claims they would all end, and all write, at the same time.

What is kept are sums, since the metrics of shards are added up: seconds of work and seconds between
two pieces of work, from the worker's first shard to its last turn. `summary` makes shares of them.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from videoar.core.errors import StageError


class Accelerator:
    """One piece of work at a time, that of the earliest shard first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: list[int] = []
        self._is_taken = self._is_stopped = False
        self._free_since = 0.0

    def share(self) -> "Share":
        """Begin a shard."""
        number = next(self._numbers)
        if number == 0:
            self._free_since = time.monotonic()
        return Share(self, number)

    def stop(self) -> None:
        """Let everybody who waits for a turn, now or later, fail."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def take(self, number: int) -> float:
        """Wait for a turn; return the seconds for which nobody has had one."""
        with self._changed:
            heapq.heappush(self._waiting, number)
            self._changed.wait_for(lambda: self._is_stopped or self._is_next(number))
            self._waiting.remove(number)
            heapq.heapify(self._waiting)
            if self._is_stopped:
                raise StageError("accelerator", "stopped, as another shard failed or was cancelled")
            self._is_taken = True
            return time.monotonic() - self._free_since

    def give_back(self) -> None:
        """End a turn."""
        with self._changed:
            self._is_taken = False
            self._free_since = time.monotonic()
            self._changed.notify_all()

    def _is_next(self, number: int) -> bool:
        return not self._is_taken and self._waiting[0] == number


class Share:
    """What one shard has had of an accelerator."""

    def __init__(self, accelerator: Accelerator, number: int) -> None:
        self._accelerator, self._number = accelerator, number
        self._busy_s = self._idle_s = 0.0
        self._items = 0

    @contextmanager
    def turn(self, items: int) -> Iterator[None]:
        """Have the accelerator to oneself. Work must be done when this ends, not only queued."""
        self._idle_s += self._accelerator.take(self._number)
        start = time.monotonic()
        try:
            yield
            self._busy_s += time.monotonic() - start
            self._items += items
        finally:
            self._accelerator.give_back()

    def metrics(self) -> dict[str, float]:
        """Return the sums of this shard."""
        return {
            "accelerator_items": float(self._items),
            "accelerator_busy_s": self._busy_s,
            "accelerator_idle_s": self._idle_s,
        }


def summary(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add to the sums of all shards what they mean, for one accelerator of the stage."""
    wall_s = metrics.get("accelerator_busy_s", 0.0) + metrics.get("accelerator_idle_s", 0.0)
    if not wall_s:
        return dict(metrics)
    return {
        **metrics,
        "accelerator_busy_percent": round(100 * metrics["accelerator_busy_s"] / wall_s, 2),
        "accelerator_items_per_s": round(metrics["accelerator_items"] / wall_s, 3),
    }
