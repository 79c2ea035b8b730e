"""Many small files of tokens to few large ones, each a random sample of all clips.

A stage and not a verb: reuse, resume, kills, lineage and takedowns work as for every stage, and a
pipeline after it simply reads its output. The input stays as it is.

Rows are distributed by a hash of their clip. Clips of one source, which are neighbours in the
input, get into different files, so that a window of few row groups is a fair shuffle. A file holds
all rows whose hashes share some leading bits; a range that outgrows a file is halved, and no other
range changes: new or deleted clips only cost the files of their own ranges.

    file_mib allows 3 rows per file; hashes of 4 bits

    rows   0010  0111  1001  1011                    files  0*: 0010 0111    1*: 1001 1011
    + one  0010  0111  1001  1011  1110              files  0*: as before    1*: 1001 1011 1110
    + one  0010  0111  1001  1011  1100  1110        files  0*: as before
                                                            10*: 1001 1011   11*: 1100 1110

Shapes and tokenizers do not mix in a file. Each row is verified against its checksum.

Cost of planning, per row of the input: 0.13 kB and 9 us. Memory of a worker: see `RowReader`.

Shapes: N rows of the input, n rows of one kind.
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

_HASH_BITS = 63  # of xxh3's 64: hashes then sort as signed integers
_ROWS_AT_ONCE = 4096  # chosen: rows that are Python objects at the same time
_SHAPE = ("t", "h", "w", "k")


class CompactConfig(StageConfig):
    """Options of `compact`."""

    file_mib: float = Field(default=512, gt=0, le=1024)
    """Maximum payload of a file in MiB; with more rows than fit into one, files have at least about
    half of it. A worker needs about 3.5 times as much memory, and 0.7 kB per row of the input to
    open it."""


class CompactStage(MapStage[CompactConfig]):
    """Files of tokens to larger files of the same rows."""

    name = "compact"
    consumes: ClassVar[Mapping[str, Port]] = {"tokens": Port(TOKENS)}
    produces = TOKENS
    config_type = CompactConfig
    primary = "tokens"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Plan one shard per new file, from the small columns of all rows.

        The digest of a shard is over the values of its rows, including the checksums of payloads,
        wherever they are stored: rows that were only rearranged in the input are not copied again.
        """
        file_bytes = self.config.file_mib * (1 << 20)
        shards: list[Shard] = []
        for kind in _kinds(inputs[self.primary]):
            begin, max_rows = 0, max(1, int(file_bytes // kind.row_bytes))
            for prefix, bits, count in _ranges(kind.hash_n, max_rows):
                # "<i8": the digest of a shard must not depend on the byte order of the machine
                values = kind.digest_n[begin : begin + count].astype("<i8")
                digest = digest_json([kind.metadata, sha256_hex(values.tobytes())])
                rows = ({**kind.key, "prefix": prefix, "bits": bits},)
                shards.append(Shard(index=len(shards), digest=digest, rows=rows, count=count))
                begin += count
        return shards

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Read the small columns of all rows."""
        source = RowReader(inputs[self.primary])
        metadata_N = _numbers(source.file_metadata)[source.payload.file_N]
        hash_N = _hashes(source.small)
        clip_N = source.small["clip_id"]

        def mapper(batch: pa.Table) -> Output:
            (requested,) = batch.to_pylist()
            # hashes have 63 bits: with bits = 0 the shift by 63 gives 0, the prefix of the whole
            # range
            is_in_N = hash_N >> (_HASH_BITS - requested["bits"]) == requested["prefix"]
            is_in_N &= metadata_N == requested["metadata"]
            for name in _SHAPE:
                is_in_N &= source.small[name].to_numpy() == requested[name]
            rows = np.flatnonzero(is_in_N)
            clips = clip_N.take(pa.array(rows)).to_numpy()
            # By hash, ties by clip: the order of the input's files has no influence on the output.
            return Output(source.take(rows[np.lexsort((clips, hash_N[rows]))]))

        return mapper


@dataclass(frozen=True)
class _Kind:
    """Rows that can share a file: of one shape and one footer's metadata, in order of hashes."""

    key: dict[str, int]
    """Number of the metadata, and the shape."""
    metadata: dict[str, str]
    """Key-value metadata of the footer: tokenizer, scales, layout."""
    row_bytes: int
    """Payload of a row."""
    hash_n: np.ndarray
    digest_n: np.ndarray
    """Over all values of a row."""


def _kinds(tokens: Snapshot) -> Iterator[_Kind]:
    """Yield the kinds of rows, each once, in a fixed order."""
    schema = load_contract(tokens.contract)
    # payloads are not read to plan: their checksums are among the small columns
    small = [name for name in schema.arrow_schema.names if name not in schema.payloads]
    footers = read_footers(tokens.objects, tokens.files)
    metadata = [own_metadata(footer) for footer in footers]
    parts: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = defaultdict(list)
    tables = tokens.read(small, footers=footers)
    for file, (table, number) in enumerate(zip(tables, _numbers(metadata).tolist(), strict=True)):
        hash_n, digest_n = _hashes(table), _digests(table)
        shape_n4 = np.stack([table[name].to_numpy() for name in _SHAPE], axis=1)
        shapes, shape_n = np.unique(shape_n4, axis=0, return_inverse=True)
        for i, shape in enumerate(shapes.tolist()):
            is_own = shape_n == i
            parts[number, *shape].append((file, hash_n[is_own], digest_n[is_own]))
    for key in sorted(parts):
        # pop: the parts of a kind are freed before those of the next are joined
        files, hashes, digests = zip(*parts.pop(key), strict=True)
        hash_n, digest_n = np.concatenate(hashes), np.concatenate(digests)
        # lexsort takes the primary key last; equal hashes (rows of one clip) need an order, too
        order = np.lexsort((digest_n, hash_n))
        named = dict(zip(("metadata", *_SHAPE), key, strict=True))
        size = max(1, *(row_bytes(footers[file]) for file in files))
        yield _Kind(named, metadata[files[0]], size, hash_n[order], digest_n[order])


def _numbers(metadata: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Return the number of each file's metadata among the distinct ones, sorted."""
    return np.unique([canonical_json(of_file) for of_file in metadata], return_inverse=True)[1]


def _hashes(table: pa.Table) -> np.ndarray:
    """Return the leading bits of each clip's hash, which decide its file."""
    hash_N = _checksums(table.select(["clip_id"]), lambda row: row[0])
    return (hash_N.view(np.uint64) >> (64 - _HASH_BITS)).astype(np.int64)


def _digests(table: pa.Table) -> np.ndarray:
    """Return a digest of each row's values."""
    # repr: floats in full precision, None unlike "None"
    return _checksums(table, repr)


def _checksums(table: pa.Table, text: Callable[[tuple[Any, ...]], str]) -> np.ndarray:
    """Return the xxh3 of each row's text."""
    parts = [np.empty(0, np.int64)]
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        parts.append(np.array([checksum(text(row).encode()) for row in rows], np.int64))
    return np.concatenate(parts)


def _ranges(
    hash_n: np.ndarray, max_rows: int, prefix: int = 0, bits: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Yield (prefix, its bits, rows) of the ranges of sorted hashes, `max_rows` each at most."""
    # rows of one clip have equal hashes and cannot be split: such a file may exceed the limit
    if len(hash_n) <= max_rows or bits == _HASH_BITS:
        if len(hash_n):
            yield prefix, bits, len(hash_n)
        return
    left, right = 2 * prefix, 2 * prefix + 1
    middle = np.searchsorted(hash_n, right << (_HASH_BITS - bits - 1))
    yield from _ranges(hash_n[:middle], max_rows, left, bits + 1)
    yield from _ranges(hash_n[middle:], max_rows, right, bits + 1)
