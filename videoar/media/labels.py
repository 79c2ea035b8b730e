r"""Read `labels.csv`, and find the files that its lines name.

What would otherwise be ignored is an error with its line: an unknown column, a second line for a
file, a file that no line names. Where only one file can be meant, a line may spell it in another
way: `./a.mp4`, `b\a.mp4`, another case, another Unicode form.
"""

import csv
import io
import logging
import posixpath
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from videoar.core.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)
COLUMNS = ("label", "label_text", "split", "group", "licence", "origin")
_SYNONYMS = {"caption": "label_text", "license": "licence", "source": "origin"}
_KNOWN = {"file", *COLUMNS, *_SYNONYMS}
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Label:
    """One line of labels."""

    line: int
    file: str
    values: dict[str, str]
    """By column, of `COLUMNS`; empty cells are left out."""


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
            reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
            head = line
            line += 1  # where the next line of cells begins: it may span several
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield _label(where, line, columns, cells)
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


def _label(where: str, line: int, columns: Sequence[str], cells: Sequence[str]) -> Label:
    if len(cells) != len(columns):
        what = f"line {line}: {len(cells)} cells, but {len(columns)} columns"
        raise ConfigError(where, what, "put cells that hold the delimiter in quotes")
    values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    if not values.pop("file", ""):
        raise ConfigError(where, f"line {line}: names no file")
    if split := values.get("split"):
        values["split"] = split.lower()
        if values["split"] not in {"train", "val"}:
            what = f"line {line}: split {split} is unknown"
            raise ConfigError(where, what, "use train or val")
    return Label(line, cells[columns.index("file")], values)


def match(
    where: str, labels: Iterable[Label], names: Sequence[str]
) -> dict[str, list[str | None]] | None:
    """Return the values of each file by column, in the order of the names; None without a line.

    Args:
        where: start of the error message: the file of labels.
        labels: its lines.
        names: of the files of the input.

    Raises:
        ConfigError: two lines are for one file, a line may be for several, or all are for none.
    """
    index = _Index(names)
    columns: dict[str, list[str | None]] = {c: [None] * len(names) for c in COLUMNS}
    lines = array("q", bytes(8 * len(names)))
    texts: dict[str, str] = {}  # a label of a million files is one text
    count = num_missing = 0
    missing = ""
    for label in labels:
        count += 1
        found = index.find(label.file)
        if len(found) > 1:
            what = f"line {label.line}: {label.file} may be {names[found[0]]} or {names[found[1]]}"
            raise ConfigError(where, what, "spell it as the name of the file")
        if not found:
            missing = missing or f"line {label.line}: {label.file}"
            num_missing += 1
            continue
        (number,) = found
        if earlier := lines[number]:
            what = f"line {label.line}: {label.file} has line {earlier} already"
            raise ConfigError(where, what, "remove one of them")
        lines[number] = label.line
        for column, value in label.values.items():
            is_text = column == "label_text"
            columns[column][number] = value if is_text else texts.setdefault(value, value)
    if count and count == num_missing:
        hint = f"paths are relative to the input folder, which has e.g. {min(names)}"
        raise ConfigError(where, f"names no file of the input, e.g. {missing}", hint)
    if num_missing:
        logger.warning("%s: %d files are not in the input, e.g. %s", where, num_missing, missing)
    return columns if count else None


class _Index:
    """Finds files by name, or by one that is spelled in another way."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._by_key: dict[str, int | tuple[int, ...]] = {}
        for number, name in enumerate(names):
            key = _folded(name)
            # a number, not a tuple of one: of a million files that is most of the memory
            earlier = self._by_key.get(key)
            self._by_key[name if key == name else key] = (
                number if earlier is None else (*_as_tuple(earlier), number)
            )

    def find(self, name: str) -> tuple[int, ...]:
        """Return the files that may be meant: none, one, or several that are equally near."""
        found = _as_tuple(self._by_key.get(_folded(name), ()))
        for spell in (str, _canonical):
            if near := tuple(n for n in found if spell(self._names[n]) == spell(name)):
                return near
        return found


def _as_tuple(numbers: int | tuple[int, ...]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else numbers


def _canonical(name: str) -> str:
    path = posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _canonical(name).casefold())
