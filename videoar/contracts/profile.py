"""Statistics of a snapshot's rows: percentiles, missing values, and the funnel of reasons.

dask reads one partition at a time, so that the profile of a corpus costs the memory of one file.
Percentiles over several partitions are dask's merged ones: approximate, but always the same.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa

from videoar.core.types import Frozen

_PERCENTILES = {"p02": 0.02, "p50": 0.5, "p98": 0.98}


class ColumnProfile(Frozen):
    """What one numeric column holds; None where it holds nothing."""

    nulls: int
    mean: float | None
    p02: float | None
    p50: float | None
    p98: float | None


class Profile(Frozen):
    """What a table holds."""

    rows: int
    columns: dict[str, ColumnProfile]
    reasons: dict[str, int]
    """Decisive reasons and how many rows each one refused."""


def profile(
    read: Callable[[int], pa.Table], partitions: int, columns: Sequence[str], reason: str
) -> Profile:
    """Profile a partitioned table.

    Args:
        read: returns partition i with `columns` and `reason`; called when dask gets to it.
        partitions: number of partitions, at least 1.
        columns: numeric columns to describe.
        reason: text column with the reason against a row, null for kept rows.
    """
    import dask
    import dask.dataframe as dd

    def load(index: int) -> object:
        frame = read(index).to_pandas()
        kinds = {**dict.fromkeys(columns, "float64"), reason: "object"}
        return frame.astype(kinds)[[*columns, reason]]

    with dask.config.set({"scheduler": "synchronous", "dataframe.convert-string": False}):
        frame = dd.from_map(load, range(partitions), meta=_empty(columns, reason))
        numbers = frame[list(columns)]
        results = dask.compute(
            frame.shape[0],
            numbers.isna().sum(),
            numbers.mean(),
            numbers.quantile(list(_PERCENTILES.values())),
            frame[reason].value_counts(),
        )
    rows, nulls, means, quantiles, reasons = results
    described = {
        name: ColumnProfile(
            nulls=int(nulls[name]),
            mean=_number(means[name]),
            **{key: _number(quantiles[name][q]) for key, q in _PERCENTILES.items()},
        )
        for name in columns
    }
    counts = {str(name): int(count) for name, count in sorted(reasons.items())}
    return Profile(rows=int(rows), columns=described, reasons=counts)


def _empty(columns: Sequence[str], reason: str) -> object:
    import pandas as pd

    kinds = {**dict.fromkeys(columns, "float64"), reason: "object"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def _number(value: float) -> float | None:
    return None if value != value else float(value)  # noqa: PLR0124 - NaN is not itself
