"""Bytes under keys, and the one primitive that everything else rests on: put-if-absent.

Three stores share one protocol: a folder (hard link of a synced temporary file), S3 (one single
`PutObject` with `If-None-Match: *`) and a private temporary folder for tests. Nothing else is asked
of a store: no `If-Match`, no conditional delete, no conditional multipart completion, no versions,
because popular S3 servers lack or ignore them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from videoar.core.errors import StorageError, WithdrawnError
from videoar.storage.layout import withdrawal_key

MULTIPART_BYTES = 64 << 20
"""Plain puts above this size go up in parts."""
PIECE_BYTES = 1 << 20
STALE_TEMP_S = 3600.0
"""chosen: no put takes as long; for file systems whose locks other machines do not see, and S3."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int
    etag: str = ""
    """What the store says of the content, where it says anything."""


class ObjectStore(Protocol):
    """What the platform asks of a store. Keys are relative `a/b/c` paths."""

    url: str
    is_local: bool
    """Whether reading waits for no network."""

    def find(self, key: str) -> bytes | None:
        """Return an object's bytes, None if there is no such object."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            StorageError: there is no such object.
        """
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end of the object."""
        ...

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each piece of memory with the object's bytes from a position on.

        Raises:
            StorageError: there is no such object, or it ends too early.
        """
        ...

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:
        """Do what `read_into` does if all of it is in this machine's memory; else return False.

        Then the memory is partly filled. An object that ends too early counts as not there.

        Raises:
            StorageError: there is no such object.
        """
        ...

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """Write an object whole or not at all; with `if_absent`, False means that it existed."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, as `put` does, without holding it in memory."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes an object has; None if there is none. No answer is an error."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; deleting nothing is no error."""
        ...

    def purge(self, key: str) -> None:
        """Delete an object with all of its older versions, where the store keeps them."""
        ...

    def purge_older(self, prefix: str) -> None:
        """Delete all but the newest versions of the objects whose keys start with `prefix`."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers have left half-written, which no listing shows."""
        ...

    def location(self, key: str) -> str:
        """Return the address of a key for libraries that open the store by themselves."""
        ...

    def options(self) -> dict[str, str]:
        """Return what such a library must know besides the address (endpoint, credentials)."""
        ...


def put_content(objects: ObjectStore, key: str, data: bytes | memoryview) -> None:
    """Write an object whose key ends in its content hash: idempotent, in parts when big."""
    if not _is_kept(objects, key, len(data)):
        objects.put(key, data)


def put_content_of(objects: ObjectStore, key: str, path: Path) -> None:
    """Do what `put_content` does with a file, which is never whole in memory."""
    if not _is_kept(objects, key, path.stat().st_size):
        objects.put_file(key, path)


def _is_kept(objects: ObjectStore, key: str, size_bytes: int) -> bool:
    """Say whether a big object is there as a whole.

    A small one is written anew: it may be damaged, and asking costs as much as writing.
    """
    return size_bytes > MULTIPART_BYTES and objects.size(key) == size_bytes


def missing_error(objects: ObjectStore, key: str) -> StorageError:
    """Say why an object is not there; asked only when it is not, so that reading costs no more."""
    where, note = f"{objects.url}/{key}", objects.find(withdrawal_key(key))
    if note is None:
        return StorageError(where, "no such object", "deleted, or never written to this store")
    source = json.loads(note)["source"]
    return WithdrawnError(
        where, f"withdrawn by the take-down of source {source}", "run its pipeline again"
    )


def read_exactly(target: memoryview, read: Callable[[memoryview], int], where: object) -> None:
    """Read until memory is full.

    Raises:
        StorageError: the object ends before.
    """
    while target:
        count = read(target)
        if not count:
            what = "damaged: shorter than it was when it was committed"
            raise StorageError(str(where), what, "restore it from a copy")
        target = target[count:]
