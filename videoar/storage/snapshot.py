"""One committed version of a dataset, and how to read it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, SnapshotNotFoundError, WithdrawnError
from videoar.core.ids import digest_json
from videoar.core.prefetch import concurrently
from videoar.core.types import Commit, FileRef, Row
from videoar.storage.delta_log import DeltaLog
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import arrow_errors, read_columns, read_file
from videoar.storage.takedown import find_withdrawal

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

_CONCURRENT_FILES = 4
"""chosen: so many requests at once, and five times as many tables in memory."""


@dataclass(frozen=True)
class Snapshot:
    """One committed version of a dataset."""

    objects: ObjectStore
    ledger: Ledger
    commit: Commit

    @property
    def id(self) -> str:
        """`<dataset>:<first 16 hex digits of the digest>`."""
        return self.commit.snapshot

    @property
    def digest(self) -> str:
        """Digest of the content."""
        return self.commit.digest

    @property
    def fingerprint(self) -> str:
        """What was asked for; of a listing, its rows."""
        return self.commit.provenance.fingerprint

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.commit.dataset

    @property
    def contract(self) -> str:
        """Contract id."""
        return self.commit.contract

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Files in the order of the commit."""
        return self.commit.files

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return self.commit.rows

    def with_files(self, files: Sequence[FileRef]) -> "Snapshot":
        """Return a view of some of the files; id and digest stay those of the whole."""
        return replace(self, commit=self.commit.model_copy(update={"files": tuple(files)}))

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = False,
        footers: "Sequence[FileMetaData] | None" = None,
    ) -> Iterator[pa.Table]:
        """Yield one table per file, in file order.

        Args:
            columns: all by default.
            verify: compare the SHA-256 of every file; reads whole files.
            footers: of the files, if they were read before. With them, `columns` of a remote store
                are fetched with few, concurrent requests.
        """
        if footers is None or columns is None or verify:
            yield from (self.read_file(file, columns, verify=verify) for file in self.files)
            return
        tables = read_columns(self.objects, self.files, footers, columns)
        for file, table in zip(self.files, tables, strict=True):
            yield self._conforming(table, file, columns)

    def read_available(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield one table per file, without the files that were withdrawn."""

        def read(file: FileRef) -> pa.Table | None:
            try:
                return self.read_file(file, columns)
            except WithdrawnError:
                return None

        threads = 1 if self.objects.is_local else _CONCURRENT_FILES
        tables = (table for _, table in concurrently(read, self.files, threads))
        yield from (table for table in tables if table is not None)

    def available_rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the rows that no takedown has withdrawn."""
        for table in self.read_available(columns):
            yield from table.to_pylist()

    def table(
        self,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = False,
        footers: "Sequence[FileMetaData] | None" = None,
    ) -> pa.Table:
        """Return all rows as one table."""
        # concat_tables of nothing raises; the empty table also fixes the schema
        empty = self._schema(columns).empty_table()
        return pa.concat_tables([empty, *self.read(columns, verify=verify, footers=footers)])

    def read_file(
        self, file: FileRef, columns: Sequence[str] | None = None, *, verify: bool = False
    ) -> pa.Table:
        """Return the rows of one file.

        Raises:
            StorageError: the file is missing or damaged.
            WithdrawnError: a takedown has removed it.
        """
        try:
            table = read_file(self.objects, file, columns, verify=verify)
        except WithdrawnError:
            withdrawal = find_withdrawal(self.ledger, file.key)
            if withdrawal is None or withdrawal.replacement is None:
                raise
            return self.read_file(withdrawal.replacement, columns, verify=verify)
        return self._conforming(table, file, columns)

    def _conforming(
        self, table: pa.Table, file: FileRef, columns: Sequence[str] | None
    ) -> pa.Table:
        schema = self._schema(columns)
        # a file that was written before the contract gained a nullable column
        for missing in (f for f in schema if f.name not in table.column_names):
            table = table.append_column(missing, pa.nulls(len(table), missing.type))
        with arrow_errors(self.objects, file):  # a required column may be missing
            return table.select(schema.names).cast(schema)

    def _schema(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = load_contract(self.contract).arrow_schema
        if columns is None:
            return schema
        unknown = sorted(set(columns) - set(schema.names))
        if unknown:
            raise ConfigError(self.id, f"no column {', '.join(unknown)}", self.contract)
        return pa.schema([schema.field(name) for name in columns])

    def rejects(self) -> "Snapshot | None":
        """Return the snapshot of the rows that the stage rejected, None if it rejected none."""
        rejects = self.commit.rejects
        return find_snapshot(self.objects, self.ledger, rejects) if rejects else None


def find_snapshot(objects: ObjectStore, ledger: Ledger, snapshot_id: str) -> Snapshot:
    """Find a snapshot by id; several commits of one digest resolve to the first one.

    Raises:
        SnapshotNotFoundError: not committed to this store.
    """
    dataset, _, digest = snapshot_id.partition(":")
    commit = DeltaLog(objects, ledger, dataset).find(f"digest-{digest}") if digest else None
    if commit is None:
        raise SnapshotNotFoundError(snapshot_id, f"no such snapshot in {objects.url}")
    return Snapshot(objects, ledger, commit)


def snapshot_digest(files: Sequence[FileRef], contract: str) -> str:
    """Return the digest of a set of files; order, time, host, path and store do not change it."""
    content = sorted((file.sha256, file.size_bytes, file.rows) for file in files)
    return digest_json({"contract": contract, "files": content})
