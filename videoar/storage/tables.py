"""Datasets as Delta Lake tables, and snapshots as their committed versions.

A stage's files are written first, under content-hash names, seen by nobody. One Delta transaction
then makes the snapshot exist: its file list becomes the table's file list, and its `commitInfo`
carries the whole `Commit`. Readers go from the log to the files and never list a data folder.

The digest covers the files' {sha256, bytes, rows} and the contract, not who made them: equal
content is equal wherever and from whatever it came, so that a touched source retrains nothing.

A take-down deletes files of old snapshots for good, and disks lose some. Their commits stay; a
fingerprint that made them counts as never asked. If what it makes the next time is the same, the
commit is whole again; if not, it is committed under a numbered id.

Idempotence: fingerprint and digest are application transaction ids of the Delta log, whose version
is that of the commit which first carried them. The log alone is the truth; ledger records of the
same facts only save loading it.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from videoar.contracts.contract import Contract
from videoar.core.crash_points import crash_point
from videoar.core.errors import WithdrawnError
from videoar.core.ids import SHORT_DIGEST, sha256_hex
from videoar.core.types import Commit, FileRef, Provenance
from videoar.storage.delta_log import DeltaLog
from videoar.storage.layout import data_key
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore, put_content
from videoar.storage.snapshot import Snapshot, snapshot_digest
from videoar.storage.takedown import reject_withdrawn_sources
from videoar.storage.writer import find_footer, write_parquet


class Dataset:
    """A named table over time; writes files, commits them, finds commits again."""

    def __init__(self, objects: ObjectStore, ledger: Ledger, name: str, contract: Contract) -> None:
        self.name = name
        self.contract = contract
        self._objects, self._ledger = objects, ledger
        self._log = DeltaLog(objects, ledger, name)

    def write(self, table: pa.Table) -> FileRef:
        """Write rows as one immutable file that nobody sees before it is committed.

        Raises:
            ContractError: names the column and the first bad row.
            WithdrawnError: there are rows of a source that was taken down.
        """
        reject_withdrawn_sources(self._ledger, table, self.name)
        data = write_parquet(self.contract.conform(table, self.name), self.contract)
        sha256 = sha256_hex(data)
        self._ledger.prepare_write()
        crash_point("write.before_put")
        key = data_key(self.name, sha256)
        put_content(self._objects, key, data)
        crash_point("write.after_put")
        return FileRef(
            key=key,
            sha256=sha256,
            size_bytes=len(data),
            rows=table.num_rows,
            footer=find_footer(data),
        )

    def find(self, fingerprint: str) -> Snapshot | None:
        """Return what a fingerprint has already made; None if nothing, or if files of it are gone.

        Asked before anything is called cached: this is where a take-down, or a file that was lost
        or cut, makes a stage run again.

        Raises:
            ConfigError: the dataset has another contract.
        """
        _, commit = self._log.find_complete(f"fingerprint-{fingerprint}")
        if commit is None:
            self.ensure_contract()  # before hours of work whose commit would be refused
            return None
        return Snapshot(self._objects, self._ledger, commit)

    def ensure_contract(self) -> None:
        """Check that the dataset has no other contract; read-only.

        Raises:
            ConfigError: it has, because a stage or input of another pipeline has the same name.
        """
        self._log.ensure_contract(self.contract.id)

    def commit(
        self,
        files: Sequence[FileRef],
        provenance: Provenance,
        metrics: Mapping[str, float],
        rejects: str | None = None,
    ) -> Snapshot:
        """Make a snapshot of files exist, by one Delta transaction.

        A second commit of the same fingerprint returns the first one's snapshot.

        Raises:
            ConfigError: the dataset has another contract.
            TransientStorageError: other writers were faster too many times.
            WithdrawnError: a take-down has removed one of the files since it was written.
        """
        unique = tuple({file.sha256: file for file in files}.values())
        digest = snapshot_digest(unique, self.contract.id)
        draft = Commit(
            snapshot=f"{self.name}:{digest[:SHORT_DIGEST]}",
            digest=digest,
            dataset=self.name,
            contract=self.contract.id,
            version=0,
            files=unique,
            provenance=provenance,
            metrics=dict(metrics),
            rejects=rejects,
        )
        if gone := self._log.withdrawn_of(draft):
            raise WithdrawnError(min(gone), "withdrawn by a take-down meanwhile", "resume the run")
        commit = self._log.append(draft, self.contract.arrow_schema)
        return Snapshot(self._objects, self._ledger, commit)
