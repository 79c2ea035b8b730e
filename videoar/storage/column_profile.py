"""Statistics of a numeric column: exact percentiles and a histogram, for any partitioning.

dask reads the column partition by partition, so a profile needs memory for one column (8 bytes per
row), not for the table.
"""

from collections.abc import Callable

import numpy as np

from videoar.core.types import Frozen
from videoar.storage.partitions import DaskScheduler, map_partitions

_BINS = 40  # chosen: bars that are still distinct in the report


class ColumnProfile(Frozen):
    """One row of `profiles@1`; None and empty if the column has no finite value."""

    column: str
    rows: int
    nulls: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    percentiles: tuple[float, ...] = ()
    """Percentiles 0 to 100 with linear interpolation."""
    hist_edges: tuple[float, ...] = ()
    hist_counts: tuple[int, ...] = ()


def describe(
    column: str,
    read: Callable[[int], np.ndarray],
    partitions: int,
    scheduler: DaskScheduler | None = None,
) -> ColumnProfile:
    """Profile one column.

    Args:
        column: its name.
        read: returns the values of partition i as float64, NaN for null.
        partitions: number of partitions.
        scheduler: see `DaskScheduler`.
    """
    parts = map_partitions(read, partitions, scheduler)
    rows = sum(map(len, parts))
    # sorted: mean and std depend on the order of summation, the partitioning must not change them
    values = np.sort(np.concatenate([np.empty(0), *(part[np.isfinite(part)] for part in parts)]))
    if not len(values):
        return ColumnProfile(column=column, rows=rows, nulls=rows)
    counts, edges = np.histogram(values, _BINS)
    return ColumnProfile(
        column=column,
        rows=rows,
        nulls=rows - len(values),
        mean=values.mean(),
        std=values.std(),
        min=values[0],
        max=values[-1],
        percentiles=tuple(np.percentile(values, range(101)).tolist()),
        hist_edges=tuple(edges.tolist()),
        hist_counts=tuple(counts.tolist()),
    )
