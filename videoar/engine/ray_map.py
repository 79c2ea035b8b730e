"""Map stages on a Ray Data actor pool.

What travels is one small row per shard: its number there, its record back. The actor reads the
shard from the store and writes the result to the store, so the object store stays empty however
large the corpus is, and Ray Data's backpressure bounds the shards in flight.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from videoar.engine.base import with_retries
from videoar.pipeline.stage import Shard
from videoar.pipeline.work import ShardWorker, Task, WorkRecord

_WORKER_RESTARTS = 3


class ShardActor:
    """The callable that Ray Data keeps one of per worker."""

    def __init__(self, task: Task, shards: Sequence[Shard]) -> None:
        self._worker = with_retries(partial(ShardWorker, task))
        self._shards = shards

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """Run the shards with these numbers."""
        numbers = [int(number) for number in batch["number"]]
        records = [with_retries(partial(self._worker, self._shards[n])) for n in numbers]
        return {"number": numbers, "record": [record.model_dump_json() for record in records]}


def run_pool(task: Task, shards: Sequence[Shard]) -> Iterator[tuple[Shard, WorkRecord]]:
    """Run shards on an actor pool of the stage's size; yield each one as it finishes."""
    import ray.data

    resources = task.stage().config.resources
    rows = [{"number": number} for number in range(len(shards))]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardActor,
        fn_constructor_args=(task, list(shards)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(resources.workers, len(shards))),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
        memory=int(resources.memory_gib * 2**30) or None,
        max_restarts=_WORKER_RESTARTS,
        max_task_retries=_WORKER_RESTARTS,
    )
    for row in dataset.iter_rows():
        yield shards[int(row["number"])], WorkRecord.model_validate_json(row["record"])
