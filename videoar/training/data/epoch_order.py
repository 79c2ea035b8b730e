"""The order of an epoch: a pure function of (rows, seed, epoch), the same at any world size.

    bucket    rows of one shape; a global batch never mixes shapes
    unit      a row group of a stored file: what one ranged GET brings
    lanes     equal shares of the permuted units; a batch takes equally many rows of every lane
    window    units of a lane that are open together, whose rows are permuted as one
    batch     rows[start : start + size]; a rank takes its slice, so it meets its own lanes only

A bucket that fits into all windows, or whose rows are large enough to be fetched one by one, is
permuted as a whole. A larger one is permuted by units, and within windows: then what a rank holds
of it does not depend on the size of the store. Buckets share the windows' bytes, but each has one
unit open in each of its lanes at least.

What a batch takes of one window comes from as many parts of it: so where clips of a source lie side
by side, a batch of 256 holds 0.8 pairs of one source, and 2.4 where clips are stored in the order
of their hashes, as compaction does; a full shuffle holds 2.3 (`benchmarks/results/loader.md`).
Buckets are interleaved at random.

Cost: about 0.6 s per million rows, once an epoch. Resuming is a look-up.

Shapes: N rows, S steps of the epoch.
"""

from dataclasses import dataclass

import numpy as np

from videoar.core.ids import seed_from
from videoar.core.types import Json

VERSION = 2
"""Raise it when any order changes: positions in the old one mean nothing in the new one."""
LANES = 64
"""At most: a batch smaller than that has fewer."""
WINDOW_BYTES = 16 << 20
"""Of one lane, of all buckets: one row group as we write it, or many small files."""
ROW_BYTES = 128 << 10
"""Rows at least this large are worth a request of their own."""


@dataclass(frozen=True)
class EpochOrder:
    """All global batches of one epoch."""

    rows_N: np.ndarray
    start_S: np.ndarray
    size_S: np.ndarray

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.start_S)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return a rank's rows of a global batch.

        Slices of a short one differ by one row: the last ranks may have none, rank 0 never.
        """
        start, size = int(self.start_S[step]), int(self.size_S[step])
        begin, end = (-(-size * part // world_size) for part in (rank, rank + 1))
        return self.rows_N[start + begin : start + end]


def epoch_order(
    bucket_N: np.ndarray,
    unit_N: np.ndarray,
    row_bytes_N: np.ndarray,
    batch_sizes: np.ndarray,
    key: tuple[Json, ...],
) -> EpochOrder:
    """Make the order of an epoch.

    Args:
        bucket_N: number of each row's shape.
        unit_N: number of each row's row group; rows of a unit have one shape.
        row_bytes_N: payload bytes of each row.
        batch_sizes: rows of a global batch, by bucket.
        key: what the order depends on, e.g. (digest, seed, epoch).
    """
    rows, starts, sizes, labels, begin = [], [], [], [], 0
    window_bytes = max(1, WINDOW_BYTES // len(batch_sizes))
    for bucket, batch_size in enumerate(batch_sizes.tolist()):
        random = np.random.Generator(np.random.Philox(key=seed_from(*key, bucket)))
        mine = np.flatnonzero(bucket_N == bucket)
        if row_bytes_N[mine[0]] >= ROW_BYTES:
            rows.append(random.permutation(mine))
        else:
            window_rows = max(1, window_bytes // int(row_bytes_N[mine[0]]))
            rows.append(_permuted(mine, unit_N[mine], window_rows, batch_size, random))
        start_s = np.arange(0, len(mine), batch_size)
        starts.append(begin + start_s)
        sizes.append(np.minimum(batch_size, len(mine) - start_s))
        labels.append(np.full(len(start_s), bucket))
        begin += len(mine)
    random = np.random.Generator(np.random.Philox(key=seed_from(*key)))
    drawn = random.permutation(np.concatenate(labels))
    place = np.empty(len(drawn), np.int64)  # the next batch of a bucket whenever it is drawn
    place[np.argsort(drawn, kind="stable")] = np.arange(len(drawn))
    return EpochOrder(
        np.concatenate(rows), np.concatenate(starts)[place], np.concatenate(sizes)[place]
    )


def order_rules() -> str:
    """Return all that an order depends on beside its key and rows."""
    return f"version {VERSION}, {LANES} lanes of {WINDOW_BYTES} bytes, rows of {ROW_BYTES} alone"


def num_lanes(batch_size: int) -> int:
    """Return the largest divisor of a batch size that is not above `LANES`."""
    return max(n for n in range(1, min(LANES, batch_size) + 1) if batch_size % n == 0)


def _permuted(
    rows_N: np.ndarray,
    unit_N: np.ndarray,
    window_rows: int,
    batch_size: int,
    random: np.random.Generator,
) -> np.ndarray:
    lanes = num_lanes(batch_size)
    if len(rows_N) <= lanes * window_rows:
        return random.permutation(rows_N)
    units, unit_N = np.unique(unit_N, return_inverse=True)
    turn_N = random.permutation(len(units))[unit_N]
    line_N = np.argsort(turn_N, kind="stable")  # units one after the other
    lane_N = np.arange(len(rows_N)) * lanes // len(rows_N)
    end_u = np.cumsum(np.bincount(turn_N))  # of the units in their turns
    window_N = ((end_u - 1) // window_rows)[turn_N[line_N]]
    each = batch_size // lanes
    line_N = line_N[_mixed(lane_N * (window_N[-1] + 1) + window_N, each, random)]
    return rows_N[_dealt(line_N, lane_N, each)]


def _mixed(window_N: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """Permute within windows, which lie one after the other.

    Neighbours come from `parts` parts of their window: where clips of one source lie side by side,
    they get into different batches.
    """
    window_N = np.cumsum(np.diff(window_N, prepend=window_N[0]) != 0)
    part_N = window_N * parts + _place(window_N) * parts // np.bincount(window_N)[window_N]
    drawn_N = np.argsort(part_N + random.random(len(part_N)), kind="stable")
    return drawn_N[np.lexsort((_place(part_N), window_N))]


def _dealt(line_N: np.ndarray, lane_N: np.ndarray, each: int) -> np.ndarray:
    """Take `each` rows of every lane in turn; what is left over at the end, as it comes."""
    place_N = _place(lane_N)
    return line_N[np.lexsort((place_N, lane_N, place_N // each))]


def _place(group_N: np.ndarray) -> np.ndarray:
    """Return the number of each among those of its group, which lie one after the other."""
    place_N = np.arange(len(group_N))
    is_first_N = np.diff(group_N, prepend=-1) != 0
    return place_N - np.maximum.accumulate(np.where(is_first_N, place_N, 0))
