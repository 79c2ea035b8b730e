"""Bounded, ordered prefetching: submit items ahead of the consumer of their results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
F = TypeVar("F")


def prefetch(submit: Callable[[T], F], items: Iterable[T], depth: int) -> Iterator[tuple[T, F]]:
    """Yield each item with the result of `submit`; the next `depth` items are submitted by then.

    Backpressure: items are taken from the iterator only as the consumer advances, so at most
    `depth` + 1 results are held.

    Args:
        submit: starts the work on an item and returns a handle, e.g. a future.
        items: any iterable.
        depth: items in flight beyond the one that is yielded; 0 submits one at a time.
    """
    pending: deque[tuple[T, F]] = deque()
    for item in items:
        # submitted before the oldest is yielded: the consumer never waits for a submission
        pending.append((item, submit(item)))
        if len(pending) > depth:
            yield pending.popleft()
    while pending:
        yield pending.popleft()
