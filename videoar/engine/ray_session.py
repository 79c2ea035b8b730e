"""The one place that starts or joins Ray, and that turns Ray's errors back into ours."""

import logging
import os
import warnings
from typing import Any

from videoar.core.errors import ClusterUnknownError, StageError, VideoARError, WorkerLostError
from videoar.core.settings import set_defaults
from videoar.core.types import Resources

logger = logging.getLogger(__name__)
_START_TRIES = 3
_MIN_LOGICAL_CPUS = 4  # chosen: Ray Data adds helper actors and starves with fewer


def connect(address: str) -> None:
    """Join the Ray at `address`, or start one in this machine for `local`. Idempotent.

    Raises:
        ClusterUnknownError: nothing answers at that address.
    """
    set_defaults(
        RAY_AUTH_MODE="disabled",  # never mixed: a head with auth refuses workers without it
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # its default of 15 starves workers beside anything else
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",  # its default of 2 s is paid at every report
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_agent_register_timeout_ms="120000",  # its default of 30 s kills a raylet under load
        RAY_BACKEND_LOG_LEVEL="fatal",  # its C++ "errors" are hints to Ray's own developers
    )
    import ray

    if not ray.is_initialized():
        _start_local() if address == "local" else _join(address)
        _quiet()


def environment(resources: Resources) -> dict[str, Any]:
    """Return the runtime environment of workers: those that reserve no GPU see none.

    Ray leaves all GPUs of a machine visible to them, and each would take the first one. Where the
    cluster has no GPU there is nothing to hide, and an environment would cost seconds a worker.
    """
    import ray

    if resources.gpus or not ray.cluster_resources().get("GPU"):
        return {}
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def _start_local() -> None:
    """Start a Ray of this process's own; a loaded machine may need a second try."""
    import ray

    for attempt in range(1, _START_TRIES + 1):
        try:
            ray.init(
                address="local",
                num_cpus=max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=512 * 2**20,  # keys travel, payloads do not
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:
            ray.shutdown()
            if attempt == _START_TRIES:
                raise ClusterUnknownError("local Ray", f"does not start: {error}") from error
            logger.warning("Ray did not start, trying again: %s", error)
        else:
            return


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        hint = "--target takes local, inline, or an address like host:6379 or ray://host:10001"
        raise ClusterUnknownError(address, f"no Ray answers: {error}", hint) from error


def _quiet() -> None:
    """Turn Ray's own progress displays off: the runner has one for all stages."""
    import ray.data
    import ray.util.annotations

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)


def disconnect() -> None:
    """Leave Ray; stops it if this process started it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def unwrap(error: BaseException, where: str) -> VideoARError:
    """Return our own error from inside whatever Ray wrapped around it."""
    import ray.exceptions

    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, VideoARError):
            return current
        if isinstance(current, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
            return WorkerLostError(where, f"a worker died: {_first_line(current)}")
        failures = getattr(current, "worker_failures", {}) or {}
        causes = (getattr(current, "cause", None), current.__cause__, current.__context__)
        queue += [c for c in (*failures.values(), *causes) if isinstance(c, BaseException)]
    return StageError(where, f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
