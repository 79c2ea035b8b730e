"""Minimum, maximum and null count of the columns of a file, from its Parquet footer.

They are written to the Delta log, where other readers use them to skip files. The log is kept after
a takedown, so it must not hold captions or addresses: of string columns, only ids and enumerations
(columns whose contract has a regex or enum) have a range.
"""

import json
import math
from collections.abc import Iterable, Mapping

import pyarrow.parquet as pq

from videoar.contracts.contract import Column, Contract
from videoar.core.types import FileRef, Frozen
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import arrow_errors, read_footers

_RANGED = {"int16", "int32", "int64", "float32", "float64"}
Value = int | float | str


class Range(Frozen):
    """Range of the values of a column."""

    min: Value | None = None
    """None: there is no value, or it is not recorded."""
    max: Value | None = None
    nulls: int


Statistics = dict[str, Range]
"""By column name; nested columns and payloads have none."""


def read_statistics(
    objects: ObjectStore, files: Iterable[FileRef], contract: Contract
) -> list[Statistics]:
    """Read the statistics of files from their footers.

    Raises:
        StorageError: a file is missing or damaged.
    """
    files, read = list(files), []
    for file, footer in zip(files, read_footers(objects, files), strict=True):
        with arrow_errors(objects, file):
            read.append(footer_statistics(footer, contract))
    return read


def footer_statistics(footer: pq.FileMetaData, contract: Contract) -> Statistics:
    """Merge the statistics of a file's row groups."""
    index = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    columns = [column for column in contract.columns if column.name in index]
    parts: list[Statistics] = []
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        ranges = {c.name: _range(c, row_group.column(index[c.name])) for c in columns}
        parts.append({name: range_ for name, range_ in ranges.items() if range_ is not None})
    return merge(parts)


def _range(column: Column, chunk: pq.ColumnChunkMetaData) -> Range | None:
    """Return the range of a column chunk; None if it is unknown (not: if there are no values)."""
    statistics = chunk.statistics
    # a missing null count must not be written as 0: readers would skip rows with nulls
    if statistics is None or not statistics.has_null_count:
        return None
    without_values = Range(nulls=statistics.null_count)
    is_id = column.type == "string" and (column.checks.regex or column.checks.enum)
    if column.type not in _RANGED and not is_id:
        return without_values
    # without min and max: all values are null, or Parquet has none (values over 4 kB, NaN only)
    if not statistics.has_min_max:
        return without_values if statistics.null_count == chunk.num_values else None
    if isinstance(statistics.min, float) and not math.isfinite(statistics.min + statistics.max):
        return None  # JSON has no infinity
    return Range(min=statistics.min, max=statistics.max, nulls=statistics.null_count)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of the union of rows, of the columns that are in all parts."""
    first, *others = [*parts] or [{}]
    common = [name for name in first if all(name in part for part in others)]
    return {name: _union([part[name] for part in (first, *others)]) for name in common}


def _union(ranges: list[Range]) -> Range:
    low = min((r.min for r in ranges if r.min is not None), default=None)
    high = max((r.max for r in ranges if r.max is not None), default=None)
    return Range(min=low, max=high, nulls=sum(r.nulls for r in ranges))


def delta_statistics(rows: int, columns: Mapping[str, Range]) -> str:
    """Return the `stats` field of an `add` action of the Delta protocol."""
    known = {name: range_ for name, range_ in columns.items() if range_.min is not None}
    return json.dumps({
        "numRecords": rows,
        "minValues": {name: range_.min for name, range_ in known.items()},
        "maxValues": {name: range_.max for name, range_ in known.items()},
        "nullCount": {name: range_.nulls for name, range_ in columns.items()},
    })
