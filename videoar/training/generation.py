"""Samples of a model as MP4 files and rows: what the stage `generate` and the command share."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from videoar.core.errors import ConfigError
from videoar.core.ids import canonical_json, digest_json, sha256_hex
from videoar.core.types import Json, Row
from videoar.media.transcode import encode_clips
from videoar.model.tokenizer.network import VideoTokenizer, frames_from_video
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import (
    LatentFrame,
    Sampled,
    SlidingWindow,
    Waves,
    decode_latents,
)
from videoar.training.init_video import InitVideo
from videoar.training.sampler_options import SamplerOptions

CRF = 12
"""Default H.264 constant rate factor of samples."""


@dataclass(frozen=True)
class Generated:
    """One batch of samples."""

    rows: list[Row]
    """Of `samples@1`, without `video_key`."""
    videos: list[bytes]
    """An MP4 per row."""
    steps: int
    """Sequential forward passes."""
    seconds: Mapping[str, float]
    """Time of decoding to pixels and of encoding to files."""


@dataclass(frozen=True)
class VideoGenerator:
    """Generates batches of samples with equal settings."""

    model: VideoAR
    tokenizer: VideoTokenizer
    model_id: str
    """Snapshot of the transformer; every MP4 names it."""
    columns: Mapping[str, Any]
    """Equal in every row: model_digest, tokenizer_digest, num_frames and rate_fps."""
    sampler: SamplerOptions
    """How bits are drawn."""
    crf: int = CRF
    start: InitVideo | None = None
    """What every sample begins with."""
    trained_frames: int | None = None
    """Pixel frames of the longest clips of the training; None if not known."""

    @property
    def window(self) -> SlidingWindow | None:
        """For samples that are longer than the clips of the training."""
        trained = self.trained_frames or 1
        return SlidingWindow(trained) if 1 < trained < self.columns["num_frames"] else None

    @property
    def settings(self) -> dict[str, Any]:
        """What the rows record as `sampler_json`."""
        init = {"init": self.start.sha256} if self.start else {}
        window = {"window": self.window.num_frames} if self.window else {}
        return {**self.sampler.recorded, **init, **window}

    def sample_id(self, row: Row) -> str:
        """Return the id of a sample, of what it follows from and not of its bytes.

        So a sample that is made twice has the same id even if the device rounds differently.
        """
        return digest_json([dict(self.columns), self.settings, row["prompt"], row["seed"]])[:32]

    def checked(self) -> "VideoGenerator":
        """Return this generator if its settings fit the model.

        Raises:
            ConfigError: its number of frames or of temperatures does not.
        """
        try:
            self.waves([{"prompt": "", "seed": 0}])
        except ValueError as error:
            raise ConfigError("generate", str(error)) from error
        return self

    def waves(
        self,
        requested: Sequence[Row],
        changes: Mapping[int, Sequence[str]] | None = None,
        resumed: Sequence[LatentFrame] = (),
    ) -> Waves:
        """Return the passes of a batch; none of them has run yet.

        Args:
            requested: rows as `PromptTemplates.samples` yields them.
            changes: see `videoar.model.transformer.sampling.Task.prompt_changes`.
            resumed: see there; of a batch of this size.

        Raises:
            ValueError: see `videoar.model.sample`.
        """
        bits = None if resumed else self.start and self.start.bits
        return Waves(
            self.model,
            [row["prompt"] for row in requested],
            self.columns["num_frames"],
            [row["seed"] for row in requested],
            settings=self.sampler.settings(),
            prefix_bits=bits and [b.expand(len(requested), *b.shape[1:]) for b in bits],
            resumed=resumed,
            window=self.window,
            prompt_changes=changes,
        )

    def latents(self, requested: Sequence[Row]) -> list[LatentFrame]:
        """Run all passes of a batch; see `waves`."""
        return [frame for wave in self.waves(requested) for frame in wave.finished]

    def pixels(self, latents: Sequence[LatentFrame]) -> Sampled:
        """Decode a batch to videos."""
        parts = list(decode_latents(self.tokenizer, latents))
        return Sampled(torch.cat([part.video_B3THW for part in parts], dim=2), parts[-1].steps)

    def sample(self, requested: Sequence[Row]) -> Sampled:
        """Generate a batch as videos; see `waves`."""
        return self.pixels(self.latents(requested))

    def __call__(self, requested: Sequence[Row]) -> Generated:
        """Generate a batch as files; see `waves`."""
        return self.files(requested, self.latents(requested))

    def files(self, requested: Sequence[Row], latents: Sequence[LatentFrame]) -> Generated:
        """Decode a batch and encode it as files."""
        start = time.monotonic()
        result = self.pixels(latents)
        frames_BTHWC = frames_from_video(result.video_B3THW).cpu().numpy()
        decoded = time.monotonic()
        tags = [lineage_tags(row["prompt"], self.model_id, row["seed"]) for row in requested]
        videos = encode_clips(list(frames_BTHWC), self.columns["rate_fps"], self.crf, tags)
        height, width = frames_BTHWC.shape[2:4]
        rows = [
            {
                **row,
                **self.columns,
                "sample_id": self.sample_id(row),
                "sampler_json": canonical_json(self.settings),
                "steps": result.steps,
                "height_px": height,
                "width_px": width,
                "video_sha256": sha256_hex(video),
                "video_size_bytes": len(video),
            }
            for row, video in zip(requested, videos, strict=True)
        ]
        seconds = {"decode_s": decoded - start, "encode_s": time.monotonic() - decoded}
        return Generated(rows, videos, result.steps, seconds)


def frames_in(seconds: float, rate_fps: float, time_stride: int) -> int:
    """Return the possible number of frames, 1 + a multiple of the time stride, next to seconds."""
    return 1 + time_stride * round(seconds * rate_fps / time_stride)


def lineage_tags(prompt: str, model_id: str, seed: int, **ids: str) -> dict[str, str]:
    """Return the metadata of a generated MP4: its prompt, and what made it."""
    made_by: dict[str, Json] = {"model": model_id, "seed": seed, **ids}
    return {"title": prompt, "comment": canonical_json(made_by)}
