"""Answers online requests: an HTTP ingress and model replicas as deployments of Ray Serve.

What they do is given as callables that are pickled and called in the actors; this module knows no
model and no route.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from videoar.core import errors
from videoar.core.errors import ConfigError, StageError, VideoARError
from videoar.core.types import Resources
from videoar.engine.ray_session import connect, disconnect, environment, unwrap

_WAITING_PER_BATCH = 2  # chosen: a full batch follows the running one; more waits where Ray scales
_STREAMS = 1000  # of the ingress at once, event streams among them
_STATUS_S = 10.0
_STOP_S = 60.0
_OWN_ERROR = re.compile(rf"{errors.__name__}\.(?P<type>\w+): (?P<where>.+?): (?P<what>.+)")


class OnlineReplica(Protocol):
    """One copy of a model."""

    def run(self, job: Any, attempt: int) -> AsyncGenerator[Any, None]:
        """Run an attempt of a job and yield its events."""

    def status(self) -> Any:
        """Return the state of the model."""


class OnlineIngress(Protocol):
    """The HTTP side."""

    app: Any
    """ASGI application."""

    async def start(self) -> None:
        """Prepare for requests."""

    async def drain(self, limit_s: float) -> None:
        """Take no more jobs, and wait for those that run."""


@dataclass(frozen=True)
class Model:
    """A model to serve."""

    make: Callable[[], OnlineReplica]
    """Called in every replica."""
    max_batch: int
    """Jobs that one replica runs at once."""
    resources: Resources = field(default_factory=Resources)
    """Of a replica; as many as `workers` allows, by the length of the queue."""
    gpu_if_any: bool = False
    """Take a GPU per replica where the cluster has some."""


class RemoteReplicas:
    """The replicas of all models, from inside the ingress."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    async def run(self, job: Any, attempt: int) -> AsyncGenerator[Any, None]:
        """Run an attempt on the replica with the fewest; closing the iterator cancels it.

        Raises:
            WorkerLostError: the replica has exited.
            VideoARError: what the replica raised.
        """
        handle = self._handles[job.request.model].options(stream=True)
        response = handle.run.remote(job, attempt)
        try:
            async for event in response:
                yield event
        except Exception as error:  # the engine boundary: Ray wraps ours in its own
            raise unwrap(error, f"attempt {attempt} of {job.id}") from error
        finally:
            response.cancel()

    async def status(self, model: str) -> Any:
        """Return the state of a model.

        Raises:
            VideoARError: no replica has time to answer.
        """
        try:
            async with asyncio.timeout(_STATUS_S):
                return await self._handles[model].status.remote()
        except Exception as error:
            raise unwrap(error, f"model {model}") from error


class _Replica:
    """Deployment of a model."""

    def __init__(self, make: Callable[[], OnlineReplica]) -> None:
        self._replica = make()

    async def run(self, job: Any, attempt: int) -> AsyncGenerator[Any, None]:
        async with aclosing(self._replica.run(job, attempt)) as events:
            async for event in events:
                yield event

    async def status(self) -> Any:
        return self._replica.status()


class _Ingress:
    """Deployment of the HTTP side; Ray Serve asks for the ASGI application after `__init__`."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, make: Callable[[RemoteReplicas], OnlineIngress], handles: Mapping[str, Any]
    ) -> None:
        self._ingress = make(RemoteReplicas(handles))
        await self._ingress.start()

    def __serve_build_asgi_app__(self) -> Any:
        return self._ingress.app

    async def drain(self, limit_s: float) -> None:
        await self._ingress.drain(limit_s)


@contextmanager
def online(
    address: str,
    models: Mapping[str, Model],
    ingress: Callable[[RemoteReplicas], OnlineIngress],
    bind: tuple[str, int],
    drain_s: float,
) -> Iterator[None]:
    """Serve until the context is left, then drain.

    Args:
        address: `local`, or the address of a cluster.
        models: by name.
        ingress: called in the one actor that answers HTTP requests.
        bind: host and port.
        drain_s: how long running jobs may take when the context is left.

    Raises:
        ConfigError: the cluster has applications already, behind another address or of this name.
        VideoARError: a replica or the ingress does not start.
    """
    name = f"videoar-{bind[1]}"
    connect(address)
    with ExitStack() as cleanup:
        cleanup.callback(disconnect)
        handle = _start(name, address, models, ingress, bind)
        from ray import serve

        cleanup.callback(serve.delete, name)
        try:
            yield
        finally:
            with suppress(KeyboardInterrupt):  # a second signal ends the drain
                handle.drain.remote(drain_s).result(timeout_s=drain_s + _STOP_S)


def _start(
    name: str,
    address: str,
    models: Mapping[str, Model],
    ingress: Callable[[RemoteReplicas], OnlineIngress],
    bind: tuple[str, int],
) -> Any:
    """Return a handle of the ingress when all replicas run; else nothing of it is left.

    Raises:
        ConfigError: see `online`.
        VideoARError: a replica or the ingress does not start.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after the import, which sets it
    try:
        placed = {model: _placed(each, address) for model, each in models.items()}
        _listen(bind)
    except Exception as error:
        raise unwrap(error, "Ray Serve") from error
    if name in serve.status().applications:
        what = f"the cluster has an application {name}, which this would replace"
        raise ConfigError(f"--port {bind[1]}", what, "stop its server, or run `serve shutdown`")
    with ExitStack() as on_failure:  # an interrupt is one: Serve would go on without us
        on_failure.callback(_abandon, name)
        try:
            handle = serve.run(_application(placed, ingress), name=name, route_prefix="/")
        except Exception as error:
            raise _reason(name, error) from error
        on_failure.pop_all()
    return handle


def _reason(name: str, error: Exception) -> VideoARError:
    """Return why an application does not start; Serve keeps only the text of an exception."""
    from ray import serve

    application = serve.status().applications.get(name)
    for deployment in application.deployments.values() if application else ():
        if deployment.status == "DEPLOY_FAILED":
            last_line = deployment.message.strip().rpartition("\n")[2]
            if found := _OWN_ERROR.fullmatch(last_line):
                own: VideoARError = getattr(errors, found["type"])(found["where"], found["what"])
                return own
            return StageError("Ray Serve", last_line)
    return unwrap(error, "Ray Serve")


def _abandon(name: str) -> None:
    """Delete an application at once: Serve would wait for replicas that load their model."""
    import ray
    from ray import serve

    serve.delete(name, _blocking=False)
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{name}#"):
            with suppress(ValueError):  # it has ended meanwhile
                ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
    serve.delete(name)


def _placed(model: Model, address: str) -> Model:
    """Return a model with the resources that its replicas take.

    Raises:
        ConfigError: a local Ray, which cannot scale up, has fewer GPUs than a replica needs. Ray
            itself would wait for them without an error.
    """
    import ray

    present = ray.cluster_resources().get("GPU", 0)
    if model.gpu_if_any and present:
        return replace(model, resources=model.resources.model_copy(update={"gpus": 1.0}))
    if address == "local" and model.resources.gpus > present:
        what = f"is {model.resources.gpus:g}, the local Ray has {present:g}"
        raise ConfigError("--gpus", what, "give fewer, or a --target with more of them")
    return model


def _listen(bind: tuple[str, int]) -> None:
    """Start the proxy of Ray Serve.

    A Serve that runs keeps its address, or none: the stage `generate` starts it without a proxy,
    and it goes on when the stage has ended.

    Raises:
        ConfigError: other applications use it.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    options: dict[str, Any] = {"host": bind[0], "port": bind[1]}
    serve.start(http_options=options, proxy_location="HeadOnly")
    details = _get_global_client().get_serve_details()  # type: ignore[union-attr]  # it has raised
    address, is_off = details["http_options"], details["proxy_location"] == "Disabled"
    if not is_off and (address["host"], address["port"]) == bind:
        return
    if serve.status().applications:
        where = "nowhere" if is_off else f"at {address['host']}:{address['port']}"
        what = f"Ray Serve of this cluster listens {where}, and has applications"
        raise ConfigError(f"--port {bind[1]}", what, "wait for them, or give that address")
    serve.shutdown()
    serve.start(http_options=options, proxy_location="HeadOnly")


def _application(
    models: Mapping[str, Model], ingress: Callable[[RemoteReplicas], OnlineIngress]
) -> Any:
    from ray import serve

    replicas = {}
    for number, (name, model) in enumerate(models.items()):
        resources = model.resources
        scaling = {
            "min_replicas": resources.min_workers,
            "max_replicas": resources.max_workers,
            "target_ongoing_requests": model.max_batch,
        }
        deployment = serve.deployment(
            name=f"model-{number}",
            autoscaling_config=scaling,
            max_ongoing_requests=_WAITING_PER_BATCH * model.max_batch,
            ray_actor_options={
                "num_cpus": resources.cpus,
                "num_gpus": resources.gpus,
                "runtime_env": environment(resources),
            },
            health_check_timeout_s=60,  # a loaded machine answers late
            graceful_shutdown_timeout_s=_STOP_S,
        )(_Replica)
        replicas[name] = deployment.bind(model.make)
    server = serve.deployment(
        name="http",
        max_ongoing_requests=_STREAMS,
        ray_actor_options={"num_cpus": 0},
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=5,  # drained before
    )(serve.ingress()(_Ingress))
    return server.bind(ingress, replicas)
