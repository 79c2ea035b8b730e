"""Map stages with `placement = "serve"`, on a Ray Serve deployment of the stage's size.

The driver keeps as many shards in flight as all replicas can run, so memory is bounded, and Serve
starts replicas by the calls that wait. A shard whose replica died is sent again.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from videoar.core.errors import VideoARError
from videoar.core.prefetch import as_completed
from videoar.core.types import Retries
from videoar.engine.base import with_retries
from videoar.engine.ray_session import environment, unwrap
from videoar.pipeline.stage import MapStage, Shard
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class ShardReplica:
    """One replica: a shard worker behind a handle; Serve calls it in threads."""

    def __init__(self, task: StageTask) -> None:
        self._worker: ShardWorker | VideoARError
        try:
            self._worker = with_retries(partial(ShardWorker, task))
        except VideoARError as error:  # raised here, Serve would start it again, without the type
            self._worker = error

    def __call__(self, shard: Shard) -> WorkRecord:
        """Run one shard."""
        if isinstance(self._worker, VideoARError):
            raise self._worker
        return with_retries(partial(self._worker, shard), self._worker.stage.config.retries)


def run_serve(task: StageTask, shards: Sequence[Shard]) -> Iterator[tuple[Shard, WorkRecord]]:
    """Run shards on a deployment; yield each one as it finishes."""
    from ray import serve

    # after the import, which sets it; its warnings are about its own probes of busy replicas
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    stage = task.make_stage()
    replicas = min(stage.config.resources.max_workers, len(shards))
    in_flight = replicas * stage.overlap
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(name=f"{task.dataset}-worker", **_options(stage, replicas))
    application = f"videoar-{task.run_id}-{task.dataset}"
    with ThreadPoolExecutor(in_flight, "serve") as pool:
        try:
            bound = deployment(ShardReplica).bind(task)
            handle = serve.run(bound, name=application, route_prefix=None)
            with _Calls(handle, pool, stage.config.retries) as calls:
                for shard, record in as_completed(calls.submit, shards, in_flight):
                    yield shard, record.result()
        finally:
            serve.delete(application)  # ends the calls that still wait in threads
            pool.shutdown(cancel_futures=True)


class _Calls:
    """Calls of replicas from threads; a shard whose replica died is sent to another one."""

    def __init__(self, handle: "DeploymentHandle[Any]", pool: Executor, retries: Retries) -> None:
        self._handle, self._pool, self._retries = handle, pool, retries
        self._lock, self._is_over = threading.Lock(), False

    def submit(self, shard: Shard) -> "Future[WorkRecord]":
        """Run a shard on any replica."""
        return self._pool.submit(with_retries, partial(self._once, shard), self._retries)

    def _once(self, shard: Shard) -> WorkRecord:
        try:
            with self._lock:  # the first call creates a router: of two threads, each would
                response = self._handle.remote(shard)
            record: WorkRecord = response.result()
        except Exception as error:
            cause = unwrap(error, f"shard {shard.index}")
            cause.retryable &= not self._is_over
            raise cause from error
        return record

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Call no more; end the router, which would report its queue to a new Ray."""
        self._is_over = True
        self._handle.shutdown()


def _options(stage: MapStage[Any], replicas: int) -> dict[str, Any]:
    resources, calls = stage.config.resources, stage.overlap
    is_range = resources.min_workers < resources.max_workers
    return {
        "autoscaling_config": {
            # Serve waits for as many before the first call, for ever if the cluster has less room
            "min_replicas": min(replicas, resources.min_workers) if is_range else 1,
            "max_replicas": replicas,
            "target_ongoing_requests": calls,
            "upscale_delay_s": 1,  # its default of 30 s is for requests of seconds
        },
        "max_ongoing_requests": calls,
        "ray_actor_options": {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "memory": int(resources.memory_gib * 2**30) or None,
            "runtime_env": environment(resources),
        },
        "graceful_shutdown_timeout_s": 5,  # a shard still runs only where the run ends early
        "health_check_period_s": 30,
        "health_check_timeout_s": 600,  # torch may hold the interpreter for as long as a batch
    }
