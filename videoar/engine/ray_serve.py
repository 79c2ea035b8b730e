"""Map stages with `placement = "serve"`, on a Ray Serve deployment of the stage's size.

The driver keeps as many shards in flight as all replicas can run, so memory is bounded, and Serve
starts replicas by the calls that wait. A shard whose replica died is sent again.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from videoar.core.errors import VideoARError
from videoar.core.prefetch import as_completed
from videoar.engine.base import with_retries
from videoar.engine.ray_session import environment, unwrap
from videoar.pipeline.stage import MapStage, Shard
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord


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
        return with_retries(partial(self._worker, shard))


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
    bound = deployment(ShardReplica).bind(task)
    is_over = threading.Event()
    with ThreadPoolExecutor(in_flight, "serve") as pool:
        try:
            call = partial(_call, serve.run(bound, name=application, route_prefix=None), is_over)
            for shard, record in as_completed(partial(pool.submit, call), shards, in_flight):
                yield shard, record.result()
        finally:
            is_over.set()
            serve.delete(application)  # ends the calls that still wait in threads
            pool.shutdown(cancel_futures=True)


def _call(handle: Any, is_over: threading.Event, shard: Shard) -> WorkRecord:  # noqa: ANN401 - Ray
    """Run a shard on any replica; again if its replica dies."""

    def once() -> WorkRecord:
        try:
            record: WorkRecord = handle.remote(shard).result()
        except Exception as error:
            cause = unwrap(error, f"shard {shard.index}")
            cause.retryable &= not is_over.is_set()
            raise cause from error
        return record

    return with_retries(once)


def _options(stage: MapStage[Any], replicas: int) -> dict[str, Any]:
    resources, calls = stage.config.resources, stage.overlap
    is_elastic = resources.min_workers < replicas
    scaling = {
        "min_replicas": resources.min_workers,
        "max_replicas": replicas,
        "target_ongoing_requests": calls,
        "upscale_delay_s": 3,
    }
    return {
        **({"autoscaling_config": scaling} if is_elastic else {"num_replicas": replicas}),
        "max_ongoing_requests": calls,
        "ray_actor_options": {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "memory": int(resources.memory_gib * 2**30) or None,
            "runtime_env": environment(resources),
        },
        "health_check_period_s": 30,
        "health_check_timeout_s": 600,  # torch may hold the interpreter for as long as a batch
    }
