"""Read a stored Parquet file: whole, by columns, or its footer alone."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import StorageError
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.storage.object_store import ObjectStore

_FOOTERS_AT_ONCE = 16


class ObjectFile(io.RawIOBase):
    """A stored object as a seekable file that fetches only what is read."""

    def __init__(self, objects: ObjectStore, file: FileRef) -> None:
        self._objects, self._file, self._position = objects, file, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere else; fetches nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Fetch up to `size` bytes, by one request."""
        left = self._file.size_bytes - self._position
        length = left if size < 0 else min(size, left)
        data = self._objects.get_range(self._file.key, self._position, length) if length else b""
        self._position += len(data)
        return data


def read_file(
    objects: ObjectStore,
    file: FileRef,
    columns: Sequence[str] | None,
    *,
    verify: bool = False,
    footer: pq.FileMetaData | None = None,
) -> pa.Table:
    """Read a file, or only some columns of it by ranged reads; a footer at hand saves one more.

    Raises:
        StorageError: the object is gone, or differs from what was committed. Its size is always
            checked, its content with `verify`.
    """
    if columns is not None and not verify:
        return _decode(pa.PythonFile(ObjectFile(objects, file), "r"), columns, footer)
    data = objects.get(file.key)
    if len(data) != file.size_bytes or (verify and sha256_hex(data) != file.sha256):
        raise _damaged(objects, file)
    return _decode(pa.BufferReader(data), columns)


def read_footer(objects: ObjectStore, file: FileRef) -> pq.FileMetaData:
    """Read what a file says of itself.

    Raises:
        StorageError: the object is gone, or is no Parquet file any more.
    """
    try:
        with pq.ParquetFile(pa.PythonFile(ObjectFile(objects, file), "r")) as parquet:
            return parquet.metadata
    except pa.ArrowInvalid as error:
        raise _damaged(objects, file) from error


def read_footers(objects: ObjectStore, files: Iterable[FileRef]) -> list[pq.FileMetaData]:
    """Read the footers of files, many at once: one small read each."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda file: read_footer(objects, file), files))


def footer_notes(footer: pq.FileMetaData) -> dict[str, str]:
    """Return the key-values of a footer, e.g. the digest of the tokenizer that made the rows."""
    pairs = (footer.metadata or {}).items()
    return {key.decode(): value.decode(errors="replace") for key, value in pairs}


def _damaged(objects: ObjectStore, file: FileRef) -> StorageError:
    return StorageError(
        f"{objects.url}/{file.key}",
        "damaged: not the bytes that were committed",
        "restore it from a copy, or delete it and run the stage again",
    )


def _decode(
    source: pa.NativeFile, columns: Sequence[str] | None, footer: pq.FileMetaData | None = None
) -> pa.Table:
    """Decode in this thread: Arrow's own threads may outlive a short command and abort its exit."""
    with pq.ParquetFile(source, metadata=footer, pre_buffer=False) as parquet:
        return parquet.read(columns=list(columns) if columns else None, use_threads=False)
