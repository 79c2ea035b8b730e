"""Map stages on a Ray Data actor pool.

One small row per shard is sent: its description to the actor, its record back. The actor reads the
shard from the store and writes the result to the store, so Ray's object store stays empty for any
size of corpus, and Ray Data's backpressure bounds the shards in flight. With `readers`, each actor
has clip readers as actors of their own (`ray_clip_readers`).
"""

import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from videoar.core.errors import DiskError, OutOfMemoryError, VideoARError, WorkerLostError
from videoar.engine.base import Waits, with_retries
from videoar.engine.isolated import run_isolated
from videoar.engine.ray_clip_readers import open_reader_slots
from videoar.engine.ray_isolated import RayIsolated, located
from videoar.engine.ray_session import environment
from videoar.pipeline.stage import MapStage, Shard
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord

logger = logging.getLogger(__name__)
_WORKER_RESTARTS = 3
_TASK_RETRIES = 1  # so a shard has ended two workers before it runs isolated
_OF_MACHINE = (DiskError, OutOfMemoryError)
"""Errors that another machine, or one with nothing beside, may not have."""


class ShardActor:
    """The callable that Ray Data creates once per worker."""

    def __init__(self, task: StageTask) -> None:
        config = task.make_stage().config
        readers, self._retries = config.resources.readers, config.retries
        open_slots = partial(open_reader_slots, task, readers) if readers else None
        self._worker = with_retries(partial(ShardWorker, task, open_slots), self._retries)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """Run the shards of these rows; return a `VideoARError` as a value.

        Raised, Ray Data would wrap it in an exception that loses its cause.
        """
        shards = [pickle.loads(data) for data in batch["shard"]]  # noqa: S301 - from our driver
        outcomes = [pickle.dumps(self._try(shard)) for shard in shards]
        return {"number": list(batch["number"]), "outcome": outcomes}

    def _try(self, shard: Shard) -> "WorkRecord | VideoARError":
        try:
            return with_retries(partial(self._once, shard), self._retries)
        except VideoARError as error:
            return error

    def _once(self, shard: Shard) -> "WorkRecord | VideoARError":
        try:
            return self._worker(shard)
        except _OF_MACHINE as error:
            return located(error)  # not again in this place


def run_pool(
    task: StageTask, shards: Sequence[Shard], waits: Waits
) -> Iterator[tuple[Shard, WorkRecord]]:
    """Run shards on an actor pool of the stage's size; yield each one as it finishes.

    Those that have ended their worker, or that the machine of their worker had no room for, run
    once more when all others have finished: one at a time, see `RayIsolated`.
    """
    rows = [{"number": n, "shard": pickle.dumps(shard)} for n, shard in enumerate(shards)]
    failed: dict[int, VideoARError] = {}
    left = set(range(len(shards)))
    for row in run_actors(ShardActor, (task,), rows, task.make_stage()):
        number, outcome = int(row["number"]), pickle.loads(row["outcome"])  # noqa: S301 - as above
        if isinstance(outcome, _OF_MACHINE):
            failed[number] = outcome
            continue
        if isinstance(outcome, VideoARError):
            raise outcome
        left.remove(number)
        yield shards[number], outcome
    for number in sorted(left):
        shard = shards[number]
        lost = WorkerLostError(f"stage {task.dataset}, shard {shard.index}", "its worker died")
        error = failed.get(number, lost)
        logger.warning("runs isolated after: %s", error)
        yield shard, run_isolated(task, shard, RayIsolated(task), waits, error)


def run_actors(
    actor: type, arguments: Sequence[object], rows: list[dict[str, Any]], stage: MapStage[Any]
) -> Iterator[dict[str, Any]]:
    """Map rows, one per task, on an actor pool of a stage's size; yield results as they come."""
    import ray.data

    resources = stage.config.resources
    workers = min(resources.max_workers, len(rows))
    needed = workers * (resources.cpus + resources.readers)
    available = ray.cluster_resources().get("CPU", 0)
    if needed > available:
        logger.warning("needs %g CPUs, the cluster has %g: workers stay pending", needed, available)
    # a shard that ends its workers is left out of the result, instead of the end of all others
    ray.data.DataContext.get_current().max_errored_blocks = -1
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        actor,
        fn_constructor_args=tuple(arguments),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_concurrent_calls_per_actor=stage.overlap,
            enable_true_multi_threading=stage.overlap > 1,
        ),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
        memory=int(resources.memory_gib * 2**30) or None,
        runtime_env=environment(resources),
        ray_remote_args_fn=_limited_restarts,
    )
    yield from dataset.iter_rows()


def _limited_restarts() -> dict[str, int]:
    """Limit restarts, which Ray Data does not: a shard that kills its worker must not loop."""
    return {"max_restarts": _WORKER_RESTARTS, "max_task_retries": _TASK_RETRIES}
