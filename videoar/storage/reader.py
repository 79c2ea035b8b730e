"""Read a stored Parquet file: whole, by columns, or its footer alone.

Pages are read with their checksums, so that a damaged one is an error and not other values. The
footer has none of its own and Arrow may die of a damaged one, so its checksum is in the commit.

From a store behind a network, some columns of many files come by one ranged GET per row group: its
small columns lie almost side by side, before and after the payload, which is left out.
"""

import contextlib
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import StorageError, one_line
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef, Footer
from videoar.storage.object_store import ObjectStore
from videoar.storage.token_codec import checksum

_AT_ONCE = 16
_GAP_BYTES = 128 << 10
"""What lies between two columns and is not asked for: up to here it costs less than a request."""
_SPAN_BYTES = 8 << 20
"""One request at most, unless a single column takes more."""
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""What Arrow raises on damaged files; errors of the store are none of these."""


class ObjectFile(io.RawIOBase):
    """A stored object as a seekable file that fetches only what is read and not held already."""

    def __init__(
        self, objects: ObjectStore, file: FileRef, held: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        self._objects, self._file, self._position = objects, file, 0
        self._held = held

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
        """Return up to `size` bytes, by one request at most."""
        left = self._file.size_bytes - self._position
        length = left if size < 0 else min(size, left)
        data = self._span(self._position, self._position + length) if length else b""
        self._position += len(data)
        return data

    def _span(self, start: int, end: int) -> bytes:
        for first, data in self._held:
            if first <= start and end <= first + len(data):
                return data[start - first : end - first]
        return self._objects.get_range(self._file.key, start, end - start)


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
            footer = footer or read_footer(objects, file)
            return _decode(pa.PythonFile(ObjectFile(objects, file), "r"), columns, footer)
        data = objects.get(file.key)
        if len(data) != file.size_bytes or (verify and sha256_hex(data) != file.sha256):
            raise _damaged(objects, file, "not the bytes that were committed")
        if file.footer is not None:
            footer = _parse(objects, file, file.footer, data)
        return _decode(pa.BufferReader(data), columns, footer)


def read_columns(
    objects: ObjectStore,
    files: Sequence[FileRef],
    footers: Sequence[pq.FileMetaData],
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Yield some columns of files in their order; from far by few requests, many at once.

    Beside the table that is yielded, memory holds what was fetched of its file and `_AT_ONCE`
    requests more.

    Raises:
        StorageError: an object is gone, or differs from what was committed.
    """
    if objects.is_local:
        for file, footer in zip(files, footers, strict=True):
            yield read_file(objects, file, columns, footer=footer)
        return
    spans = [_spans(*of_file, columns) for of_file in zip(files, footers, strict=True)]
    wanted = iter([
        (file.key, start, end - start)
        for file, of_file in zip(files, spans, strict=True)
        for start, end in of_file
    ])
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for file, footer, of_file in zip(files, footers, spans, strict=True):
            held = []
            for start, _ in of_file:
                while len(ahead) <= _AT_ONCE and (request := next(wanted, None)):
                    ahead.append(pool.submit(objects.get_range, *request))
                held.append((start, ahead.popleft().result()))
            with arrow_errors(objects, file):
                source = pa.PythonFile(ObjectFile(objects, file, held), "r")
                table = _decode(source, columns, footer)
            yield table


def _spans(file: FileRef, footer: pq.FileMetaData, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return the begin and end of what holds columns, neighbours as one.

    What a damaged footer places outside of the file is left to Arrow, which says what is wrong.
    """
    indices = [i for i, name in enumerate(footer.schema.names) if name in columns]
    chunks = [
        footer.row_group(group).column(index)
        for group in range(footer.num_row_groups)
        for index in indices
    ]
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset)
        end = start + chunk.total_compressed_size
        if not 0 <= start < end <= file.size_bytes:
            continue
        last = spans[-1] if spans else (end, end)
        if 0 <= start - last[1] <= _GAP_BYTES and end - last[0] <= _SPAN_BYTES:
            spans[-1] = last[0], end
        else:
            spans.append((start, end))
    return spans


def read_footer(objects: ObjectStore, file: FileRef) -> pq.FileMetaData:
    """Read what a file says of itself.

    Raises:
        StorageError: the object is gone, or its end is not what was committed.
    """
    if file.footer is not None:
        length = file.footer.size_bytes
        data = objects.get_range(file.key, file.size_bytes - length, length)
        return _parse(objects, file, file.footer, data)
    with (
        arrow_errors(objects, file),
        pq.ParquetFile(pa.PythonFile(ObjectFile(objects, file), "r")) as parquet,
    ):
        return parquet.metadata


def _parse(objects: ObjectStore, file: FileRef, footer: Footer, data: bytes) -> pq.FileMetaData:
    """Parse the footer at the end of some bytes, if it is the one that was committed."""
    ending = memoryview(data)[-footer.size_bytes :]
    if checksum(ending) != footer.xxh3:
        raise _damaged(objects, file, "its footer is not what was committed")
    with arrow_errors(objects, file):
        return pq.read_metadata(pa.BufferReader(ending))


def read_footers(objects: ObjectStore, files: Iterable[FileRef]) -> list[pq.FileMetaData]:
    """Read the footers of files, many at once: one small read each."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda file: read_footer(objects, file), files))


def key_value_metadata(footer: pq.FileMetaData) -> dict[str, str]:
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
