"""The Ray engine: one verb per stage shape, on a local Ray or a cluster, by address.

Ray starts at the first piece of work, so a run whose stages are all cached never pays for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from videoar.core.errors import ConfigError
from videoar.engine.base import ShardDone, with_retries
from videoar.engine.inline import finished_loop
from videoar.engine.ray_map import run_pool
from videoar.engine.ray_serve import run_serve
from videoar.engine.ray_session import connect, disconnect, environment, unwrap
from videoar.engine.ray_train import run_gang
from videoar.pipeline.stage import LoopStage, Shard
from videoar.pipeline.work.reduce import run_reduce
from videoar.pipeline.work.task import StageTask, WorkRecord


def _reduce(task: StageTask) -> WorkRecord:
    """Run a reduction; its dask tasks, if it has any, become Ray tasks."""
    return run_reduce(task, _dask_on_ray)


def _dask_on_ray(graph: Any, keys: Any, **options: Any) -> Any:  # noqa: ANN401 - dask's protocol
    """Compute a dask graph; most reductions have none and never pay for this import."""
    from ray.util.dask import ray_dask_get

    return ray_dask_get(graph, keys, **options)


def _require_room(task: StageTask) -> None:
    """Refuse what a Ray that cannot grow would wait for, for ever.

    Raises:
        ConfigError: a worker, the gang of a loop stage or the workers with all their readers ask
            for more than the machine has.
    """
    import ray

    resources, there = task.make_stage().config.resources, ray.cluster_resources()
    is_gang = isinstance(task.make_stage(), LoopStage) or resources.readers
    at_once = resources.workers if is_gang else 1
    each = {"cpus": resources.cpus + resources.readers, "gpus": resources.gpus}
    for name, kind in (("cpus", "CPU"), ("gpus", "GPU")):
        wanted, found = at_once * each[name], there.get(kind, 0)
        if wanted > found:
            key = f"stages.{task.dataset}.resources.{name}"
            what = f"{wanted:g} asked for at once, this machine's Ray has {found:g}"
            raise ConfigError(key, what, f"--set {key}=..., or a --target with room for it")


class RayEngine:
    """Ray Data for maps, Ray Serve for maps that ask for it, Ray Train for loops."""

    name = "ray"

    def __init__(self, address: str = "local") -> None:
        self._address = address
        self._connected = False

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards on workers."""
        run = run_serve if task.make_stage().placement == "serve" else run_pool
        with self._ray(task):
            for shard, record in run(task, shards):
                done(shard, record)

    def loop(self, task: StageTask) -> WorkRecord:
        """Run the gang; one that a rank has left starts anew, from its checkpoints."""
        with_retries(partial(self._gang, task))
        return finished_loop(task)

    def _gang(self, task: StageTask) -> None:
        with self._ray(task):
            run_gang(task)

    def reduce(self, task: StageTask) -> WorkRecord:
        """Run the reduction as one task of the cluster."""
        import ray

        resources = task.make_stage().config.resources
        with self._ray(task):
            remote = ray.remote(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                runtime_env=environment(resources),
            )(_reduce)
            record: WorkRecord = ray.get(remote.remote(task))
        return record

    def close(self) -> None:
        """Leave Ray."""
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
