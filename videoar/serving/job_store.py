"""Jobs as create-once records in the store, so that none is lost with a process.

    create    job record              from here on the job is accepted
    claim     attempt record          exactly one replica runs an attempt
    prompt    prompt record, from the client; then change record, from the replica: where it holds
    finish    result record           the first result counts; later ones are discarded
    delete    deleted record          then prompt, result and video are removed

The key of a job in `open/` exists from before its record until after its result, so that a restart
finds what is unfinished without a listing of all jobs. Ids begin with the time, inverted: a listing
in the order of keys has the newest first.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal

from videoar.core.crash_points import crash_point
from videoar.core.errors import SnapshotConflictError
from videoar.core.ids import digest_json, seed_from, sha256_hex
from videoar.core.types import Stored
from videoar.serving.video_job import JOB_ID, PromptChange, VideoJob, VideoRequest
from videoar.storage import layout
from videoar.storage.store import Store

_LATEST_MS = 2**48 - 1
_READS_AT_ONCE = 8


class JobResult(Stored):
    """How a job ended."""

    job: VideoJob
    attempt: int = 0
    """0: it ended without one."""
    video_key: str | None = None
    tokens_key: str | None = None
    """Of a session: what another video may begin with."""
    video_sha256: str | None = None
    video_size_bytes: int = 0


def new_job_id(now_s: float | None = None) -> str:
    """Return the id of a new job; later ids are smaller."""
    now_ms = int((time.time() if now_s is None else now_s) * 1000)
    return f"video_{_LATEST_MS - now_ms:012x}{secrets.token_hex(10)}"


class JobStore:
    """The jobs of one store; safe to use from many threads and processes."""

    def __init__(self, store: Store) -> None:
        self._store, self._objects, self._ledger = store, store.objects, store.ledger

    def create(
        self,
        request: VideoRequest,
        model_snapshot: str,
        idempotency_key: str | None = None,
        init: bytes | None = None,
    ) -> VideoJob:
        """Accept a job, or return the one that was accepted under the same idempotency key.

        Raises:
            SnapshotConflictError: the key belongs to another request, or its job was deleted.
        """
        id_, created_at = new_job_id(), time.time()
        if idempotency_key is not None:
            id_, created_at = self._identify(idempotency_key, request, id_, created_at)
            if existing := self.get(id_):
                return existing
        if request.seed is None:
            request = request.model_copy(update={"seed": seed_from("video", id_)})
        job = VideoJob(
            id=id_, created_at=created_at, request=request, model_snapshot=model_snapshot
        )
        self._ledger.prepare_write()
        self._objects.put(layout.open_job_key(id_), b"{}")
        if init is not None:
            self._objects.put(layout.job_input_key(id_), init)
        crash_point("job-announced")
        record = self._ledger.create_or_adopt(layout.job_key(id_), job.model_dump(mode="json"))
        return VideoJob.model_validate(record)

    def _identify(
        self, key: str, request: VideoRequest, id_: str, created_at: float
    ) -> tuple[str, float]:
        """Return id and time of the job of an idempotency key."""
        digest = digest_json(request.model_dump(mode="json"))
        own = {"job": id_, "created_at": created_at, "request": digest}
        where = layout.idempotency_key(sha256_hex(key.encode()))
        record = self._ledger.create_or_adopt(where, own)
        if record["request"] != digest:
            raise SnapshotConflictError(
                "idempotency key", "belongs to another request", "use a new key"
            )
        if self.was_deleted(record["job"]):
            raise SnapshotConflictError("idempotency key", "its job was deleted", "use a new key")
        return record["job"], record["created_at"]

    def get(self, job_id: str) -> VideoJob | None:
        """Return a job as its records have it; None if there is none with this id."""
        # its own record first: a replica may write the result of a job that has been deleted
        job = self._accepted(job_id)
        result = job and self.result(job_id)
        return result.job if result else job and self._with_changes(job)

    def _accepted(self, job_id: str) -> VideoJob | None:
        if not JOB_ID.fullmatch(job_id):
            return None
        record = self._ledger.read(layout.job_key(job_id))
        return VideoJob.model_validate(record) if record else None

    def _with_changes(self, job: VideoJob) -> VideoJob:
        """Return a job with the prompts that were changed while it ran."""
        return job.with_changes(*self.changes(job.id).values()) if job.request.stream else job

    def result(self, job_id: str) -> JobResult | None:
        """Return how a job ended; None if it has not."""
        if not JOB_ID.fullmatch(job_id):  # ids come from outside, and become parts of keys
            return None
        record = self._ledger.read(layout.job_result_key(job_id))
        return JobResult.model_validate(record) if record else None

    def page(
        self,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        known: Callable[[str], VideoJob | None] = lambda _: None,
    ) -> list[VideoJob]:
        """Return up to `limit` jobs by time of creation; `desc` has the newest first.

        Args:
            after: id of the job before the first one.
            limit: most jobs.
            order: `desc` takes one LIST request and two reads per job; `asc` lists all jobs.
            known: returns a job whose state the caller has, so that it is not read.
        """
        chosen = list(islice(self._ids(after, order), limit))
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            jobs = pool.map(lambda id_: known(id_) or self.get(id_), chosen)
            return [job for job in jobs if job is not None]  # None: deleted since it was listed

    def _ids(self, after: str | None, order: Literal["asc", "desc"]) -> Iterator[str]:
        listing = partial(self._objects.list, layout.JOBS_PREFIX)
        if order == "desc":
            start = layout.job_key(after) if after else ""
            return (layout.job_id_of(info.key) for info in listing(after=start))
        ids = reversed([layout.job_id_of(info.key) for info in listing()])
        return (id_ for id_ in ids if after is None or id_ < after)

    def unfinished(self) -> list[VideoJob]:
        """Return the accepted jobs without a result, oldest first; complete other work.

        For the start of a server: a job whose creation was interrupted before it was accepted is
        removed, and an interrupted deletion is completed.
        """
        jobs = []
        for info in list(self._objects.list(layout.OPEN_JOBS_PREFIX)):
            id_ = layout.job_id_of(info.key)
            job = self._accepted(id_)
            if self.was_deleted(id_):
                self._purge(id_)
            elif job and not self.result(id_):
                jobs.append(self._with_changes(job))
            else:
                if not job:
                    self._objects.purge(layout.job_input_key(id_))
                self._objects.delete(info.key)
        return jobs[::-1]

    def attempts(self, job_id: str) -> int:
        """Return the number of attempts that were claimed."""
        return sum(1 for _ in self._ledger.list(layout.job_attempts_prefix(job_id)))

    def claim(self, job_id: str, attempt: int, replica: str) -> bool:
        """Claim an attempt, from 1; return False if another replica has it or the job ended."""
        if self._objects.size(layout.job_key(job_id)) is None or self.result(job_id):
            return False
        record = {"replica": replica, "claimed_at": time.time()}
        return self._ledger.create(layout.job_attempt_key(job_id, attempt), record)

    def request_prompt(self, job_id: str, prompt: str) -> None:
        """Record that what is left of a running job's video has another prompt."""
        self._ledger.append(layout.job_prompts_log(job_id), {"prompt": prompt})
        self._purge_if_deleted(job_id)

    def requested_prompt(self, job_id: str, number: int) -> str | None:
        """Return a prompt that was sent to a job, from number 0; None if there is none yet."""
        key = layout.log_entry_key(layout.job_prompts_log(job_id), number)
        record = self._ledger.read(key)
        return record["prompt"] if record else None

    def changes(self, job_id: str) -> dict[int, PromptChange]:
        """Return where prompts hold that were sent to a job, by their number."""
        keys = self._ledger.list(layout.job_changes_prefix(job_id))
        records = {int(layout.job_id_of(key)): self._ledger.read(key) for key in keys}
        return {n: PromptChange.model_validate(r) for n, r in sorted(records.items()) if r}

    def change_prompt(self, job_id: str, number: int, change: PromptChange) -> None:
        """Record from which second a prompt holds that was sent to a job.

        Raises:
            SnapshotConflictError: in another attempt, which was given up too early, it holds from
                another second. The next attempt has it as recorded.
        """
        own, key = change.model_dump(mode="json"), layout.job_change_key(job_id, number)
        recorded = self._ledger.create_or_adopt(key, own)
        self._purge_if_deleted(job_id)
        if recorded != own:
            raise SnapshotConflictError(key, "holds from another second in another attempt")

    def init(self, job_id: str) -> bytes:
        """Return what a job's video begins with.

        Raises:
            StorageError: there is none.
        """
        return self._objects.get(layout.job_input_key(job_id))

    def finish(
        self,
        job: VideoJob,
        attempt: int = 0,
        video: bytes | None = None,
        tokens: bytes | None = None,
    ) -> VideoJob | None:
        """Record how a job ended; return what counts, None if the job was deleted.

        The video is stored before the record that names it. If the job has ended otherwise, for
        example as cancelled, or by another attempt, that result counts and the video is removed.
        """
        result = JobResult(job=job, attempt=attempt)
        own: dict[str, bytes] = {}
        if video is not None:
            made = {
                "video_key": layout.job_video_key(job.id, attempt),
                "video_sha256": sha256_hex(video),
                "video_size_bytes": len(video),
            }
            own[layout.job_video_key(job.id, attempt)] = video
            if tokens is not None:
                made["tokens_key"] = layout.job_tokens_key(job.id, attempt)
                own[layout.job_tokens_key(job.id, attempt)] = tokens
            result = result.model_copy(update=made)
            self._ledger.prepare_write()
            for key, data in own.items():
                self._objects.put(key, data)
            crash_point("video-uploaded")
        record = self._ledger.create_or_adopt(
            layout.job_result_key(job.id), result.model_dump(mode="json")
        )
        crash_point("job-finished")
        counting = JobResult.model_validate(record)
        if counting.video_key != result.video_key:
            for key in own:
                self._objects.purge(key)
        if self._purge_if_deleted(job.id):
            return None
        self._objects.delete(layout.open_job_key(job.id))
        return counting.job

    def content(self, job_id: str) -> bytes | None:
        """Return the video of a job; None if it has none."""
        result = self.result(job_id)
        return self._objects.find(result.video_key) if result and result.video_key else None

    def tokens(self, job_id: str) -> bytes | None:
        """Return the tokens of the video of a job; None if it has none."""
        result = self.result(job_id)
        return self._objects.find(result.tokens_key) if result and result.tokens_key else None

    def delete(self, job_id: str) -> VideoJob | None:
        """Delete a job with its prompt and video; return it as it was, None if there is none."""
        job = self.get(job_id)
        if job is None:
            return None
        self._ledger.prepare_write()
        self._objects.put(layout.open_job_key(job_id), b"{}")  # a restart completes the deletion
        self._ledger.create(layout.job_deleted_key(job_id), {"deleted_at": time.time()})
        crash_point("job-deleted")
        self._purge(job_id)
        return job

    def was_deleted(self, job_id: str) -> bool:
        """Return whether there is a record that a job was deleted."""
        return self._objects.size(layout.job_deleted_key(job_id)) is not None

    def _purge_if_deleted(self, job_id: str) -> bool:
        """Remove what was written for a job after it was deleted; return whether it was."""
        deleted = self.was_deleted(job_id)
        if deleted:
            self._purge(job_id)
        return deleted

    def _purge(self, job_id: str) -> None:
        """Remove everything of a job but the record that it was deleted."""
        self._objects.purge(layout.job_key(job_id))  # first: from here on nobody finds the job
        prefixes = (
            layout.job_videos_prefix(job_id),
            layout.job_attempts_prefix(job_id),
            f"{layout.job_prompts_log(job_id)}/",
            layout.job_changes_prefix(job_id),
        )
        keys = [info.key for prefix in prefixes for info in self._objects.list(prefix)]
        keys += [layout.job_input_key(job_id), layout.job_result_key(job_id)]
        for key in (*keys, layout.open_job_key(job_id)):
            self._objects.purge(key)
