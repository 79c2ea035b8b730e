"""Folds of work records: few requests tell what many finished shards have made.

A work record is created once, but may be deleted and made again, and records have no order. So a
fold has each of its records with size and ETag, and one is taken from it only if a listing has it
with both. A fold that is missing, damaged or of a copy with other ETags costs requests and changes
no answer: all of them may be deleted. Runs make them, see `write_if_due`.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from videoar.core.crash_points import crash_point
from videoar.core.errors import StorageError
from videoar.core.ids import canonical_json, digest_json
from videoar.storage.folds import in_order
from videoar.storage.layout import record_fold_key
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)
_MIN = 16
"""chosen: so many records are read one by one before they are folded, as many small folds before
they are merged."""
_MAX_BYTES = 1 << 20
"""chosen: of the records of one fold, about 1,500 of a file each; sixteen are read at once."""

_Entry = tuple[str, int, str, str]
"""Key, size in bytes and ETag as listed; the record as JSON, without its digest."""


def read(ledger: Ledger, prefix: str, listed: Collection[ObjectInfo]) -> dict[str, str]:
    """Return those of the listed records that are in folds, by key, as JSON.

    Args:
        ledger: of the store.
        prefix: of the folds.
        listed: records, as a listing of now has them.
    """
    wanted = {(info.key, info.size_bytes, info.etag) for info in listed if info.etag}
    folds = ledger.list(prefix) if len(wanted) >= _MIN else ()
    return {key: text for key, *of, text in _entries(ledger, folds) if (key, *of) in wanted}


def write_if_due(
    objects: ObjectStore, ledger: Ledger, prefix: str, records: str, unfolded: Collection[str]
) -> None:
    """Fold records if there are enough of them; errors are logged, they are only read one by one.

    Small folds are merged when there are many, so a record is written a few times at most.

    Args:
        objects: the store.
        ledger: of it.
        prefix: of the folds.
        records: prefix of the records.
        unfolded: keys of records that are in no fold.
    """
    if len(unfolded) < _MIN:
        return
    try:
        _write(objects, ledger, prefix, records, unfolded)
    except StorageError as error:
        logger.warning("work records were not folded: %s", error)


def _write(
    objects: ObjectStore, ledger: Ledger, prefix: str, records: str, unfolded: Collection[str]
) -> None:
    # before they are read: a record that is made again meanwhile gets an ETag that it will not have
    listed = {info.key: (info.size_bytes, info.etag) for info in objects.list(records)}
    small = [info.key for info in objects.list(prefix) if info.size_bytes < _MAX_BYTES // 2]
    merged = small if len(small) >= _MIN else []
    keys = (key for key in unfolded if listed.get(key, (0, ""))[1])
    new = (
        (key, *listed[key], canonical_json(record))
        for key, record in in_order(ledger, ledger.read, keys)
        if record is not None
    )
    known = {e[0]: e for e in _entries(ledger, merged) if listed.get(e[0]) == e[1:3]}
    made = set()
    for entries in _parts(chain(known.values(), new)):
        key = record_fold_key(prefix, digest_json(entries))
        ledger.create(key, {"entries": entries})
        crash_point("record_fold.written")
        made.add(key)
    for key in set(merged) - made:
        objects.delete(key)


def _entries(ledger: Ledger, folds: Iterable[str]) -> Iterator[_Entry]:
    for _, fold in in_order(ledger, ledger.read_derived, folds):
        yield from map(tuple, fold["entries"] if fold else ())


def _parts(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Split records into folds."""
    part: list[_Entry] = []
    size_bytes = 0
    for entry in entries:
        if part and size_bytes + entry[1] > _MAX_BYTES:
            yield part
            part, size_bytes = [], 0
        part.append(entry)
        size_bytes += entry[1]
    if part:
        yield part
