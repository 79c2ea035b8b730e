"""Read a stored Parquet file by columns, or single rows of its payload columns."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import StorageError
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.storage.object_store import ObjectStore
from videoar.storage.writer import Block, direct_blocks

_GAP_BYTES = 1 << 14
"""chosen: neighbours closer than this are fetched by one read."""


class _ObjectFile(io.RawIOBase):
    """A stored object as a seekable file that fetches only what is read."""

    def __init__(self, objects: ObjectStore, file: FileRef) -> None:
        self._objects, self._file, self._position = objects, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = self._file.size_bytes - self._position
        length = left if size < 0 else min(size, left)
        data = self._objects.get_range(self._file.key, self._position, length) if length else b""
        self._position += len(data)
        return data


def read_file(
    objects: ObjectStore, file: FileRef, columns: Sequence[str] | None, *, verify: bool = False
) -> pa.Table:
    """Read a file, or only some columns of it by ranged reads.

    Raises:
        StorageError: the object is gone, or differs from what was committed. Its size is always
            checked, its content with `verify`.
    """
    if columns is not None and not verify:
        return _decode(pa.PythonFile(_ObjectFile(objects, file), "r"), columns)
    data = objects.get(file.key)
    if len(data) != file.size_bytes or (verify and sha256_hex(data) != file.sha256):
        raise StorageError(
            f"{objects.url}/{file.key}",
            "damaged: not the bytes that were committed",
            "restore it from a copy, or delete it and run the stage again",
        )
    return _decode(pa.BufferReader(data), columns)


def _decode(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    """Decode in this thread: Arrow's own threads may outlive a short command and abort its exit."""
    with pq.ParquetFile(source, pre_buffer=False) as parquet:
        return parquet.read(columns=list(columns) if columns else None, use_threads=False)


class PayloadReader:
    """Random access to the rows of payload columns of one file; falls back to Arrow decoding."""

    def __init__(self, objects: ObjectStore, file: FileRef) -> None:
        self._objects, self._file = objects, file
        with pq.ParquetFile(pa.PythonFile(_ObjectFile(objects, file), "r")) as parquet:
            self._metadata = parquet.metadata
        self._blocks: dict[str, list[Block] | None] = {}

    @property
    def notes(self) -> dict[str, str]:
        """Key-values of the footer, e.g. the digest of the tokenizer that made the rows."""
        pairs = (self._metadata.metadata or {}).items()
        return {key.decode(): value.decode(errors="replace") for key, value in pairs}

    def read_rows(self, column: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the values of some rows in the order asked for: uint8 [rows, width]."""
        if column not in self._blocks:
            self._blocks[column] = direct_blocks(self._metadata, column)
        blocks = self._blocks[column]
        wanted = np.asarray(rows, np.int64)
        if blocks is None:
            return self._decode(column, wanted)
        return self._direct(blocks, wanted)

    def _direct(self, blocks: list[Block], rows: np.ndarray) -> np.ndarray:
        width = blocks[0].width
        first = np.array([block.row for block in blocks])
        start = np.array([block.start for block in blocks])
        block = np.searchsorted(first, rows, side="right") - 1
        offsets = start[block] + (rows - first[block]) * width
        order = np.argsort(offsets, kind="stable")
        out = np.empty((len(rows), width), np.uint8)
        breaks = np.flatnonzero(np.diff(offsets[order]) > width + _GAP_BYTES) + 1
        for run in np.split(order, breaks):
            begin, end = int(offsets[run[0]]), int(offsets[run[-1]]) + width
            data = np.frombuffer(
                self._objects.get_range(self._file.key, begin, end - begin), np.uint8
            )
            for row in run:
                position = int(offsets[row]) - begin
                out[row] = data[position : position + width]
        return out

    def _decode(self, column: str, rows: np.ndarray) -> np.ndarray:
        values = read_file(self._objects, self._file, [column])[column].take(pa.array(rows))
        return np.stack([np.frombuffer(value.as_py(), np.uint8) for value in values])
