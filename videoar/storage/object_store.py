"""Bytes under keys, with one conditional write: put-if-absent.

Three stores implement one protocol: a folder (`local_store`: hard link of a synced temporary file),
S3 (`s3_store`: a single `PutObject` with `If-None-Match: *`) and a private temporary folder for
tests. The protocol has no `If-Match`, conditional delete, conditional multipart completion or
object versions, because popular S3 servers lack or ignore them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from videoar.core.errors import DamagedError, StorageError, WithdrawnError
from videoar.core.ids import sha256_hex
from videoar.storage.layout import withdrawal_key

MULTIPART_BYTES = 64 << 20
"""Unconditional puts above this size are multipart uploads."""
PIECE_BYTES = 1 << 20
STALE_TEMP_S = 3600.0
"""chosen: longer than any put takes. Older temporary files and uploads are removed where no lock
shows whether the writer still runs: on network file systems and S3."""


@dataclass(frozen=True)
class ObjectInfo:
    """One entry of a listing."""

    key: str
    size_bytes: int
    etag: str = ""
    """Changes with the content; in a folder, the time of writing. Empty: the server has none."""


class ObjectStore(Protocol):
    """The operations of an object store. Keys are relative `a/b/c` paths."""

    url: str
    is_local: bool
    """Whether reads need no network."""

    @property
    def unavailable_s(self) -> float:
        """For how long the store has answered no request of this process, in seconds; 0: it does.

        Requests wait meanwhile, up to the setting `store_wait_s`. For display.
        """

    def find(self, key: str) -> bytes | None:
        """Return an object's bytes, None if there is no such object."""

    def get(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            StorageError: there is no such object.
        """

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end of the object."""

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Read into each buffer, from its position in the object.

        Args:
            key: the object.
            spans: pairs of a byte position and the buffer to fill from there.

        Raises:
            StorageError: there is no such object, or it is shorter than a span needs.
        """

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:
        """Do what `read_into` does if all bytes are in the page cache; otherwise return False.

        The buffers may be partly filled then. A short object counts as not cached.

        Raises:
            StorageError: there is no such object.
        """

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """Write an object atomically; with `if_absent`, return False if another call wrote it.

        Returns True if a request was repeated because its answer was lost, and the object is that
        of the first one; equal bytes of another call are not.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, as `put` does, without loading it into memory."""

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, None if there is no such object."""

    def age_s(self, key: str) -> float | None:
        """Return the seconds since an object was written, by the clock of the store; None without.

        For display: S3 counts whole seconds, and a store's clock may be set back.
        """

    def written_at(self, key: str) -> float | None:
        """Return when an object was written, seconds since 1970 by the clock of the store."""

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix` and are above `after`, sorted by key."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names that keys under a prefix have up to their next slash, sorted.

        Args:
            prefix: ends in a slash.
        """

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""

    def purge(self, key: str) -> None:
        """Delete an object with all of its older versions, where the store keeps them."""

    def purge_older(self, prefix: str) -> None:
        """Delete all but the newest versions of the objects whose keys start with `prefix`."""

    def sweep(self) -> None:
        """Remove the temporary files and unfinished uploads of killed writers."""

    def location(self, key: str) -> str:
        """Return the address of a key for libraries that open the store themselves (Delta)."""

    def options(self) -> dict[str, str]:
        """Return what such a library needs besides the address: endpoint, credentials."""


def put_content(objects: ObjectStore, key: str, data: bytes | memoryview) -> None:
    """Write an object whose key ends in its content hash. Idempotent."""
    if not _is_stored(objects, key, len(data)):
        objects.put(key, data)


def put_content_of(objects: ObjectStore, key: str, path: Path) -> None:
    """Write a file under a key that ends in its content hash, without loading it into memory."""
    if not _is_stored(objects, key, path.stat().st_size):
        objects.put_file(key, path)


def get_content(objects: ObjectStore, key: str) -> bytes:
    """Return the bytes of a file under a key that ends in its content hash.

    Raises:
        DamagedError: the bytes have another hash.
        StorageError: there is no such object.
    """
    data = objects.get(key)
    if sha256_hex(data) != PurePath(key).stem:
        what = "damaged: its bytes are not those that were committed"
        raise DamagedError(f"{objects.url}/{key}", what, "restore it from a copy")
    return data


def _is_stored(objects: ObjectStore, key: str, size_bytes: int) -> bool:
    """Return whether a large object exists with its full size.

    Small objects are always rewritten: a HEAD costs as much as the put, and the put repairs damage.
    """
    return size_bytes > MULTIPART_BYTES and objects.size(key) == size_bytes


def missing_error(objects: ObjectStore, key: str) -> StorageError:
    """Return the error for a missing object.

    Looks up a withdrawal record, which costs a request only for objects that are missing.
    """
    where, record = f"{objects.url}/{key}", objects.find(withdrawal_key(key))
    if record is None:
        return StorageError(where, "no such object", "deleted, or never written to this store")
    try:
        source = json.loads(record)["source"]
    except (KeyError, TypeError, ValueError):
        what = "damaged: no record of a takedown"
        return DamagedError(withdrawal_key(key), what, "restore it from a copy")
    what = f"withdrawn by the takedown of source {source}"
    return WithdrawnError(where, what, "run its pipeline again")


def read_exactly(target: memoryview, read: Callable[[memoryview], int], where: object) -> None:
    """Call `read` until the buffer is full: one call may return fewer bytes.

    Raises:
        StorageError: the object ends before.
    """
    while target:
        count = read(target)
        if not count:
            what = "damaged: shorter than it was when it was committed"
            raise StorageError(str(where), what, "restore it from a copy")
        target = target[count:]
