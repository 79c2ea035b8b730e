"""What is requested, and what became of it: the types that every part of the server shares."""

import re
from base64 import b64encode
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PlainSerializer

from videoar.core.types import Frozen, Stored
from videoar.training.sampler_options import (
    Guidance,
    GuidanceInterval,
    ProjectedGuidance,
    Temperature,
)

Status: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
# pydantic's own base64 is the URL-safe one, which browsers do not read in `data:` URLs
_Image: TypeAlias = Annotated[
    bytes, PlainSerializer(lambda image: b64encode(image).decode(), when_used="json")
]
JOB_ID = re.compile(r"video_[0-9a-f]{32}")
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


class PromptChange(Frozen):
    """Another prompt from some second on."""

    at_s: float = Field(gt=0, allow_inf_nan=False)
    prompt: str


class OwnFields(Frozen):
    """Fields of a request that the OpenAI videos API does not have."""

    seed: Seed | None = None
    """Equal seeds give equal videos; default: another for every job."""
    guidance: Guidance | None = None
    """Schedule or strength; 1 is none. Default: that of the samples that were scored."""
    temperature: Temperature | None = None
    """Of all scales, or a list with one per scale. Default: likewise."""
    greedy: bool = False
    """Take the likelier value of every bit."""
    guidance_interval: GuidanceInterval | None = None
    """First and last scale that is guided, from 0 to 1. Default: likewise."""
    apg: ProjectedGuidance | None = None
    """Adaptive projected guidance. Default: likewise."""
    prompt_changes: tuple[PromptChange, ...] = ()
    """Other prompts from some second on."""
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which the job fails if it is not finished."""


class VideoRequest(OwnFields, Stored):
    """A video to generate, checked: what the model cannot do was rejected before."""

    model: str
    """Name under which the server has the model."""
    prompt: str
    seconds: float = Field(gt=0, allow_inf_nan=False)
    size: str
    """Width x height in pixels."""
    init_sha256: str | None = None
    """Of what the video begins with; its bytes are in the store."""
    init_tokenizer: str | None = None
    """Digest of a tokenizer: they are tokens of it. None: they are an image or a video."""
    stream: bool = False
    """Send every frame as an event as soon as it is finished; costs a second decoding."""


class JobError(Stored):
    """Why a job failed: one line for the user, without addresses and secrets."""

    code: str
    message: str


class VideoJob(Stored):
    """The state of a job."""

    id: str
    """`video_` and 32 hex digits."""
    created_at: float
    """Unix time in seconds."""
    request: VideoRequest
    status: Status = "queued"
    progress: int = Field(default=0, ge=0, le=100)
    """Per cent of the passes."""
    error: JobError | None = None
    completed_at: float | None = None
    model_snapshot: str | None = None
    """Lineage: the transformer that made the video."""
    tokenizer_digest: str | None = None
    sample_id: str | None = None
    """Lineage: id of the sample, as in `samples@1`."""

    def with_changes(self, *more: PromptChange) -> "VideoJob":
        """Return the job with other prompts from some seconds on."""
        changes = {each.at_s: each for each in (*self.request.prompt_changes, *more)}
        ordered = tuple(changes[at_s] for at_s in sorted(changes))
        request = self.request.model_copy(update={"prompt_changes": ordered})
        return self.model_copy(update={"request": request})

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.status not in {"queued", "in_progress"}


class JobEvent(Stored):
    """One step of a job, for those who watch it; bytes are base64 in its JSON."""

    job_id: str
    kind: Literal["progress", "frames", "prompt", "done", "failed"]
    wave: int = 0
    waves: int = 0
    """Passes of the job that are done, and all of them."""
    scale: int = 0
    """Of the last pass, from 0."""
    frame: int = 0
    """First pixel frame of this event."""
    images: tuple[_Image, ...] = ()
    """PNG or JPEG: a preview (kind progress), or frames as they are finished (kind frames)."""
    change: PromptChange | None = None
    """The prompt that holds from here on (kind prompt)."""
