"""Tables of many rows: read several times, and row by row, without all of them in memory."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile, gettempdir

import pyarrow as pa

from videoar.core.errors import DiskError
from videoar.core.types import Row

_BATCH_ROWS = 8_192  # chosen: that memory holds of a large table
_OBJECT_ROWS = 1_000  # chosen: rows as Python objects
_MEMORY_BYTES = 8 << 20  # chosen: 100,000 to 300,000 rows of a listing


def rows_of(tables: Iterable[pa.Table]) -> Iterator[Row]:
    """Yield rows as Python objects, which take twenty times the memory: few at a time."""
    for table in tables:
        for batch in table.to_batches(_OBJECT_ROWS):
            yield from batch.to_pylist()


class TableSpool:
    """Tables of one schema, compressed: in memory, or if they are large in a file without a name.

    Args:
        schema: of the tables.
        tables: are taken one by one.

    Raises:
        DiskError: there is too little space for temporary files.
    """

    def __init__(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(SpooledTemporaryFile(max_size=_MEMORY_BYTES))
            weakref.finalize(self, stack.pop_all().close)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        try:
            with pa.ipc.new_file(self._file, schema, options=options) as writer:
                for table in tables:
                    writer.write_table(table, max_chunksize=_BATCH_ROWS)
        except OSError as error:
            hint = "free some space, or set TMPDIR"
            raise DiskError(gettempdir(), error.strerror or str(error), hint) from error

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield tables of some thousand rows; iterations do not disturb each other."""
        reader = pa.ipc.open_file(self._file)
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])
