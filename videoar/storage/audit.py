"""Verify that the bytes of a snapshot are those committed and that its rows meet their contract.

Files and objects are hashed, pages are read with their checksums, payload is compared with the
offsets in the footer, the bits of tokens are quantized again from their latents, and the stored
clips are decoded. One damage may give several findings (the file's hash, a page, a row).

Cost: a file is read three times (hash, Arrow, direct blocks), in pieces of one row group at most.
Its keys are read twice more, once per file and once for all files together. A clip is read twice,
the second time as a whole, one clip at a time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.contracts.checks import find_problems
from videoar.contracts.contract import load_contract
from videoar.core.errors import StorageError, TransientStorageError, WithdrawnError, one_line
from videoar.core.types import FileRef, Frozen
from videoar.storage.layout import READABLE_LAYOUT_VERSIONS
from videoar.storage.object_store import ObjectStore, missing_error
from videoar.storage.reader import UNREADABLE, ObjectFile, key_value_metadata, read_footer
from videoar.storage.references import objects_in
from videoar.storage.snapshot import Snapshot, snapshot_digest
from videoar.storage.token_codec import Grid, bytes_per_frame, checksum
from videoar.storage.unique_keys import duplicate_keys
from videoar.storage.writer import Block, direct_blocks

_PIECE_BYTES = 16 << 20
_DERIVE_BYTES = 1 << 20
"""chosen: latents per call of `requantize`, which keeps a float32 copy per scale."""

Requantize = Callable[[np.ndarray, Sequence[Grid]], list[bytes]]
"""From latents, fp16 [N, T, K, H, W], and scales to the packed bits of each row."""
CountFrames = Callable[[bytes], int]
"""From an MP4 file to the number of its frames that can be decoded."""


class Finding(Frozen):
    """One problem."""

    path: str
    """Key of the object, or id of the snapshot."""
    kind: str
    """Reason code."""
    message: str
    row: int | None = None
    """Row of the file, from 0; the first one if several rows have the same problem."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def audit(
    snapshot: Snapshot,
    requantize: Requantize,
    count_frames: CountFrames,
    tokenizer: str | None = None,
    piece_bytes: int = _PIECE_BYTES,
) -> Iterator[Finding]:
    """Read all files and objects of a snapshot and yield the problems found.

    Args:
        snapshot: any snapshot; tokens have further checks.
        requantize: computes bits from latents.
        count_frames: decodes a stored clip.
        tokenizer: digest of the tokenizer that must have made the tokens; by default that of the
            first file.
        piece_bytes: most bytes of an object that memory holds while it is hashed.

    Raises:
        StorageError: the store does not respond.
    """
    if snapshot_digest(snapshot.files, snapshot.contract) != snapshot.digest:
        what = "its digest is not that of its files"
        yield Finding(path=snapshot.id, kind="DIGEST", message=what)
    for file in snapshot.files:
        file_audit = _FileAudit(snapshot, file, requantize, count_frames, tokenizer, piece_bytes)
        yield from file_audit.findings()
        tokenizer = tokenizer or file_audit.metadata.get("tokenizer_digest")
    for key in duplicate_keys(snapshot):
        yield Finding(path=key.second.key, kind="KEYS", message=str(key), row=key.second_row)


def check_bytes(
    objects: ObjectStore,
    key: str,
    sha256: str,
    size_bytes: int | None,
    piece_bytes: int = _PIECE_BYTES,
) -> Iterator[Finding]:
    """Compare one object with its committed size, if that is known, and hash.

    Raises:
        StorageError: the store does not respond.
    """
    # a missing object is a finding; a store that does not respond is an error
    size = objects.size(key)
    if size is None:
        error = missing_error(objects, key)
        kind = "WITHDRAWN" if isinstance(error, WithdrawnError) else "MISSING"
        yield Finding(path=key, kind=kind, message=error.what)
        return
    if size_bytes is not None and size != size_bytes:
        what = f"has {size} bytes, {size_bytes} were committed"
        yield Finding(path=key, kind="SIZE", message=what)
    digest = hashlib.sha256()
    # in pieces: objects may be models of many gigabytes
    for start in range(0, size, piece_bytes):
        digest.update(objects.get_range(key, start, piece_bytes))
    if digest.hexdigest() != sha256:
        what = f"damaged: its SHA-256 is {digest.hexdigest()}, committed was {sha256}"
        yield Finding(path=key, kind="SHA256", message=what)


@dataclass(frozen=True)
class _RowGroup:
    """What could be read of a row group."""

    first: int
    """Row of the file, from 0, that its first row is."""
    columns: Mapping[str, pa.ChunkedArray]
    blocks: Mapping[str, Block]
    """Where the values of a payload lie, by column; without the columns of another layout."""


class _FileAudit:
    """The audit of one Parquet file."""

    def __init__(
        self,
        snapshot: Snapshot,
        file: FileRef,
        requantize: Requantize,
        count_frames: CountFrames,
        tokenizer: str | None,
        piece_bytes: int,
    ) -> None:
        self._snapshot, self._objects, self._file = snapshot, snapshot.objects, file
        self._contract = load_contract(snapshot.contract)
        self._requantize, self._count_frames = requantize, count_frames
        self._tokenizer, self._piece_bytes = tokenizer, piece_bytes
        self._shapes: list[tuple[int, ...]] = []
        self._scales: list[Grid] | None = None
        self.metadata: dict[str, str] = {}

    def findings(self) -> Iterator[Finding]:
        """Yield the problems of the file."""
        file = self._file
        findings = list(
            check_bytes(self._objects, file.key, file.sha256, file.size_bytes, self._piece_bytes)
        )
        yield from findings
        if any(finding.kind in {"WITHDRAWN", "MISSING"} for finding in findings):
            return
        try:
            footer = read_footer(self._objects, file)
            source = pa.PythonFile(ObjectFile(self._objects, file), "r")
            parquet = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
            schema = parquet.schema_arrow
        except TransientStorageError:  # the store failed, not the file
            raise
        except (StorageError, *UNREADABLE) as error:
            what = error.what if isinstance(error, StorageError) else one_line(error)
            yield self._finding("PARQUET", f"not readable as Parquet: {what}")
            return
        with parquet:
            yield from self._table(parquet, schema)

    def _finding(self, kind: str, message: str, row: int | None = None) -> Finding:
        where = "" if row is None else f"row {row}: "
        return Finding(path=self._file.key, kind=kind, message=where + message, row=row)

    def _table(self, parquet: pq.ParquetFile, schema: pa.Schema) -> Iterator[Finding]:
        footer = parquet.metadata
        self.metadata = key_value_metadata(footer)
        if footer.num_rows != self._file.rows:
            what = f"has {footer.num_rows} rows, {self._file.rows} were committed"
            yield self._finding("ROW_COUNT", what)
        wrong = dict(self._wrong_columns(schema))
        yield from (self._finding("SCHEMA", f"column {name}: {e}") for name, e in wrong.items())
        names = [name for name in self._contract.arrow_schema.names if name in schema.names]
        names = [name for name in names if name not in wrong]
        yield from self._read_scales()
        blocks: dict[str, list[Block]] = {}
        for name in (name for name in names if name in self._contract.payloads):
            direct = direct_blocks(footer, name)
            if direct is None:
                yield self._finding("LAYOUT", f"column {name} is not in the direct layout")
            else:
                blocks[name] = direct
        row, key, damaged = 0, list(self._contract.primary_key), False
        for group in range(parquet.num_row_groups):
            columns: dict[str, pa.ChunkedArray] = {}
            for name in names:
                # one column at a time: a damaged page of one leaves the others readable
                try:
                    read = parquet.read_row_group(group, columns=[name], use_threads=False)
                except UNREADABLE as error:
                    what = f"column {name}, row group {group}: {one_line(error)}"
                    yield self._finding("PAGES", what, row)
                    damaged = damaged or name in key
                else:
                    columns[name] = read[name]
            group_blocks = {name: of_column[group] for name, of_column in blocks.items()}
            yield from self._rows(_RowGroup(row, columns, group_blocks))
            row += parquet.metadata.row_group(group).num_rows
        if row and not damaged and set(key) <= set(names):
            # read again: keys kept in the loop would lie between freed payloads, and the allocator
            # could return none of their pages
            keys = parquet.read(columns=key, use_threads=False)
            for problem in find_problems(keys, {}, key):
                yield self._finding("ROWS", str(problem), problem.row)

    def _wrong_columns(self, schema: pa.Schema) -> Iterator[tuple[str, str]]:
        for field in self._contract.arrow_schema:
            if field.name not in schema.names:
                if not field.nullable:
                    yield field.name, "is missing"
                continue
            stored = schema.field(field.name).type
            is_payload = field.name in self._contract.payloads
            if not stored.equals(field.type) and not (
                is_payload and pa.types.is_fixed_size_binary(stored)
            ):
                yield field.name, f"is {stored}, {self._contract.id} declares {field.type}"
        for name in sorted(set(schema.names) - set(self._contract.arrow_schema.names)):
            yield name, f"unknown to {self._contract.id}"

    def _rows(self, group: _RowGroup) -> Iterator[Finding]:
        """Check the rows of one row group."""
        columns, first = group.columns, group.first
        payloads = {n: columns[n] for n in self._contract.payloads if n in columns}
        small = {name: values for name, values in columns.items() if name not in payloads}
        fields = [self._contract.arrow_schema.field(name) for name in small]
        table = pa.table(small, schema=pa.schema(fields))
        checks = {column.name: column.checks for column in self._contract.columns}
        for problem in find_problems(table, checks, ()):  # keys: checked for the whole file
            moved = replace(problem, row=problem.row + first)
            yield self._finding("ROWS", str(moved), moved.row)
        for name, values in payloads.items():
            if values.null_count:
                yield self._finding("ROWS", f"column {name} has nulls", first)
            if name in group.blocks:
                yield from self._block(name, values, group.blocks[name])
            if f"{name}_xxh3" in small:
                yield from self._checksums(name, values, small[f"{name}_xxh3"], first)
        yield from self._objects_of(small, first)
        # without scales the payload of tokens is still hashed and compared with its checksums
        if self._scales is not None and columns.keys() >= {*"thwk", "bits", "latent"}:
            yield from self._tokens(group, self._scales)

    def _block(self, name: str, values: pa.ChunkedArray, block: Block) -> Iterator[Finding]:
        raw = self._objects.get_range(self._file.key, block.start, block.rows * block.width)
        if raw != b"".join(_bytes(values)):
            what = f"column {name}: the values are not at the offset in the footer"
            yield self._finding("LAYOUT", what, block.row)

    def _checksums(
        self, name: str, values: pa.ChunkedArray, checksums: pa.ChunkedArray, first: int
    ) -> Iterator[Finding]:
        pairs = zip(_bytes(values), checksums.to_pylist(), strict=True)
        for row, (value, stored) in enumerate(pairs, first):
            if checksum(value) != stored:
                yield self._finding("XXH3", f"{name} fails its checksum", row)

    def _objects_of(self, small: Mapping[str, pa.ChunkedArray], first: int) -> Iterator[Finding]:
        """Check the objects that rows name."""
        num_frames = small["num_frames"].to_pylist() if "num_frames" in small else []
        for named in objects_in(pa.table(dict(small))):
            row = named.row + first
            wanted = named.key, named.sha256, named.size_bytes
            findings = list(check_bytes(self._objects, *wanted, self._piece_bytes))
            # decoded in this process: only what has the hash of what videoar has written
            if num_frames and not findings and named.key.endswith(".mp4"):
                findings = list(self._clip(named.key, num_frames[named.row]))
            for finding in findings:
                what = f"{finding.message} (row {row} of {self._file.key} of {self._snapshot.id})"
                yield finding.model_copy(update={"message": what, "row": row})

    def _clip(self, key: str, num_frames: int) -> Iterator[Finding]:
        found = self._count_frames(self._objects.get(key))
        if found != num_frames:
            what = f"{found} of {num_frames} frames can be decoded"
            yield Finding(path=key, kind="FRAMES", message=what)

    def _read_scales(self) -> Iterator[Finding]:
        """Set the scales from the footer of a file of tokens, if they can be used."""
        if self._contract.id.partition("@")[0] != "tokens":
            return
        version, maker = self.metadata.get("layout_version"), self.metadata.get("tokenizer_digest")
        if version not in READABLE_LAYOUT_VERSIONS:
            readable = ", ".join(READABLE_LAYOUT_VERSIONS)
            what = f"layout version {version!r}, this version reads {readable}"
            yield self._finding("LAYOUT_VERSION", what)
            return
        if maker is None:
            yield self._finding("FOOTER", "names no tokenizer")
        elif self._tokenizer not in (None, maker):
            what = f"made by tokenizer {maker}, not by {self._tokenizer}"
            yield self._finding("TOKENIZER", what)
        try:
            scales = [(int(h), int(w)) for h, w in json.loads(self.metadata["scales"])]
        except (KeyError, TypeError, ValueError):
            scales = []
        if not scales or min(map(min, scales)) < 1:
            what = f"has no list of scales: {self.metadata.get('scales')!r}"
            yield self._finding("FOOTER", what)
        else:
            self._scales = scales

    def _tokens(self, group: _RowGroup, scales: Sequence[Grid]) -> Iterator[Finding]:
        shapes = zip(*(group.columns[name].to_pylist() for name in "thwk"), strict=True)
        for row, shape in enumerate(shapes, group.first):
            if shape not in self._shapes:
                self._shapes.append(shape)
                yield from self._shape(shape, row, group, scales)
        shape = self._shapes[0]
        if len(self._shapes) == 1 and not list(self._shape(shape, group.first, group, scales)):
            yield from self._check_bits(shape, group, scales)

    def _shape(
        self, shape: tuple[int, ...], row: int, group: _RowGroup, scales: Sequence[Grid]
    ) -> Iterator[Finding]:
        """Compare a row's shape with that of the first row, the scales and the widths."""
        t, h, w, k = shape
        if shape != self._shapes[0]:
            yield self._finding("SHAPE", f"(t, h, w, k) is {shape}, the first row has another", row)
            return
        if scales[-1] != (h, w):
            yield self._finding("SCALES", f"the last of {scales} is not the grid {(h, w)}", row)
        expected = {"bits": t * bytes_per_frame(scales, k), "latent": 2 * t * k * h * w}
        for name, width in expected.items():
            widths = {len(value) for value in _bytes(group.columns[name])}
            if widths != {width}:
                what = f"{name} has {min(widths)} bytes, (t, h, w, k) {shape} and the scales need"
                yield self._finding("WIDTH", f"{what} {width}", row)

    def _check_bits(
        self, shape: tuple[int, ...], group: _RowGroup, scales: Sequence[Grid]
    ) -> Iterator[Finding]:
        """Compare the stored bits with those quantized from the stored latents."""
        t, h, w, k = shape
        latents, bits = (list(_bytes(group.columns[name])) for name in ("latent", "bits"))
        # rows per call; one row may be larger than the limit
        step = max(1, _DERIVE_BYTES // len(latents[0]))
        for start in range(0, len(latents), step):
            joined = np.frombuffer(b"".join(latents[start : start + step]), "<f2")
            batch = joined.reshape(-1, t, k, h, w)
            finite = np.isfinite(batch).all(axis=(1, 2, 3, 4))
            for i, value in enumerate(self._requantize(batch, scales)):
                row = group.first + start + i
                if not finite[i]:
                    yield self._finding("LATENT", "latent has values that are not finite", row)
                if value != bits[start + i]:
                    pair = (np.frombuffer(b, np.uint8) for b in (value, bits[start + i]))
                    count = int(np.unpackbits(np.bitwise_xor(*pair)).sum())
                    what = f"{count} bits differ from those of the latent"
                    yield self._finding("BITS", what, row)


def _bytes(values: pa.ChunkedArray) -> Iterator[memoryview]:
    """Yield the values of a binary column without copying them."""
    for chunk in values.chunks:
        for value in chunk:
            buffer = value.as_buffer() if value.is_valid else b""
            yield memoryview(buffer).cast("B")  # Arrow buffers have format "b", signed
