"""The one place that starts or joins Ray, and that turns Ray's errors back into ours."""

import os

from videoar.core.errors import ClusterUnknownError, StageError, VideoARError, WorkerLostError
from videoar.core.settings import set_defaults

_MIN_LOGICAL_CPUS = 4  # chosen: Ray Data adds helper actors and starves with fewer


def connect(address: str) -> None:
    """Join the Ray at `address`, or start one in this machine for `local`. Idempotent.

    Raises:
        ClusterUnknownError: nothing answers at that address.
    """
    set_defaults(
        RAY_AUTH_MODE="disabled",  # never mixed: a head with auth refuses workers without it
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",  # its default of 2 s is paid at every report
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    import ray

    if ray.is_initialized():
        return
    try:
        if address == "local":
            cpus = max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1)
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
                object_store_memory=512 * 2**20,  # keys travel, payloads do not
            )
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ClusterUnknownError(address, f"no Ray answers: {error}") from error
    _quiet_ray_data()


def _quiet_ray_data() -> None:
    """Turn Ray Data's own progress display off: the runner has one for all stages."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


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
