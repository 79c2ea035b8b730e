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

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from videoar.contracts.contract import Contract, load_contract
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    ConfigError,
    SnapshotNotFoundError,
    StorageError,
    TransientStorageError,
    WithdrawnError,
    one_line,
)
from videoar.core.ids import SHORT_DIGEST, digest_json, sha256_hex
from videoar.core.types import Commit, FileRef, Provenance
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore, put_content
from videoar.storage.reader import arrow_errors, read_columns, read_file
from videoar.storage.statistics import delta_statistics, read_statistics
from videoar.storage.takedown import find_note, refuse_forgotten, withdrawn
from videoar.storage.writer import find_footer, write_parquet

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.parquet import FileMetaData

_ATTEMPTS = 20
_ASKED_ONE_BY_ONE = 16
"""chosen: so many files are asked for by name, more of them are looked for in a listing."""
_TABLE_CONFIG = {
    "delta.enableExpiredLogCleanup": "false",  # old commits are the lineage
    "delta.checkpointInterval": "10",
    "delta.dataSkippingNumIndexedCols": "-1",  # readers take statistics of all columns, not of 32
}


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

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = False,
        footers: "Sequence[FileMetaData] | None" = None,
    ) -> Iterator[pa.Table]:
        """Yield one table per file, in file order; by footers of the files, if they are at hand.

        With those, `columns` of a far store come by few requests, many at once.
        """
        if footers is None or columns is None or verify:
            yield from (self.read_file(file, columns, verify=verify) for file in self.files)
            return
        tables = read_columns(self.objects, self.files, footers, columns)
        for file, table in zip(self.files, tables, strict=True):
            yield self._conforming(table, file, columns)

    def remaining(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield what `read` does, without the files that a take-down has withdrawn."""
        for file in self.files:
            try:
                table = self.read_file(file, columns)
            except WithdrawnError:
                continue
            yield table

    def table(
        self,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = False,
        footers: "Sequence[FileMetaData] | None" = None,
    ) -> pa.Table:
        """Return all rows as one table."""
        empty = self._schema(columns).empty_table()
        return pa.concat_tables([empty, *self.read(columns, verify=verify, footers=footers)])

    def read_file(
        self,
        file: FileRef,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = False,
    ) -> pa.Table:
        """Return the rows of one file.

        Raises:
            StorageError: the file is gone or damaged.
            WithdrawnError: a take-down has removed it.
        """
        try:
            table = read_file(self.objects, file, columns, verify=verify)
        except WithdrawnError:
            note = find_note(self.ledger, file.key)
            if note is None or note.instead is None:
                raise
            return self.read_file(note.instead, columns, verify=verify)
        return self._conforming(table, file, columns)

    def _conforming(
        self, table: pa.Table, file: FileRef, columns: Sequence[str] | None
    ) -> pa.Table:
        schema = self._schema(columns)
        for missing in (f for f in schema if f.name not in table.column_names):
            table = table.append_column(missing, pa.nulls(len(table), missing.type))
        with arrow_errors(self.objects, file):  # a column that must be there is not
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
        """Return the rows that the stage refused."""
        refused = self.commit.rejects
        return find_snapshot(self.objects, self.ledger, refused) if refused else None


def every_commit(objects: ObjectStore) -> Iterator[Commit]:
    """Yield all commits of all datasets, also those that made content which was there before.

    From the logs, not from the ledger's records of them: whoever committed may have died before it
    wrote its record, and a take-down must see what it left.
    """
    for info in objects.list("tables/"):
        folder, _, name = info.key.rpartition("/")
        if folder.endswith("/_delta_log") and name.removesuffix(".json").isdigit():
            commit = _commit_of(objects.get(info.key))
            if commit is not None:
                yield commit


def _commit_of(data: bytes) -> Commit | None:
    """Read a version of a Delta log; the first one makes the table and holds no commit of ours."""
    actions = (json.loads(line) for line in data.splitlines() if line.strip())
    for action in actions:
        if "videoar" in action.get("commitInfo", {}):
            return Commit.model_validate(action["commitInfo"]["videoar"])
    return None


def lost(objects: ObjectStore, files: Iterable[FileRef]) -> Iterator[str]:
    """Yield the keys of files that are gone or are not as long as they were when written.

    Costs a request per file for a few, for many a listing of their datasets' data: a request per
    1,000 files that ever were. Listings may be late, so what they lack is asked for by its name.
    """
    sizes, found = {file.key: file.size_bytes for file in files}, {}
    if len(sizes) > _ASKED_ONE_BY_ONE:
        folders = sorted({f"{key.rsplit('/', 2)[0]}/" for key in sizes})
        infos = (info for folder in folders for info in objects.list(folder))
        found = {info.key: info.size_bytes for info in infos if info.key in sizes}
    for key, size in sizes.items():
        if (found[key] if key in found else objects.size(key)) != size:
            yield key


def find_snapshot(objects: ObjectStore, ledger: Ledger, snapshot_id: str) -> Snapshot:
    """Find a snapshot by id; equal digests resolve to the commit that came first.

    Raises:
        SnapshotNotFoundError: never committed to this store.
    """
    dataset, _, digest = snapshot_id.partition(":")
    found = _Log(objects, ledger, dataset).find(f"digest-{digest}") if digest else None
    if found is None:
        raise SnapshotNotFoundError(snapshot_id, f"no such snapshot in {objects.url}")
    return Snapshot(objects, ledger, found)


class Dataset:
    """A named table over time; writes files, commits them, finds commits again."""

    def __init__(self, objects: ObjectStore, ledger: Ledger, name: str, contract: Contract) -> None:
        self.name = name
        self.contract = contract
        self._objects, self._ledger = objects, ledger
        self._log = _Log(objects, ledger, name)

    def write(self, table: pa.Table) -> FileRef:
        """Write rows as one immutable file that nobody sees before it is committed.

        Raises:
            ContractError: names the column and the first bad row.
            WithdrawnError: there are rows of a source that was taken down.
        """
        refuse_forgotten(self._ledger, table, self.name)
        data = write_parquet(self.contract.conform(table, self.name), self.contract)
        sha256 = sha256_hex(data)
        crash_point("write.before_put")
        key = f"{self._log.folder}/{_file_path(sha256)}"
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
        """
        _, commit = self._log.find_whole(f"fingerprint-{fingerprint}")
        return Snapshot(self._objects, self._ledger, commit) if commit else None

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


def snapshot_digest(files: Sequence[FileRef], contract: str) -> str:
    """Digest a set of files: the same for any order, time, host, path and store."""
    content = sorted((file.sha256, file.size_bytes, file.rows) for file in files)
    return digest_json({"contract": contract, "files": content})


def _file_path(sha256: str) -> str:
    return f"data/{sha256[:2]}/{sha256}.parquet"


class _Log:
    """The Delta log of one dataset."""

    def __init__(self, objects: ObjectStore, ledger: Ledger, dataset: str) -> None:
        self._objects, self._ledger, self._dataset = objects, ledger, dataset
        self.folder = f"tables/{dataset}"

    def find(self, app_id: str) -> Commit | None:
        """Find the commit that first carried an application transaction id."""
        key = self._index_key(app_id)
        record = self._ledger.read(key)
        version = record["version"] if record else self._version_in_log(app_id)
        if version is None:
            return None
        if record is None:  # the writer died between the Delta commit and this record
            self._ledger.create(key, {"version": version})
        return self._read(version)

    def find_whole(self, app_id: str) -> tuple[str, Commit | None]:
        """Find the first commit under an id or its numbered successors that has lost no file.

        Returns:
            The commit and its id; None and the first id that is free when there is no such commit.
        """
        numbered, number = app_id, 0
        while (commit := self.find(numbered)) is not None and not self._is_whole(commit):
            number += 1
            numbered = f"{app_id}.{number}"
        return numbered, commit

    def _is_whole(self, commit: Commit) -> bool:
        """Say whether all files of a commit, and of its rejects, are there."""
        return not self.withdrawn_of(commit) and not any(lost(self._objects, self._files(commit)))

    def withdrawn_of(self, commit: Commit) -> frozenset[str]:
        """Return the files of a commit, and of its rejects, that a take-down has removed."""
        keys = {file.key for file in self._files(commit)}
        folders = {key.partition("/data/")[0] for key in keys}
        return frozenset(
            key for folder in folders for key in withdrawn(self._ledger, f"{folder}/") & keys
        )

    def _files(self, commit: Commit) -> tuple[FileRef, ...]:
        """Return the files of a commit and of its rejects."""
        dataset, _, digest = (commit.rejects or "").partition(":")
        refused = (
            _Log(self._objects, self._ledger, dataset).find(f"digest-{digest}") if digest else None
        )
        return commit.files + (refused.files if refused else ())

    def append(self, draft: Commit, schema: pa.Schema) -> Commit:
        """Commit, or adopt what the same fingerprint has committed before.

        Raises:
            TransientStorageError: no attempt came through; carries what the last one said.
        """
        from deltalake.exceptions import DeltaError

        fingerprint = f"fingerprint-{draft.provenance.fingerprint}"
        digest = f"digest-{draft.digest[:SHORT_DIGEST]}"
        last: Exception | None = None
        for attempt in range(_ATTEMPTS):
            app_id, found = self.find_whole(fingerprint)
            if found is not None:
                self.find(f"digest-{found.digest[:SHORT_DIGEST]}")  # its writer may have died early
                return found
            try:
                self._try_append(draft, schema, app_id, digest)
            except (DeltaError, OSError) as error:
                last = error
            # Whatever the answer was, only the log knows: an error may hide our own success.
            found = self.find(app_id)
            if found is not None:
                crash_point("commit.between_records")
                self.find(digest)
                crash_point("commit.after_records")
                return found
            time.sleep(random.uniform(0, 0.02 * (attempt + 1)))  # noqa: S311 - jitter
        what = f"nothing committed in {_ATTEMPTS} attempts, the last one said: {one_line(last)}"
        raise TransientStorageError(self.folder, what, "run again") from last

    def _try_append(self, draft: Commit, schema: pa.Schema, fingerprint: str, digest: str) -> None:
        from deltalake import CommitProperties, Transaction

        table = self._open_or_create(schema)
        if table.transaction_version(fingerprint) is not None:
            return  # another writer of the same fingerprint came between our look and this one
        version = table.version() + 1
        ids = [fingerprint]
        if table.transaction_version(digest) is None:
            ids.append(digest)
        commit = draft.model_copy(update={"version": version})
        crash_point("commit.before_log")
        table.create_write_transaction(
            self._actions(table, commit),
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(
                custom_metadata={"videoar": commit.model_dump(mode="json")},
                max_commit_retries=0,  # a lost race must re-read: our removals depend on it
                app_transactions=[Transaction(name, version) for name in ids],
            ),
        )
        crash_point("commit.after_log")

    def _actions(self, table: "DeltaTable", commit: Commit) -> list[Any]:
        """Turn the table's file list into exactly that of the commit.

        Files that stay are not mentioned: removing and adding one path in one commit is undefined.
        """
        from deltalake.transaction import AddAction, RemoveAction

        old = table.get_add_actions()
        sizes = dict(zip(old["path"].to_pylist(), old["size_bytes"].to_pylist(), strict=True))
        now_ms = int(time.time() * 1000)
        paths = {_file_path(file.sha256) for file in commit.files}
        new = [file for file in commit.files if _file_path(file.sha256) not in sizes]
        statistics = read_statistics(self._objects, new, load_contract(commit.contract))
        return [
            AddAction(
                _file_path(file.sha256),
                file.size_bytes,
                {},
                now_ms,
                True,
                delta_statistics(file.rows, columns),
            )
            for file, columns in zip(new, statistics, strict=True)
        ] + [
            RemoveAction(path, True, now_ms, size, {})
            for path, size in sizes.items()
            if path not in paths
        ]

    def _open_or_create(self, schema: pa.Schema) -> "DeltaTable":
        from deltalake import CommitProperties, DeltaTable, Schema
        from deltalake.exceptions import DeltaError

        table = self._open()
        if table is None:
            try:
                table = DeltaTable.create(
                    self._objects.location(self.folder),
                    Schema.from_arrow(schema),
                    mode="error",
                    configuration=_TABLE_CONFIG,
                    storage_options=self._objects.options(),
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except DeltaError:
                table = self._open()
                if table is None:
                    raise
        self._add_columns(table, schema)
        return table

    def _add_columns(self, table: "DeltaTable", schema: pa.Schema) -> None:
        """Add the columns that the contract gained within its major version."""
        from deltalake import Schema

        known = {field.name for field in table.schema().fields}
        missing = [f for f in Schema.from_arrow(schema).fields if f.name not in known]
        if missing:
            table.alter.add_columns(missing)

    def _open(self) -> "DeltaTable | None":
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            return DeltaTable(
                self._objects.location(self.folder), storage_options=self._objects.options()
            )
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            what = f"its log cannot be read: {one_line(error)}"
            hint = "run again; if that does not help, the log is damaged"
            raise TransientStorageError(self.folder, what, hint) from error

    def _version_in_log(self, app_id: str) -> int | None:
        table = self._open()
        return table.transaction_version(app_id) if table is not None else None

    def _read(self, version: int) -> Commit:
        key = f"{self.folder}/_delta_log/{version:020d}.json"
        commit = _commit_of(self._objects.get(key))
        if commit is None:
            raise StorageError(f"{self._objects.url}/{key}", "holds no commit of this project")
        return commit

    def _index_key(self, app_id: str) -> str:
        return f"commits/{self._dataset}/{app_id}.json"
