"""Folds: records that have many entries of a log each, so that few requests read a long log.

The entries of a log are objects numbered from 0 that never change: versions of a Delta log, moves
of a ref, decisions. A fold has 32 or 1,024 of them in a row, and the writer of the last one, or of
the next, makes it. Folds are derived. One that is missing, damaged, or of entries of other sizes
or another last entry than the log has is as good as none: then its entries are read one by one.
Deleting all of `folds/` changes no answer, and `videoar doctor --verify --fix` makes all that are
missing.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from videoar.core.crash_points import crash_point
from videoar.core.errors import StorageError
from videoar.core.ids import canonical_json
from videoar.core.prefetch import concurrently
from videoar.storage.layout import fold_key, folds_prefix

logger = logging.getLogger(__name__)
SIZES = (1024, 32)
"""chosen: a log of n entries costs 2 n / 1,024 requests and up to 93 more."""
_MAX_BYTES = 4 << 20
"""chosen: of the entries of one fold; some tens of folds are in memory at once."""

Read = Callable[[str], Any]
"""From the key of an entry to its value, which is JSON."""


class Entry(NamedTuple):
    """An entry of a log as it was listed."""

    key: str
    size_bytes: int | None
    """None: the listing lacks it."""
    etag: str = ""


class Log(NamedTuple):
    """A log as it was listed."""

    name: str
    """What the keys of its entries begin with."""
    entries: Sequence[Entry]


class _Ledger(Protocol):
    """What folds need of a ledger."""

    is_local: bool

    def create(self, key: str, record: Mapping[str, Any]) -> bool: ...

    def read_derived(self, key: str) -> dict[str, Any] | None: ...

    def list(self, prefix: str) -> Iterator[str]: ...


class _Piece(NamedTuple):
    fold: str | None
    """Key of the fold that has the entries; None: there is one entry, by itself."""
    entries: Sequence[Entry]


def read(ledger: _Ledger, logs: Iterable[Log], read_one: Read) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each entry of logs, in order; concurrently from a remote store."""
    pieces = (piece for log in logs for piece in _pieces(log, _known(ledger, log)))
    return _read(ledger, pieces, read_one)


def read_entries(ledger: _Ledger, logs: Iterable[Log], read_one: Read) -> Iterator[tuple[str, Any]]:
    """Do what `read` does without folds."""
    return _read(ledger, (piece for log in logs for piece in _pieces(log, ())), read_one)


def write(ledger: _Ledger, log: Log, read_one: Read) -> int:
    """Create the folds of a log that are missing; return how many.

    Raises:
        StorageError: an entry is damaged or lost, or the store does not respond.
    """
    known, made = _known(ledger, log), 0
    for size in sorted(SIZES):  # larger ones are made of smaller ones
        for start in range(0, len(log.entries) - size + 1, size):
            key = fold_key(log.name, start, size)
            block = log.entries[start : start + size]
            sizes = [entry.size_bytes for entry in block]
            if key in known or None in sizes or sum(filter(None, sizes)) > _MAX_BYTES:
                continue
            pieces = _pieces(log, known, start, start + size)
            texts = (canonical_json(value) for _, value in _read(ledger, pieces, read_one))
            entries = list(zip(sizes, texts, strict=True))
            ledger.create(key, {"entries": entries, "etag": block[-1].etag})
            crash_point("fold.written")
            known.add(key)
            made += 1
    return made


def write_if_due(ledger: _Ledger, number: int, log: Callable[[], Log], read_one: Read) -> None:
    """Create the folds of a log if entry `number`, which was just written, may complete one.

    Errors are logged: the entry itself is written, and the next one that is due makes them.
    """
    if (number + 1) % min(SIZES) > 1:
        return
    try:
        write(ledger, log(), read_one)
    except StorageError as error:
        logger.warning("a log was not folded: %s", error)


def _read(ledger: _Ledger, pieces: Iterable[_Piece], read_one: Read) -> Iterator[tuple[str, Any]]:
    def read_piece(piece: _Piece) -> Iterable[Any] | None:
        if piece.fold is None:
            return [read_one(entry.key) for entry in piece.entries]
        return _unfold(ledger, piece.fold, piece.entries, read_one)

    for piece, values in in_order(ledger, read_piece, pieces):
        keys = [entry.key for entry in piece.entries]
        if values is None:
            yield from in_order(ledger, read_one, keys)
        else:
            yield from zip(keys, values, strict=True)


def in_order(
    ledger: _Ledger, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with what a function reads for it; concurrently from a remote store."""
    # in this thread for a folder: others gain nothing from its page cache
    return ((i, function(i)) for i in items) if ledger.is_local else concurrently(function, items)


def _known(ledger: _Ledger, log: Log) -> set[str]:
    is_long = len(log.entries) >= min(SIZES)
    return set(ledger.list(folds_prefix(log.name))) if is_long else set()


def _pieces(
    log: Log, folds: Collection[str], start: int = 0, stop: int | None = None
) -> Iterator[_Piece]:
    """Yield the entries from `start` up to `stop` in the largest folds that there are."""
    stop = len(log.entries) if stop is None else stop
    while start < stop:
        sizes = [size for size in SIZES if start % size == 0 and start + size <= stop]
        size = next((size for size in sizes if fold_key(log.name, start, size) in folds), 0)
        fold = fold_key(log.name, start, size) if size else None
        yield _Piece(fold, log.entries[start : start + (size or 1)])
        start += size or 1


def _unfold(
    ledger: _Ledger, fold: str, entries: Sequence[Entry], read_one: Read
) -> Iterable[Any] | None:
    """Return the values in a fold; None if it cannot be trusted."""
    if (record := ledger.read_derived(fold)) is None:
        return None
    values = [json.loads(text) for _, text in record["entries"]]
    # A log that was restored from a copy may have gone on otherwise. Entries of a ref often have
    # equal sizes, but the last one has a time of its own. (Of a run, no one value is read.)
    last = entries[-1]
    is_same = [size for size, _ in record["entries"]] == [entry.size_bytes for entry in entries]
    is_listed = last.etag and last.etag == record.get("etag")  # not so in a copy of the store
    if not is_same or not (is_listed or read_one(last.key) in (None, values[-1])):
        logger.warning("%s: is of another log; the entries are read one by one", fold)
        return None
    return values
