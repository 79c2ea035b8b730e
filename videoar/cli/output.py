"""Everything that goes to stdout: JSON documents, and tables for people.

On a terminal tables are laid out by rich, in colours unless NO_COLOR is set, and fold long cells to
the terminal's width. Elsewhere they are plain aligned columns, a row per line, for grep and awk.
Text from outside (file names, captions, errors of other programs) is escaped before it is printed.
"""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from videoar.cli.session import session
from videoar.core.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from videoar import api
    from videoar.core.types import Json  # needs pydantic, half of the time that --help takes

PIPE_CLOSED = 141
"""Exit code if the reader has closed the pipe: 128 + SIGPIPE, as shells report for `cat`."""
STYLES = {
    "SUCCEEDED": "green", "CACHED": "cyan", "RUNNING": "yellow", "FAILED": "red",
    "GATE_BLOCKED": "magenta", "CANCELLED": "red", "INTERRUPTED": "red", "PENDING": "dim",
    "QUEUED": "dim", "DAMAGED": "red",
    "SKIPPED": "dim", "skipped": "dim", "cached": "cyan", "partial": "yellow", "run": "green",
    "pass": "green", "ok": "green", "FAIL": "red", "error": "red",
}  # fmt: skip
_STYLED = ("status", "action", "result")
"""Columns whose words have a colour: a stage may be called `run` and is not a success."""
_GAP = 2
_UNFOLDED = 12
"""chosen: cells up to here stay on one line; a status is at most 12 characters long."""


@dataclass(frozen=True)
class Table:
    """Columns and rows; a column whose title begins with `>` is aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


Block = str | Table
"""A line of text, or a table."""


def emit(document: "Json", blocks: Callable[[], Sequence[Block]]) -> None:
    """Print the document under `--json`, and otherwise what `blocks` returns for people."""
    with flushed_stdout():
        if session.as_json:
            print(to_json(document))
        else:
            _print_blocks(blocks())


@contextlib.contextmanager
def flushed_stdout() -> Iterator[None]:
    """Flush stdout after the block; a reader that has closed the pipe ends the command."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        raise typer.Exit(PIPE_CLOSED) from None


def discard_stdout() -> None:
    """Redirect stdout to the null device: Python flushes its buffer once more at exit."""
    with contextlib.suppress(io.UnsupportedOperation):  # text in memory: nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_json(document: "Json", indent: int | None = 2) -> str:
    """Return a document as JSON text; NaN and infinities, which JSON does not have, become null.

    Without `indent` it is one line.
    """
    # default=str: bytes and times in rows of tables; ASCII escapes keep control characters out
    return json.dumps(_finite(document), indent=indent, default=str, allow_nan=False)


def _finite(value: "Json") -> "Json":
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def cell(value: object) -> str:
    """Return a value as the text of a cell: nothing for None, four digits of a fraction."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"  # -0.0 + 0.0 is 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    return printable(str(value))


def facts(values: Mapping[str, object]) -> Table:
    """Return names and values as a table of two columns without titles; None is left out."""
    return Table(("", ""), [(name, value) for name, value in values.items() if value is not None])


def progress_text(stage: "api.StageRun") -> str:
    """Return how far a stage is, with its metrics, or what it waits for."""
    if stage.waiting or stage.progress is None:
        return stage.waiting
    metrics = (f"{name} {cell(value)}" for name, value in stage.progress.metrics.items())
    return "  ".join([str(stage.progress), *metrics])


def local_time(seconds: float) -> str:
    """Return a time since 1970 in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _print_blocks(blocks: Sequence[Block]) -> None:
    if not sys.stdout.isatty():
        for block in blocks:
            for line in _aligned(block) if isinstance(block, Table) else [printable(block)]:
                print(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    for block in blocks:
        if isinstance(block, Table):
            _print_table(console, block)
        else:
            # not folded, so that a path or id can be copied
            console.print(Text(printable(block)), soft_wrap=True)


def _print_table(console: "Console", table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    columns, rows = _filled(table)
    if not rows:
        return
    layout = RichTable(
        box=None, show_header=any(columns), pad_edge=False, padding=(0, _GAP, 0, 0),
        header_style="bold",
    )  # fmt: skip
    for index, title in enumerate(columns):
        longest = max((len(row[index]) for row in rows), default=0)
        layout.add_column(
            title.lstrip(">"),
            justify="right" if title.startswith(">") else "left",
            overflow="fold",
            # Rich shrinks all columns alike: without this, numbers fold before sentences do.
            min_width=min(longest, _UNFOLDED),
        )
    for row in rows:
        cells = zip(columns, row, strict=True)
        layout.add_row(
            # Text, because a str is parsed as markup: `[red]` in a file name would vanish
            *(Text(text, STYLES.get(text, "") if t in _STYLED else "") for t, text in cells)
        )
    console.print(layout)


def _filled(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return titles and texts of the columns that have any text."""
    # an empty column takes width that others need, e.g. `rejected` where nothing was
    texts = [[cell(value) for value in row] for row in table.rows]
    used = [i for i in range(len(table.columns)) if any(row[i] for row in texts)]
    return [table.columns[i] for i in used], [[row[i] for i in used] for row in texts]


def _aligned(table: Table) -> list[str]:
    from rich.cells import cell_len  # of East Asian characters, which take two columns each

    columns, rows = _filled(table)
    if not rows:
        return []
    titles = [title.lstrip(">") for title in columns]
    lines = [titles, *rows] if any(titles) else rows
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    return [
        (" " * _GAP)
        .join(
            " " * (width - cell_len(text)) + text
            if title.startswith(">")
            else text + " " * (width - cell_len(text))
            for text, width, title in zip(line, widths, columns, strict=True)
        )
        .rstrip()
        for line in lines
    ]
