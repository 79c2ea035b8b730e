"""The Ray engine, on a local Ray or on a cluster.

Ray is started or joined at the first piece of work: a run whose stages are all cached needs none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from videoar.core.errors import ConfigError
from videoar.engine.base import ShardDone, Waits, waits_unseen, with_retries
from videoar.engine.inline import finished_loop
from videoar.engine.isolated import attempts, run_isolated
from videoar.engine.ray_isolated import RayIsolated
from videoar.engine.ray_map import run_pool
from videoar.engine.ray_serve import run_serve
from videoar.engine.ray_session import connect, disconnect, unwrap
from videoar.engine.ray_train import run_ranks
from videoar.pipeline.stage import LoopStage, Shard
from videoar.pipeline.work.reduce import run_reduce
from videoar.pipeline.work.task import StageTask, WorkRecord

_SMALL = 20_000  # chosen: rows that a reduction reads in less time than Ray takes to start


def _reduce(task: StageTask) -> WorkRecord:
    """Run a reduction; its dask tasks, if it has any, become Ray tasks."""
    return run_reduce(task, _dask_on_ray)


def _dask_on_ray(graph: Mapping[Any, Any], keys: list[str], **options: object) -> object:
    """Compute a dask graph as Ray tasks."""
    from ray.util.dask import ray_dask_get  # late: most reductions have no graph

    return ray_dask_get(graph, keys, **options)


def _is_small(task: StageTask) -> bool:
    return sum(snapshot.rows for snapshot in task.open_inputs(task.open_store()).values()) < _SMALL


def _require_room(task: StageTask) -> None:
    """Check that a local Ray, which cannot scale up, has the resources that a stage needs at once.

    Ray itself would leave the work pending without an error.

    Raises:
        ConfigError: a worker, all ranks of a loop stage, or all workers with their readers need
            more than the machine has.
    """
    import ray

    resources, available = task.make_stage().config.resources, ray.cluster_resources()
    is_gang = isinstance(task.make_stage(), LoopStage) or resources.readers
    at_once = resources.min_workers if is_gang else 1
    each = {"cpus": resources.cpus + resources.readers, "gpus": resources.gpus}
    for name, kind in (("cpus", "CPU"), ("gpus", "GPU")):
        needed, present = at_once * each[name], available.get(kind, 0)
        if needed > present:
            key = f"stages.{task.dataset}.resources.{name}"
            what = f"needs {needed:g} at once, the local Ray has {present:g}"
            raise ConfigError(key, what, f"--set {key}=..., or a --target with more of them")


class RayEngine:
    """Ray Data for maps, Ray Serve for maps with `placement = "serve"`, Ray Train for loops."""

    name = "ray"

    def __init__(self, address: str = "local") -> None:
        self._address = address
        self._connected = False
        self.waits: Waits = waits_unseen

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards on workers."""
        is_served = task.make_stage().placement == "serve"
        with self._ray(task):
            results = run_serve(task, shards) if is_served else run_pool(task, shards, self.waits)
            for shard, record in results:
                done(shard, record)

    def map_isolated(self, task: StageTask, shard: Shard, done: ShardDone) -> None:
        """Run a shard as a task."""
        with self._ray(task):
            done(shard, run_isolated(task, shard, RayIsolated(task), self.waits))

    def loop(self, task: StageTask) -> WorkRecord:
        """Run all ranks; if one fails, restart all of them from the newest checkpoint."""
        with_retries(partial(self._train, task), task.make_stage().config.retries, self.waits)
        return finished_loop(task)

    def _train(self, task: StageTask) -> None:
        with self._ray(task):
            run_ranks(task)

    def reduce(self, task: StageTask) -> WorkRecord:
        """Run the reduction as one task of the cluster."""
        config = task.make_stage().config
        if self._address == "local" and not config.resources.gpus and _is_small(task):
            # the same machine, without the start of Ray and of a worker
            return with_retries(partial(run_reduce, task), config.retries, self.waits)
        with self._ray(task):
            attempt = attempts(RayIsolated(task), partial(_reduce, task))
            record: WorkRecord = with_retries(attempt, config.retries, self.waits)
        return record

    def close(self) -> None:
        """Disconnect from Ray."""
        if self._connected:
            disconnect()
            self._connected = False

    @contextmanager
    def _ray(self, task: StageTask) -> Iterator[None]:
        connect(self._address)
        self._connected = True
        if self._address == "local":
            _require_room(task)
        try:
            yield
        except KeyboardInterrupt:
            raise
        except Exception as error:  # the engine boundary: Ray wraps ours in its own
            raise unwrap(error, f"stage {task.dataset}") from error
