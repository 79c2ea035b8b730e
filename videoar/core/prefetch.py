"""Bounded prefetching: submit items ahead of the consumer of their results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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


def concurrently(
    function: Callable[[T], F], items: Iterable[T], threads: int = 16
) -> Iterator[tuple[T, F]]:
    """Yield each item with the result of a function on it, in order; calls run in threads.

    For requests to a store: 16 are half of the connections of an S3 client.
    """
    with ThreadPoolExecutor(threads) as pool:
        for item, future in prefetch(lambda item: pool.submit(function, item), items, 4 * threads):
            yield item, future.result()


def as_completed(
    submit: Callable[[T], Future[F]], items: Iterable[T], depth: int
) -> Iterator[tuple[T, Future[F]]]:
    """Yield each item with its finished future, in the order in which they finish.

    A slow item holds no other one up. Backpressure is that of `prefetch`.

    Args:
        submit: starts the work on an item.
        items: any iterable.
        depth: items in flight at once.
    """
    pending: dict[Future[F], T] = {}
    for item in items:
        pending[submit(item)] = item
        if len(pending) >= depth:
            yield from _finished(pending)
    while pending:
        yield from _finished(pending)


def _finished(pending: dict[Future[F], T]) -> Iterator[tuple[T, Future[F]]]:
    """Wait for at least one future; remove and yield those that are finished."""
    for future in wait(pending, return_when=FIRST_COMPLETED).done:
        yield pending.pop(future), future
