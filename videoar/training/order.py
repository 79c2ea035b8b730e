"""The order of an epoch: a pure function of (rows, seed, epoch), the same at any world size.

    bucket    rows of one shape; a global batch never mixes shapes
    unit      a row group of a stored file: what one ranged GET brings
    lanes     equal shares of the permuted units; a batch takes equally many rows of every lane
    window    units of a lane that are open together, whose rows are permuted as one
    batch     rows[start : start + size]; a rank takes its slice, so it meets its own lanes only

A bucket that fits into all windows, or whose rows are large enough to be fetched one by one, is
permuted as a whole. A larger one is permuted by units, and within windows: then memory does not
depend on the size of the store. Where clips are stored in the order of their hashes, as compaction
does, a batch is as mixed as that of a full shuffle; where those of a source lie side by side, it
holds 14 pairs of one source instead of 2 (`benchmarks/results/loader.md`). Buckets are interleaved
at random.

Cost: about 0.6 s per million rows, once an epoch. Resuming is a look-up.

Shapes: N rows, S steps of the epoch.
"""

from dataclasses import dataclass

import numpy as np

from videoar.core.ids import seed_from

LANES = 64
"""At most: a batch smaller than that has fewer."""
WINDOW_BYTES = 16 << 20
"""Of one lane: one row group as we write it, or many small files."""
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
    key: tuple[object, ...],
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
    for bucket, batch_size in enumerate(batch_sizes.tolist()):
        random = np.random.Generator(np.random.Philox(key=seed_from(*key, bucket)))
        mine = np.flatnonzero(bucket_N == bucket)
        row_bytes = int(row_bytes_N[mine[0]])
        rows.append(_permuted(mine, unit_N[mine], row_bytes, batch_size, random))
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


def num_lanes(batch_size: int) -> int:
    """Return the largest divisor of a batch size that is not above `LANES`."""
    return max(n for n in range(1, min(LANES, batch_size) + 1) if batch_size % n == 0)


def _permuted(
    rows_N: np.ndarray,
    unit_N: np.ndarray,
    row_bytes: int,
    batch_size: int,
    random: np.random.Generator,
) -> np.ndarray:
    lanes = num_lanes(batch_size)
    if row_bytes >= ROW_BYTES or len(rows_N) * row_bytes <= lanes * WINDOW_BYTES:
        return random.permutation(rows_N)
    units, unit_N = np.unique(unit_N, return_inverse=True)
    turn_N = random.permutation(len(units))[unit_N]
    line_N = np.argsort(turn_N, kind="stable")  # units one after the other
    lane_N = np.arange(len(rows_N)) * lanes // len(rows_N)
    end_u = np.cumsum(np.bincount(turn_N)) * row_bytes  # of the units in their turns
    window_N = ((end_u - 1) // WINDOW_BYTES)[turn_N[line_N]]
    line_N = line_N[np.lexsort((random.random(len(rows_N)), window_N, lane_N))]
    return rows_N[_dealt(line_N, lane_N, lanes, batch_size // lanes)]


def _dealt(line_N: np.ndarray, lane_N: np.ndarray, lanes: int, each: int) -> np.ndarray:
    """Take `each` rows of every lane in turn; what is left over at the end, as it comes."""
    start_l = np.searchsorted(lane_N, np.arange(lanes))
    place_N = np.arange(len(line_N)) - start_l[lane_N]
    return line_N[np.lexsort((place_N, lane_N, place_N // each))]
