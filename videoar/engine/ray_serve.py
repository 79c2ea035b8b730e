"""Map stages with `placement = "serve"`, on a Ray Serve deployment of the stage's size."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

from videoar.core.prefetch import prefetch
from videoar.engine.base import with_retries
from videoar.engine.ray_session import environment
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord

_IN_FLIGHT_PER_REPLICA = 2  # one running and one queued: replicas do not idle, memory is bounded


class ShardReplica:
    """One replica: a shard worker behind a handle."""

    def __init__(self, task: StageTask) -> None:
        self._worker = with_retries(partial(ShardWorker, task))

    def __call__(self, shard: Shard) -> str:
        """Run one shard; return its record as JSON."""
        return with_retries(partial(self._worker, shard)).model_dump_json()


def run_serve(task: StageTask, shards: Sequence[Shard]) -> Iterator[tuple[Shard, WorkRecord]]:
    """Run shards on a deployment; yield them in order as they finish."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after the import, which sets it
    resources = task.make_stage().config.resources
    replicas = min(resources.max_workers, len(shards))
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(
        name=f"{task.dataset}-worker",
        num_replicas=replicas,
        max_ongoing_requests=1,
        ray_actor_options={
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "runtime_env": environment(resources),
        },
        health_check_period_s=30,
        health_check_timeout_s=600,  # a replica is busy for as long as a shard takes
    )(ShardReplica)
    application = f"videoar-{task.run_id}-{task.dataset}"
    handle = serve.run(deployment.bind(task), name=application, route_prefix=None)
    try:
        for shard, response in prefetch(
            handle.remote, shards, replicas * _IN_FLIGHT_PER_REPLICA - 1
        ):
            yield shard, WorkRecord.model_validate_json(response.result())
    finally:
        serve.delete(application)
