"""Loop stages on Ray Train: all ranks of a stage in one TorchTrainer.

Ray Train starts the ranks and joins them into a torch process group. Its own retries are off (the
default `FailureConfig`), because the engine alone decides which errors are retryable. Our
create-once records decide which checkpoint counts: a report to Ray Train is asynchronous, and the
last one can be lost with the worker.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videoar.core.errors import VideoARError, WorkerLostError
from videoar.core.scratch import Scratch
from videoar.core.types import Resources
from videoar.engine.ray_session import environment
from videoar.pipeline.work.progress import ProgressWriter
from videoar.pipeline.work.rank import run_rank
from videoar.pipeline.work.task import StageTask

_RESIZE_CHECK_S = 60.0
"""With a range of workers: every so often Ray checks whether the cluster has room for more."""


def _rank_main(config: dict[str, Any]) -> None:
    """Run one rank, in each worker process."""
    import ray.train

    task: StageTask = config["task"]
    context = ray.train.get_context()
    run_rank(task, context.get_world_rank(), context.get_world_size(), ProgressWriter(task))


def run_ranks(task: StageTask) -> None:
    """Run a loop stage once, on `resources.workers` ranks.

    With a range, Ray starts as many as the cluster has room for, and starts all ranks again when it
    has room for more; each start resumes from the newest checkpoint.

    Raises:
        VideoARError: the error of a rank; `WorkerLostError` if a rank's process died.
    """
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    resources: Resources = task.make_stage().config.resources
    per_rank = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    with Scratch() as folder:
        trainer = TorchTrainer(
            _rank_main,
            train_loop_config={"task": task},
            # ray.train exports its v2 configs when it runs, v1 to type checkers
            scaling_config=ScalingConfig(  # type: ignore[call-arg]
                num_workers=resources.workers,  # type: ignore[arg-type]
                elastic_resize_monitor_interval_s=_RESIZE_CHECK_S,
                use_gpu=resources.gpus > 0,
                resources_per_worker=per_rank,
            ),
            run_config=RunConfig(
                name=f"{task.run_id}-{task.dataset}",
                storage_path=str(Path(folder)),
                worker_runtime_env=environment(resources),  # type: ignore[call-arg]
            ),
        )
        # Ray's handler of SIGINT would end the process by `sys.exit`, and stay after the training;
        # ours raises KeyboardInterrupt here, and the ranks end when the driver disconnects
        trainer._register_sigint_handler = lambda _: None  # type: ignore[attr-defined]
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _cause(f"stage {task.dataset}", error.worker_failures) from error


def _cause(where: str, failures: Mapping[int, Exception]) -> VideoARError:
    """Return the root cause among the errors of the ranks.

    A rank raises only `VideoARError` (see `run_rank`). Any other error means that a process died,
    and then the errors of its peers are consequences. If all are ours, a retryable one (a lost
    peer) is the consequence of a final one.
    """
    ours = [error for error in failures.values() if isinstance(error, VideoARError)]
    if ours and len(ours) == len(failures):
        return min(ours, key=lambda error: error.retryable)
    failed = [rank for rank, error in failures.items() if not isinstance(error, VideoARError)]
    return WorkerLostError(where, f"lost ranks {failed}")
