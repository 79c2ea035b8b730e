"""Starts or joins Ray, and unwraps its exceptions.

Access to a Ray cluster is the right to run code on it. A local Ray therefore listens on loopback
and requires a token that is generated for it. A cluster keeps the authentication that it was
started with. `SECURITY.md` lists the sockets.
"""

import atexit
import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from videoar.core.errors import (
    ClusterUnknownError,
    OutOfMemoryError,
    PreemptedError,
    StageError,
    VideoARError,
    WorkerLostError,
    one_line,
)
from videoar.core.scratch import Scratch, sweep
from videoar.core.settings import set_defaults, set_variables, share_cores
from videoar.core.types import Resources

logger = logging.getLogger(__name__)
_JOIN_HINT = (
    "--target is HOST:PORT of the GCS, from a node of the cluster; if it requires a token, set "
    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
)
_local = ExitStack()
"""Cleanup of the local Ray of this process."""
_START_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 10.0
_MIN_LOGICAL_CPUS = 4  # chosen: Ray Data adds helper actors and starves with fewer


def connect(address: str) -> None:
    """Join the cluster at `address`, or start a local Ray for `local`. Idempotent.

    Raises:
        ClusterUnknownError: there is no cluster at that address, or it denies access.
    """
    share_cores()  # workers of a local Ray inherit it, and Ray Train imports torch before our code
    set_defaults(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # its default of 15 starves workers on a machine with other load
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",  # its default of 2 s is paid at every report
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_agent_register_timeout_ms="120000",  # its default of 30 s kills a raylet under load
        RAY_task_oom_retries="0",  # its default has no limit; option `retries` of a stage has
        RAY_BACKEND_LOG_LEVEL="fatal",  # its C++ "errors" are hints to Ray's own developers
    )
    import ray

    if not ray.is_initialized():
        with _sigterm_kept():
            _start_local() if address == "local" else _join(address)
        _quiet()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM: those of Ray abort the process, or end it with exit code 15."""
    from ray._private import utils

    handler, set_by_ray = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_by_ray
        # its C++ part has replaced it, too
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def environment(resources: Resources) -> dict[str, Any]:
    """Return the runtime environment of workers: without reserved GPUs none is visible.

    Ray leaves all GPUs of a node visible to such workers, and each would use the first one. On a
    cluster without GPUs the environment is empty, because a non-empty one costs seconds per worker.
    """
    import ray

    if resources.gpus or not ray.cluster_resources().get("GPU"):
        return {}
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def _start_local() -> None:
    """Start a Ray for this process; on a loaded machine the first attempt may time out."""
    import ray

    _local.enter_context(_private_ray())
    atexit.register(disconnect)  # for processes that exit without calling it
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=512 * 2**20,  # keys are sent, payloads are not
                _node_ip_address="127.0.0.1",  # effective only in `_private_ray`
            )
        except Exception as error:
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                _local.close()
                raise ClusterUnknownError("local Ray", f"does not start: {error}") from error
            logger.warning("Ray did not start, retrying: %s", error)
        else:
            return


@contextmanager
def _private_ray() -> Iterator[None]:
    """Make the Ray that is started in this context accessible to its own processes only.

    They inherit the path of the token. After a kill, the next sweep removes the file. The user's
    RAY_AUTH_* variables are meant for clusters and are restored afterwards.
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
            RAY_AUTH_TOKEN=None,  # it would take precedence over the file
            **_loopback_for_gloo(),
        )
        is_cluster_enabled = ray_constants.ENABLE_RAY_CLUSTER
        # False is the default of macOS and Windows. If true, Ray replaces 127.0.0.1 by the address
        # in the network and listens on all interfaces.
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            _reload_authentication()
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = is_cluster_enabled
            set_variables(**before)
            _reload_authentication()


def _loopback_for_gloo() -> dict[str, str | None]:
    """Bind gloo to loopback; its default is the interface of the host name, often the network."""
    has_lo = any(name == "lo" for _, name in socket.if_nameindex())
    return {"GLOO_SOCKET_IFNAME": "lo"} if has_lo else {}


def _reload_authentication() -> None:
    """Make Ray read mode and token from the environment again; it caches both per process.

    The mode first: in a mode that requires a token, a running thread of Ray aborts the process when
    there is none.
    """
    from ray import _raylet  # an extension without type stubs

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def _join(address: str) -> None:
    """Join a cluster with the authentication that the user has configured."""
    import ray
    from ray.exceptions import AuthenticationError

    _require_listener(address)
    try:
        ray.init(address=address, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterUnknownError(address, f"no access: {one_line(error)}", _JOIN_HINT) from error


def _require_listener(address: str) -> None:
    """Check that something listens at HOST:PORT: Ray retries for ten minutes and more.

    Raises:
        ClusterUnknownError: the connection is refused or times out.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        return  # `auto`, for jobs: Ray finds the cluster of this node
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnknownError(address, f"cannot be reached: {error}", _JOIN_HINT) from error


def _quiet() -> None:
    """Turn off Ray's progress bars: the runner displays all stages."""
    import ray.data
    import ray.util.annotations
    from ray.data._internal.execution.streaming_executor_state import process_completed_tasks

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # the traceback of each worker that died, which `run_pool` reports in a line
    logging.getLogger(process_completed_tasks.__module__).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)


def disconnect() -> None:
    """Disconnect from Ray; stop it if this process started it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    _local.close()


def unwrap(error: BaseException, where: str) -> VideoARError:
    """Return the `VideoARError` inside an exception of Ray, or a `StageError` if there is none."""
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
        if isinstance(current, ray.exceptions.OutOfMemoryError):
            return OutOfMemoryError(where, _first_line(current))
        if isinstance(current, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
            lost = PreemptedError if getattr(current, "preempted", False) else WorkerLostError
            return lost(where, f"a worker died: {_first_line(current)}")
        failures = getattr(current, "worker_failures", {}) or {}
        causes = (getattr(current, "cause", None), current.__cause__, current.__context__)
        queue += [c for c in (*failures.values(), *causes) if isinstance(c, BaseException)]
    cause = getattr(error, "cause", None) or error  # a task's own error has no traceback before it
    return StageError(where, f"{type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
