"""Two operations on the partitions of a table: every one, and every two blocks of them.

Nothing is read before a task needs it. Tasks run one after the other in this process, unless an
engine passes a dask scheduler; only then is dask imported.
"""

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any, TypeVar

T = TypeVar("T")
V = TypeVar("V")
_MAX_BLOCKS = 32  # chosen: 528 pairs of blocks
DaskScheduler = Callable[..., Any]
"""A dask `get` function, for example `ray.util.dask.ray_dask_get`; None means this process."""


def map_partitions(
    compute: Callable[[int], T], partitions: int, scheduler: DaskScheduler | None = None
) -> list[T]:
    """Return the values of all partitions, in their order."""
    if scheduler is None:
        return [compute(index) for index in range(partitions)]
    import dask

    # a pure task is named by a hash of its arguments: hashing costs more than it can save here
    task = dask.delayed(compute, pure=False)
    return list(dask.compute(*map(task, range(partitions)), scheduler=scheduler))


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
    count = min(partitions, _MAX_BLOCKS)

    # round robin: blocks of about equal size
    def load(block: int) -> V:
        return merge([read(index) for index in range(block, partitions, count)])

    def pairs(blocks: Sequence[Any], task: Callable[[Any, Any], Any]) -> list[Any]:
        return [task(a, b) for a, b in combinations_with_replacement(blocks, 2)]

    if scheduler is None:
        return pairs([load(block) for block in range(count)], compare)
    import dask

    blocks = [dask.delayed(load, pure=False)(block) for block in range(count)]
    tasks = pairs(blocks, dask.delayed(compare, pure=False))
    return list(dask.compute(*tasks, scheduler=scheduler))
