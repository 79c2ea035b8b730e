"""The image or video that a sample continues: a file of any origin to the bits of its frames."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.core.errors import ConfigError
from videoar.core.ids import sha256_hex
from videoar.media.init_frames import decode_init
from videoar.media.process import Limits
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.model.transformer.sampling import LatentFrame
from videoar.storage.token_codec import bytes_per_frame, pack_bits, unpack_bits


class InitVideo(NamedTuple):
    """First frames of a sample."""

    bits: list[Tensor]
    """Per scale bool [1, t, h, w, K]."""
    sha256: str
    """Of the file or the tokens."""


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


def pack_frames(frames: Sequence[LatentFrame]) -> bytes:
    """Return the tokens of one video, packed as those of `tokens@1`."""
    per_scale = zip(*(frame.bits for frame in frames), strict=True)
    return pack_bits([torch.cat(bits).cpu().numpy() for bits in per_scale])


def unpack_init(data: bytes, tokenizer: VideoTokenizer) -> InitVideo:
    """Return the frames that `pack_frames` has packed.

    Raises:
        ConfigError: they are not of this tokenizer.
    """
    cfg = tokenizer.cfg
    num_frames, rest = divmod(len(data), bytes_per_frame(cfg.scales, cfg.num_bits))
    if rest or not num_frames:
        what = f"{len(data)} bytes of tokens are no whole frames of this tokenizer"
        raise ConfigError("init", what)
    where = next(tokenizer.parameters()).device
    bits = unpack_bits(data, num_frames, cfg.scales, cfg.num_bits)
    return InitVideo([torch.from_numpy(b)[None].bool().to(where) for b in bits], sha256_hex(data))
