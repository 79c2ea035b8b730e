"""Lanes that are actors: clips are decoded wherever the cluster has cores, for workers with a GPU.

Each worker has readers of its own and asks them for a few batches ahead, so the object store holds
some frames of each worker at most (17 x 128 x 128 px: 0.8 MB a clip), whatever the corpus. Shards
are not cut up for it: their records are written by the worker alone. A reader that dies starts
again and reads what it owed.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from videoar.core.errors import VideoARError
from videoar.core.types import Row
from videoar.engine.base import with_retries
from videoar.media.clip_prefetch import ReaderSlot
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.pipeline.work.task import StageTask

_RESTARTS = 3  # as for workers: a clip that kills its reader must not loop


class Reader:
    """One lane."""

    def __init__(self, task: StageTask) -> None:
        self._read = ClipReader(task.open_store().objects)

    def read(self, row: Row) -> np.ndarray | VideoARError:
        """Return the frames of a clip; an error of ours travels as a value, and stays ours."""
        try:
            return with_retries(partial(self._read, row))
        except VideoARError as error:
            return error


def open_reader_slots(task: StageTask, count: int) -> list[ReaderSlot]:
    """Start readers on the cluster; they end with the process that calls this."""
    import ray

    actor = ray.remote(
        num_cpus=1, scheduling_strategy="SPREAD", max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )(Reader)
    return [partial(_ask, actor.remote(task)) for _ in range(count)]


def _ask(reader: Any, row: Row) -> Callable[[], np.ndarray]:  # noqa: ANN401 - ActorHandle
    wanted = {name: row[name] for name in COLUMNS}
    return partial(_take, reader.read.remote(wanted).future())  # a future brings it here ahead


def _take(answer: "Future[np.ndarray | VideoARError]") -> np.ndarray:
    found = answer.result()
    if isinstance(found, VideoARError):
        raise found
    return found
