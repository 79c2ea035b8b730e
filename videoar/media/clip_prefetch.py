"""Reads clips ahead of the consumer: in threads of this process, or in reader slots of an engine.

A reader slot reads one clip at a time. Decoding releases the GIL, so threads suffice while this
machine has free cores. References to one source always use the same slot, which fetches the source
once; clips with an object of their own are distributed round-robin.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from videoar.core.ids import seed_from
from videoar.core.prefetch import prefetch
from videoar.core.types import Row
from videoar.media.clip_reader import ClipReader, readable
from videoar.storage.object_store import ObjectStore

ReaderSlot = Callable[[Row], Callable[[], np.ndarray]]
"""Starts to read a clip; the returned function blocks until the frames are there."""


class ClipPrefetcher:
    """Reads clips in order and ahead of their use; threads may share it.

    Args:
        objects: store of the clips.
        threads: slots in this process, if `open_slots` is None.
        open_slots: creates slots elsewhere, see `StageContext.open_reader_slots`.
    """

    def __init__(
        self,
        objects: ObjectStore,
        threads: int,
        open_slots: Callable[[], list[ReaderSlot]] | None = None,
    ) -> None:
        self._slots = open_slots() if open_slots else [_thread(objects) for _ in range(threads)]
        self._next = itertools.count()

    def each(
        self, rows: Iterable[Row], stage: str, rejected: list[Row], depth: int
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """Yield what `ClipReader.each` does; read at most `depth` clips ahead, or one per slot."""
        reads = prefetch(self._begin, rows, max(depth, len(self._slots)))
        return readable(reads, stage, rejected)

    def _begin(self, row: Row) -> Callable[[], np.ndarray]:
        number = next(self._next) if row["video_key"] else seed_from(row["source_id"])
        return self._slots[number % len(self._slots)](row)


def _thread(objects: ObjectStore) -> ReaderSlot:
    pool, read = ThreadPoolExecutor(1, "clips"), ClipReader(objects)
    return lambda row: pool.submit(read, row).result
