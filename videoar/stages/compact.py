"""Many small files of tokens to few of a size that reads well, each a random sample of all clips.

Why a stage and no verb: reuse, resume, kills, lineage and take-downs are those of every stage, and
a pipeline below it reads the large files without being told. What it compacts stays as it is.

Rows are spread by a hash of their clip: clips of one source, which lie side by side where they come
in, lie everywhere afterwards, so that a window of few row groups is a fair shuffle. A file holds a
range of hashes, all that share some leading bits; a range that outgrows a file is halved, and no
other is touched: new clips, and clips that go, cost the files of their own ranges alone. Shapes and
tokenizers do not mix in a file. Each row is checked against its checksum on the way.

Cost of the plan, per row of the input: 0.13 kB and 9 us. A worker holds what `RowReader` does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.contracts.names import TOKENS
from videoar.core.ids import canonical_json, digest_json, sha256_hex
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, Shard, StageConfig
from videoar.storage.payload import row_bytes
from videoar.storage.reader import read_footers
from videoar.storage.row_reader import RowReader, own_metadata
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum

_HASH_BITS = 63
_ROWS_AT_ONCE = 4096
_SHAPE = ("t", "h", "w", "k")


class CompactConfig(StageConfig):
    """Options of `compact`."""

    file_mib: float = Field(default=512, gt=0, le=1024)
    """Payload of a file at most; where there is more, files have about half of it at least. A
    worker needs about 3.5 times as much memory, and 0.7 kB per row of the input to open it."""


class CompactStage(MapStage[CompactConfig]):
    """Files of tokens to larger files of the same rows."""

    name = "compact"
    consumes: ClassVar[Mapping[str, Port]] = {"tokens": Port(TOKENS)}
    produces = TOKENS
    config_type = CompactConfig
    primary = "tokens"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Plan one shard per new file: what its rows have in common; reads all small columns.

        Its digest is of the rows' values, checksums of payload among them, wherever they are
        stored: rows that the input has merely rearranged are not copied again.
        """
        file_bytes = self.config.file_mib * (1 << 20)
        made: list[Shard] = []
        for kind in _kinds(inputs[self.primary]):
            begin, most = 0, max(1, int(file_bytes // kind.row_bytes))
            for prefix, bits, count in _ranges(kind.hash_n, most):
                values = kind.digest_n[begin : begin + count].astype("<i8")
                digest = digest_json([kind.notes, sha256_hex(values.tobytes())])
                rows = ({**kind.key, "prefix": prefix, "bits": bits},)
                made.append(Shard(index=len(made), digest=digest, rows=rows, count=count))
                begin += count
        return made

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Read the small columns of all rows."""
        source = RowReader(inputs[self.primary])
        notes_N = _numbered(source.notes)[source.payload.file_N]
        hash_N = _hashes(source.small)
        clip_N = source.small["clip_id"]

        def mapper(batch: pa.Table) -> Output:
            (asked,) = batch.to_pylist()
            is_mine_N = hash_N >> (_HASH_BITS - asked["bits"]) == asked["prefix"]
            is_mine_N &= notes_N == asked["notes"]
            for name in _SHAPE:
                is_mine_N &= source.small[name].to_numpy() == asked[name]
            rows = np.flatnonzero(is_mine_N)
            clips = clip_N.take(pa.array(rows)).to_numpy()
            return Output(source.take(rows[np.lexsort((clips, hash_N[rows]))]))

        return mapper


@dataclass(frozen=True)
class _Kind:
    """Rows that can share a file: of one shape and one footer's notes, in the order of hashes."""

    key: dict[str, int]
    """Number of the notes, and the shape."""
    notes: dict[str, str]
    row_bytes: int
    """Payload of a row."""
    hash_n: np.ndarray
    digest_n: np.ndarray
    """Of all values of a row."""


def _kinds(tokens: Snapshot) -> Iterator[_Kind]:
    schema = load_contract(tokens.contract)
    small = [name for name in schema.arrow_schema.names if name not in schema.payloads]
    footers = read_footers(tokens.objects, tokens.files)
    notes = [own_metadata(footer) for footer in footers]
    parts: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = defaultdict(list)
    tables = tokens.read(small, footers=footers)
    for file, (table, number) in enumerate(zip(tables, _numbered(notes).tolist(), strict=True)):
        hash_n, digest_n = _hashes(table), _digests(table)
        shape_n4 = np.stack([table[name].to_numpy() for name in _SHAPE], axis=1)
        shapes, shape_n = np.unique(shape_n4, axis=0, return_inverse=True)
        for i, shape in enumerate(shapes.tolist()):
            mine = shape_n == i
            parts[number, *shape].append((file, hash_n[mine], digest_n[mine]))
    for key in sorted(parts):
        files, hashes, digests = zip(*parts.pop(key), strict=True)
        hash_n, digest_n = np.concatenate(hashes), np.concatenate(digests)
        order = np.lexsort((digest_n, hash_n))
        named = dict(zip(("notes", *_SHAPE), key, strict=True))
        size = max(1, *(row_bytes(footers[file]) for file in files))
        yield _Kind(named, notes[files[0]], size, hash_n[order], digest_n[order])


def _numbered(notes: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Return the number of each file's notes among all that differ."""
    return np.unique([canonical_json(of_file) for of_file in notes], return_inverse=True)[1]


def _hashes(table: pa.Table) -> np.ndarray:
    """Return the leading bits of each clip's hash: where a row belongs."""
    hash_N = _sums(table.select(["clip_id"]), lambda row: row[0])
    return (hash_N.view(np.uint64) >> (64 - _HASH_BITS)).astype(np.int64)


def _digests(table: pa.Table) -> np.ndarray:
    """Return a digest of each row's values."""
    return _sums(table, repr)


def _sums(table: pa.Table, text: Callable[[tuple[Any, ...]], str]) -> np.ndarray:
    parts = [np.empty(0, np.int64)]
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):  # Python's values take much memory
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        parts.append(np.array([checksum(text(row).encode()) for row in rows], np.int64))
    return np.concatenate(parts)


def _ranges(
    hash_n: np.ndarray, most: int, prefix: int = 0, bits: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Yield (prefix, its bits, rows) of the ranges of sorted hashes that hold `most` rows each."""
    if len(hash_n) <= most or bits == _HASH_BITS:
        if len(hash_n):
            yield prefix, bits, len(hash_n)
        return
    left, right = 2 * prefix, 2 * prefix + 1
    half = np.searchsorted(hash_n, right << (_HASH_BITS - bits - 1))
    yield from _ranges(hash_n[:half], most, left, bits + 1)
    yield from _ranges(hash_n[half:], most, right, bits + 1)
