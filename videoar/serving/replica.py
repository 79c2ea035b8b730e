"""A model replica: loads a model and its newer versions, and runs attempts of jobs.

Knows no Ray: an engine makes actors of it, `--target inline` calls it directly.
"""

import asyncio
import logging
import queue
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from videoar.admin.loaded_model import LoadedModel, is_export, load_export, load_stored
from videoar.core.errors import ConfigError, SnapshotNotFoundError, StageError, StorageError
from videoar.core.scratch import Scratch
from videoar.core.types import Frozen
from videoar.engine.base import with_retries
from videoar.media.decode import thumbnail_jpeg
from videoar.media.transcode import encode_clips
from videoar.model.tokenizer.network import frames_from_video
from videoar.model.transformer.sampling import LatentFrame
from videoar.serving.attempt import Attempt, Pictures
from videoar.serving.batcher import Batcher, Clip
from videoar.serving.job_store import JobStore
from videoar.serving.service import ServedModel
from videoar.serving.video_job import JobEvent, VideoJob
from videoar.storage.store import Store
from videoar.training.init_video import unpack_init

logger = logging.getLogger(__name__)
_VERSIONS = 2  # chosen: the current one, and the one before until its jobs are done
_MAX_SECONDS = 600.0  # as `LoadedModel.generator`


class ReplicaOptions(Frozen):
    """How a model is served."""

    model: str
    """Ref, other name of the store, or path of an export; also its name in requests."""
    text_encoder: str = ""
    """Folder of its frozen text encoder, if it has one."""
    max_batch: int = 8
    """Most videos in one batch."""
    poll_s: float = 2.0
    """How often a ref is looked up."""
    warm_up_s: float = 120.0
    """A warm-up that takes longer is an error; after half of it, it ends early."""


class _Version(NamedTuple):
    """One snapshot of the model."""

    loaded: LoadedModel
    served: ServedModel


class ModelReplica:
    """Runs attempts of jobs on one model.

    Args:
        store: of the jobs and the model.
        options: see there.

    Raises:
        VideoARError: the model cannot be loaded, or its warm-up takes too long.
    """

    def __init__(self, store: Store, options: ReplicaOptions) -> None:
        self._store, self._options = store, options
        self._jobs = JobStore(store)
        self._name = f"{socket.gethostname()}/{secrets.token_hex(4)}"
        self._versions: OrderedDict[str, _Version] = OrderedDict()
        self._loading = threading.RLock()
        self._pictures = Pictures()
        self._batcher = Batcher(options.max_batch)
        self._stopped = threading.Event()
        self._newest = self._version(None).served
        threading.Thread(target=self._poll_ref, name="poll-ref", daemon=True).start()

    def status(self) -> ServedModel:
        """Return the newest version that is loaded and warm."""
        return self._newest

    def close(self) -> None:
        """Finish what runs, and stop."""
        self._stopped.set()
        self._batcher.close()

    # versions

    def _poll_ref(self) -> None:
        """Load and warm what the ref points to after a promotion; until then the old one serves."""
        while not self._stopped.wait(self._options.poll_s):
            try:
                head = self._head()
                if head and head != self._newest.snapshot:
                    self._newest = self._version(head).served
                    logger.info("%s is %s from here on", self._options.model, head)
            except Exception:
                # the version before goes on; the next poll tries again
                logger.exception("the new version of %s cannot be used", self._options.model)

    def _head(self) -> str | None:
        """Return what the ref points to; None for a name that does not move."""
        name = self._options.model
        is_fixed = ":" in name or _is_path(name)
        return None if is_fixed else self._store.refs.head(name)

    def _version(self, snapshot: str | None) -> _Version:
        """Return a version of the model, loaded and warm; None for the current one.

        Raises:
            VideoARError: the store does not have it, or it is no version of this model.
        """
        with self._loading:
            if snapshot and snapshot in self._versions:
                self._versions.move_to_end(snapshot)
                return self._versions[snapshot]
            loaded = with_retries(partial(self._load, snapshot))
            version = _Version(loaded, self._served(loaded))
            self._warm_up(loaded)
            self._versions[version.served.snapshot] = version
            while len(self._versions) > _VERSIONS:
                self._versions.popitem(last=False)
            return version

    def _warm_up(self, loaded: LoadedModel) -> None:
        """Generate videos of the default shape in the threads that make those of jobs.

        It ends early after half of the time that it has.

        Raises:
            StageError: it does not end in time.
            VideoARError: it fails.
        """
        limit_s, generator = self._options.warm_up_s, loaded.generator()
        until = time.monotonic() + limit_s / 2
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def finish(frames: list[LatentFrame]) -> None:
            (frames_THWC,) = frames_from_video(generator.pixels(frames).video_B3THW).cpu().numpy()
            thumbnail_jpeg(frames_THWC)
            encode_clips([frames_THWC], generator.columns["rate_fps"], generator.crf)
            ended.put(None)

        clip = Clip(
            key=f"warm-up of {generator.model_id}",
            row={"prompt": "", "seed": 0},
            generator=generator,
            on_wave=lambda *_: None,
            finish=finish,
            fail=ended.put,
            stop_reason=lambda: TimeoutError() if time.monotonic() > until else None,
        )
        # a GPU records the waves at the second clip and replays them from the third on
        for _ in range(3 if loaded.model.device.type == "cuda" else 1):
            self._batcher.submit(clip)
            try:
                error = ended.get(timeout=limit_s)
            except queue.Empty:
                what = f"its warm-up takes more than {limit_s:g} s"
                raise StageError(generator.model_id, what) from None
            if error is not None and not isinstance(error, TimeoutError):
                raise error

    def _load(self, snapshot: str | None) -> LoadedModel:
        name, encoder = self._options.model, self._options.text_encoder
        if not _is_path(name):
            return load_stored(self._store, snapshot or name, text_encoder=encoder)
        loaded = load_export(Path(name), text_encoder=encoder)
        if snapshot and loaded.card.model.snapshot != snapshot:
            raise SnapshotNotFoundError(snapshot, f"{name} holds another version now")
        return loaded

    def _served(self, loaded: LoadedModel) -> ServedModel:
        columns = loaded.generator().columns
        return ServedModel(
            id=self._options.model,
            snapshot=loaded.card.model.snapshot,
            created_at=time.time(),
            size_px=loaded.tokenizer.cfg.size_px,
            rate_fps=columns["rate_fps"],
            num_scales=len(loaded.tokenizer.cfg.scales),
            tokenizer_digest=columns["tokenizer_digest"],
            seconds=columns["num_frames"] / columns["rate_fps"],
            max_seconds=_MAX_SECONDS,
        )

    # jobs

    async def run(
        self, job: VideoJob, attempt: int
    ) -> AsyncGenerator[JobEvent | ServedModel, None]:
        """Run an attempt of a job; yield its events, the last one is `done` or `failed`.

        The newest version comes before them. Nothing else is yielded if the attempt belongs to
        another replica or the job has ended. The job is cancelled when the iterator is closed.

        Raises:
            StorageError: the store does not work; another attempt may.
        """
        yield self._newest
        if not await asyncio.to_thread(self._jobs.claim, job.id, attempt, self._name):
            return
        yield JobEvent(job_id=job.id, kind="progress")
        taken = await asyncio.to_thread(self._jobs.changes, job.id) if job.request.stream else {}
        submit = self._batcher.submit
        running = Attempt(job, attempt, self._jobs, self._pictures, submit, taken)
        prompts = asyncio.create_task(running.follow_prompts()) if job.request.stream else None
        try:
            self._batcher.submit(await asyncio.to_thread(self._clip, running))
            async for event in running.events():
                yield event
        except StorageError:
            raise
        except Exception as error:  # whatever it is, it is the end of the job
            await asyncio.to_thread(running.fail, error)
            yield JobEvent(job_id=job.id, kind="failed")
        finally:
            running.cancel()
            if prompts:
                prompts.cancel()

    def _clip(self, running: Attempt) -> Clip:
        """Return what the batcher needs to run a job.

        Raises:
            VideoARError: the model cannot do what is requested.
        """
        job = running.job
        loaded = self._version(job.model_snapshot).loaded
        if job.request.init_sha256 is None:
            return running.clip(loaded)
        if tokenizer := job.request.init_tokenizer:
            if tokenizer != loaded.card.tokenizer.digest:
                raise ConfigError("init", f"is tokens of {tokenizer}; the model has another one")
            return running.clip(loaded, unpack_init(self._jobs.init(job.id), loaded.tokenizer))
        with Scratch() as folder:
            path = folder / "init"
            path.write_bytes(self._jobs.init(job.id))
            try:
                return running.clip(loaded, path)
            except ConfigError as error:
                where = "init" if error.where == str(path) else error.where
                raise ConfigError(where, error.what, error.hint) from error


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".")) or is_export(Path(name))
