"""Remote clip readers as Ray actors: clips are decoded wherever the cluster has free CPUs.

For workers with a GPU on nodes with few CPUs. Each worker has readers of its own and requests a few
batches ahead, so Ray's object store holds at most some frames per worker (17 x 128 x 128 px: 0.8 MB
a clip), for any size of corpus. Shards are not split for it: the worker alone writes their records.
A reader that fails is restarted and reads its pending clips again.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from videoar.core.errors import VideoARError
from videoar.core.types import Row
from videoar.engine.base import with_retries
from videoar.media.clip_prefetch import ReaderSlot
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.pipeline.work.task import StageTask

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_RESTARTS = 3  # as for workers: a clip that kills its reader must not loop


class Reader:
    """Actor that reads the clips of one reader slot."""

    def __init__(self, task: StageTask) -> None:
        self._read = ClipReader(task.open_store().objects)

    def read(self, row: Row) -> np.ndarray | VideoARError:
        """Return the frames of a clip, or the error as a value: raised, Ray would wrap it."""
        try:
            return with_retries(partial(self._read, row))
        except VideoARError as error:
            return error


def open_reader_slots(task: StageTask, count: int) -> list[ReaderSlot]:
    """Start readers on the cluster; Ray stops them when the calling process ends."""
    import ray

    actor: Any = ray.remote(
        num_cpus=1, scheduling_strategy="SPREAD", max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )(Reader)
    return [partial(_request, actor.remote(task)) for _ in range(count)]


def _request(reader: "ActorHandle[Reader]", row: Row) -> Callable[[], np.ndarray]:
    columns = {name: row[name] for name in COLUMNS}
    # .future() fetches the frames in the background, .remote() alone would only when waited for
    return partial(_result, reader.read.remote(columns).future())


def _result(future: "Future[np.ndarray | VideoARError]") -> np.ndarray:
    frames = future.result()
    if isinstance(frames, VideoARError):
        raise frames
    return frames
