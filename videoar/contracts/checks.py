"""Row checks of tables; each problem names a column and its first bad row."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator

from videoar.core.types import Frozen


class Checks(Frozen):
    """Checks of every value of a column; nulls are checked by the column's nullability."""

    min: float | None = None
    max: float | None = None
    enum: tuple[str | int, ...] | None = None
    regex: str | None = None

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


@dataclass(frozen=True)
class Problem:
    """One rule and the rows that break it."""

    column: str
    rule: str
    row: int
    """First row that breaks it, from 0."""
    count: int
    """Rows that break it."""
    value: str
    """The value in the first bad row."""

    def __str__(self) -> str:
        rows = f"row {self.row}" + (f" and {self.count - 1} more" if self.count > 1 else "")
        return f"column {self.column}: {self.rule}: {rows}: {self.value}"


def find_problems(
    table: pa.Table, checks: Mapping[str, Checks], primary_key: Sequence[str]
) -> list[Problem]:
    """Check all rows of a table; NaN counts as outside any bounds.

    Args:
        table: of the contract's Arrow schema, whose nullability is checked, too.
        checks: by column name.
        primary_key: columns whose combination is unique; empty checks nothing.
    """
    problems = [
        problem
        for field in table.schema
        for rule, bad in _bad_masks(table[field.name], field, checks.get(field.name, Checks()))
        if (problem := _problem(field.name, rule, bad, table[field.name])) is not None
    ]
    return problems + (_duplicates(table, list(primary_key)) if primary_key else [])


def _bad_masks(
    values: pa.ChunkedArray, field: pa.Field, checks: Checks
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    if not field.nullable:
        yield "null not allowed", pc.is_null(values)
    # "not >=" instead of "<": every comparison with NaN is false, so NaN breaks both bounds
    if checks.min is not None:
        is_enough = pc.greater_equal(values, _bound(checks.min, values))
        yield f"below {checks.min:g}", pc.invert(is_enough)
    if checks.max is not None:
        yield f"above {checks.max:g}", pc.invert(pc.less_equal(values, _bound(checks.max, values)))
    if checks.enum is not None:
        allowed = pa.array(checks.enum, values.type)
        # is_in is false for null, and nulls are checked by nullability
        bad = pc.and_(pc.invert(pc.is_in(values, allowed)), pc.is_valid(values))
        yield f"not one of {', '.join(map(str, checks.enum))}", bad
    if checks.regex is not None:
        # RE2, not Python's `re`: contracts with lookaheads fail here
        match = pc.match_substring_regex(values, checks.regex)
        yield f"does not match {checks.regex}", pc.invert(match)


def _bound(bound: float, values: pa.ChunkedArray) -> float:
    # with a float, Arrow compares as float64, and rejects integers above 2**53, such as seeds
    return int(bound) if pa.types.is_integer(values.type) and bound.is_integer() else bound


def _problem(name: str, rule: str, bad: pa.ChunkedArray, values: pa.ChunkedArray) -> Problem | None:
    count = pc.sum(bad).as_py() or 0  # the sum of no rows is null
    if not count:
        return None
    row = pc.index(bad, True).as_py()
    return Problem(name, rule, row, count, _shorten(values[row].as_py()))


def _shorten(value: object) -> str:
    text = repr(value)
    # values may be captions or lists of thousands
    return text if len(text) <= 80 else text[:77] + "..."


def _duplicates(table: pa.Table, key: list[str]) -> list[Problem]:
    """Return a problem if a row repeats the primary key of an earlier one."""
    # group_by returns each key once with its first row; every other row repeats a key
    keys = table.select(key).append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = keys.group_by(key).aggregate([("row", "min")])
    if first.num_rows == table.num_rows:  # as many keys as rows
        return []
    bad = pc.invert(pc.is_in(keys["row"], first["row_min"]))
    row = pc.index(bad, True).as_py()
    value = _shorten(tuple(table[name][row].as_py() for name in key))
    return [Problem("+".join(key), "not unique", row, pc.sum(bad).as_py(), value)]
