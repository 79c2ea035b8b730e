r"""Read `labels.csv`, and find the files that its lines name.

What would otherwise be ignored is an error with its line: an unknown column, a second line for a
file, a file that no line names. Where only one file can be meant, a line may spell it in another
way: `./a.mp4`, `b\a.mp4`, another case, another Unicode form.
"""

import csv
import io
import logging
import posixpath
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import BinaryIO, NamedTuple

from videoar.core.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)
_SYNONYMS = {"caption": "label_text", "license": "licence", "source": "origin"}
_DELIMITERS = ",;\t"
_BATCH = 2_000  # chosen: a query for each line takes three times as long

_KEYS = """
CREATE TABLE keys (key TEXT, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
INSERT INTO keys SELECT folded(name), number FROM files ORDER BY 1, 2;
"""
_FIND = "SELECT key, number FROM keys WHERE key IN ({})"
_ADD = "INSERT INTO labels VALUES (?, ?, ?, ?, lower(?), ?, ?, ?)"


class Label(NamedTuple):
    """One line of labels, its cells as they are written; those of a missing column are empty."""

    line: int
    file: str
    label: str
    label_text: str
    split: str
    group: str
    licence: str
    origin: str


_COLUMNS = Label._fields[1:]
_KNOWN = {*_COLUMNS, *_SYNONYMS}


def read_labels(where: str, file: BinaryIO) -> Iterator[Label]:
    """Yield the lines of a CSV file in UTF-8; commas, semicolons or tabs separate its cells.

    Args:
        where: start of the error message: the file.
        file: is closed at the end.

    Raises:
        ConfigError: it is no such file, or a line is invalid.
    """
    line = 0
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            header = ""
            while not header.strip() and (header := text.readline()):
                line += 1
            delimiter, columns = _columns(where, line, header)
            # -1: an empty cell that is added to each line
            pick = itemgetter(*(columns.index(c) if c in columns else -1 for c in _COLUMNS))
            reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
            head = line
            line += 1  # where the next line of cells begins: it may span several
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield _label(where, line, cells, len(columns), pick)
                line = head + reader.line_num + 1
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(where, f"line {line} or later: no CSV in UTF-8: {error}") from error


def _columns(where: str, line: int, header: str) -> tuple[str, list[str]]:
    """Return the delimiter and the columns of a header."""
    names = {d: _cells(header, d) for d in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda d: ("file" in names[d], len(names[d])))
    columns = names[delimiter]
    if "file" not in columns:
        given = ", ".join(columns) or "nothing"
        hint = "add it, with paths relative to the input folder"
        raise ConfigError(where, f"has no column `file`; its first line has: {given}", hint)
    for name in columns:
        if name not in _KNOWN:
            what = f"column {name} is unknown" if name else "a column has no name"
            raise ConfigError(
                where, f"line {line}: {what}", f"{did_you_mean(name, _KNOWN)}; or remove it"
            )
    result = [_SYNONYMS.get(name, name) for name in columns]
    for name in result:
        if result.count(name) > 1:
            raise ConfigError(where, f"line {line}: column {name} is there twice", "remove one")
    return delimiter, result


def _cells(line: str, delimiter: str) -> list[str]:
    cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells]


def _label(
    where: str,
    line: int,
    cells: list[str],
    num_columns: int,
    pick: Callable[[list[str]], tuple[str, ...]],
) -> Label:
    if len(cells) != num_columns:
        what = f"line {line}: {len(cells)} cells, but {num_columns} columns"
        raise ConfigError(where, what, "put cells that hold the delimiter in quotes")
    cells.append("")
    label = Label(line, *pick(cells))
    if not label.file.strip():
        raise ConfigError(where, f"line {line}: names no file")
    split = label.split.strip()
    if split and split.lower() not in {"train", "val"}:
        what = f"line {line}: split {split} is unknown"
        raise ConfigError(where, what, "use train or val")
    return label


def match(where: str, labels: Iterator[Label], db: sqlite3.Connection) -> bool:
    """Fill a table with the labels of files; return whether there is any line.

    Args:
        where: start of the error message: the file of labels.
        labels: its lines.
        db: has tables `files` (number, name) and `labels` (number, the fields of `Label` but
            `file`).

    Raises:
        ConfigError: two lines are for one file, a line may be for several, or all are for none.
    """
    db.create_function("folded", 1, _folded, deterministic=True)
    db.executescript(_KEYS)
    count = num_missing = 0
    missing = ""
    while batch := list(islice(labels, _BATCH)):
        keys = [_folded(label.file) for label in batch]
        files: dict[str, list[int]] = {}
        for key, number in db.execute(_FIND.format(", ".join("?" * len(keys))), keys):
            files.setdefault(key, []).append(number)
        pairs = list(zip(batch, map(files.get, keys), strict=True))
        found = [(label, _nearest(where, label, near, db)) for label, near in pairs if near]
        _add(where, found, db)
        count += len(batch)
        num_missing += len(batch) - len(found)
        missing = missing or next(
            (f"line {of.line}: {of.file}" for of, near in pairs if not near), ""
        )
    if count and count == num_missing:
        ((example,),) = db.execute("SELECT min(name) FROM files")
        hint = f"paths are relative to the input folder, which has e.g. {example}"
        raise ConfigError(where, f"names no file of the input, e.g. {missing}", hint)
    if num_missing:
        logger.warning("%s: %d files are not in the input, e.g. %s", where, num_missing, missing)
    return count > 0


def _nearest(where: str, label: Label, files: Sequence[int], db: sqlite3.Connection) -> int:
    """Return the number of the file that is meant.

    Raises:
        ConfigError: several files are equally near.
    """
    if len(files) == 1:
        return files[0]
    names = {
        n: db.execute("SELECT name FROM files WHERE number = ?", (n,)).fetchone()[0] for n in files
    }
    for spell in (str, _canonical):
        near = [n for n in files if spell(names[n]) == spell(label.file)]
        files = near or files
    if len(files) > 1:
        what = f"line {label.line}: {label.file} may be {names[files[0]]} or {names[files[1]]}"
        raise ConfigError(where, what, "spell it as the name of the file")
    return files[0]


def _add(where: str, found: Sequence[tuple[Label, int]], db: sqlite3.Connection) -> None:
    rows = (
        (number, label.line, *(cell.strip() or None for cell in label[2:]))
        for label, number in found
    )
    try:
        db.executemany(_ADD, rows)
    except sqlite3.IntegrityError as error:
        for label, number in found:
            ((line,),) = db.execute("SELECT line FROM labels WHERE number = ?", (number,))
            if line != label.line:
                what = f"line {label.line}: {label.file} has line {line} already"
                raise ConfigError(where, what, "remove one of them") from error


def _canonical(name: str) -> str:
    path = posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _canonical(name).casefold())
