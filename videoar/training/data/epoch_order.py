"""The order of an epoch: a pure function of (rows, seed, epoch), the same at any world size.

    bucket     rows of one shape; a global batch never mixes shapes
    row group  rows that one ranged GET of a remote store fetches together
    strata     equal shares of the permuted row groups; a batch takes equally many rows of each
    window     row groups of a stratum that are open together, their rows permuted as one
    batch      rows[start : start + size]; a rank takes its slice, so it reads only its own strata

Example: 24 rows in 6 row groups of 4 (group 0 = rows 0-3, group 1 = rows 4-7, ...), global batch
of 4, 2 strata, windows of 2 row groups, 2 ranks:

    groups permuted    1 3 2 | 4 5 0          stratum 0 | stratum 1, 12 rows each
    windows            1 3, 2 | 4, 5 0        no window crosses the border of a stratum

    batch   rank 0 (stratum 0)   rank 1 (stratum 1)
    0         4 12                 17 19       rank 0 holds groups 1 and 3, rank 1 group 4
    1         5 13                 16 18
    2         6 14                 20  2       rank 1 is done with group 4, now holds 5 and 0
    3         7 15                 21  1
    4         8 10                 23  0       rank 0 is done with 1 and 3, now holds 2
    5         9 11                 22  3

Every rank holds at most one window of each of its strata, so memory does not depend on the size of
the store; a global batch still mixes rows of many row groups. The 2 rows that a batch takes of a
window come from 2 equal parts of it (batch 0: row 4 of group 1, row 12 of group 3). Neighbouring
rows are often clips of one source, and this puts them into different batches: with 20 clips of a
source side by side a batch of 256 holds 0.8 pairs of one source; 2.4 where clips are stored in hash
order, as `compact` writes them; 2.3 with a full shuffle (`benchmarks/results/loader.md`).

A bucket that fits into all its windows, or whose rows are large enough to be fetched one by one, is
permuted as a whole. Buckets share the bytes of a window, but each has at least one row group open
in each of its strata. Batches of the buckets are interleaved at random.

Cost: about 0.6 s per million rows, once per epoch. Resuming is a lookup.

Shapes: N rows, S steps of the epoch, g row groups.
"""

from dataclasses import dataclass

import numpy as np

from videoar.core.ids import seed_from

VERSION = 2
"""Raise it when any order changes: a saved position is meaningless in another order."""
STRATA = 64
"""At most; a batch of fewer rows has fewer. Measured: 32 leave 3.6 pairs of one source in a batch
of 256 where 64 leave 0.8, and each costs a row group of memory."""
WINDOW_BYTES = 16 << 20
"""Of one stratum, of all buckets: one row group as `storage.writer` writes it."""
ROW_BYTES = 128 << 10
"""Rows of this size and above are fetched one by one, smaller ones by whole row groups."""


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

        Slices of a short batch differ by at most one row: the last ranks may have none, rank 0
        always has one.
        """
        start = int(self.start_S[step])
        begin, end = (self.first_row(step, part, world_size) for part in (rank, rank + 1))
        return self.rows_N[start + begin : start + end]

    def first_row(self, step: int, rank: int, world_size: int) -> int:
        """Return the number of a rank's first row in a global batch."""
        return -(-int(self.size_S[step]) * rank // world_size)


def epoch_order(
    bucket_N: np.ndarray,
    row_group_N: np.ndarray,
    row_bytes_N: np.ndarray,
    batch_sizes: np.ndarray,
    key: tuple[str | int, ...],
) -> EpochOrder:
    """Return the order of an epoch.

    Args:
        bucket_N: number of each row's shape.
        row_group_N: number of each row's row group; rows of a row group have one shape.
        row_bytes_N: payload bytes of each row.
        batch_sizes: rows of a global batch, by bucket.
        key: what the order depends on, e.g. (digest, seed, epoch).
    """
    rows, starts, sizes, labels, begin = [], [], [], [], 0
    window_bytes = max(1, WINDOW_BYTES // len(batch_sizes))
    for bucket, batch_size in enumerate(batch_sizes.tolist()):
        # Philox: its streams are specified, so an order is the same on every machine and version.
        random = np.random.Generator(np.random.Philox(key=seed_from(*key, bucket)))
        own = np.flatnonzero(bucket_N == bucket)
        if row_bytes_N[own[0]] >= ROW_BYTES:
            rows.append(random.permutation(own))
        else:
            window_rows = max(1, window_bytes // int(row_bytes_N[own[0]]))
            rows.append(_permuted(own, row_group_N[own], window_rows, batch_size, random))
        start_s = np.arange(0, len(own), batch_size)
        starts.append(begin + start_s)
        sizes.append(np.minimum(batch_size, len(own) - start_s))
        labels.append(np.full(len(start_s), bucket))
        begin += len(own)
    random = np.random.Generator(np.random.Philox(key=seed_from(*key)))
    drawn = random.permutation(np.concatenate(labels))
    # Batch i of the concatenated buckets is assigned to the i-th step that drew its bucket: buckets
    # are interleaved, the batches of each stay in their order.
    place = np.empty(len(drawn), np.int64)
    place[np.argsort(drawn, kind="stable")] = np.arange(len(drawn))
    start_S, size_S = (np.concatenate(per_bucket)[place] for per_bucket in (starts, sizes))
    return EpochOrder(np.concatenate(rows), start_S, size_S)


def order_rules() -> str:
    """Return all that an order depends on besides its key and rows.

    Checkpoints hold this text and reject any other, so it has `lanes`, the former name of strata.
    """
    return f"version {VERSION}, {STRATA} lanes of {WINDOW_BYTES} bytes, rows of {ROW_BYTES} alone"


def num_strata(batch_size: int) -> int:
    """Return the largest divisor of a batch size that is not above `STRATA`."""
    return max(n for n in range(1, min(STRATA, batch_size) + 1) if batch_size % n == 0)


def _permuted(
    rows_N: np.ndarray,
    row_group_N: np.ndarray,
    window_rows: int,
    batch_size: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the rows of a bucket in the order of its batches."""
    strata = num_strata(batch_size)
    if len(rows_N) <= strata * window_rows:
        return random.permutation(rows_N)
    groups, row_group_N = np.unique(row_group_N, return_inverse=True)
    rank_N = random.permutation(len(groups))[row_group_N]  # of the row's group among all groups
    by_group_N = np.argsort(rank_N, kind="stable")  # groups one after the other, rows in order
    stratum_N = np.arange(len(rows_N)) * strata // len(rows_N)
    end_g = np.cumsum(np.bincount(rank_N))
    window_N = ((end_g - 1) // window_rows)[rank_N[by_group_N]]  # whole groups: none is cut in two
    per_batch = batch_size // strata
    mixed_N = _mixed(stratum_N * (window_N[-1] + 1) + window_N, per_batch, random)
    return rows_N[_dealt(by_group_N[mixed_N], stratum_N, per_batch)]


def _mixed(window_N: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """Permute within windows, which are contiguous.

    Each run of `parts` rows takes one row of each of `parts` equal parts of the window: where clips
    of one source are neighbours, they get into different batches.
    """
    window_N = np.cumsum(np.diff(window_N, prepend=window_N[0]) != 0)
    part_N = window_N * parts + _place(window_N) * parts // np.bincount(window_N)[window_N]
    drawn_N = np.argsort(part_N + random.random(len(part_N)), kind="stable")
    return drawn_N[np.lexsort((_place(part_N), window_N))]


def _dealt(row_N: np.ndarray, stratum_N: np.ndarray, per_batch: int) -> np.ndarray:
    """Take `per_batch` rows of every stratum in turn; the remainder comes at the end."""
    place_N = _place(stratum_N)
    return row_N[np.lexsort((place_N, stratum_N, place_N // per_batch))]


def _place(group_N: np.ndarray) -> np.ndarray:
    """Return the position of each element within its group; groups are contiguous."""
    place_N = np.arange(len(group_N))
    is_first_N = np.diff(group_N, prepend=-1) != 0
    return place_N - np.maximum.accumulate(np.where(is_first_N, place_N, 0))
