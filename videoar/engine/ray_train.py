"""Loop stages on Ray Train: a gang of ranks under TorchTrainer.

Ray Train starts the gang, joins it into a torch process group and restarts it when a rank dies.
Which checkpoint counts is decided by our own create-once records, because a report to Ray Train is
asynchronous and its last one can be lost with the worker.
"""

import tempfile
from pathlib import Path
from typing import Any

from videoar.engine.ray_session import environment
from videoar.pipeline.work import Task, run_rank, store_progress

_MAX_FAILURES = 2  # chosen: a lost machine or two are weather, more are a defect


def _rank_main(config: dict[str, Any]) -> None:
    """Run in each worker process of the gang."""
    import ray.train

    task: Task = config["task"]
    context = ray.train.get_context()
    run_rank(task, context.get_world_rank(), context.get_world_size(), store_progress(task))


def run_gang(task: Task) -> None:
    """Run a loop stage to its end on as many ranks as its resources ask for."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = task.stage().config.resources
    per_rank = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    with tempfile.TemporaryDirectory(prefix="videoar-train-") as folder:
        trainer = TorchTrainer(
            _rank_main,
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=per_rank,
            ),
            run_config=RunConfig(
                name=f"{task.run_id}-{task.dataset}",
                storage_path=str(Path(folder)),
                worker_runtime_env=environment(resources),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        trainer.fit()
