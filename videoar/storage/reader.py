"""Read a stored Parquet file: whole, by columns, or its footer alone.

Pages are read with their checksums, so that a damaged one is an error and not other values. The
footer has none: of its damage, only `verify` sees all.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import StorageError, one_line
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.storage.object_store import ObjectStore

_FOOTERS_AT_ONCE = 16
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""What Arrow raises on damaged files; errors of the store are none of these."""


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
        StorageError: the object is gone, or differs from what was committed. The pages that are
            read are always checked, all bytes with `verify`.
    """
    with arrow_errors(objects, file):
        if columns is not None and not verify:
            return _decode(pa.PythonFile(ObjectFile(objects, file), "r"), columns, footer)
        data = objects.get(file.key)
        if len(data) != file.size_bytes or (verify and sha256_hex(data) != file.sha256):
            raise _damaged(objects, file, "not the bytes that were committed")
        return _decode(pa.BufferReader(data), columns)


def read_footer(objects: ObjectStore, file: FileRef) -> pq.FileMetaData:
    """Read what a file says of itself.

    Raises:
        StorageError: the object is gone, or is no Parquet file any more.
    """
    with (
        arrow_errors(objects, file),
        pq.ParquetFile(pa.PythonFile(ObjectFile(objects, file), "r")) as parquet,
    ):
        return parquet.metadata


def read_footers(objects: ObjectStore, files: Iterable[FileRef]) -> list[pq.FileMetaData]:
    """Read the footers of files, many at once: one small read each."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda file: read_footer(objects, file), files))


def footer_notes(footer: pq.FileMetaData) -> dict[str, str]:
    """Return the key-values of a footer, e.g. the digest of the tokenizer that made the rows."""
    pairs = (footer.metadata or {}).items()
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in pairs}


@contextlib.contextmanager
def arrow_errors(objects: ObjectStore, file: FileRef) -> Iterator[None]:
    """Turn what Arrow says of bytes that make no sense into a `StorageError` naming the file."""
    try:
        yield
    except UNREADABLE as error:
        raise _damaged(objects, file, one_line(error)) from error


def _damaged(objects: ObjectStore, file: FileRef, what: str) -> StorageError:
    hint = "restore it from a copy, or delete it and run the stage again"
    return StorageError(f"{objects.url}/{file.key}", f"damaged: {what}", hint)


def _decode(
    source: pa.NativeFile, columns: Sequence[str] | None, footer: pq.FileMetaData | None = None
) -> pa.Table:
    """Decode in this thread: Arrow's own threads may outlive a short command and abort its exit."""
    with pq.ParquetFile(
        source, metadata=footer, pre_buffer=False, page_checksum_verification=True
    ) as parquet:
        table = parquet.read(columns=list(columns) if columns else None, use_threads=False)
        rows = parquet.metadata.num_rows
    if table.num_columns and table.num_rows != rows:  # counts of pages have no checksum
        raise ValueError(f"pages of {table.num_rows} rows, the footer says {rows}")
    return table
