"""The whole server: lease of the queue, replicas and HTTP, on Ray Serve or in one process.

videoar serve          lease -> Ray Serve -> ingress: Dispatcher, API
                                          -> replicas: ModelReplica
--target inline        lease -> uvicorn: Dispatcher, API, ModelReplica
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import Field

from videoar.admin.loaded_model import is_export
from videoar.core.errors import ConfigError, VideoARError
from videoar.core.types import Frozen, Resources
from videoar.engine.ray_online import Model, online
from videoar.records.names import find_snapshot
from videoar.serving.app import create_app
from videoar.serving.dispatcher import Dispatcher, Replicas
from videoar.serving.replica import ModelReplica, ReplicaOptions
from videoar.serving.server import ServerSettings
from videoar.serving.service import ServedModel
from videoar.serving.video_job import JobEvent, VideoJob
from videoar.storage.layout import SERVING_LEASE
from videoar.storage.lease import Lease
from videoar.storage.store import Store

logger = logging.getLogger(__name__)


class ServeOptions(Frozen):
    """Options of `videoar serve`."""

    models: tuple[ReplicaOptions, ...] = Field(min_length=1)
    """The first is the default of requests."""
    host: str = "127.0.0.1"
    """Address to listen on; others can reach loopback addresses on this machine only."""
    port: int = Field(default=8000, ge=1, le=65535)
    resources: Resources = Resources()
    """Of a replica; `workers` are the fewest and most replicas of each model."""
    gpu_if_any: bool = False
    """Take a GPU per replica where the cluster has some."""
    drain_s: float = Field(default=30, ge=0)
    """How long running jobs may take after SIGTERM; others are left to the next server."""
    settings: ServerSettings = ServerSettings()


class Ingress:
    """The HTTP side: accepts jobs and has replicas run them."""

    def __init__(self, store: Store, options: ServeOptions, epoch: int, replicas: Replicas) -> None:
        names = [model.model for model in options.models]
        self._dispatcher = Dispatcher(store, replicas, names)
        self._lease, self._epoch = server_lease(store), epoch
        self.app: FastAPI = create_app(self._dispatcher, options.settings)

    async def start(self) -> None:
        """Take up the unfinished jobs.

        Raises:
            StorageError: the store does not work.
            LeaseHeldError: another server has taken over.
        """
        # beside the process that has started it: if that one is killed, this one still runs
        await asyncio.to_thread(self._lease.adopt, self._epoch)
        await self._dispatcher.start()
        loop = asyncio.get_running_loop()
        self._lease.keep(lambda error: loop.call_soon_threadsafe(self._yield_to, error))

    def _yield_to(self, error: VideoARError) -> None:
        logger.error("this server stops: %s", error)
        self._draining = asyncio.create_task(self.drain(0))

    async def drain(self, limit_s: float) -> None:
        """Take no more jobs, and wait for those that run."""
        self.app.state.server.draining = True
        await self._dispatcher.drain(limit_s)
        await asyncio.to_thread(self._lease.stop)


class LocalReplicas:
    """One replica of each model, in this process."""

    def __init__(self, replicas: Mapping[str, ModelReplica]) -> None:
        self._replicas = replicas

    async def run(
        self, job: VideoJob, attempt: int
    ) -> AsyncGenerator[JobEvent | ServedModel, None]:
        """Run an attempt; see `Replicas`."""
        async with aclosing(self._replicas[job.request.model].run(job, attempt)) as events:
            async for event in events:
                yield event

    async def status(self, model: str) -> ServedModel:
        """Return the newest version of a model that is warm."""
        return self._replicas[model].status()


def server_lease(store: Store) -> Lease:
    """Return the lease of the server of a store's queue: two would both take up each job."""
    hint = "stop it, or use another store"
    owner = f"the server of process {os.getpid()}"
    return Lease(store, SERVING_LEASE, owner, hint=hint)


def serve(store: Store, options: ServeOptions, target: str) -> None:
    """Serve until SIGTERM or SIGINT; then drain and return.

    Args:
        store: of the models and the jobs.
        options: see there.
        target: `local`, `inline`, or the address of a Ray cluster.

    Raises:
        ConfigError: a model does not exist, or is named twice.
        LeaseHeldError: another server works on the jobs of the store.
        VideoARError: a replica does not start.
    """
    _check_models(store, options)
    if target in {"local", "inline"}:
        _check_address(options)
    lease, stopped = server_lease(store), threading.Event()
    lost: list[VideoARError] = []

    def stop(error: VideoARError) -> None:
        lost.append(error)
        stopped.set()

    try:
        lease.acquire()
        lease.keep(stop)
        if target == "inline":
            _serve_inline(store, options, lease.epoch, stopped)
        else:
            _serve_on_ray(store, options, lease.epoch, target, stopped)
    finally:
        lease.release()
    if lost:
        raise lost[0]


def _check_address(options: ServeOptions) -> None:
    """Raise if nobody can listen there: a second Ray Serve would share the port with the first."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        socket.create_server((options.host, options.port), family=family).close()
    except OSError as error:
        where = f"--host {options.host} --port {options.port}"
        what = f"cannot be listened at: {error.strerror}"
        raise ConfigError(where, what, "give another one") from error


def _check_models(store: Store, options: ServeOptions) -> None:
    """Raise for what would fail in every replica, before any is started."""
    names = [model.model for model in options.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--model {twice[0]}", "is given twice")
    for name in names:
        if not is_export(Path(name)):
            find_snapshot(store, name)


def _serve_on_ray(
    store: Store, options: ServeOptions, epoch: int, target: str, stopped: threading.Event
) -> None:
    models = {
        model.model: Model(
            partial(ModelReplica, store, model),
            model.max_batch,
            options.resources,
            options.gpu_if_any,
        )
        for model in options.models
    }
    ingress = partial(Ingress, store, options, epoch)
    address = (options.host, options.port)
    with (
        online(target, models, ingress, address, options.drain_s),
        suppress(KeyboardInterrupt),
    ):
        logger.info("ready at http://%s:%d", *address)
        stopped.wait()


def _serve_inline(
    store: Store, options: ServeOptions, epoch: int, stopped: threading.Event
) -> None:
    replicas = {model.model: ModelReplica(store, model) for model in options.models}
    ingress = Ingress(store, options, epoch, LocalReplicas(replicas))
    asyncio.run(_serve_http(ingress, options, stopped))
    for replica in replicas.values():
        replica.close()


async def _serve_http(ingress: Ingress, options: ServeOptions, stopped: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with `nohup`
            loop.add_signal_handler(number, stopped.set)
    await ingress.start()
    config = uvicorn.Config(
        ingress.app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve())
    ended = asyncio.create_task(asyncio.to_thread(stopped.wait))
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    stopped.set()
    await ingress.drain(options.drain_s)
    server.should_exit = True
    await running


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `_serve_http`: jobs are drained before connections are closed."""
        yield
