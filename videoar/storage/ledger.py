"""Create-once JSON records, and the logs and refs made of them.

A record is created by put-if-absent and never changes, so that a race has exactly one winner and
a kill leaves a record whole or absent. A log is a prefix of numbered records; a ref is a log whose
last record is the head. Listing only hints at where a log ends: its end is found by reading on.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from videoar.core.errors import SnapshotConflictError
from videoar.core.ids import canonical_json
from videoar.storage.layout import REFS_PREFIX, log_entry_key, ref_log
from videoar.storage.object_store import ObjectStore
from videoar.storage.store_format import WriteGuard

Record = dict[str, Any]
_NONCE = "append_nonce"


class Ledger:
    """Records under keys such as `runs/<run>/run.json`."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.prepare_write = WriteGuard(objects)

    def create(self, key: str, record: Mapping[str, Any]) -> bool:
        """Create a record; False when one exists, whatever it says."""
        self.prepare_write()
        return self._objects.put(key, canonical_json(record).encode(), if_absent=True)

    def create_or_adopt(self, key: str, record: Mapping[str, Any]) -> Record:
        """Create a record, or return the one that came first."""
        return dict(record) if self.create(key, record) else _parse(self._objects.get(key))

    def read(self, key: str) -> Record | None:
        """Return a record, None if there is none."""
        data = self._objects.find(key)
        return None if data is None else _parse(data)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys of the records under a prefix, sorted."""
        return (info.key for info in self._objects.list(prefix))

    def append(self, prefix: str, record: Mapping[str, Any]) -> int:
        """Add a record under the next free number of a log and return that number, from 0 on."""
        unique = {**record, _NONCE: secrets.token_hex(8)}  # equal records must not pass for one
        number = self.length(prefix)
        while not self.create(log_entry_key(prefix, number), unique):
            number += 1
        return number

    def length(self, prefix: str) -> int:
        """Return the number of records of a log."""
        listed = [key.rpartition("/")[2].removesuffix(".json") for key in self.list(f"{prefix}/")]
        number = max((int(name) + 1 for name in listed if name.isdigit()), default=0)
        while self._objects.size(log_entry_key(prefix, number)) is not None:
            number += 1
        return number


def _parse(data: bytes) -> Record:
    record: Record = json.loads(data)
    record.pop(_NONCE, None)
    return record


class Refs:
    """Named pointers to snapshots, such as `champion`, with their whole history."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def head(self, name: str) -> str | None:
        """Return the snapshot id that a ref points at, None if it was never set."""
        record = self.head_record(name)
        return record["snapshot"] if record else None

    def names(self) -> list[str]:
        """Return the names of all refs, sorted."""
        keys = self._ledger.list(REFS_PREFIX)
        return sorted({key.removeprefix(REFS_PREFIX).rpartition("/")[0] for key in keys})

    def head_record(self, name: str) -> Record | None:
        """Return `{seq, snapshot, prev, by_run, evidence}` of the head, None without one."""
        length = self._ledger.length(ref_log(name))
        return self._ledger.read(log_entry_key(ref_log(name), length - 1)) if length else None

    def history(self, name: str) -> list[Record]:
        """Return all records of a ref, oldest first."""
        records = (self._ledger.read(key) for key in self._ledger.list(f"{ref_log(name)}/"))
        return [record for record in records if record is not None]

    def advance(
        self,
        name: str,
        snapshot_id: str,
        *,
        expect: int | None,
        evidence: Mapping[str, Any],
        by_run: str = "",
    ) -> int:
        """Move a ref, if its head still is the one that the decision was made on.

        Args:
            name: the ref.
            snapshot_id: where it shall point.
            expect: `seq` of the head that was read, None when there was none.
            evidence: why it moves; kept in the record.
            by_run: run that moves it.

        Returns:
            `seq` of the new head.

        Raises:
            SnapshotConflictError: the head has moved; read it again and decide again.
        """
        head = self.head_record(name)
        seq = -1 if expect is None else expect
        record = {
            "seq": seq + 1,
            "snapshot": snapshot_id,
            "prev": head["snapshot"] if head else None,
            "by_run": by_run,
            "evidence": dict(evidence),
        }
        fresh = (head["seq"] if head else -1) == seq
        if not fresh or not self._ledger.create(log_entry_key(ref_log(name), seq + 1), record):
            now = self.head_record(name)
            raise SnapshotConflictError(
                ref_log(name), f"moved meanwhile to {now and now['snapshot']}", "decide again"
            )
        return seq + 1
