"""The one place that starts or joins Ray, and that turns Ray's errors back into ours.

Whoever may talk to a Ray may run code on it. A local Ray listens on loopback and asks for a token
that it alone has; a cluster keeps the authentication that it was started with.
"""

import atexit
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from videoar.core.errors import (
    ClusterUnknownError,
    StageError,
    VideoARError,
    WorkerLostError,
    one_line,
)
from videoar.core.settings import set_defaults, set_variables
from videoar.core.types import Resources
from videoar.media.scratch import Scratch, sweep

logger = logging.getLogger(__name__)
_JOIN_HINT = (
    "--target takes HOST:PORT of the GCS, from a node of the cluster; if that asks for a token, "
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
)
_local = ExitStack()
"""What to undo after a local Ray of this process."""
_START_TRIES = 3
_MIN_LOGICAL_CPUS = 4  # chosen: Ray Data adds helper actors and starves with fewer


def connect(address: str) -> None:
    """Join the Ray at `address`, or start one in this machine for `local`. Idempotent.

    Raises:
        ClusterUnknownError: nothing answers at that address.
    """
    set_defaults(
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

    _local.enter_context(_guarded())
    atexit.register(disconnect)  # for processes that end without it
    for attempt in range(1, _START_TRIES + 1):
        try:
            ray.init(
                address="local",
                num_cpus=max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=512 * 2**20,  # keys travel, payloads do not
                _node_ip_address="127.0.0.1",  # kept as it is only under `_guarded`
            )
        except Exception as error:
            ray.shutdown()
            if attempt == _START_TRIES:
                _local.close()
                raise ClusterUnknownError("local Ray", f"does not start: {error}") from error
            logger.warning("Ray did not start, trying again: %s", error)
        else:
            return


@contextmanager
def _guarded() -> Iterator[None]:
    """Make the Ray that starts in this context, and its workers, private to this process.

    Its processes inherit where the token is; after a kill, the next sweep removes the file. The
    user's own settings are for clusters, and are there again afterwards.
    """
    from ray._private import ray_constants

    sweep()
    with Scratch() as folder:
        token = folder / "ray_token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        before = set_variables(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(token),
            RAY_AUTH_TOKEN=None,  # it would count before the file
            **_loopback_for_gloo(),
        )
        spans_machines = ray_constants.ENABLE_RAY_CLUSTER
        # What Ray does on macOS and Windows. Otherwise it takes 127.0.0.1 for "this machine",
        # replaces it by the address in the network and listens on all interfaces.
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            _reload_authentication()
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = spans_machines
            set_variables(**before)
            _reload_authentication()


def _loopback_for_gloo() -> dict[str, str | None]:
    """Keep gloo from the interface that the host's name stands for: in a container, the network."""
    has_lo = any(name == "lo" for _, name in socket.if_nameindex())
    return {"GLOO_SOCKET_IFNAME": "lo"} if has_lo else {}


def _reload_authentication() -> None:
    """Let Ray read mode and token from the environment again: it does so once per process.

    The mode goes first: with a mode that asks for a token, a thread of Ray that is still at work
    would abort the process where there is none.
    """
    from ray import _raylet  # an extension without type stubs

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def _join(address: str) -> None:
    """Join a cluster; whatever the user has set for its authentication is left as it is."""
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(address=address, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterUnknownError(address, f"no access: {one_line(error)}", _JOIN_HINT) from error


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
    _local.close()


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
