"""What commits, records and rows of a store name: data files, and objects.

One walk for all who need it: `validate --deep` and `doctor --verify` check that what is named is
there and undamaged, `gc` deletes what is not named.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from videoar.contracts.contract import contract_ids, load_contract
from videoar.contracts.names import SOURCES
from videoar.core.types import FileRef
from videoar.storage import layout, takedown
from videoar.storage.delta_log import iter_commits
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import read_file

_KEY, _SHA256, _SIZE, _FILES = "video_key", "video_sha256", "video_size_bytes", "files"
_JSON = "_json"


@dataclass(frozen=True)
class NamedFile:
    """A data file, and who names it."""

    file: FileRef
    by: str
    """Snapshot, or key of the record."""
    contract: str | None = None
    """None: not known."""


@dataclass(frozen=True)
class NamedObject:
    """An object that a row names."""

    key: str
    sha256: str
    row: int
    size_bytes: int | None = None
    """None: the row does not have it."""


def committed_files(objects: ObjectStore) -> Iterator[NamedFile]:
    """Yield the files of all commits; a file once for each commit that has it."""
    for commit in iter_commits(objects, derived=False):
        for file in commit.files:
            yield NamedFile(file, commit.snapshot, commit.contract)


def replacement_files(ledger: Ledger) -> Iterator[NamedFile]:
    """Yield the listings that replace withdrawn ones."""
    for key in takedown.withdrawn_keys(ledger, layout.TABLES_PREFIX):
        withdrawal = takedown.find_withdrawal(ledger, key)
        if withdrawal is not None and withdrawal.replacement is not None:
            yield NamedFile(withdrawal.replacement, layout.withdrawal_key(key), SOURCES)


def is_replaced(objects: ObjectStore, key: str) -> bool:
    """Return whether newer commits of the same work have replaced all that have a data file.

    A commit whose files are lost counts as never made, and its work is done again.
    """
    commits = list(iter_commits(objects, layout.dataset_of(key), derived=False))
    newest = {commit.provenance.fingerprint: commit.version for commit in commits}
    having = (commit for commit in commits if key in {file.key for file in commit.files})
    return all(newest[c.provenance.fingerprint] > c.version for c in having)


def recorded_files(key: str, record: dict[str, list[dict[str, object]]]) -> list[NamedFile]:
    """Return the files of rows and rejects that a work record names."""
    files = [*record.get("files", ()), *record.get("rejects", ())]
    return [NamedFile(FileRef.model_validate(file), key) for file in files]


def objects_of(objects: ObjectStore, named: NamedFile) -> Iterator[NamedObject]:
    """Yield the objects that the rows of a data file name.

    Raises:
        StorageError: the file is missing or damaged.
        WithdrawnError: a takedown has removed it.
    """
    columns = _columns(named.contract)
    if columns:
        yield from objects_in(read_file(objects, named.file, columns))


@cache
def _columns(contract: str | None) -> tuple[str, ...]:
    """Return the columns of a contract in which rows name objects; of all contracts for None."""
    ids = [contract] if contract else contract_ids()
    names = {name for id_ in ids for name in load_contract(id_).arrow_schema.names}
    if not {name for name in names if name in {_KEY, _FILES} or name.endswith(_JSON)}:
        return ()
    return tuple(sorted(object_columns(names)))


def object_columns(names: Collection[str]) -> set[str]:
    """Return which columns have keys of objects, or what belongs to them."""
    known = {_KEY, _SHA256, _SIZE, _FILES}
    return {name for name in names if name in known or name.endswith(_JSON)}


def objects_in(rows: pa.Table) -> Iterator[NamedObject]:
    """Yield the objects that rows name: videos, files of models, and keys in JSON texts."""
    columns = [name for name in rows.column_names if name in object_columns(rows.column_names)]
    texts = [name for name in columns if name.endswith(_JSON)]
    for number, row in enumerate(rows.select(columns).to_pylist()):
        key = row.get(_KEY)
        if key is not None and (sha256 := row.get(_SHA256) or layout.object_sha256(key)):
            yield NamedObject(key, sha256, number, row.get(_SIZE))
        for file in row.get(_FILES) or ():
            yield NamedObject(file["key"], file["sha256"], number, file["size_bytes"])
        for name in texts:
            for key in layout.object_keys_in(row[name] or ""):
                yield NamedObject(key, layout.object_sha256(key) or "", number)
