"""Frames of the image or video that a sample begins with, from a file of any origin."""

from itertools import islice
from pathlib import Path

import numpy as np

from videoar.core.errors import ConfigError, MediaError
from videoar.core.scratch import Scratch
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import DecodedClip, ScanPlan

_MAX_PIXELS = 1 << 26  # chosen: above any camera's photo; one frame of RGB takes 200 MB


def decode_init(
    source: str, size_px: tuple[int, int], num_frames: int, rate_fps: float, limits: Limits
) -> tuple[np.ndarray, str]:
    """Decode an image or a video in the sandbox, resized and cropped as clips are at ingest.

    Args:
        source: path, `file://` or `s3://`; PNG, JPEG or a video.
        size_px: height, width.
        num_frames: of the sample.
        rate_fps: of the sample.
        limits: of the child process.

    Returns:
        frames_THWC, fewer than `num_frames`, and the SHA-256 of the file.

    Raises:
        ConfigError: the address is of another kind, or the video is not shorter than the sample.
        MediaError: the file does not exist, is no image or video, or is damaged.
        TransientStorageError: the bucket does not answer.
    """
    plan = ScanPlan(
        num_frames=1,  # each frame is a clip of its own: the number of frames is not known
        rate_fps=rate_fps,
        size_px=(size_px,),
        find_shots=False,
        max_clips=num_frames,
        max_pixels=_MAX_PIXELS,
        allow_images=True,
    )
    with Scratch() as folder, SandboxedDecoder(plan, limits) as decoder:
        try:
            path, sha256 = decoder.fetch(_uri(source), folder)
            found = islice(decoder.scan(path), num_frames)
            clips = [clip for clip in found if isinstance(clip, DecodedClip)]
        except MediaError as error:
            raise MediaError(source, error.code, error.what) from error
    if damaged := [i for i, clip in enumerate(clips) if clip.columns["decode_errors"]]:
        raise MediaError(source, "CORRUPT", f"frame {damaged[0]} is damaged")
    if len(clips) >= num_frames:
        what = (
            f"has {len(clips)} frames or more at {rate_fps:g} per second, the sample {num_frames}"
        )
        raise ConfigError(source, what, "cut the file, or give more seconds")
    return np.concatenate([clip.frames_THWC for clip in clips]), sha256


def _uri(source: str) -> str:
    if source.startswith(("file://", "s3://")):
        return source
    if "://" in source or not source or "\0" in source:
        what = "is no image or video that can be read"
        raise ConfigError(source or "''", what, "give a file, file:// or s3://")
    return Path(source).absolute().as_uri()
