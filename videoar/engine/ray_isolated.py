"""Single calls as Ray tasks, for a shard that runs isolated: see `run_isolated`.

After an error of memory a call reserves twice as much as the one before, so Ray places it where
that is free. After an error of a disk it is placed on another machine, if there is one.
"""

import pickle
from typing import Any, TypeVar

from videoar.core.errors import DiskError, OutOfMemoryError, VideoARError
from videoar.engine.isolated import Call
from videoar.engine.ray_session import environment, unwrap
from videoar.pipeline.work.task import StageTask

E = TypeVar("E", bound=VideoARError)


def located(error: E) -> E:
    """Return an error of a worker with the id of its node, which pickling keeps."""
    import ray

    error.node = ray.get_runtime_context().get_node_id()  # type: ignore[attr-defined]
    return error


class RayIsolated:
    """Makes calls as Ray tasks of a stage's size.

    Args:
        task: the stage run.
    """

    def __init__(self, task: StageTask) -> None:
        self._where = f"stage {task.dataset}"
        self._resources = task.make_stage().config.resources
        self._memory_gib = self._resources.memory_gib
        self._avoided: set[str] = set()

    def __call__(self, call: Call, error: VideoARError | None = None) -> object:
        """Make a call in another process.

        Args:
            call: can be pickled.
            error: of an attempt before, which this one should not have.

        Raises:
            VideoARError: what the call raised, or how its process ended.
        """
        import ray

        if error is not None:
            self._learn(error)
        options: dict[str, Any] = {
            "num_cpus": self._resources.cpus,
            "num_gpus": self._resources.gpus,
            "memory": int(self._memory_gib * 2**30),
            "max_retries": 0,
            "runtime_env": environment(self._resources),
            "scheduling_strategy": self._place(),
        }
        remote = ray.remote(**options)(_call)
        try:
            outcome = pickle.loads(ray.get(remote.remote(call)))  # noqa: S301 - of our own task
        except Exception as lost:
            raise unwrap(lost, self._where) from lost
        if isinstance(outcome, VideoARError):
            raise outcome
        return outcome

    def _learn(self, error: VideoARError) -> None:
        import ray

        if isinstance(error, OutOfMemoryError):
            # a reservation that no node can grant would wait for ever
            largest = max(n["Resources"].get("memory", 0) for n in ray.nodes() if n["Alive"])
            self._memory_gib = min(2 * self._memory_gib, largest / 2**30)
        if isinstance(error, DiskError):
            self._avoided.add(getattr(error, "node", ""))

    def _place(self) -> object:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in self._avoided]
        if not (nodes and self._avoided):
            return "DEFAULT"
        best = max(nodes, key=lambda node: node["Resources"].get("CPU", 0))
        return NodeAffinitySchedulingStrategy(best["NodeID"], soft=True)


def _call(call: Call) -> bytes:
    """Make the call; return an error as a value, as Ray would wrap it."""
    try:
        return pickle.dumps(call())
    except VideoARError as error:
        return pickle.dumps(located(error))
