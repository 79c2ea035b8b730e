"""Samples of a model as MP4 files and rows: what the stage `generate` and the command share."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videoar.core.ids import canonical_json, digest_json, sha256_hex
from videoar.core.types import Row
from videoar.media.transcode import encode_clips
from videoar.model.tokenizer.network import VideoTokenizer, frames_from_video
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import Sampled, SlidingWindow, sample
from videoar.training.init_video import InitVideo

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
    """Time of sampling (with decoding to pixels) and of encoding."""


@dataclass(frozen=True)
class VideoGenerator:
    """Generates batches of samples with equal settings."""

    model: VideoAR
    tokenizer: VideoTokenizer
    model_id: str
    """Snapshot of the transformer; every MP4 names it."""
    columns: Mapping[str, Any]
    """Equal in every row: model_digest, tokenizer_digest, num_frames and rate_fps."""
    sampler: Mapping[str, Any]
    """Options of `sample`."""
    crf: int = CRF
    start: InitVideo | None = None
    """What every sample begins with."""
    window: SlidingWindow | None = None
    """For samples that are longer than the clips of the training."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the rows record as `sampler_json`."""
        init = {"init": self.start.sha256} if self.start else {}
        window = {"window": self.window.num_frames} if self.window else {}
        return {**self.sampler, **init, **window}

    def sample_id(self, row: Row) -> str:
        """Return the id of a sample, of what it follows from and not of its bytes.

        So a sample that is made twice has the same id even if the device rounds differently.
        """
        return digest_json([dict(self.columns), self.settings, row["prompt"], row["seed"]])[:32]

    def sample(self, requested: Sequence[Row]) -> Sampled:
        """Generate a batch as videos.

        Args:
            requested: rows as `PromptTemplates.samples` yields them.

        Raises:
            ValueError: see `videoar.model.sample`.
        """
        bits = self.start and self.start.bits
        return sample(
            self.model,
            self.tokenizer,
            [row["prompt"] for row in requested],
            self.columns["num_frames"],
            seeds=[row["seed"] for row in requested],
            prefix_bits=bits and [b.expand(len(requested), *b.shape[1:]) for b in bits],
            window=self.window,
            **self.sampler,
        )

    def __call__(self, requested: Sequence[Row]) -> Generated:
        """Generate a batch as files; see `sample`."""
        start = time.monotonic()
        result = self.sample(requested)
        frames_BTHWC = frames_from_video(result.video_B3THW).cpu().numpy()
        sampled = time.monotonic()
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
        seconds = {"sample_s": sampled - start, "encode_s": time.monotonic() - sampled}
        return Generated(rows, videos, result.steps, seconds)


def lineage_tags(prompt: str, model_id: str, seed: int) -> dict[str, str]:
    """Return the metadata of a generated MP4: its prompt, and what made it."""
    return {"title": prompt, "comment": canonical_json({"model": model_id, "seed": seed})}
