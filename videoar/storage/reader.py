"""Read a stored Parquet file: whole, by columns, or its footer only.

Pages are read with their checksums: a damaged page is an error, not wrong values. The footer has no
checksum in Parquet, and Arrow may crash on a damaged one, so the commit has its checksum.

From a remote store, some columns of many files are read with one ranged GET per row group: its
small columns are almost adjacent, before and after the payload, which is skipped.
"""

import contextlib
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import DamagedError, one_line
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef, Footer
from videoar.storage.object_store import ObjectStore
from videoar.storage.token_codec import checksum

_CONCURRENT_READS = 16
_GAP_BYTES = 128 << 10
"""chosen: a gap between two columns is read up to this size: that costs less than a request."""
_SPAN_BYTES = 8 << 20
"""chosen: upper bound of one request, unless a single column is larger."""
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""Exceptions of Arrow for damaged files; errors of the store are none of these."""


class ObjectFile(io.RawIOBase):
    """A stored object as a seekable file that fetches the ranges that are read.

    Args:
        objects: the store.
        file: the object.
        fetched: pairs of an offset and bytes that were fetched before.
    """

    def __init__(
        self, objects: ObjectStore, file: FileRef, fetched: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        self._objects, self._file, self._position = objects, file, 0
        self._fetched = fetched

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the offset of the next read; fetches nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, with one request at most."""
        left = self._file.size_bytes - self._position
        length = left if size < 0 else min(size, left)
        data = self._span(self._position, self._position + length) if length else b""
        self._position += len(data)
        return data

    def _span(self, start: int, end: int) -> bytes:
        for first, data in self._fetched:
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
    """Read a file, or some of its columns by ranged reads.

    Args:
        objects: the store.
        file: the file.
        columns: None reads the whole file in one request.
        verify: compare the SHA-256 of the whole file. Pages are always checked by their checksums.
        footer: of the file, if it was read before; saves a request.

    Raises:
        StorageError: the object is missing, or differs from the commit.
    """
    with arrow_errors(objects, file):
        # the hash needs every byte, so `verify` reads the whole file even for one column
        if columns is not None and not verify:
            footer = footer or read_footer(objects, file)
            return _decode(pa.PythonFile(ObjectFile(objects, file), "r"), columns, footer)
        # whole: one request instead of a footer and a range per row group
        data = objects.get(file.key)
        if len(data) != file.size_bytes or (verify and sha256_hex(data) != file.sha256):
            raise _damaged(objects, file, "its bytes are not those that were committed")
        if file.footer is not None:  # parsed here, because _decode would parse it unchecked
            footer = _parse(objects, file, file.footer, data)
        return _decode(pa.BufferReader(data), columns, footer)


def read_columns(
    objects: ObjectStore,
    files: Sequence[FileRef],
    footers: Sequence[pq.FileMetaData],
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Yield some columns of each file, in order; from a remote store with few, concurrent requests.

    Memory holds the table that is yielded, the bytes of its file and `_CONCURRENT_READS` requests.

    Raises:
        StorageError: an object is missing, or differs from the commit.
    """
    if objects.is_local:  # reads of the page cache gain nothing from concurrency
        for file, footer in zip(files, footers, strict=True):
            yield read_file(objects, file, columns, footer=footer)
        return
    spans = [_spans(*of_file, columns) for of_file in zip(files, footers, strict=True)]
    requests = iter([
        (file.key, start, end - start)
        for file, of_file in zip(files, spans, strict=True)
        for start, end in of_file
    ])
    in_flight: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        for file, footer, of_file in zip(files, footers, spans, strict=True):
            fetched = []
            for start, _ in of_file:
                # the requests are in the order in which their bytes are used
                while len(in_flight) <= _CONCURRENT_READS and (request := next(requests, None)):
                    in_flight.append(pool.submit(objects.get_range, *request))
                fetched.append((start, in_flight.popleft().result()))
            with arrow_errors(objects, file):
                source = pa.PythonFile(ObjectFile(objects, file, fetched), "r")
                table = _decode(source, columns, footer)
            yield table


def _spans(file: FileRef, footer: pq.FileMetaData, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return begin and end of the byte ranges of columns; close ones are merged.

    Ranges outside of the file (a damaged footer) are left out: Arrow reports them when it decodes.
    """
    indices = [i for i, name in enumerate(footer.schema.names) if name in columns]
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = [group.column(index) for group in groups for index in indices]
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:  # in front of the data pages
            start = min(start, chunk.dictionary_page_offset)
        end = start + chunk.total_compressed_size
        if not 0 <= start < end <= file.size_bytes:
            continue
        # chunks are in file order, so only the last span can be extended
        last = spans[-1] if spans else (end, end)
        if 0 <= start - last[1] <= _GAP_BYTES and end - last[0] <= _SPAN_BYTES:
            spans[-1] = last[0], end
        else:
            spans.append((start, end))
    return spans


def read_footer(objects: ObjectStore, file: FileRef) -> pq.FileMetaData:
    """Read the footer of a file.

    Raises:
        StorageError: the object is missing, or its footer differs from the commit.
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
    """Parse the footer at the end of `data` after comparing its checksum with the commit."""
    # before Thrift parses it: a damaged length may crash or allocate gigabytes
    ending = memoryview(data)[-footer.size_bytes :]
    if checksum(ending) != footer.xxh3:
        raise _damaged(objects, file, "its footer is not the one that was committed")
    with arrow_errors(objects, file):
        return pq.read_metadata(pa.BufferReader(ending))


def read_footers(objects: ObjectStore, files: Iterable[FileRef]) -> list[pq.FileMetaData]:
    """Read the footers of files concurrently, one small read each."""
    # a footer is a few kB: the time is round trips
    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        return list(pool.map(lambda file: read_footer(objects, file), files))


def key_value_metadata(footer: pq.FileMetaData) -> dict[str, str]:
    """Return the key-value metadata of a footer, e.g. the digest of the tokenizer of the rows."""
    pairs = (footer.metadata or {}).items()
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in pairs}


@contextlib.contextmanager
def arrow_errors(objects: ObjectStore, file: FileRef) -> Iterator[None]:
    """Raise errors of Arrow on damaged bytes as a `StorageError` that names the file."""
    try:
        yield
    except UNREADABLE as error:
        raise _damaged(objects, file, one_line(error)) from error


def _damaged(objects: ObjectStore, file: FileRef, what: str) -> DamagedError:
    hint = "restore it from a copy, or `videoar doctor --verify --fix`"
    return DamagedError(f"{objects.url}/{file.key}", f"damaged: {what}", hint)


def _decode(
    source: pa.NativeFile, columns: Sequence[str] | None, footer: pq.FileMetaData | None = None
) -> pa.Table:
    """Decode in this thread: Arrow's thread pool may abort the exit of a short command."""
    # pre_buffer would read ahead in Arrow's thread pool
    with pq.ParquetFile(
        source, metadata=footer, pre_buffer=False, page_checksum_verification=True
    ) as parquet:
        table = parquet.read(columns=list(columns) if columns else None, use_threads=False)
        rows = parquet.metadata.num_rows
    # the row counts of page headers have no checksum: a flipped bit there passes all others
    if table.num_columns and table.num_rows != rows:
        raise ValueError(f"pages have {table.num_rows} rows, the footer has {rows}")
    return table
