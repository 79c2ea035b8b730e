"""dask over the partitions of a table: three verbs, one place that knows the scheduler.

    each      partition -> value
    grouped   partition -> rows -> buckets of rows with equal keys -> value     (a hash join)
    paired    every two partitions -> value                                     (an all-pairs join)

Nothing is read before a task needs it. Tasks run one after the other in this process, unless a
scheduler is configured (`dask.config`) or lent by an engine (`on_scheduler`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import combinations_with_replacement
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
V = TypeVar("V")
_MAX_BUCKETS = 64  # chosen: a bucket of 10 million clips' keys fits in 200 MB
_MAX_BLOCKS = 32  # chosen: 528 pairs of blocks
_scheduler: ContextVar[Callable[..., Any] | None] = ContextVar("scheduler", default=None)


@contextmanager
def on_scheduler(get: Callable[..., Any]) -> Iterator[None]:
    """Run the verbs of this context with a dask scheduler function."""
    token = _scheduler.set(get)
    try:
        yield
    finally:
        _scheduler.reset(token)


def _compute(tasks: list[Any]) -> list[Any]:
    import dask

    scheduler = _scheduler.get() or dask.config.get("scheduler", None) or "synchronous"
    return list(dask.compute(*tasks, scheduler=scheduler))


def each(make: Callable[[int], T], partitions: int) -> list[T]:
    """Return the values of all partitions, in their order."""
    from dask import delayed

    task = delayed(make, pure=False)
    return _compute([task(index) for index in range(partitions)])


def grouped(
    make: Callable[[int], np.ndarray], partitions: int, join: Callable[[np.ndarray], T]
) -> list[T]:
    """Bring rows with equal keys together.

    Args:
        make: returns the rows of partition i: a structured array with a field `key` (uint64).
        partitions: number of partitions.
        join: gets all rows of some keys, in no particular order.

    Returns:
        What `join` made of each bucket of keys.
    """
    from dask import delayed

    buckets = max(1, min(partitions, _MAX_BUCKETS))

    def split(index: int) -> tuple[np.ndarray, ...]:
        rows = make(index)
        home = rows["key"] % np.uint64(buckets)
        return tuple(rows[home == bucket] for bucket in range(buckets))

    def gather(*pieces: np.ndarray) -> T:
        return join(np.concatenate(pieces))

    splits = [delayed(split, nout=buckets, pure=False)(index) for index in range(partitions)]
    joined = delayed(gather, pure=False)
    return _compute([joined(*pieces) for pieces in zip(*splits, strict=True)])


def paired(
    make: Callable[[int], V],
    partitions: int,
    merge: Callable[[list[V]], V],
    compare: Callable[[V, V], T],
) -> list[T]:
    """Compare every two rows of a table once, block against block, each also with itself.

    Args:
        make: returns the rows of partition i.
        partitions: number of partitions.
        merge: puts the rows of several partitions into one block.
        compare: gets two blocks, or one block twice.
    """
    from dask import delayed

    count = min(partitions, _MAX_BLOCKS)

    def load(block: int) -> V:
        return merge([make(index) for index in range(block, partitions, count)])

    blocks = [delayed(load, pure=False)(block) for block in range(count)]
    task = delayed(compare, pure=False)
    return _compute([task(a, b) for a, b in combinations_with_replacement(blocks, 2)])
