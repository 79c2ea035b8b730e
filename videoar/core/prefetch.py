"""Begin work ahead of who waits for its results: in order, and never more than fits in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
F = TypeVar("F")


def prefetch(submit: Callable[[T], F], items: Iterable[T], depth: int) -> Iterator[tuple[T, F]]:
    """Yield each item with what `submit` returned for it, the next `depth` being submitted by then.

    Items are taken and submitted only as the reader comes along: that is the backpressure.
    """
    waiting: deque[tuple[T, F]] = deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) > depth:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
