"""The Delta log of a dataset: the transactions that create snapshots.

Fingerprint and digest of a commit are application transaction ids (`txn` actions) of the Delta log.
The version of an id is that of the commit that carried it first. The log is the only source of
truth; index records of the ledger have the same versions, so that the log need not be loaded.

Worked example, dataset `clips`:

    version 0   metaData {schema, description: clips@1}                    creates the table
    version 1   txn fingerprint-f1 = 1, txn digest-d1 = 1, add A, add B    clips:d1 = {A, B}
    version 2   txn fingerprint-f2 = 2, txn digest-d2 = 2, add C, remove A clips:d2 = {B, C}
    version 3   txn fingerprint-f3 = 3                                     clips:d2 again

At version 3 the code of the stage had changed and its output had not: nothing is added or removed,
`digest-d2` keeps version 2, so the id `clips:d2` resolves to the commit at version 2. A second
commit of f3 finds `fingerprint-f3` in the log and adopts version 3.

Then a takedown deletes B. Its commits stay in the log but are incomplete, so f3 counts as never
committed. It runs again and makes B' without the source:

    version 4   txn fingerprint-f3.1 = 4, txn digest-d4 = 4, add B', remove B

The suffix `.1` is needed because an application id is committed once. If the new run had made B
again (a file missing after a disk failure), version 3 would be complete again and adopted.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    ConfigError,
    DamagedError,
    StorageError,
    TransientStorageError,
    one_line,
)
from videoar.core.ids import SHORT_DIGEST, canonical_json
from videoar.core.retry import RetryPolicy
from videoar.core.types import Commit, FileRef
from videoar.storage import folds, layout
from videoar.storage.commit_files import Files, bases_of_later, decode, encode
from videoar.storage.ledger import Ledger, Record, seal, unseal
from videoar.storage.log_checkpoints import damaged_checkpoints
from videoar.storage.object_store import ObjectStore
from videoar.storage.statistics import delta_statistics, read_statistics
from videoar.storage.takedown import withdrawn_keys

if TYPE_CHECKING:
    from deltalake import DeltaTable

# measured on Ceph: a commit takes 17 to 33 ms, about the first wait
_RETRY = RetryPolicy(first_wait_s=0.02, max_wait_s=0.4, max_attempts=20)
_MAX_HEAD_REQUESTS = 16
"""chosen: up to this many files cost a HEAD request each, more are compared with a listing."""
_TABLE_CONFIG = {
    "delta.enableExpiredLogCleanup": "false",  # lineage reads old commits
    "delta.checkpointInterval": "10",  # loading reads at most 10 JSON files after a checkpoint
    "delta.dataSkippingNumIndexedCols": "-1",  # statistics of all columns, not of the first 32
}

_FRAMES = re.compile(r"backtrace|\n\s*0: ")
"""What the frames of Rust in a message begin with."""


def iter_commits(
    objects: ObjectStore,
    dataset: str | None = None,
    contract: str | None = None,
    *,
    derived: bool = True,
) -> Iterator[Commit]:
    """Yield the commits of a dataset, or of all, also those of content that an earlier commit has.

    Reads the logs, or folds of them, not the index records: a writer that was killed between the
    two left none, and a takedown must see its files as well. Data files are not listed.

    Args:
        objects: the store.
        dataset: None means all, or those of a contract.
        contract: only datasets with it; of the others a request each is made.
        derived: False reads the logs themselves, as what checks or deletes must.
    """
    names = [dataset] if dataset else objects.folders(layout.TABLES_PREFIX)
    chosen = (n for n in names if contract is None or contract_of(objects, n) == contract)
    logs = (_versions(objects, name) for name in chosen)
    files: dict[int, Files] = {}
    read = folds.read if derived else folds.read_entries
    for key, record in read(Ledger(objects), logs, partial(_record_of, objects)):
        if (version := layout.version_of_log(key)) == 0:
            files = {}
        commit = _commit_of(key, record, files.__getitem__)
        if commit is not None:
            # of earlier commits only those that later ones may refer to
            kept = bases_of_later(version)
            files = {v: files[v] for v in kept if v in files} | {version: commit.files}
            yield commit


def _versions(objects: ObjectStore, dataset: str) -> folds.Log:
    """Return the versions of a log, also those that a listing lacks.

    Raises:
        DamagedError: a version before the last one is lost.
    """
    prefix = layout.log_prefix(dataset)
    infos = [info for info in objects.list(prefix) if layout.is_log_version(info.key)]
    listed = {info.key: folds.Entry(info.key, info.size_bytes, info.etag) for info in infos}
    count = layout.version_of_log(infos[-1].key) + 1 if infos else 0
    entries = []
    for key in (layout.log_version_key(dataset, version) for version in range(count)):
        entry = listed.get(key) or folds.Entry(key, objects.size(key))
        if entry.size_bytes is None:
            what = f"lost, but {infos[-1].key.removeprefix(prefix)} exists"
            raise DamagedError(key, what, "restore it from a copy")
        entries.append(entry)
    return folds.Log(prefix, entries)


def _actions_in(key: str, data: bytes) -> list[dict[str, Any]]:
    """Return the actions of a version of a log.

    Raises:
        DamagedError: it has none, or is no JSON.
    """
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
    except ValueError:
        actions = []
    # each version has this one, whoever writes it
    if not any(isinstance(action, dict) and "commitInfo" in action for action in actions):
        raise DamagedError(key, "damaged: no version of a Delta log", "restore it from a copy")
    return actions


def _record_of(objects: ObjectStore, key: str) -> Record | None:
    """Return what a version of a log has of a commit; None for versions that only set metadata."""
    commits = (a.get("commitInfo", {}).get("videoar") for a in _actions_in(key, objects.get(key)))
    commit = next(filter(None, commits), None)
    with _damage(key):
        return commit and unseal(key, json.loads(commit))


def _commit_of(
    key: str, record: Record | None, files_of_base: Callable[[int], Files]
) -> Commit | None:
    with _damage(key):
        return None if record is None else decode(record, files_of_base)


@contextmanager
def _damage(key: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError) as error:
        raise DamagedError(key, "damaged: no commit", "restore it from a copy") from error


def contract_of(objects: ObjectStore, dataset: str) -> str | None:
    """Return the contract of a table, None if there is none: its description has the id."""
    # version 0 creates the table
    data = objects.find(key := layout.log_version_key(dataset, 0))
    actions = _actions_in(key, data) if data is not None else []
    created: dict[str, str] = next((a["metaData"] for a in actions if "metaData" in a), {})
    return created.get("description") or None


def missing_files(objects: ObjectStore, files: Iterable[FileRef]) -> Iterator[str]:
    """Yield the keys of files that do not exist or have another size than when they were written.

    Costs one HEAD request per file for a few files. Many files are compared with a listing of
    their datasets, a request per 1,000 objects; listings of some servers are not up to date, so
    every file that is not in the listing gets a HEAD request, too.
    """
    sizes = {file.key: file.size_bytes for file in files}
    listed: dict[str, int] = {}
    if len(sizes) > _MAX_HEAD_REQUESTS:
        # tables/<dataset>/data/: the key without <xx>/<sha256>.parquet
        folders = sorted({f"{key.rsplit('/', 2)[0]}/" for key in sizes})
        infos = (info for folder in folders for info in objects.list(folder))
        listed = {info.key: info.size_bytes for info in infos if info.key in sizes}
    for key, size in sizes.items():
        if (listed[key] if key in listed else objects.size(key)) != size:
            yield key


class _NotCommittedError(TransientStorageError):
    """An attempt to append wrote nothing, e.g. because another writer took the log version."""


class DeltaLog:
    """The Delta log of one dataset."""

    def __init__(self, objects: ObjectStore, ledger: Ledger, dataset: str) -> None:
        self._objects, self._ledger, self._dataset = objects, ledger, dataset
        self.folder = layout.table_folder(dataset)
        self._decoded: dict[int, Files | None] = {}
        """Of versions that later ones were compared with; a version never changes."""

    def find(self, app_id: str) -> Commit | None:
        """Return the commit that carried an application id first, None if there is none.

        Without an index record (its writer was killed after the Delta commit) the Delta log is
        loaded, which takes longer.

        Args:
            app_id: `fingerprint-...` or `digest-...`.
        """
        if (indexed := self._indexed(app_id)) is not None:
            return self._read(indexed)
        version = self._version_of(app_id, self._open())
        return None if version is None else self._read(version)

    def _index(self, app_id: str, table: "DeltaTable | None" = None) -> int | None:
        """Create the index record of an application id, unless there is one; return its version."""
        if (indexed := self._indexed(app_id)) is not None:
            return indexed
        version = self._version_of(app_id, table or self._open())
        if version is not None:
            key = layout.commit_index_key(self._dataset, app_id)
            self._ledger.create(key, {"version": version})
        return version

    def _version_of(self, app_id: str, table: "DeltaTable | None") -> int | None:
        with self._log_errors():  # delta-rs reads this part of the log only now
            return None if table is None else table.transaction_version(app_id)

    def _indexed(self, app_id: str) -> int | None:
        key = layout.commit_index_key(self._dataset, app_id)
        if (record := self._ledger.read(key)) is None:
            return None
        if not isinstance(version := record.get("version"), int):
            raise DamagedError(key, "damaged: no version in it", "delete it: the log has it, too")
        return version

    def ensure_contract(self, contract: str) -> None:
        """Check that the table has no other contract; read-only.

        Raises:
            ConfigError: it has another one.
        """
        existing = contract_of(self._objects, self._dataset)
        if existing is not None and existing != contract:
            what = f"this dataset has contract {existing}, not {contract}"
            raise ConfigError(self._dataset, what, "give the stage or input another name")

    def find_complete(self, app_id: str) -> tuple[str, Commit | None]:
        """Find the first commit of `app_id`, `app_id.1`, ... whose files all exist.

        Returns:
            The commit and its id. If there is none: the first free id and None.
        """
        candidate, number = app_id, 0
        while (commit := self.find(candidate)) is not None and not self._is_complete(commit):
            number += 1
            candidate = f"{app_id}.{number}"
        return candidate, commit

    def _is_complete(self, commit: Commit) -> bool:
        """Return whether all files of a commit and of its rejects exist."""
        missing = missing_files(self._objects, self._files(commit))
        return not self.withdrawn_of(commit) and not any(missing)

    def withdrawn_of(self, commit: Commit) -> frozenset[str]:
        """Return the keys of the files of a commit and of its rejects that were withdrawn."""
        keys = {file.key for file in self._files(commit)}
        # one listing per dataset; a lookup per file would be a request for each of thousands
        folders = {layout.table_folder(layout.dataset_of(key)) for key in keys}
        return frozenset(
            key for folder in folders for key in withdrawn_keys(self._ledger, f"{folder}/") & keys
        )

    def _files(self, commit: Commit) -> tuple[FileRef, ...]:
        """Return the files of a commit and of its rejects."""
        dataset, _, digest = (commit.rejects or "").partition(":")
        if not digest:
            return commit.files
        # a commit whose rejects are missing is incomplete, too: `quarantine` reads them
        rejects = DeltaLog(self._objects, self._ledger, dataset).find(f"digest-{digest}")
        return commit.files + (rejects.files if rejects else ())

    def append(self, draft: Commit, schema: pa.Schema) -> Commit:
        """Commit, or return the commit that the same fingerprint has made before.

        Args:
            draft: its version is set here.
            schema: of the table.

        Raises:
            ConfigError: the table has another contract.
            StorageError: the store denies to write the log.
            TransientStorageError: no attempt was committed; its cause is the last error.
        """
        self._ledger.prepare_write()  # a commit without files is the first write of a store
        commit = _RETRY.call(
            lambda: self._append_once(draft, schema), lambda e: isinstance(e, _NotCommittedError)
        )
        folds.write_if_due(self._ledger, commit.version, self._versions, self._record_of)
        return commit

    def fold_all(self) -> int:
        """Make the folds of the log that are missing; return how many."""
        return folds.write(self._ledger, self._versions(), self._record_of)

    def _versions(self) -> folds.Log:
        return _versions(self._objects, self._dataset)

    def _record_of(self, key: str) -> Record | None:
        return _record_of(self._objects, key)

    def _append_once(self, draft: Commit, schema: pa.Schema) -> Commit:
        from deltalake.exceptions import DeltaError

        # inside the retried attempt: the loser of a race finds and adopts the winner's commit
        app_id, existing = self.find_complete(f"fingerprint-{draft.provenance.fingerprint}")
        if existing is not None:
            # its writer may have been killed before it created the index records
            self._index(app_id)
            self._index(f"digest-{existing.digest[:SHORT_DIGEST]}")
            return existing
        digest, table, cause = f"digest-{draft.digest[:SHORT_DIGEST]}", None, None
        try:
            table = self._try_append(draft, schema, app_id, digest)
        except (DeltaError, OSError) as error:
            cause = error
        # the log decides, not the error: a timeout may hide a commit that was written
        version = self._index(app_id, table)
        if version is None:
            if "403 Forbidden" in str(cause) and "ExpiredToken" not in str(cause):
                hint = "check the AWS credentials and policy"
                raise StorageError(
                    self.folder, f"access denied: {one_line(cause)}", hint
                ) from cause
            what = f"not committed in {_RETRY.max_attempts} attempts, last error: {one_line(cause)}"
            raise _NotCommittedError(self.folder, what, "run again") from cause
        crash_point("commit.between_records")
        self._index(digest, table)
        crash_point("commit.after_records")
        return self._read(version)

    def _try_append(
        self, draft: Commit, schema: pa.Schema, fingerprint: str, digest: str
    ) -> "DeltaTable":
        """Append, and return the table as it is then."""
        from deltalake import CommitProperties, Transaction

        table = self._open_or_create(draft.contract, schema)
        if table.transaction_version(fingerprint) is not None:
            return table  # another writer committed the same fingerprint since find_complete
        # known before the commit: with another version, the commit fails as a conflict
        version = table.version() + 1
        ids = [fingerprint]
        # only the first commit of a digest carries its id: snapshot ids resolve to that one
        if table.transaction_version(digest) is None:
            ids.append(digest)
        commit = draft.model_copy(update={"version": version})
        key = layout.log_version_key(self._dataset, version)
        # a text, because delta-rs changes the last bit of some numbers
        text = canonical_json(seal(key, encode(commit, self._files_of)))
        crash_point("commit.before_log")
        table.create_write_transaction(
            self._actions(table, commit),
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(
                # in the log entry itself, so that data and provenance cannot be committed apart
                custom_metadata={"videoar": text},
                max_commit_retries=0,  # after a conflict, the removals must be computed again
                app_transactions=[Transaction(name, version) for name in ids],
            ),
        )
        crash_point("commit.after_log")
        table.update_incremental()  # faster than loading it again, which reads all files' entries
        return table

    def _actions(self, table: "DeltaTable", commit: Commit) -> list[Any]:
        """Return the actions after which the table has exactly the files of the commit.

        Files that stay get no action: the Delta protocol leaves it undefined to add and remove one
        path in one commit.
        """
        from deltalake.transaction import AddAction, RemoveAction

        # O(all files of the table), also for a commit that adds one
        existing = table.get_add_actions()
        paths, sizes_bytes = existing["path"].to_pylist(), existing["size_bytes"].to_pylist()
        sizes = dict(zip(paths, sizes_bytes, strict=True))
        now_ms = int(time.time() * 1000)
        kept = {layout.data_path(file.sha256) for file in commit.files}
        new = [file for file in commit.files if layout.data_path(file.sha256) not in sizes]
        # from the footers in the store: shards were written by other processes
        statistics = read_statistics(self._objects, new, load_contract(commit.contract))
        return [
            AddAction(
                layout.data_path(file.sha256),
                file.size_bytes,
                {},  # no partition columns
                now_ms,
                True,  # dataChange
                delta_statistics(file.rows, columns),
            )
            for file, columns in zip(new, statistics, strict=True)
        ] + [
            RemoveAction(path, True, now_ms, size, {})
            for path, size in sizes.items()
            if path not in kept
        ]

    def _open_or_create(self, contract: str, schema: pa.Schema) -> "DeltaTable":
        from deltalake import CommitProperties, DeltaTable, Schema
        from deltalake.exceptions import DeltaError

        table = self._open()
        if table is None:
            try:
                table = DeltaTable.create(
                    self._objects.location(self.folder),
                    Schema.from_arrow(schema),
                    mode="error",
                    description=contract,
                    configuration=_TABLE_CONFIG,
                    storage_options=self._objects.options(),
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except DeltaError:  # another writer created it since _open
                table = self._open()
                if table is None:
                    raise
        # after the creation: if two writers with different contracts race, the log shows whose
        # table it is, and the loser must not add its columns to it
        self.ensure_contract(contract)
        self._add_columns(table, schema)
        return table

    def _add_columns(self, table: "DeltaTable", schema: pa.Schema) -> None:
        """Add the columns that the contract gained within its major version."""
        from deltalake import Schema

        # within a major version only nullable columns are added, so old files stay valid
        known = {field.name for field in table.schema().fields}
        missing = [f for f in Schema.from_arrow(schema).fields if f.name not in known]
        if missing:
            table.alter.add_columns(missing)

    def _open(self) -> "DeltaTable | None":
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with self._log_errors():
            try:
                return DeltaTable(
                    self._objects.location(self.folder), storage_options=self._objects.options()
                )
            except TableNotFoundError:
                return None

    @contextmanager
    def _log_errors(self) -> Iterator[None]:
        """Turn the errors of delta-rs into ours, which name what cannot be read."""
        try:
            yield
        except Exception as error:  # delta-rs raises plain ones, too, with frames of Rust
            # our own requests raise what is final, such as denied access, as such
            first = layout.log_version_key(self._dataset, 0)
            next(self._objects.list(first), None)
            self._objects.find(first)
            for key, what in damaged_checkpoints(self._objects, self._dataset):
                hint = "it is derived: videoar doctor --verify --fix removes it"
                raise DamagedError(key, f"damaged: {what}", hint) from error
            what = f"its Delta log cannot be read: {one_line(_FRAMES.split(str(error))[0])}"
            hint = "run again; if the error stays, the log is damaged"
            raise TransientStorageError(self.folder, what, hint) from error

    def _read(self, version: int) -> Commit:
        commit = self._find(version)
        if commit is None:
            key = layout.log_version_key(self._dataset, version)
            raise StorageError(f"{self._objects.url}/{key}", "contains no commit of videoar")
        return commit

    def _find(self, version: int) -> Commit | None:
        key = layout.log_version_key(self._dataset, version)
        record = _record_of(self._objects, key)
        return _commit_of(key, record, lambda base: self._files_of(base) or self._read(base).files)

    def _files_of(self, version: int) -> Files | None:
        if version not in self._decoded:
            commit = self._find(version)
            self._decoded[version] = None if commit is None else commit.files
        return self._decoded[version]
