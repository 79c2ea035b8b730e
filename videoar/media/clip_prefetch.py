"""Clips read ahead of who needs them: in threads of this process, or where an engine lends lanes.

A lane reads one clip after the other. Decoding leaves Python's lock alone, so threads are enough as
long as the cores of this machine are. References to one source keep to one lane, which fetches the
source once; clips with a file of their own go round.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from videoar.core.ids import seed_from
from videoar.core.prefetch import ahead
from videoar.core.types import Row
from videoar.media.clip_reader import ClipReader, sort_out
from videoar.storage.object_store import ObjectStore

ReaderSlot = Callable[[Row], Callable[[], np.ndarray]]
"""Begins to read a clip; what it returns waits for the frames."""
_lent: ContextVar[Callable[[], list[ReaderSlot]] | None] = ContextVar("lanes", default=None)


@contextmanager
def lend_reader_slots(make: Callable[[], list[ReaderSlot]]) -> Iterator[None]:
    """Let readers that are opened in this context read in these lanes, not in threads."""
    token = _lent.set(make)
    try:
        yield
    finally:
        _lent.reset(token)


class ClipPrefetcher:
    """Reads clips in order, some of them before they are asked for; safe to share by threads.

    Args:
        objects: where the clips are.
        threads: lanes, unless an engine lends its own.
    """

    def __init__(self, objects: ObjectStore, threads: int) -> None:
        lent = _lent.get()
        self._lanes = lent() if lent else [_thread(objects) for _ in range(threads)]
        self._next = itertools.count()

    def each(
        self, rows: Iterable[Row], stage: str, refused: list[Row], depth: int
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """Yield what `ClipReader.each` does, no more than `depth` clips ahead, or one a lane."""
        reads = ahead(self._begin, rows, max(depth, len(self._lanes)))
        return sort_out(reads, stage, refused)

    def _begin(self, row: Row) -> Callable[[], np.ndarray]:
        number = next(self._next) if row["video_key"] else seed_from(row["source_id"])
        return self._lanes[number % len(self._lanes)](row)


def _thread(objects: ObjectStore) -> ReaderSlot:
    pool, read = ThreadPoolExecutor(1, "clips"), ClipReader(objects)
    return lambda row: pool.submit(read, row).result
