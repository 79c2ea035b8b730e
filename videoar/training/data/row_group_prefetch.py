"""Reads of a remote store, started ahead of the batches that need them.

Small rows are read by whole row groups, one ranged GET each: a GET costs 20 to 50 ms whatever its
size, and a row group serves many batches. Rows of `ROW_BYTES` and more are fetched one by one.

An *access* is the run of batches during which a row group is in use. It is fetched before the first
of them and freed after the last one. Example: rank 1 of 2 reads the rows of `epoch_order`'s
example (row groups of 4 rows, 2 of every batch's 4 rows are its own):

    batch            0        1        2       3       4       5
    rows           17 19    16 18    20  2   21  1   23  0   22  3
    row groups      4  4     4  4     5  0    5  0    5  0    5  0
    access          a  a     a  a     b  c    b  c    b  c    b  c

    fetch order    a = group 4, b = group 5, c = group 0
    before batch 0 a is awaited; b and c are already requested (up to PREFETCH_ROW_GROUPS ahead)
    after batch 1  a has no rows left: its buffer is freed
    after batch 5  b and c are freed

If a row group is needed again much later (its rows were cut by the border of two strata, and the
second one reaches them near the end of the epoch), that is a second access: fetching it twice
costs one GET, holding it for an epoch costs 16 MiB.

Shapes: B rows of a batch, n uses (row, batch) of row groups in the order of batches, a accesses.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future

import numpy as np

from videoar.storage.payload import Payload
from videoar.training.data.buffers import BufferPool
from videoar.training.data.epoch_order import ROW_BYTES

REQUESTS = 16
"""Ranged GETs in flight. Measured: enough to hide 50 ms of latency; more only cost memory."""
PREFETCH_ROW_GROUPS = 8
"""Row groups requested before their first use. Measured: 8 GETs of 16 MiB hide 20 ms."""
_IDLE_BATCHES = 64  # chosen: a row group that is unused for longer is fetched again

NO_ACCESS = np.empty(0, np.int64)
"""Accesses of a batch whose rows do not come out of row groups."""


class RowGroupPrefetch:
    """Values of a remote store's rows; requests run ahead, and none is made twice.

    One thread calls `request` and `release`, in the order of batches; `read` may be called from
    any thread.

    Args:
        payload: source of the values.
        batches: rows of all batches that will be read, in that order.
        requests: threads for the GETs.
        buffers: memory for row groups.
    """

    def __init__(
        self,
        payload: Payload,
        batches: Sequence[np.ndarray],
        requests: Executor,
        buffers: BufferPool,
    ) -> None:
        self._payload, self._requests, self._buffers = payload, requests, buffers
        per_batch = [self._row_groups(rows_B) for rows_B in batches]
        batch_n = np.repeat(np.arange(len(per_batch)), [len(groups) for groups in per_batch])
        self._access_n, self._row_group_a, first_a = row_group_accesses(
            np.concatenate(per_batch), batch_n
        )
        self._queue = deque(np.argsort(first_a, kind="stable").tolist())
        self._uses_left_a = np.bincount(self._access_n, minlength=1)
        self._position = 0
        self._open: dict[int, Future[np.ndarray]] = {}
        self._started: set[int] = set()
        """Open accesses whose first batch has been requested; the others are the prefetch."""

    def request(self, rows_B: np.ndarray) -> np.ndarray:
        """Start the GETs that the next batch needs, and more; return the access of each row."""
        end = self._position + len(self._row_groups(rows_B))
        access_B, self._position = self._access_n[self._position : end], end
        needed = set(access_B.tolist())
        self._started |= needed
        while self._queue and (
            needed - self._open.keys()
            or len(self._open.keys() - self._started) < PREFETCH_ROW_GROUPS
        ):
            access = self._queue.popleft()
            row_group = int(self._row_group_a[access])
            self._open[access] = self._requests.submit(self._fetch, row_group)
        return access_B

    def release(self, access_B: np.ndarray) -> None:
        """Count a batch's rows as used; free the row groups that have no rows left."""
        accesses, counts = np.unique(access_B, return_counts=True)
        self._uses_left_a[accesses] -= counts
        for access in accesses[self._uses_left_a[accesses] == 0].tolist():
            del self._open[access]
            self._started.discard(access)

    def read(self, rows_B: np.ndarray, access_B: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Fill `out` like `Payload.read`, waiting for the GETs in flight."""
        if len(access_B):
            spans = {access: self._open[access].result().data for access in set(access_B.tolist())}
            of_rows = [spans[access] for access in access_B.tolist()]
            self._payload.copy_from_row_groups(rows_B, of_rows, out)
            return
        parts = [slice(i, i + 1) for i in range(len(rows_B))]
        if not self._payload.is_direct:
            parts = [slice(None)]  # another writer's pages are decoded whole: once per batch
        reads = [
            self._requests.submit(self._payload.read, rows_B[part], {column: values[part]})
            for part in parts
            for column, values in out.items()
        ]
        for read in reads:
            read.result()

    def _fetch(self, row_group: int) -> np.ndarray:
        span = self._buffers.empty(self._payload.row_group_bytes(row_group)).numpy()
        self._payload.read_row_group(row_group, span)
        return span

    def _row_groups(self, rows_B: np.ndarray) -> np.ndarray:
        """Return the row groups of the rows that are too small for a request of their own."""
        if not self._payload.is_direct:
            return np.empty(0, np.int64)
        return self._payload.row_group_N[rows_B[self._payload.row_bytes_N[rows_B] < ROW_BYTES]]


def row_group_accesses(
    row_group_n: np.ndarray, batch_n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join uses of a row group that are near in time to accesses.

    Args:
        row_group_n: row group of each use.
        batch_n: batch of each use; does not decrease.

    Returns:
        The access of each use; the row group of each access; the first use of each access.
    """
    by_group = np.lexsort((batch_n, row_group_n))
    row_group, batch = row_group_n[by_group], batch_n[by_group]
    is_first = np.ones(len(row_group), bool)
    is_first[1:] = (np.diff(row_group) != 0) | (np.diff(batch) > _IDLE_BATCHES)
    access_n = np.empty(len(row_group), np.int64)
    access_n[by_group] = np.cumsum(is_first) - 1
    return access_n, row_group[is_first], by_group[is_first]
