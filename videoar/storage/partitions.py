"""dask over the partitions of a table: three operations.

    map_partitions   partition -> value
    hash_join        partition -> rows -> buckets of rows with equal keys -> value
    all_pairs        every two blocks of partitions -> value

Nothing is read before a task needs it. Tasks run one after the other in this process, unless an
engine passes a scheduler or one is configured (`dask.config`).
"""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
V = TypeVar("V")
_MAX_BUCKETS = 64  # chosen: a bucket of 10 million clips' keys fits in 200 MB
_MAX_BLOCKS = 32  # chosen: 528 pairs of blocks
DaskScheduler = Callable[..., Any]
"""A dask `get` function, for example `ray.util.dask.ray_dask_get`; None means this process."""


def _compute(tasks: list[Any], scheduler: DaskScheduler | None) -> list[Any]:
    import dask

    chosen = scheduler or dask.config.get("scheduler", None) or "synchronous"
    return list(dask.compute(*tasks, scheduler=chosen))


def map_partitions(
    compute: Callable[[int], T], partitions: int, scheduler: DaskScheduler | None = None
) -> list[T]:
    """Return the values of all partitions, in their order."""
    from dask import delayed

    # a pure task is named by a hash of its arguments: hashing costs more than it can save here
    task = delayed(compute, pure=False)
    return _compute([task(index) for index in range(partitions)], scheduler)


def hash_join(
    read: Callable[[int], np.ndarray],
    partitions: int,
    join: Callable[[np.ndarray], T],
    scheduler: DaskScheduler | None = None,
) -> list[T]:
    """Call `join` on buckets of rows, such that rows with equal keys share a bucket.

    Args:
        read: returns the rows of partition i: a structured array with a field `key` (uint64).
        partitions: number of partitions.
        join: receives all rows of some keys, in no particular order.
        scheduler: see `DaskScheduler`.

    Returns:
        The result of `join` for each bucket.
    """
    from dask import delayed

    # the shuffle makes partitions * buckets pieces
    buckets = max(1, min(partitions, _MAX_BUCKETS))

    def split(index: int) -> tuple[np.ndarray, ...]:
        rows = read(index)
        bucket_of_row = rows["key"] % np.uint64(buckets)
        return tuple(rows[bucket_of_row == bucket] for bucket in range(buckets))

    def gather(*pieces: np.ndarray) -> T:
        return join(np.concatenate(pieces))

    splits = [delayed(split, nout=buckets, pure=False)(index) for index in range(partitions)]
    joined = delayed(gather, pure=False)
    return _compute([joined(*pieces) for pieces in zip(*splits, strict=True)], scheduler)


def all_pairs(
    read: Callable[[int], V],
    partitions: int,
    merge: Callable[[list[V]], V],
    compare: Callable[[V, V], T],
    scheduler: DaskScheduler | None = None,
) -> list[T]:
    """Compare every two rows of a table once, block against block, each also with itself.

    Args:
        read: returns the rows of partition i.
        partitions: number of partitions.
        merge: concatenates the rows of several partitions to one block.
        compare: receives two blocks, or one block twice.
        scheduler: see `DaskScheduler`.
    """
    from dask import delayed

    count = min(partitions, _MAX_BLOCKS)

    # round robin: blocks of about equal size
    def load(block: int) -> V:
        return merge([read(index) for index in range(block, partitions, count)])

    blocks = [delayed(load, pure=False)(block) for block in range(count)]
    task = delayed(compare, pure=False)
    pairs = combinations_with_replacement(blocks, 2)
    return _compute([task(a, b) for a, b in pairs], scheduler)
