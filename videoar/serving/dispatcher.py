"""The service behind the API: accepts jobs, has replicas run them, and knows their state.

A job is driven by one task until it has a result in the store: every attempt that ends without one,
because its replica was killed or the store failed, is followed by another. The records are what
counts; what is kept in memory, progress and who watches, is gone with the process.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Literal, Protocol

from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    SnapshotNotFoundError,
    VideoARError,
    did_you_mean,
)
from videoar.core.types import Json
from videoar.records.lineage import lineage
from videoar.serving.job_store import JobStore
from videoar.serving.service import Readiness, ServedModel
from videoar.serving.video_job import JobError, JobEvent, VideoJob, VideoRequest
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 10  # chosen: replicas that are killed at random rarely get there, a fatal job does
_MAX_WAIT_S = 30.0
_FIRST_WAIT_S = 0.2
_STATUS_S = 2.0
_KEPT_JOBS = 10_000  # chosen: some 20 MB
_LAST = {"done", "failed"}
_MAX_EVENTS = 1000  # chosen: a watcher that is that far behind misses some


class Replicas(Protocol):
    """Where attempts run."""

    def run(self, job: VideoJob, attempt: int) -> AsyncGenerator[JobEvent | ServedModel, None]:
        """Run an attempt, see `ModelReplica.run`; closing the iterator cancels it.

        Raises:
            WorkerLostError: the replica has exited.
        """

    async def status(self, model: str) -> ServedModel:
        """Return the newest version of a model that is warm."""


class _Active:
    """A job without a result."""

    def __init__(self, job: VideoJob) -> None:
        self.job = job
        self.task: asyncio.Task[None]
        self.watchers: set[asyncio.Queue[JobEvent]] = set()
        self.last = JobEvent(job_id=job.id, kind="progress")

    def publish(self, event: JobEvent) -> None:
        """Hand an event to all watchers."""
        self.last = event
        for queue in self.watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)


class Dispatcher:
    """Implements `VideoService`. Create it, and `start` it, on the event loop that uses it.

    Args:
        store: of the jobs.
        replicas: run the jobs.
        models: names of models; the first is the default.
    """

    def __init__(self, store: Store, replicas: Replicas, models: Sequence[str]) -> None:
        self._store, self._jobs, self._replicas = store, JobStore(store), replicas
        self._models = tuple(models)
        self._served: dict[str, ServedModel] = {}
        self._active: dict[str, _Active] = {}
        self._ended: OrderedDict[str, VideoJob] = OrderedDict()
        self._draining = False
        self._background: list[asyncio.Task[None]] = []

    # life of the server

    async def start(self) -> None:
        """Take up the unfinished jobs of earlier servers.

        Raises:
            StorageError: the store does not work.
        """
        jobs = await asyncio.to_thread(self._jobs.unfinished)
        for job in jobs:
            self._start_job(job)
        if jobs:
            logger.info("%d unfinished jobs are taken up", len(jobs))
        self._background = [asyncio.create_task(self._poll_status(model)) for model in self._models]

    async def _poll_status(self, model: str) -> None:
        """Keep the status of a model up to date."""
        while True:
            try:
                self._served[model] = await self._replicas.status(model)
            except VideoARError as error:
                logger.warning("no status of %s: %s", model, error)
            await asyncio.sleep(_STATUS_S)

    async def drain(self, limit_s: float) -> None:
        """Accept no more jobs, wait for those that run, and leave the others to the next server."""
        self._draining = True
        for task in self._background:
            task.cancel()
        for active in list(self._active.values()):
            if active.job.status == "queued":
                active.task.cancel()
        running = [active.task for active in self._active.values()]
        if running:
            await asyncio.wait(running, timeout=limit_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # VideoService

    @property
    def queue_length(self) -> int:
        """Jobs that no replica has begun."""
        return sum(active.job.status == "queued" for active in self._active.values())

    async def readiness(self) -> Readiness:
        """Return the state of the server."""
        return Readiness(
            ready=not self._draining and self._served.keys() >= set(self._models),
            models=tuple(self._served[name] for name in self._models if name in self._served),
            queue_length=self.queue_length,
            in_flight=len(self._active) - self.queue_length,
        )

    async def create(
        self, request: VideoRequest, idempotency_key: str | None, init: bytes | None = None
    ) -> VideoJob:
        """Accept a job; see `VideoService`."""
        if self._draining:
            raise ClusterUnknownError("server", "is being stopped", "try again later")
        model = self._served.get(request.model)
        if model is None:
            hint = did_you_mean(request.model, self._models)
            raise ConfigError(f"model {request.model}", "is not served", hint)
        job = await asyncio.to_thread(
            self._jobs.create, request, model.snapshot, idempotency_key, init
        )
        if job.finished:
            return job
        return self._start_job(job).job

    async def get(self, job_id: str) -> VideoJob | None:
        """Return a job."""
        return self._known(job_id) or await asyncio.to_thread(self._jobs.get, job_id)

    def _known(self, job_id: str) -> VideoJob | None:
        active = self._active.get(job_id)
        return active.job if active else self._ended.get(job_id)

    async def list(
        self, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> Sequence[VideoJob]:
        """Return a page of jobs."""
        return await asyncio.to_thread(self._jobs.page, after, limit, order, self._known)

    async def delete(self, job_id: str) -> VideoJob | None:
        """Delete a job; see `VideoService`."""
        active = self._active.pop(job_id, None)
        if active:
            active.task.cancel()
            active.publish(JobEvent(job_id=job_id, kind="failed"))
        deleted = await asyncio.to_thread(self._jobs.delete, job_id)
        self._ended.pop(job_id, None)
        return active.job if active and deleted else deleted

    async def change_prompt(self, job_id: str, prompt: str) -> bool:
        """Send a prompt to a running job; see `VideoService`."""
        if job_id not in self._active:
            return False
        await asyncio.to_thread(self._jobs.request_prompt, job_id, prompt)
        return True

    async def tokens(self, job_id: str) -> bytes | None:
        """Return the tokens of the video of a session."""
        return await asyncio.to_thread(self._jobs.tokens, job_id)

    async def content(self, job_id: str) -> bytes | None:
        """Return the MP4 of a job."""
        return await asyncio.to_thread(self._jobs.content, job_id)

    async def lineage(self, job_id: str) -> Mapping[str, Json] | None:
        """Return what a video was made of, see `records.lineage`; None if it is not known."""
        job = await self.get(job_id)
        if job is None or job.model_snapshot is None:
            return None
        try:
            return await asyncio.to_thread(lineage, self._store, job.model_snapshot)
        except SnapshotNotFoundError:  # an export of another store
            return None

    async def events(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """Yield the last event of a job, and those that follow; see `VideoService`."""
        active = self._active.get(job_id)
        if active is None:
            if job := await self.get(job_id):
                kind: Literal["done", "failed"] = "done" if job.status == "completed" else "failed"
                yield JobEvent(job_id=job_id, kind=kind)
            return
        queue: asyncio.Queue[JobEvent] = asyncio.Queue(_MAX_EVENTS)
        active.watchers.add(queue)
        event = active.last
        try:
            yield event
            while event.kind not in _LAST:
                event = await queue.get()
                yield event
        finally:
            active.watchers.discard(queue)

    # jobs

    def _start_job(self, job: VideoJob) -> _Active:
        """Return the active job; start to run it unless it is."""
        if job.id not in self._active:
            active = self._active[job.id] = _Active(job)
            active.task = asyncio.create_task(self._run(active))
        return self._active[job.id]

    async def _run(self, active: _Active) -> None:
        """Make attempts until the job has a result."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self._attempt(active)
                if await self._has_ended(active):
                    return
            except VideoARError as error:
                logger.warning("an attempt of %s: %s", active.job.id, error)
            except Exception:
                logger.exception("an attempt of %s", active.job.id)
            active.job = active.job.model_copy(update={"status": "queued", "progress": 0})
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    async def _attempt(self, active: _Active) -> None:
        """Run one attempt; or record that there is no time or no attempt left."""
        # what was claimed counts: a store that does not work for some time uses up no attempts
        attempt = 1 + await asyncio.to_thread(self._jobs.attempts, active.job.id)
        limit_s = active.job.request.deadline_s
        left_s = None if limit_s is None else active.job.created_at + limit_s - time.time()
        if attempt > _MAX_ATTEMPTS:
            what = f"no replica finished it in {_MAX_ATTEMPTS} attempts"
            return await self._fail(active, "replica_lost", what)
        timer = asyncio.timeout(left_s)
        try:
            run = self._replicas.run(active.job, attempt)
            async with timer, aclosing(run) as events:
                async for event in events:
                    self._receive(active, event)
        except TimeoutError:
            if not timer.expired():
                raise
            await self._fail(active, "deadline_exceeded", "the deadline has passed")

    def _receive(self, active: _Active, event: JobEvent | ServedModel) -> None:
        if isinstance(event, ServedModel):
            self._served[event.id] = event
            return
        done = 100 * event.wave // event.waves if event.waves else active.job.progress
        changed = {"status": "in_progress", "progress": min(done, 99)}
        active.job = active.job.model_copy(update=changed)
        if event.change:
            active.job = active.job.with_changes(event.change)
        if event.kind not in _LAST:  # the end is published when its record was read
            active.publish(event)

    async def _fail(self, active: _Active, code: str, message: str) -> None:
        changed = {"status": "failed", "error": JobError(code=code, message=message)}
        failed = active.job.model_copy(update={**changed, "completed_at": time.time()})
        await asyncio.to_thread(self._jobs.finish, failed)

    async def _has_ended(self, active: _Active) -> bool:
        """Return whether the store has the end of a job; publish it."""
        job_id = active.job.id
        job = await asyncio.to_thread(self._jobs.get, job_id)
        if job is None and not await asyncio.to_thread(self._jobs.was_deleted, job_id):
            return False  # in a folder that is not mounted there is nothing, either
        if job is not None and not job.finished:
            return False
        if job is not None:
            self._ended[job_id] = job
            while len(self._ended) > _KEPT_JOBS:
                self._ended.popitem(last=False)
        with suppress(KeyError):  # deleted meanwhile
            del self._active[job_id]
        is_done = job is not None and job.status == "completed"
        active.publish(JobEvent(job_id=job_id, kind="done" if is_done else "failed"))
        return True
