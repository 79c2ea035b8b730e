"""Write Parquet files: ordinary columns compressed, `payload` columns in the direct layout.

Direct layout: REQUIRED FIXED_LEN_BYTE_ARRAY(w), PLAIN, uncompressed, no dictionary, no statistics,
one data page per column chunk. The values of a chunk are then one contiguous block at its end, and
row i is one ranged read of w bytes at `start + i * w` into a batch, without decoding. Other readers
see plain Parquet. Compression would save nothing on bits and 9 % on fp16 latents, at a third of the
read speed.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.contracts.contract import Contract
from videoar.core.errors import ContractError, StorageError
from videoar.core.types import Footer
from videoar.storage.token_codec import checksum

ROW_GROUP_BYTES = 16 << 20
"""A ranged GET of this size takes longer to transfer than the round trip to S3."""
ROW_GROUP_ROWS = 16_384
"""Bound for small rows: Parquet writers start a new page after 20,000 rows by default."""


@dataclass(frozen=True)
class Block:
    """Contiguous values of one payload column in a file."""

    row: int
    """First row."""
    rows: int
    start: int
    """Byte offset of the first row's value."""
    width: int
    """Bytes per row."""


def write_parquet(
    table: pa.Table, contract: Contract, row_group_bytes: int = ROW_GROUP_BYTES
) -> memoryview:
    """Write a conforming table as one Parquet file; equal rows give equal bytes.

    Besides the table, memory holds the file once and one row group.

    Raises:
        ContractError: the values of a payload column differ in length.
        StorageError: this Parquet writer does not produce the direct layout.
    """
    # an empty table has no values to take a width from; it keeps plain binary columns
    widths = {name: _width(table[name], name) for name in contract.payloads} if len(table) else {}
    sink = pa.BufferOutputStream()
    # dictionaries pay for repeated texts (labels, licences), not for numbers
    strings = [f.name for f in table.schema if pa.types.is_string(f.type)]
    schema = _fixed(table.schema, widths)
    rows = _row_group_rows(sum(widths.values()), row_group_bytes)
    with pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=strings or False,
        compression={n: "none" if n in widths else "zstd" for n in table.column_names},
        write_statistics=[n for n in table.column_names if n not in widths] or False,
        data_page_size=1 << 30,  # together with write_batch_size: one page per column chunk
        write_batch_size=1 << 20,
        write_page_checksum=True,
    ) as writer:
        # slice by slice: casting the whole table to fixed width would copy all payload
        for start in range(0, len(table), rows):
            writer.write_table(table.slice(start, rows).cast(schema), row_group_size=rows)
    data = memoryview(sink.getvalue()).cast("B")  # no copy; Arrow's own view is of signed bytes
    # a new pyarrow could change encodings or page sizes: find out here, not in training
    for name in widths:
        _check_layout(data, table[name], name)
    return data


def find_footer(data: memoryview) -> Footer:
    """Return size and checksum of a Parquet file's footer, with its length and magic number."""
    # the file ends in <footer><4 bytes: its length><PAR1>
    size = int.from_bytes(data[-8:-4], "little") + 8
    return Footer(size_bytes=size, xxh3=checksum(data[-size:]))


def _width(values: pa.ChunkedArray, name: str) -> int:
    lengths = pa.compute.unique(pa.compute.binary_length(values)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        what = f"payload column {name} has values of {sorted(lengths)[:4]} bytes"
        raise ContractError("file", what, "all rows of a file have one non-empty shape")
    return int(lengths[0])


def _row_group_rows(row_bytes: int, row_group_bytes: int) -> int:
    if not row_bytes:
        return ROW_GROUP_ROWS
    return max(1, min(ROW_GROUP_ROWS, row_group_bytes // row_bytes))


def _fixed(schema: pa.Schema, widths: dict[str, int]) -> pa.Schema:
    fields = [f.with_type(pa.binary(widths[f.name])) if f.name in widths else f for f in schema]
    return pa.schema(fields, schema.metadata)


def direct_blocks(metadata: pq.FileMetaData, name: str) -> list[Block] | None:
    """Return the blocks of a payload column; None if it is not in the direct layout.

    Reads the footer only: `write_parquet` has compared the blocks with the values.
    """
    index = metadata.schema.names.index(name)
    width = metadata.schema.column(index).length
    blocks, row = [], 0
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(index)
        # what a chunk holds besides its values is one page header, if it is one page
        header = chunk.total_compressed_size - chunk.num_values * width
        if not (_is_plain(chunk) and 0 < header < _MAX_HEADER):
            return None
        blocks.append(Block(row, chunk.num_values, chunk.data_page_offset + header, width))
        row += chunk.num_values
    return blocks


_MAX_HEADER = 56
"""Bytes. Two page headers are larger, one with a checksum is smaller (33 bytes at 16 MiB)."""


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    return (
        chunk.physical_type == "FIXED_LEN_BYTE_ARRAY"
        and chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
        and set(chunk.encodings) <= {"PLAIN", "RLE"}  # RLE: definition levels, empty if REQUIRED
    )


def _check_layout(view: memoryview, values: pa.ChunkedArray, name: str) -> None:
    """Compare the blocks that the footer describes with the values."""
    blocks = direct_blocks(pq.read_metadata(pa.BufferReader(view)), name)
    for block in blocks or ():
        rows = values.slice(block.row, block.rows)
        expected = b"".join(value.as_py() for value in rows)
        if view[block.start : block.start + block.rows * block.width] != expected:
            blocks = None
            break
    if blocks is None:
        what = "the Parquet writer did not produce the direct layout"
        raise StorageError(name, what, "pin pyarrow 25.0.1")
