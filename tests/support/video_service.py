"""Live HTTP servers: the real one in this process, and one on a service for tests."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from videoar.core.errors import VideoARError
from videoar.core.scratch import Scratch
from videoar.serving.app import create_app
from videoar.serving.job_store import JobStore
from videoar.serving.limits import Limits
from videoar.serving.replica import ModelReplica, ReplicaOptions
from videoar.serving.serve import Ingress, LocalReplicas, ServeOptions, server_lease
from videoar.serving.service import Readiness, ServedModel
from videoar.serving.video_job import JobError, JobEvent

UNLIMITED = Limits(requests_per_s=1e5, burst=10_000, max_queue=10_000, max_body_bytes=1 << 20)


class OneByOne:
    """Jobs of a store, made by a `LoadedModel` in one thread.

    Args:
        store: of the jobs.
        loaded: the model.
        gate: an event that a job waits for before its video is made; None: it does not wait.
    """

    def __init__(self, store, loaded, gate=None):
        self.jobs, self.loaded, self.gate = JobStore(store), loaded, gate
        self.ready = True
        self._running = {}
        self._watchers = {}
        self._pool = ThreadPoolExecutor(1)
        card = loaded.card
        self.model = ServedModel(
            id="champion", snapshot=card.model.snapshot, created_at=time.time(),
            size_px=loaded.tokenizer.cfg.size_px, rate_fps=card.rate_fps, num_scales=3,
            tokenizer_digest=card.tokenizer.digest,
            seconds=card.num_frames / card.rate_fps, max_seconds=600,
        )  # fmt: skip

    @property
    def queue_length(self):
        return max(0, len(self._running) - 1)

    async def readiness(self):
        models = (self.model,) if self.ready else ()
        return Readiness(
            ready=self.ready, models=models, queue_length=self.queue_length,
            in_flight=min(1, len(self._running)),
        )  # fmt: skip

    async def create(self, request, idempotency_key, init=None):
        job = await asyncio.to_thread(
            self.jobs.create, request, self.model.snapshot, idempotency_key, init
        )
        if not job.finished and job.id not in self._running:
            self._running[job.id] = job
            task = asyncio.get_running_loop().run_in_executor(self._pool, self._make, job, init)
            task.add_done_callback(lambda _: self._end(job.id))
        return job

    def _make(self, job, init):
        if self.gate is not None:
            self.gate.wait(60)
        if job.id not in self._running or not self.jobs.claim(job.id, 1, "test"):
            return
        self._running[job.id] = job.model_copy(update={"status": "in_progress"})
        request = job.request
        options = {
            "seconds": request.seconds, "guidance": request.guidance, "greedy": request.greedy,
            "temperature": request.temperature, "apg": request.apg,
            "guidance_interval": request.guidance_interval,
        }  # fmt: skip
        try:
            with Scratch() as folder:
                if init is not None:
                    (Path(folder) / "init").write_bytes(init)
                    options["init"] = Path(folder) / "init"
                made = self.loaded.sample(request.prompt, seed=request.seed, **options)
                video = made.save(Path(folder) / "video.mp4").read_bytes()
        except VideoARError as error:
            failed = {"status": "failed", "error": JobError(code="failed", message=str(error))}
            self.jobs.finish(job.model_copy(update=failed), 1)
            return
        done = {
            "status": "completed", "progress": 100, "completed_at": time.time(),
            "sample_id": "0" * 32, "tokenizer_digest": self.loaded.card.tokenizer.digest,
        }  # fmt: skip
        self.jobs.finish(job.model_copy(update=done), 1, video)

    def _end(self, job_id):
        self._running.pop(job_id, None)
        for watcher in self._watchers.pop(job_id, ()):
            watcher.set()

    async def get(self, job_id):
        return self._running.get(job_id) or await asyncio.to_thread(self.jobs.get, job_id)

    async def list(self, after, limit, order):
        return await asyncio.to_thread(self.jobs.page, after, limit, order, self._running.get)

    async def delete(self, job_id):
        self._running.pop(job_id, None)
        job = await asyncio.to_thread(self.jobs.delete, job_id)
        self._end(job_id)
        return job

    async def change_prompt(self, job_id, prompt):
        return False

    async def tokens(self, job_id):
        return None

    async def content(self, job_id):
        return await asyncio.to_thread(self.jobs.content, job_id)

    async def lineage(self, job_id):
        return {"nodes": [{"id": self.model.snapshot}], "edges": []}

    async def events(self, job_id):
        if job_id in self._running:
            yield JobEvent(job_id=job_id, kind="progress", wave=0, waves=1, images=(b"\x89PNG",))
            watcher = asyncio.Event()
            self._watchers.setdefault(job_id, []).append(watcher)
            await watcher.wait()
        job = await self.get(job_id)
        kind = "done" if job is not None and job.status == "completed" else "failed"
        yield JobEvent(job_id=job_id, kind=kind)


class LiveServer:
    """uvicorn on a free port of loopback in a thread."""

    def __init__(self, service, settings=None):
        self._service, self._settings = service, settings
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.server = None

    async def _serve(self):
        await self._run(create_app(self._service, self._settings))

    async def _run(self, app):
        self.app = app
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="warning", ws="websockets-sansio"
        )
        self.server = uvicorn.Server(config)
        await self.server.serve()

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + 60
        while not (self.server and self.server.started):
            assert self._thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self._thread.join(30)

    @property
    def host(self):
        host, port = self.server.servers[0].sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def url(self):
        return f"http://{self.host}"


class InlineServer(LiveServer):
    """The whole server in this process, as `videoar serve --target inline` runs it.

    Args:
        store: of the model `champion` and the jobs.
        settings: of the API.
        max_seconds: the longest video that the model admits.
    """

    def __init__(self, store, settings, max_seconds=600.0):
        super().__init__(None, settings)
        self.store, self._max_seconds = store, max_seconds

    async def _serve(self):
        model = ReplicaOptions(model="champion")
        replica = await asyncio.to_thread(ModelReplica, self.store, model)
        replicas = _Limited({"champion": replica}, self._max_seconds)
        options = ServeOptions(models=(model,), settings=self._settings)
        lease = server_lease(self.store)
        ingress = Ingress(self.store, options, lease.acquire(), replicas)
        await ingress.start()
        await self._run(ingress.app)
        await ingress.drain(10)
        replica.close()


class _Limited(LocalReplicas):
    def __init__(self, replicas, max_seconds):
        super().__init__(replicas)
        self._changes = {"max_seconds": max_seconds}

    async def run(self, job, attempt):
        async for event in super().run(job, attempt):
            is_model = isinstance(event, ServedModel)
            yield event.model_copy(update=self._changes) if is_model else event

    async def status(self, model):
        return (await super().status(model)).model_copy(update=self._changes)
