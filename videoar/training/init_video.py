"""The image or video that a sample continues: a file of any origin to the bits of its frames."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoar.core.errors import ConfigError, MediaError
from videoar.core.scratch import Scratch
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import DecodedClip, ScanPlan
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames

_MAX_PIXELS = 1 << 26  # chosen: above any camera's photo; one frame of RGB takes 200 MB


class InitVideo(NamedTuple):
    """First frames of a sample."""

    bits: list[Tensor]
    """Per scale bool [1, t, h, w, K]."""
    sha256: str
    """Of the file."""


def read_init(
    source: str, tokenizer: VideoTokenizer, num_frames: int, rate_fps: float
) -> InitVideo:
    """Read an image or a video and encode its last 1 + a multiple of `time_stride` frames.

    It is decoded in the sandbox, at the frame rate and size of the model: resized to cover the size
    and cropped at the centre, as clips are at ingest.

    Args:
        source: path, `file://` or `s3://`; PNG, JPEG or a video.
        tokenizer: of the model.
        num_frames: pixel frames of the sample.
        rate_fps: frame rate of the sample.

    Raises:
        ConfigError: the address is of another kind, or the video is not shorter than the sample.
        MediaError: the file does not exist, is no image or video, or is damaged.
        TransientStorageError: the bucket does not answer.
    """
    frames_THWC, sha256 = _decode(source, tokenizer.cfg.size_px, num_frames, rate_fps)
    stride = tokenizer.cfg.time_stride
    used = 1 + (len(frames_THWC) - 1) // stride * stride
    if used >= num_frames:
        what = (
            f"has {used} frames or more at {rate_fps:g} frames per second, the sample {num_frames}"
        )
        raise ConfigError(source, what, "cut the file, or give more seconds")
    frames_BTHWC = torch.from_numpy(frames_THWC[-used:])[None]
    where = next(tokenizer.parameters()).device
    with torch.no_grad():
        return InitVideo(tokenizer.tokenize(video_from_frames(frames_BTHWC.to(where))), sha256)


def _decode(
    source: str, size_px: tuple[int, int], num_frames: int, rate_fps: float
) -> tuple[np.ndarray, str]:
    """Return frames_THWC, at most `num_frames`, and the SHA-256 of the file."""
    plan = ScanPlan(
        num_frames=1,  # each frame is a clip of its own: the number of frames is not known
        rate_fps=rate_fps,
        size_px=(size_px,),
        find_shots=False,
        max_clips=num_frames,
        max_pixels=_MAX_PIXELS,
        allow_images=True,
    )
    with Scratch() as folder, SandboxedDecoder(plan, Limits()) as decoder:
        try:
            path, sha256 = decoder.fetch(_uri(source), folder)
            found = islice(decoder.scan(path), num_frames)
            clips = [clip for clip in found if isinstance(clip, DecodedClip)]
        except MediaError as error:
            raise MediaError(source, error.code, error.what) from error
    if damaged := [i for i, clip in enumerate(clips) if clip.columns["decode_errors"]]:
        raise MediaError(source, "CORRUPT", f"frame {damaged[0]} is damaged")
    return np.concatenate([clip.frames_THWC for clip in clips]), sha256


def _uri(source: str) -> str:
    if source.startswith(("file://", "s3://")):
        return source
    if "://" in source or not source or "\0" in source:
        what = "is no image or video that can be read"
        raise ConfigError(source or "''", what, "give a file, file:// or s3://")
    return Path(source).absolute().as_uri()
