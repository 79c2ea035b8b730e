"""What the HTTP API asks of the part that runs the jobs."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal, Protocol

from videoar.core.types import Json, Stored
from videoar.serving.video_job import JobEvent, VideoJob, VideoRequest


class ServedModel(Stored):
    """A model that is loaded, with what a request can ask of it."""

    id: str
    """Name in requests: a ref or the name of a snapshot."""
    snapshot: str
    """Of the transformer; moves with a ref."""
    created_at: float
    """Unix time at which it was loaded."""
    size_px: tuple[int, int]
    """Height, width."""
    rate_fps: float
    num_scales: int
    """Of a frame."""
    tokenizer_digest: str
    """Tokens of this tokenizer can be continued."""
    seconds: float
    """Default duration: that of the longest clip of the training."""
    max_seconds: float


class Readiness(Stored):
    """State of the server."""

    ready: bool
    """A warm-up pass of every model has ended, and the server takes requests."""
    models: tuple[ServedModel, ...] = ()
    """The first is the default."""
    queue_length: int = 0
    """Jobs that no replica has begun."""
    in_flight: int = 0


class VideoService(Protocol):
    """Jobs of videos: accepted, run and kept.

    Every method may raise a `VideoARError`: a `ConfigError` names what in the request is wrong, a
    `StorageError` or `ClusterUnknownError` is not the fault of the client.
    """

    @property
    def queue_length(self) -> int:
        """Jobs that no replica has begun, without a question to the store."""
        ...

    async def create(
        self, request: VideoRequest, idempotency_key: str | None, init: bytes | None = None
    ) -> VideoJob:
        """Accept a job; its record is durable when this returns.

        Args:
            request: with the digest of `init`.
            idempotency_key: a second call with it returns the job of the first.
            init: image or video that the video begins with, which the sandbox has decoded once; or
                tokens, see `tokens`.

        Raises:
            SnapshotConflictError: the key belongs to another request.
        """
        ...

    async def get(self, job_id: str) -> VideoJob | None:
        """Return a job; None if there is none with this id."""
        ...

    async def list(
        self, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> Sequence[VideoJob]:
        """Return up to `limit` jobs by time of creation, those after the job `after`."""
        ...

    async def delete(self, job_id: str) -> VideoJob | None:
        """Delete a job and its video, cancel it if it is not finished; return it as it was."""
        ...

    async def change_prompt(self, job_id: str, prompt: str) -> bool:
        """Give what is left of the video of a session another prompt.

        Returns:
            Whether the job still runs. The event `prompt` says from which second it holds; there is
            none if the video ends before.
        """
        ...

    async def tokens(self, job_id: str) -> bytes | None:
        """Return the tokens of the video of a session; None if the job has none."""
        ...

    async def content(self, job_id: str) -> bytes | None:
        """Return the MP4 of a job; None if it has none."""
        ...

    def events(self, job_id: str) -> AsyncGenerator[JobEvent]:
        """Yield what happens to a job from now on.

        The last event is `done` or `failed`; a job that is finished already has only this one.
        """
        ...

    async def lineage(self, job_id: str) -> Mapping[str, Json] | None:
        """Return the graph of what a video was made of, see `records.lineage`; None likewise."""
        ...

    async def readiness(self) -> Readiness:
        """Return the state of the server."""
        ...
