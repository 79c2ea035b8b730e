"""Random access to the payload columns of many files, straight into the caller's memory.

In the direct layout (`videoar.storage.writer`) a value is `width` bytes at a known offset. The
offsets are computed once, as arrays over all rows. A batch then costs one read per run of
consecutive rows, without decoding or copying. Remote stores are read by whole row
groups: the payload columns of a row group are one span of the file, hence one ranged GET.

Shapes: N rows of all files in order, F files, G row groups, B requested rows, r runs of consecutive
rows among them, W bytes of a value.
"""

import itertools
import logging
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videoar.core.errors import StorageError
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.storage.local_store import LocalObjectStore
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import ObjectFile, arrow_errors, key_value_metadata, read_file
from videoar.storage.token_codec import checksum
from videoar.storage.writer import direct_blocks

logger = logging.getLogger(__name__)
_SEAL = struct.Struct("<q")
T = TypeVar("T")


@dataclass(frozen=True)
class _Column:
    """Widths and offsets of the values of a column."""

    width_F: np.ndarray
    offset_N: np.ndarray
    """Byte offset in the file; -1 in files that are not in the direct layout: those are decoded."""


class Payload:
    """The payload columns of some files.

    Args:
        objects: the store of the files.
        files: their order gives the row numbers.
        footers: of the files; not kept, they take more memory than the arrays made from them.
        columns: payload columns that can be read.
        cache: used for all reads that may block.
    """

    def __init__(
        self,
        objects: ObjectStore,
        files: Sequence[FileRef],
        footers: Sequence[pq.FileMetaData],
        columns: Sequence[str],
        cache: "SpanCache | None" = None,
    ) -> None:
        self._objects, self._files = objects, files
        self._read_into = cache or objects.read_into
        groups = [[f.row_group(g).num_rows for g in range(f.num_row_groups)] for f in footers]
        self.file_metadata = [key_value_metadata(footer) for footer in footers]
        """Per file, the key-values of its footer, e.g. the digest of the tokenizer."""
        rows_F = np.array([footer.num_rows for footer in footers], np.int64)
        self.file_N = np.repeat(np.arange(len(files)), rows_F)
        self.row_group_N = np.repeat(
            np.arange(sum(map(len, groups))), [rows for of_file in groups for rows in of_file]
        )
        """Row group of each row, counted over all files."""
        # exclusive prefix sum: number of the first row of each file
        self._first_F = np.cumsum(rows_F) - rows_F
        self._columns = {name: self._column(footers, name) for name in columns}
        # prepend -1: row 0 starts a row group, too
        self._first_row_G = np.flatnonzero(np.diff(self.row_group_N, prepend=-1))
        self._start_G, self._end_G = self._ends()
        row_bytes_F = np.array([row_bytes(footer) for footer in footers], np.int64)
        self.row_bytes_N = row_bytes_F[self.file_N]
        """Payload bytes of each row in all columns, also those that are not read."""
        self.is_direct = all((c.offset_N >= 0).all() for c in self._columns.values())
        """Whether every file is in the direct layout."""

    def width(self, column: str, file: int) -> int:
        """Return the size in bytes of one value of a column in a file."""
        return int(self._columns[column].width_F[file])

    def read(self, rows_B: np.ndarray, out: Mapping[str, np.ndarray], *, wait: bool = True) -> bool:
        """Read the values of rows, in the requested order. All values of a column have one width.

        Args:
            rows_B: row numbers.
            out: by column, C-contiguous uint8 [B, W]; filled.
            wait: False returns False instead of reading what is not in the page cache.

        Raises:
            StorageError: an object is missing or shorter than stated in its footer.
        """
        if not len(rows_B):
            return True  # memoryview.cast rejects empty arrays
        row_group_B = self.row_group_N[rows_B]
        # consecutive rows of one row group are consecutive in the file: one read for the run
        is_next_B = np.zeros(len(rows_B), bool)
        is_next_B[1:] = (rows_B[1:] == rows_B[:-1] + 1) & (row_group_B[1:] == row_group_B[:-1])
        # example: rows 7 8 9 3 4 of one row group are the runs [7 8 9] [3 4], begin_r = [0 3]
        begin_r = np.flatnonzero(~is_next_B)
        row_r = rows_B[begin_r]
        places = list(itertools.pairwise([*begin_r.tolist(), len(rows_B)]))
        files = self.file_N[row_r].tolist()
        spans: dict[int, list[tuple[int, memoryview]]] = defaultdict(list)
        for column, out_BW in out.items():
            # cast: a 2-D view cannot be sliced by bytes; it needs C-contiguous memory
            width, target = out_BW.shape[1], out_BW.data.cast("B")
            offsets = self._columns[column].offset_N[row_r].tolist()
            for file, offset, (begin, end) in zip(files, offsets, places, strict=True):
                if offset >= 0:
                    spans[file].append((offset, target[begin * width : end * width]))
            # files of other writers: decoding is all or nothing, so once per file and column
            for file in {f for f, offset in zip(files, offsets, strict=True) if offset < 0}:
                if not wait:
                    return False
                is_in_file_B = self.file_N[rows_B] == file
                rows = rows_B[is_in_file_B]
                out_BW[is_in_file_B] = self._decode(column, file, rows, width)
        # all columns of a file in one call: it is opened once
        for file, of_file in spans.items():
            key = self._files[file].key
            if wait:
                self._read_into(key, of_file)
            elif not self._objects.read_cached(key, of_file):
                return False
        return True

    def row_group_bytes(self, row_group: int) -> int:
        """Return the length in bytes of the payload span of a row group."""
        return int(self._end_G[row_group] - self._start_G[row_group])

    def read_row_group(self, row_group: int, out: np.ndarray) -> None:
        """Read the payload span of one row group, with all columns, in one request."""
        file = int(self.file_N[self._first_row_G[row_group]])
        self._read_into(self._files[file].key, [(int(self._start_G[row_group]), out.data)])

    def copy_from_row_groups(
        self, rows_B: np.ndarray, spans: Sequence[memoryview], out: Mapping[str, np.ndarray]
    ) -> None:
        """Copy the values of rows out of spans that `read_row_group` has read.

        Copies memory views: assigning NumPy slices releases the GIL for every value, and taking it
        back from the other threads takes longer than the copy.

        Args:
            rows_B: row numbers.
            spans: of each row, the span of its row group.
            out: by column, C-contiguous uint8 [B, W]; filled.
        """
        start_B = self._start_G[self.row_group_N[rows_B]]
        for column, out_BW in out.items():
            width, target, end = out_BW.shape[1], out_BW.data.cast("B"), 0
            # position in the span of the row group instead of in the file
            begin_B = self._columns[column].offset_N[rows_B] - start_B
            for span, begin in zip(spans, begin_B.tolist(), strict=True):
                start, end = end, end + width
                target[start:end] = span[begin : begin + width]

    def _decode(self, column: str, file: int, rows_B: np.ndarray, width: int) -> np.ndarray:
        values = read_file(self._objects, self._files[file], [column])[column]
        with arrow_errors(self._objects, self._files[file]):
            taken = values.take(pa.array(rows_B - self._first_F[file]))
            # joined below without separators: one longer value would shift all that follow
            if pc.unique(pc.binary_length(taken)).to_pylist() != [width]:
                raise ValueError(f"column {column} has values that are not {width} bytes long")
            return np.frombuffer(b"".join(taken.to_pylist()), np.uint8).reshape(-1, width)

    def _column(self, footers: Sequence[pq.FileMetaData], name: str) -> _Column:
        widths, offsets = [], [np.empty(0, np.int64)]
        for file, footer in zip(self._files, footers, strict=True):
            with arrow_errors(self._objects, file):
                fixed = footer.schema.column(footer.schema.names.index(name)).length
                # plain BINARY has no width in the schema: take that of the first value
                widths.append(fixed or self._first_length(file, footer, name))
                offsets.extend(_offsets(footer, name))
        return _Column(np.array(widths, np.int64), np.concatenate(offsets))

    def _first_length(self, file: FileRef, footer: pq.FileMetaData, name: str) -> int:
        """Return the size of a column's first value, for files whose column has no fixed width."""
        source = pa.PythonFile(ObjectFile(self._objects, file), "r")
        with pq.ParquetFile(source, metadata=footer, page_checksum_verification=True) as parquet:
            # one row: decoding the column would read all of its payload
            for batch in parquet.iter_batches(1, columns=[name], use_threads=False):
                if value := batch.column(0)[0].as_py():
                    return len(value)
                raise ValueError(f"column {name} begins with an empty value")
        return 0

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the byte offsets at which the payload of each row group begins and ends."""
        first_G = self._first_row_G
        last_G = np.append(first_G[1:], len(self.row_group_N))[: len(first_G)] - 1
        # meaningless for files that are not direct (offset -1): callers check is_direct
        width_FC = np.stack([column.width_F for column in self._columns.values()], axis=1)
        offset_NC = np.stack([column.offset_N for column in self._columns.values()], axis=1)
        ends_GC = offset_NC[last_G] + width_FC[self.file_N[last_G]]
        return offset_NC[first_G].min(axis=1), ends_GC.max(axis=1)


class SpanCache:
    """Caches spans of a remote store in a local folder.

    Objects are immutable, so spans stay valid. Each is kept with its checksum: a local disk may
    damage it in months of training, and then the store is read again. Nothing is evicted: use a
    folder of its own with room for all spans, and delete it after a takedown. Errors of the folder
    are logged once and the store is read instead.

    Args:
        objects: the store.
        folder: created if missing; processes may share it.
    """

    def __init__(self, objects: ObjectStore, folder: Path) -> None:
        self._objects, self._local = objects, LocalObjectStore(folder.absolute())
        self._has_warned = False

    def __call__(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Do what the store's `read_into` does."""
        for start, target in spans:
            # the URL, too: two stores may share the folder
            name = sha256_hex(f"{self._objects.url}/{key}:{start}:{len(target)}".encode())
            found = self._try(self._local.find, name) or b""
            span, seal = memoryview(found)[: -_SEAL.size], found[-_SEAL.size :]
            if len(span) == len(target) and seal == _SEAL.pack(checksum(span)):
                target[:] = span
            else:
                self._objects.read_into(key, [(start, target)])
                sealed = b"".join((target, _SEAL.pack(checksum(target))))
                self._try(self._local.put, name, sealed)

    def _try(self, act: Callable[..., T], *arguments: object) -> T | None:
        try:
            return act(*arguments)
        except StorageError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("span cache failed, reading from the store: %s", error)
            return None


def row_bytes(footer: pq.FileMetaData) -> int:
    """Return the payload bytes of a row; without fixed-width columns, the bytes of all columns."""
    columns = map(footer.schema.column, range(len(footer.schema)))
    # only payload columns have a fixed width, see writer.py
    fixed = sum(c.length for c in columns if c.physical_type == "FIXED_LEN_BYTE_ARRAY")
    groups = map(footer.row_group, range(footer.num_row_groups))
    mean = sum(group.total_byte_size for group in groups) // max(1, footer.num_rows)
    return int(fixed or mean)


def _offsets(footer: pq.FileMetaData, name: str) -> Iterator[np.ndarray]:
    blocks = direct_blocks(footer, name)
    if blocks is None:
        yield np.full(footer.num_rows, -1, np.int64)
    for block in blocks or ():
        yield block.start + np.arange(block.rows, dtype=np.int64) * block.width
