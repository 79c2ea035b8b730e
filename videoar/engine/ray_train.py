"""Loop stages on Ray Train: a gang of ranks under TorchTrainer.

Ray Train starts the gang and joins it into a torch process group; it would try again whatever fails
a rank, so it is told to try once, and the engine decides. Which checkpoint counts is decided by our
own create-once records, because a report to Ray Train is asynchronous and its last one can be lost
with the worker.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videoar.core.errors import VideoARError, WorkerLostError
from videoar.engine.ray_session import environment
from videoar.pipeline.work.rank import run_rank, store_progress
from videoar.pipeline.work.task import StageTask


def _rank_main(config: dict[str, Any]) -> None:
    """Run in each worker process of the gang."""
    import ray.train

    task: StageTask = config["task"]
    context = ray.train.get_context()
    run_rank(task, context.get_world_rank(), context.get_world_size(), store_progress(task))


def run_gang(task: StageTask) -> None:
    """Run a loop stage, once, on as many ranks as its resources ask for.

    Raises:
        VideoARError: what failed a rank; `WorkerLostError` where one died.
    """
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    resources = task.make_stage().config.resources
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
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _cause(f"stage {task.dataset}", error.worker_failures) from error


def _cause(where: str, failures: Mapping[int, Exception]) -> VideoARError:
    """Return what failed a gang: errors of its ranks, by rank, of which some may only follow.

    A rank raises errors of ours alone (see `run_rank`): anything else is the death of one, and
    whatever the others then say. Among ours, a lost peer follows from an error that is final.
    """
    ours = [error for error in failures.values() if isinstance(error, VideoARError)]
    if ours and len(ours) == len(failures):
        return min(ours, key=lambda error: error.retryable)
    lost = [rank for rank, error in failures.items() if not isinstance(error, VideoARError)]
    return WorkerLostError(where, f"lost ranks {lost}")
