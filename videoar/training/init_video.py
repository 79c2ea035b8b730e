"""The image or video that a sample continues: a file of any origin to the bits of its frames."""

from typing import NamedTuple

import torch
from torch import Tensor

from videoar.media.init_frames import decode_init
from videoar.media.process import Limits
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames


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

    Args:
        source: see `decode_init`.
        tokenizer: of the model.
        num_frames: pixel frames of the sample, 1 + a multiple of `time_stride`.
        rate_fps: frame rate of the sample.

    Raises:
        ConfigError: see `decode_init`.
        MediaError: likewise.
        TransientStorageError: likewise.
    """
    size_px, stride = tokenizer.cfg.size_px, tokenizer.cfg.time_stride
    frames_THWC, sha256 = decode_init(source, size_px, num_frames, rate_fps, Limits())
    used = 1 + (len(frames_THWC) - 1) // stride * stride
    frames_BTHWC = torch.from_numpy(frames_THWC[-used:])[None]
    where = next(tokenizer.parameters()).device
    with torch.no_grad():
        return InitVideo(tokenizer.tokenize(video_from_frames(frames_BTHWC.to(where))), sha256)
