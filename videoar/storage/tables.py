"""Datasets as Delta Lake tables, and snapshots as their committed versions.

A stage first writes files under content-hash keys; no reader sees them. One Delta transaction then
creates the snapshot: its file list becomes that of the table, and its `commitInfo` has the whole
`Commit`. Readers go from the log to the files and never list a data folder.

The digest covers {sha256, bytes, rows} of the files and the contract, not their provenance:
equal content has an equal digest in any run and store, so a source whose time stamp alone changed
causes no retraining.

A takedown deletes files of old snapshots, and a disk failure may. The commits stay, but are
incomplete, and their fingerprints count as never committed (worked example in `delta_log`).

A dataset has one contract: its first commit decides.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from videoar.contracts.contract import Contract
from videoar.core.crash_points import crash_point
from videoar.core.errors import TransientStorageError, WithdrawnError
from videoar.core.ids import SHORT_DIGEST, sha256_hex
from videoar.core.types import Commit, FileRef, Provenance
from videoar.storage.collection import wait_for_collection
from videoar.storage.delta_log import DeltaLog, missing_files
from videoar.storage.layout import data_key
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore, put_content
from videoar.storage.snapshot import Snapshot, snapshot_digest
from videoar.storage.takedown import marks_of, reject_withdrawn_sources
from videoar.storage.writer import ROW_GROUP_BYTES, find_footer, write_parquet


class Dataset:
    """A named table with its history of commits."""

    def __init__(self, objects: ObjectStore, ledger: Ledger, name: str, contract: Contract) -> None:
        self.name = name
        self.contract = contract
        self._objects, self._ledger = objects, ledger
        self._log = DeltaLog(objects, ledger, name)

    def write(self, table: pa.Table, row_group_bytes: int = ROW_GROUP_BYTES) -> FileRef:
        """Write rows as one immutable file, which no reader sees before it is committed.

        Raises:
            ContractError: a row breaks the contract; names the column and the first such row.
            WithdrawnError: a row belongs to a source that was withdrawn.
        """
        reject_withdrawn_sources(self._ledger, table, self.name)
        rows = self.contract.conform(table, self.name)
        data = write_parquet(rows, self.contract, row_group_bytes)
        sha256 = sha256_hex(data)
        self._ledger.prepare_write()
        crash_point("write.before_put")
        key = data_key(self.name, sha256)
        put_content(self._objects, key, data)
        crash_point("write.after_put")
        size, footer = len(data), find_footer(data)
        return FileRef(
            key=key, sha256=sha256, size_bytes=size, rows=len(table), footer=footer,
            marks=marks_of(rows),
        )  # fmt: skip

    def find(self, fingerprint: str) -> Snapshot | None:
        """Return the snapshot of a fingerprint; None without one or if files of it are missing.

        Decides whether a stage is cached, so a withdrawn, missing or truncated file makes it run
        again. Read-only.

        Raises:
            ConfigError: the dataset has another contract.
        """
        _, commit = self._log.find_complete(f"fingerprint-{fingerprint}")
        if commit is None:
            self.ensure_contract()  # now, not after hours of work whose commit would fail
            return None
        return Snapshot(self._objects, self._ledger, commit)

    def ensure_contract(self) -> None:
        """Check that the dataset has no other contract. Read-only.

        Raises:
            ConfigError: it has one; a stage or input of another pipeline has the same name.
        """
        self._log.ensure_contract(self.contract.id)

    def commit(
        self,
        files: Sequence[FileRef],
        provenance: Provenance,
        metrics: Mapping[str, float],
        rejects: str | None = None,
    ) -> Snapshot:
        """Create a snapshot of files in one Delta transaction.

        A second commit of a fingerprint returns the snapshot of the first one. Equal files are
        listed once.

        Args:
            files: as `write` returned them.
            provenance: who made them.
            metrics: kept in the commit.
            rejects: snapshot id of the rejected rows.

        Raises:
            ConfigError: the dataset has another contract.
            TransientStorageError: too many attempts conflicted with another writer, or a file was
                deleted as garbage meanwhile; the commit is incomplete then.
            WithdrawnError: a takedown has removed one of the files since it was written.
        """
        # two shards may write equal rows, hence one file; the Delta log lists a path once
        unique = tuple({file.sha256: file for file in files}.values())
        digest = snapshot_digest(unique, self.contract.id)
        # the log sets the version: only the attempt that is committed knows its own
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
        if withdrawn := self._log.withdrawn_of(draft):
            what = "withdrawn by a takedown during the run"
            raise WithdrawnError(min(withdrawn), what, "resume the run")
        commit = self._log.append(draft, self.contract.arrow_schema)
        snapshot = Snapshot(self._objects, self._ledger, commit)
        if wait_for_collection(snapshot):  # after the commit, which a later collection sees
            for key in missing_files(self._objects, commit.files):
                raise TransientStorageError(key, "was deleted as garbage", "resume the run")
        return snapshot
