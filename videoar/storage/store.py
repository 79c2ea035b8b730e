"""A store: objects, records, refs and datasets under one URL."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from videoar.contracts.contract import load_contract
from videoar.core.errors import (
    ConfigError,
    DamagedError,
    SnapshotNotFoundError,
    StorageError,
    did_you_mean,
)
from videoar.core.ids import is_safe_key, sha256_hex
from videoar.core.types import FileRef
from videoar.storage import layout
from videoar.storage.delta_log import DeltaLog, iter_commits
from videoar.storage.ledger import Ledger, Refs
from videoar.storage.local_store import LocalObjectStore, MemoryObjectStore
from videoar.storage.object_store import ObjectStore, put_content, put_content_of
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.snapshot import Snapshot, find_snapshot
from videoar.storage.store_format import check_format
from videoar.storage.tables import Dataset

_PIECE_BYTES = 64 << 20
"""chosen: memory that fetching a file takes."""


class Store:
    """An open store. Pickles by address: every worker opens its own connections."""

    def __init__(self, objects: ObjectStore, endpoint: str = "") -> None:
        self.objects = objects
        self.url = objects.url
        self.endpoint = endpoint
        self.ledger = Ledger(objects)
        self.refs = Refs(self.ledger)

    def dataset(self, name: str, contract: str) -> Dataset:
        """Return a dataset, also one without commits."""
        return Dataset(self.objects, self.ledger, name, load_contract(contract))

    def snapshot(self, id_or_ref: str) -> Snapshot:
        """Return a snapshot by id (`clips:0123456789abcdef`) or by ref (`champion`).

        Raises:
            SnapshotNotFoundError: no such snapshot, or the ref was never set.
        """
        if not is_safe_key(id_or_ref):
            raise SnapshotNotFoundError(repr(id_or_ref), f"no such name in {self.url}")
        if ":" in id_or_ref:
            return find_snapshot(self.objects, self.ledger, id_or_ref)
        head = self.refs.head(id_or_ref)
        if head is None:
            known = self.refs.names()
            hint = did_you_mean(id_or_ref, known) if known else "no ref is set yet"
            raise SnapshotNotFoundError(id_or_ref, f"no such ref in {self.url}", hint)
        return find_snapshot(self.objects, self.ledger, head)

    def snapshots(self) -> Iterator[Snapshot]:
        """Yield every snapshot of every dataset, by dataset and version."""
        seen = set[str]()
        for commit in iter_commits(self.objects):  # several of one digest mean the first one
            if commit.snapshot not in seen:
                seen.add(commit.snapshot)
                yield Snapshot(self.objects, self.ledger, commit)

    def fold(self) -> int:
        """Make the folds of all logs that are missing; return how many.

        Raises:
            DamagedError: an entry of a log is damaged or lost.
        """
        datasets = self.objects.folders(layout.TABLES_PREFIX)
        logs = [layout.DECISIONS_LOG, *map(layout.ref_log, self.refs.names())]
        made = sum(DeltaLog(self.objects, self.ledger, name).fold_all() for name in datasets)
        return made + sum(map(self.ledger.fold_all, logs))

    def put_object(self, data: bytes, suffix: str) -> FileRef:
        """Write bytes under their content hash. Idempotent."""
        self.ledger.prepare_write()
        sha256 = sha256_hex(data)
        key = layout.object_key(sha256, suffix)
        put_content(self.objects, key, data)
        return FileRef(key=key, sha256=sha256, size_bytes=len(data))

    def publish_folder(self, folder: Path, prefix: str = "") -> list[dict[str, Any]]:
        """Write every file of a folder; return `{path, key, sha256, size_bytes}`, sorted by path.

        Args:
            folder: its files are read in pieces.
            prefix: of their keys, for files that will be deleted: an object under the common
                prefix may be referenced by other records of equal content, too.
        """
        self.ledger.prepare_write()
        published = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # hashed before the upload, because the hash is the key
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"{sha256}{path.suffix}"
            key = f"{prefix}{name}" if prefix else layout.object_key(sha256, path.suffix)
            put_content_of(self.objects, key, path)
            published.append({
                "path": path.relative_to(folder).as_posix(),
                "key": key,
                "sha256": sha256,
                "size_bytes": path.stat().st_size,
            })
        return sorted(published, key=lambda file: str(file["path"]))

    def fetch_folder(self, files: Iterable[Mapping[str, Any]], into: Path) -> Path:
        """Fetch the files of a published folder, in pieces.

        Raises:
            DamagedError: the SHA-256 of a file differs from its record.
            StorageError: a file is missing, or its path is outside `into`.
        """
        for file in files:
            target = into / file["path"]
            # a record of a foreign store may have `../` in a path
            if not target.resolve().is_relative_to(into.resolve()):
                what = "path is outside the target folder"
                raise StorageError(file["path"], what, "do not use this record")
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.fetch(file["key"], file["size_bytes"], target) != file["sha256"]:
                raise DamagedError(f"{self.url}/{file['key']}", "damaged: wrong SHA-256")
        return into

    def fetch(self, key: str, size_bytes: int, target: Path) -> str:
        """Copy an object into a file; return the SHA-256 of the bytes received.

        Raises:
            StorageError: there is no such object, or it is shorter.
        """
        # one buffer for all pieces: a model may be larger than the memory
        sha256, memory = hashlib.sha256(), memoryview(bytearray(min(size_bytes, _PIECE_BYTES)))
        with target.open("wb") as copy:
            for start in range(0, size_bytes, _PIECE_BYTES):
                piece = memory[: size_bytes - start]
                self.objects.read_into(key, [(start, piece)])
                sha256.update(piece)
                copy.write(piece)
        return sha256.hexdigest()


def open_store(url: str, *, endpoint: str = "", any_format: bool = False) -> Store:
    """Open a store.

    Args:
        url: `file:///folder`, `s3://bucket/prefix` or `memory://name`.
        endpoint: S3 server other than AWS.
        any_format: also one whose records this version of the code cannot read, to migrate it.

    Raises:
        ConfigError: the URL cannot be used.
        StorageError: the store cannot be reached, or its format is not that of this code.
    """
    objects = _open_objects(url, endpoint)
    if not any_format:
        check_format(objects)
    return Store(objects, endpoint)


def _open_objects(url: str, endpoint: str) -> ObjectStore:
    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme == "file" else parts.path
    problem = _problem(url, parts.scheme, path)
    # netloc of file://host/x is another machine: rejected below
    if parts.scheme == "file" and not problem and not parts.netloc:
        return LocalObjectStore(Path(path))
    if parts.scheme == "s3" and not problem and re.fullmatch(r"[\w.-]+", parts.netloc):
        return S3ObjectStore(parts.netloc, path.strip("/"), endpoint)
    if parts.scheme == "memory" and not problem and parts.netloc:
        return MemoryObjectStore(parts.netloc)
    hint = "use file:///folder, s3://bucket/prefix or memory://name"
    shown = re.sub(r"//[^/]*@", "//***@", url) or "''"  # no password
    raise ConfigError(shown, f"not a store URL{problem}", hint)


def _problem(url: str, scheme: str, path: str) -> str:
    """Return what is wrong with the path of a store URL; an empty string if nothing is."""
    if "?" in url or "#" in url:
        return ": it has ? or #, in a file URL %3F and %23"
    # delta-rs would decode it once more, and write beside the store
    if re.search(r"%[0-9A-Fa-f]{2}|\\", path):
        return ": its path has a backslash, or a % before two digits"
    prefix = path.strip("/")
    if scheme == "memory" and prefix:
        return ": it has a path"
    if scheme == "s3" and prefix and not is_safe_key(prefix):
        return ": its prefix has an empty part, . or .."
    if scheme == "file" and not re.match(r"/+(?!~(/|$))[^/]", path):
        return ": its path is not absolute, or begins with ~"
    # not Path.is_file, which raises if a folder above may not be read
    is_file = scheme == "file" and os.path.isfile(path)  # noqa: PTH113 - see above
    return ": this is a file" if is_file else ""
