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
from collections.abc import Iterable, Iterator, Sequence
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
_FIND = "SELECT key, number, name FROM keys JOIN files USING (number) WHERE key IN ({})"
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


class _File(NamedTuple):
    number: int
    name: str


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
                    _require_cells(where, line, len(cells), len(columns))
                    yield _checked(where, Label(line, *pick([*cells, ""])))
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


def _require_cells(where: str, line: int, count: int, expected: int) -> None:
    if count != expected:
        what = f"line {line}: {count} cells, but {expected} columns"
        raise ConfigError(where, what, "put cells that hold the delimiter in quotes")


def _checked(where: str, label: Label) -> Label:
    if not label.file.strip():
        raise ConfigError(where, f"line {label.line}: names no file")
    split = label.split.strip()
    if split and split.lower() not in {"train", "val"}:
        what = f"line {label.line}: split {split} is unknown"
        raise ConfigError(where, what, "use train or val")
    return label


def match(where: str, labels: Iterable[Label], db: sqlite3.Connection) -> bool:
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
    for batch in _batches(labels):
        keys = [_folded(label.file) for label in batch]
        files: dict[str, list[_File]] = {}
        for key, *file in db.execute(_FIND.format(", ".join("?" * len(keys))), keys):
            files.setdefault(key, []).append(_File(*file))
        count += len(batch)
        for label, key in zip(batch, keys, strict=True):
            if near := files.get(key):
                _add(where, label, _nearest(where, label, near), db)
            else:
                missing = missing or f"line {label.line}: {label.file}"
                num_missing += 1
    if count and count == num_missing:
        ((example,),) = db.execute("SELECT min(name) FROM files")
        hint = f"paths are relative to the input folder, which has e.g. {example}"
        raise ConfigError(where, f"names no file of the input, e.g. {missing}", hint)
    if num_missing:
        logger.warning("%s: %d files are not in the input, e.g. %s", where, num_missing, missing)
    return count > 0


def _batches(labels: Iterable[Label]) -> Iterator[list[Label]]:
    batch: list[Label] = []
    try:
        for label in labels:
            batch.append(label)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    except ConfigError:
        yield batch  # mistakes of the lines before the invalid one are reported first
        raise
    yield batch


def _nearest(where: str, label: Label, files: Sequence[_File]) -> _File:
    """Return the file that is meant.

    Raises:
        ConfigError: several files are equally near.
    """
    for spell in (str, _canonical):
        if len(files) > 1:
            near = [file for file in files if spell(file.name) == spell(label.file)]
            files = near or files
    if len(files) > 1:
        what = f"line {label.line}: {label.file} may be {files[0].name} or {files[1].name}"
        raise ConfigError(where, what, "spell it as the name of the file")
    return files[0]


def _add(where: str, label: Label, file: _File, db: sqlite3.Connection) -> None:
    try:
        values = (value.strip() or None for value in label[2:])
        db.execute(_ADD, (file.number, label.line, *values))
    except sqlite3.IntegrityError as error:
        ((line,),) = db.execute("SELECT line FROM labels WHERE number = ?", (file.number,))
        what = f"line {label.line}: {label.file} has line {line} already"
        raise ConfigError(where, what, "remove one of them") from error


def _canonical(name: str) -> str:
    path = posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _canonical(name).casefold())
