"""Create-once JSON records, and the logs and refs made of them.

A record is created by put-if-absent and never changes: a race has exactly one winner, and a killed
writer leaves a whole record or none. A log is a prefix of numbered records; a ref is a log whose
last record is the head. A listing may lag behind, so the end of a log is found by HEAD requests
after the last number listed.

Each record has a digest of its key and content: a bit that a disk has turned over, or one record in
the place of another, is an error that names the key, never another answer.
"""

import getpass
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from videoar.core.errors import DamagedError, RefMovedError
from videoar.core.ids import canonical_json, digest_json
from videoar.storage import folds
from videoar.storage.layout import REFS_PREFIX, log_entry_key, ref_log
from videoar.storage.object_store import ObjectStore
from videoar.storage.store_format import WriteGuard

logger = logging.getLogger(__name__)
Record = dict[str, Any]
_DIGEST = "record_sha256"


def seal(key: str, record: Mapping[str, Any]) -> Record:
    """Return a record with the digest of its key and content."""
    plain: Record = json.loads(canonical_json(record))  # as it will be read: names are texts
    return {**plain, _DIGEST: digest_json([key, plain])}


def unseal(key: str, sealed: Record) -> Record:
    """Return a record without its digest.

    Args:
        key: of the record.
        sealed: as it was read.

    Raises:
        DamagedError: it has no digest, or that of another key or content.
    """
    record = dict(sealed)
    if record.pop(_DIGEST, None) != digest_json([key, record]):
        what = "damaged: its content is not what was written"
        raise DamagedError(key, what, "restore it from a copy")
    return record


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Return whether a record has a digest, right or wrong."""
    return _DIGEST in record


def replace_in_record(key: str, data: bytes, old: Iterable[bytes], new: bytes) -> bytes:
    """Return a record, as it is stored, with texts in it replaced; a damaged one stays damaged."""
    before = data
    for text in old:
        data = data.replace(text, new)
    with suppress(DamagedError):
        _parse(key, before)
        record = json.loads(data)
        del record[_DIGEST]
        data = canonical_json(seal(key, record)).encode()
    return data


class Ledger:
    """Records under keys such as `runs/<run>/run.json`."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.is_local = objects.is_local
        self.prepare_write = WriteGuard(objects)
        """Call it before any write to the store; `create` does."""

    def create(self, key: str, record: Mapping[str, Any]) -> bool:
        """Create a record; return False if another call has created it, also an equal one."""
        self.prepare_write()
        return self._objects.put(key, canonical_json(seal(key, record)).encode(), if_absent=True)

    def create_or_adopt(self, key: str, record: Mapping[str, Any]) -> Record:
        """Create a record, or return the existing one: the loser of a race adopts the winner's."""
        return dict(record) if self.create(key, record) else self._get(key)

    def read(self, key: str) -> Record | None:
        """Return a record, None if there is no such record.

        Raises:
            DamagedError: it is no JSON, or has other content than was written.
        """
        data = self._objects.find(key)
        return None if data is None else _parse(key, data)

    def try_read(self, key: str) -> Record | DamagedError | None:
        """Return a record as `read` does, or the error if it is damaged: for lists that go on."""
        try:
            return self.read(key)
        except DamagedError as error:
            return error

    def read_derived(self, key: str) -> Record | None:
        """Return a record that others can be read instead of, None without it or if damaged."""
        try:
            return self.read(key)
        except DamagedError as error:
            logger.warning("%s; what it is derived from is read", error)
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys of the records under a prefix, sorted."""
        return (info.key for info in self._objects.list(prefix))

    def append(self, prefix: str, record: Mapping[str, Any]) -> int:
        """Append a record to a log; return its number, from 0."""
        number = self.length(prefix)
        # another writer may take the number between length and create; it ends, because each
        # number that is taken has a record of another writer
        while not self.create(log_entry_key(prefix, number), record):
            number += 1
        return number

    def entries(self, prefix: str) -> Iterator[Record]:
        """Yield the records of a log, oldest first.

        Raises:
            DamagedError: one is damaged or lost.
        """
        yield from (record for _, record in folds.read(self, [self._log(prefix)], self.read_entry))

    def read_entry(self, key: str) -> Record:
        """Return a record of a log that has later ones; none of those is ever deleted.

        Raises:
            DamagedError: it is damaged or lost.
        """
        record = self.read(key)
        if record is None:
            raise DamagedError(key, "lost, but later ones exist", "restore it from a copy")
        return record

    def fold(self, prefix: str, number: int) -> None:
        """Fold a log of which entry `number` was just written, if that is due."""
        folds.write_if_due(self, number, lambda: self._log(prefix), self._get)

    def fold_all(self, prefix: str) -> int:
        """Make the folds of a log that are missing; return how many."""
        return folds.write(self, self._log(prefix), self._get)

    def _log(self, prefix: str) -> folds.Log:
        listed = {info.key: info for info in self._objects.list(f"{prefix}/")}
        # by number: the listing may lack the newest
        keys = [log_entry_key(prefix, n) for n in range(self._length(prefix, listed))]
        entries = (
            folds.Entry(key, info.size_bytes, info.etag)
            if (info := listed.get(key))
            else folds.Entry(key, None)
            for key in keys
        )
        return folds.Log(prefix, list(entries))

    def _get(self, key: str) -> Record:
        return _parse(key, self._objects.get(key))

    def last(self, prefix: str) -> Record | None:
        """Return the newest record of a log, None if it is empty."""
        length = self.length(prefix)
        return self.read(log_entry_key(prefix, length - 1)) if length else None

    def length(self, prefix: str) -> int:
        """Return the number of records of a log."""
        return self._length(prefix, self.list(f"{prefix}/"))

    def _length(self, prefix: str, keys: Iterable[str]) -> int:
        # other objects may share the prefix; only numbers count
        listed = [key.rpartition("/")[2].removesuffix(".json") for key in keys]
        number = max((int(name) + 1 for name in listed if name.isdigit()), default=0)
        while self._objects.size(log_entry_key(prefix, number)) is not None:
            number += 1
        return number


def _parse(key: str, data: bytes) -> Record:
    try:
        sealed = json.loads(data)
    except ValueError:
        sealed = None
    if not isinstance(sealed, dict):
        raise DamagedError(key, "damaged: no JSON object", "restore it from a copy")
    return unseal(key, sealed)


class Refs:
    """Named pointers to snapshots, such as `champion`, with their whole history."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def head(self, name: str) -> str | None:
        """Return the snapshot id that a ref points to, None if it was never set."""
        record = self.head_record(name)
        return record["snapshot"] if record else None

    def names(self) -> list[str]:
        """Return the names of all refs, sorted."""
        keys = self._ledger.list(REFS_PREFIX)
        names = {key.removeprefix(REFS_PREFIX).rpartition("/")[0] for key in keys}
        return sorted(names - {""})  # a file that is in the folder itself is no ref

    def by_target(self) -> dict[str, list[str]]:
        """Return the names of the refs that point at each snapshot."""
        result: dict[str, list[str]] = {}
        for name in self.names():
            result.setdefault(self.head(name) or "", []).append(name)
        return result

    def head_record(self, name: str) -> Record | None:
        """Return the head; None if the ref was never set.

        A record is `{seq, snapshot, prev, by_run, user, at, evidence}`; `user`, `NAME@HOST`, and
        `at`, the seconds since 1970, are missing in records of earlier versions.
        """
        return self._ledger.last(ref_log(name))

    def history(self, name: str) -> list[Record]:
        """Return all records of a ref, oldest first."""
        return list(self._ledger.entries(ref_log(name)))

    def records(self, name: str) -> Iterator[tuple[int, Record | DamagedError]]:
        """Yield number and record of each move, oldest first; the error of a damaged one."""
        for number in range(self._ledger.length(ref_log(name))):
            try:
                yield number, self._ledger.read_entry(log_entry_key(ref_log(name), number))
            except DamagedError as error:
                yield number, error

    def advance(
        self,
        name: str,
        snapshot_id: str,
        *,
        expect: int | None,
        evidence: Mapping[str, Any],
        by_run: str = "",
    ) -> int:
        """Move a ref if its head is the one that the decision was based on (compare-and-swap).

        Args:
            name: the ref.
            snapshot_id: its new target.
            expect: `seq` of the head that was read, None if there was none.
            evidence: reason of the move; kept in the record.
            by_run: id of the run that moves it.

        Returns:
            `seq` of the new head.

        Raises:
            RefMovedError: the head has moved. Read it and decide again.
        """
        head = self.head_record(name)
        seq = -1 if expect is None else expect
        record = {
            "seq": seq + 1,
            "snapshot": snapshot_id,
            "prev": head["snapshot"] if head else None,
            "by_run": by_run,
            "user": current_user(),
            "at": round(time.time(), 3),
            "evidence": dict(evidence),
        }
        # the create decides the race; this check saves its request when the head has moved before
        is_current = (head["seq"] if head else -1) == seq
        if not is_current or not self._ledger.create(log_entry_key(ref_log(name), seq + 1), record):
            current = self.head_record(name)
            what = f"moved to {current and current['snapshot']} in the meantime"
            raise RefMovedError(name, what, "read the ref again and retry")
        self._ledger.fold(ref_log(name), seq + 1)
        return seq + 1


def current_user() -> str:
    """Return who runs this process, `NAME@HOST`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # without an entry for the user, as in containers
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
