"""Any rows of a snapshot with payload, in any order, checked against their checksums.

Small columns of all rows are held (per row of tokens about 0.3 kB, 0.7 kB while they are read);
payload is fetched row by row, straight into the table that is asked for, from a store behind a
network by many requests at once. For those who rearrange a snapshot: nothing damaged is copied on.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.contracts.contract import load_contract
from videoar.core.errors import StorageError
from videoar.storage.payload import Payload
from videoar.storage.reader import key_value_metadata, read_footers
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum

_REQUESTS = 16  # measured for the loader: so many ranged GETs hide 50 ms


def own_metadata(footer: pq.FileMetaData) -> dict[str, str]:
    """Return what a file's footer says, without what the Parquet library adds.

    Sorted: the library gives it in any order, and equal rows shall be equal bytes.
    """
    notes = key_value_metadata(footer)
    return {key: value for key, value in sorted(notes.items()) if key[:6] != "ARROW:"}


class RowReader:
    """The rows of a snapshot, numbered in file order.

    Raises:
        StorageError: a file is gone or damaged.
        WithdrawnError: a take-down has removed one.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        contract = load_contract(snapshot.contract)
        self._schema, self._names = contract.arrow_schema, contract.payloads
        small = [name for name in self._schema.names if name not in self._names]
        footers = read_footers(snapshot.objects, snapshot.files)
        self.notes = [own_metadata(footer) for footer in footers]
        """What each file's footer says."""
        self.payload = Payload(snapshot.objects, snapshot.files, footers, self._names)
        self.small = snapshot.table(small, footers=footers).combine_chunks()
        self.first = np.cumsum([0, *(file.rows for file in snapshot.files)])
        """Number of each file's first row, and of all rows."""

    def take(self, rows: np.ndarray) -> pa.Table:
        """Return rows of one shape by number, in this order, with the notes of the first's file."""
        file = int(self.payload.file_N[rows[0]])
        values = {
            name: np.empty((len(rows), self.payload.width(name, file)), np.uint8)
            for name in self._names
        }
        self._read(rows, values)
        table = self.small.take(pa.array(rows))
        for name, of_rows in values.items():
            self._check(name, of_rows, table[f"{name}_xxh3"].to_pylist(), rows)
            fixed, buffers = pa.binary(of_rows.shape[1]), [None, pa.py_buffer(of_rows)]
            column = pa.FixedSizeBinaryArray.from_buffers(fixed, len(rows), buffers)
            table = table.append_column(name, column)
        schema = self._schema.with_metadata(self.notes[file])
        return table.select(self._schema.names).cast(schema)

    def _read(self, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        if self.snapshot.objects.is_local or not self.payload.is_direct:
            self.payload.read(rows, values)  # a file of another writer is decoded whole: once
            return
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # neighbours stay one request
        begins = begins[:: -(-len(begins) // _REQUESTS)]
        parts = [slice(*ends) for ends in pairwise([*begins.tolist(), len(rows)])]

        def read(part: slice, name: str) -> None:
            self.payload.read(rows[part], {name: values[name][part]})

        with ThreadPoolExecutor(_REQUESTS) as pool:
            for done in [pool.submit(read, part, name) for name in values for part in parts]:
                done.result()

    def _check(self, name: str, values: np.ndarray, sums: list[int], rows: np.ndarray) -> None:
        for number, value, stored in zip(rows.tolist(), values, sums, strict=True):
            if checksum(value.data) != stored:
                file = int(self.payload.file_N[number])
                what = f"row {number - self.first[file]}: {name} fails its checksum"
                hint = f"see videoar validate {self.snapshot.id} --deep"
                raise StorageError(self.snapshot.files[file].key, what, hint)
