"""One attempt of a job on a replica: from the request to the video, with events on the way."""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videoar.admin.loaded_model import LoadedModel, SampleOptions
from videoar.core.errors import ConfigError, MediaError, StorageError
from videoar.core.ids import digest_json
from videoar.core.types import Row
from videoar.engine.base import with_retries
from videoar.media.decode import thumbnail_jpeg
from videoar.media.transcode import encode_clips
from videoar.model.tokenizer.network import StreamDecoder, frames_from_video
from videoar.model.transformer.sampling import LatentFrame, Wave
from videoar.serving.batcher import Clip
from videoar.serving.job_store import JobStore
from videoar.serving.video_job import JobError, JobEvent, PromptChange, VideoJob
from videoar.training.generation import VideoGenerator, lineage_tags
from videoar.training.init_video import InitVideo, pack_frames
from videoar.training.prompts import Prompt

logger = logging.getLogger(__name__)
_PREVIEW_SHARE = 0.05  # chosen: of the time of a replica
_PREVIEW_PX = 512
_POLL_S = 0.1  # chosen: how often a session's job looks for a prompt; one GET each time


class CancelledError(Exception):
    """Nobody waits for the job any more."""


class Attempt:
    """One attempt of a job. The batcher calls it from its threads.

    A prompt that is sent to the job while it runs holds from the next latent frame on that has no
    bits yet: the clip leaves its batch, the second is recorded, and a clip that goes on after the
    frames so far is submitted. The record comes first, so a later attempt makes the same video.
    """

    def __init__(
        self,
        job: VideoJob,
        number: int,
        jobs: JobStore,
        pictures: "Pictures",
        submit: Callable[[Clip], object],
        taken: Mapping[int, PromptChange],
    ) -> None:
        self.job = job.with_changes(*taken.values())
        self.number, self._jobs, self._pictures, self._submit = number, jobs, pictures, submit
        self._next_prompt = 1 + max(taken, default=-1)
        self._taken_s = max((change.at_s for change in taken.values()), default=0.0)
        self._prompts = queue.SimpleQueue[tuple[int, str]]()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[JobEvent | Exception] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._generator: VideoGenerator
        self._template: Callable[[str], str]
        self._row: dict[str, Any] = {}
        self._changes: dict[int, str] = {}
        self._stream: _FrameStream | None = None

    async def events(self) -> AsyncIterator[JobEvent]:
        """Yield the events up to `done`.

        Raises:
            Exception: what ended the clip.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if event.kind == "done":
                return

    async def follow_prompts(self) -> None:
        """Look for prompts that are sent to the job, until it is cancelled."""
        job_id, number = self.job.id, self._next_prompt
        while True:
            try:
                prompt = await asyncio.to_thread(self._jobs.requested_prompt, job_id, number)
            except StorageError as error:
                logger.warning("prompts of %s: %s", job_id, error)
                prompt = None
            if prompt is None:
                await asyncio.sleep(_POLL_S)
            else:
                self._prompts.put((number, prompt))
                number += 1

    def cancel(self) -> None:
        """End it before the next pass."""
        self._cancelled.set()

    def fail(self, error: Exception) -> None:
        """Record that the job failed."""
        failed = self._ended(status="failed", error=describe(error))
        with_retries(partial(self._jobs.finish, failed, self.number))

    def clip(self, loaded: LoadedModel, init: Path | InitVideo | None = None) -> Clip:
        """Return what the batcher needs.

        Raises:
            VideoARError: the model cannot do what is requested.
        """
        request = self.job.request
        options = SampleOptions(
            seconds=request.seconds,
            guidance=request.guidance,
            temperature=request.temperature,
            greedy=request.greedy or None,  # None: as the model was scored
            guidance_interval=request.guidance_interval,
            apg=request.apg,
        )
        if init:
            options["init"] = init
        self._generator, self._template = loaded.generator(**options), loaded.templates.prompt
        self._row = {"prompt": self._text(request.prompt), "seed": request.seed}
        self._changes = self._changed_prompts()
        if request.stream:
            self._stream = _FrameStream(self._generator)
        columns, changes = dict(self._generator.columns), sorted(self._changes)
        key = digest_json([self._generator.model_id, columns, self._generator.settings, changes])
        return self._clip(key, self._row, self._changes)

    def _clip(
        self,
        key: str,
        row: Row,
        changes: Mapping[int, str],
        resumed: Sequence[LatentFrame] = (),
    ) -> Clip:
        return Clip(
            key=key,
            row=row,
            generator=self._generator,
            changes=changes,
            resumed=resumed,
            on_wave=self._on_wave,
            leaves=self._leaves,
            finish=self._finish,
            fail=self._emit,
            stop_reason=lambda: CancelledError() if self._cancelled.is_set() else None,
        )

    def _text(self, prompt: str) -> str:
        return self._template(Prompt(prompt=prompt).row("prompt")["prompt"])

    def _changed_prompts(self) -> dict[int, str]:
        """Return the later prompts by the latent frame from which they hold.

        Raises:
            ConfigError: one is not inside of what is generated.
        """
        changes, start, rate_fps = {}, self._generator.start, self._generator.columns["rate_fps"]
        known = start.bits[0].shape[1] if start else 0
        for change in self.job.request.prompt_changes:
            frame = max(1, math.ceil(round(change.at_s * rate_fps / self._stride, 6)))
            if not known < frame <= self._last:
                what = f"{change.at_s:g} s is not inside of what is generated"
                raise ConfigError("prompt_changes", what)
            changes[frame] = self._text(change.prompt)
        return changes

    @property
    def _stride(self) -> int:
        return self._generator.model.cfg.time_stride

    @property
    def _last(self) -> int:
        """The last latent frame."""
        last: int = self._generator.columns["num_frames"] - 1
        return last // self._stride

    def _first_pixel_frame(self, frame: int) -> int:
        return max(0, 1 + (frame - 1) * self._stride)

    def _second(self, frame: int) -> float:
        rate_fps: float = self._generator.columns["rate_fps"]
        return self._first_pixel_frame(frame) / rate_fps

    def _emit(self, event: JobEvent | Exception) -> None:
        if not self._loop.is_closed():  # else the server has stopped
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _on_wave(self, wave: Wave, waves: int, row: int) -> None:
        """Report the state after a pass, with pictures."""
        tokenizer = self._generator.tokenizer
        event = JobEvent(
            job_id=self.job.id,
            kind="progress",
            wave=wave.steps,
            waves=waves,
            scale=wave.scale,
            frame=self._first_pixel_frame(wave.frame),
        )
        self._emit(event)
        if self._stream:
            for frame in wave.finished:
                self._stream.add(self._pictures, frame.latent_BKHW[row : row + 1], self._frames)
        elif self._pictures.has_time:
            # a copy: the next pass of this frame changes it
            latent_BKTHW = wave.latent_BKHW[row : row + 1, :, None].clone()
            self._pictures.preview(
                partial(StreamDecoder(tokenizer), latent_BKTHW),
                lambda jpeg: self._emit(event.model_copy(update={"images": (jpeg,)})),
            )

    def _frames(self, first: int, images: tuple[bytes, ...]) -> None:
        self._emit(JobEvent(job_id=self.job.id, kind="frames", frame=first, images=images))

    def _leaves(self, wave: Wave) -> bool:
        """Return whether another prompt holds from the next frame on."""
        if self._prompts.empty() or not wave.finished or wave.finished[-1].is_given:
            return False
        # after those that were sent earlier, which another attempt has taken
        return wave.frame < self._last and self._second(wave.frame + 1) > self._taken_s

    def _change_prompt(self, latents: list[LatentFrame]) -> None:
        """Go on after some frames with the prompt that was sent last."""
        number, prompt = self._prompts.get()
        while not self._prompts.empty():
            number, prompt = self._prompts.get()
        frame = len(latents)
        change = PromptChange(at_s=self._second(frame), prompt=prompt)
        with_retries(partial(self._jobs.change_prompt, self.job.id, number, change))
        self.job = self.job.with_changes(change)
        self._emit(
            JobEvent(
                job_id=self.job.id,
                kind="prompt",
                frame=self._first_pixel_frame(frame),
                change=change,
            )
        )
        self._changes = self._changed_prompts()
        row = {**self._row, "prompt": self._changes[frame]}
        later = {at: text for at, text in self._changes.items() if at > frame}
        self._submit(self._clip(f"{self.job.id} from frame {frame}", row, later, latents))

    def _finish(self, latents: list[LatentFrame]) -> None:
        """Decode, encode and store the video; the job then is completed."""
        if self._cancelled.is_set():
            return
        if len(latents) <= self._last:
            self._change_prompt(latents)
            return
        job, generator = self.job, self._generator
        frames_BTHWC = frames_from_video(generator.pixels(latents).video_B3THW).cpu().numpy()
        tags = lineage_tags(self._row["prompt"], generator.model_id, self._row["seed"], job=job.id)
        rate_fps = generator.columns["rate_fps"]
        (mp4,) = encode_clips(list(frames_BTHWC), rate_fps, generator.crf, [tags])
        if self._stream:
            self._stream.wait()
        done = self._ended(
            status="completed",
            progress=100,
            tokenizer_digest=generator.columns["tokenizer_digest"],
            sample_id=self._sample_id(),
        )
        tokens = pack_frames(latents) if job.request.stream else None
        with_retries(partial(self._jobs.finish, done, self.number, mp4, tokens))
        self._emit(JobEvent(job_id=job.id, kind="done"))

    def _sample_id(self) -> str:
        own = self._generator.sample_id(self._row)
        return digest_json([own, sorted(self._changes.items())])[:32] if self._changes else own

    def _ended(self, **changes: object) -> VideoJob:
        return self.job.model_copy(update={"completed_at": time.time(), **changes})


class Pictures:
    """Draws JPEGs beside the passes, in one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._next_s, self._is_drawing = 0.0, False

    @property
    def has_time(self) -> bool:
        """Whether a preview would take no more than a small share of the time."""
        return not self._is_drawing and time.monotonic() >= self._next_s

    def preview(self, draw: Callable[[], Tensor], emit: Callable[[bytes], object]) -> None:
        """Draw one frame of a video_B3THW, at most so large as a page shows it."""

        def run() -> None:
            start = time.monotonic()
            try:
                (image,) = _jpegs(draw(), _PREVIEW_PX)
                emit(image)
            except Exception:
                logger.exception("no preview")  # the video itself is not affected
            finally:
                took_s = time.monotonic() - start
                self._next_s = time.monotonic() + took_s * (1 / _PREVIEW_SHARE - 1)
                self._is_drawing = False

        self._is_drawing = True
        self._pool.submit(run)

    def submit(self, work: Callable[[], object]) -> "Future[object]":
        """Run something after what was submitted before."""
        return self._pool.submit(work)


class _FrameStream:
    """The frames of one video as JPEGs, as soon as they are finished."""

    def __init__(self, generator: VideoGenerator) -> None:
        self._decoder = StreamDecoder(generator.tokenizer)
        self._done = 0
        self._pending: list[Future[object]] = []

    def add(
        self,
        pictures: Pictures,
        latent_BKHW: Tensor,
        emit: Callable[[int, tuple[bytes, ...]], object],
    ) -> None:
        """Draw the pixel frames of the next latent frame."""

        def run() -> None:
            images = _jpegs(self._decoder(latent_BKHW[:, :, None]))
            emit(self._done, images)
            self._done += len(images)

        self._pending.append(pictures.submit(run))

    def wait(self) -> None:
        """Return when all frames were sent.

        Raises:
            Exception: one could not be drawn.
        """
        for future in self._pending:
            future.result()


@torch.no_grad()
def _jpegs(video_B3THW: Tensor, side_px: int | None = None) -> tuple[bytes, ...]:
    """Return the frames of one video as JPEGs."""
    frames_THWC: np.ndarray = frames_from_video(video_B3THW)[0].cpu().numpy()
    side = side_px or max(frames_THWC.shape[1:3])
    return tuple(thumbnail_jpeg(frame[None], side) for frame in frames_THWC)


def describe(error: Exception) -> JobError:
    """Return the error of a failed job: one line without paths, addresses and stack."""
    if isinstance(error, MediaError):
        what = f"the image or video to start with: {error.what}"
        return JobError(code="invalid_init", message=what)
    if isinstance(error, ConfigError):
        return JobError(code="invalid_request", message=f"{error.where}: {error.what}")
    logger.error("a job failed", exc_info=error)
    return JobError(code="generation_failed", message="the video could not be generated")
