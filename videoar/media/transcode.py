"""Encode frames to video files, deterministically.

Equal frames give equal bytes with the same version of PyAV: one thread, bit-exact flags, no
metadata but the given tags. Clips are stored by the digest of their bytes, so this is what makes a
re-run idempotent.

Encoders run in this process: the pixels are our own, and a start of ffmpeg costs several times as
much as a small clip. Files are encoded in memory, so that no disk can cut one short.
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from videoar.core.errors import OutOfMemoryError
from videoar.media.decode import require_frames

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CODEC_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "libx264": {"preset": "fast"},
    "libx265": {"preset": "fast", "x265-params": "log-level=error:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b": "0", "cpu-used": "4"},
    "mpeg4": {},
    "mjpeg": {},
}
# Chosen (benchmarks/results/ingest.md): a third of the time of `fast` and less to decode, for a
# fifth more bytes at equal PSNR. What saves bytes at so low a cost is the distribution of bits over
# macroblocks (mbtree, aq) and deblocking.
_CLIP_OPTIONS = {
    "preset": "ultrafast",
    "x264-params": "mbtree=1:rc-lookahead=20:aq-mode=1:deblock=1:subme=2:cpu-independent=1",
}
# where swscale computes chroma samples; the default of H.264 is half a sample to the left
_EXACT = {"flags": "+bitexact", "chroma_sample_location": "center"}
_QUANTIZER = {"mpeg4", "mjpeg"}  # encoders without the option crf
_LAMBDA = 118  # FF_QP2LAMBDA of libavutil: units of `global_quality` per step of the quantizer
_MUXERS = {"mkv": "matroska", "ts": "mpegts"}  # where they are not called as the suffix
_BT709, _BT601 = 1, 6  # AVCOL_SPC_BT709 (primaries and transfer have the same number), SMPTE170M
_LIMITED, _FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG


@dataclass(frozen=True)
class _Format:
    """How to encode: codec, its options and pixel format; container and its options."""

    codec: str
    codec_options: Mapping[str, str]
    pix_fmt: str
    muxer: str
    muxer_options: Mapping[str, str]


def encode(
    frames: Iterable[np.ndarray],
    path: Path,
    rate_fps: float,
    *,
    codec: str = "libx264",
    crf: int = 12,
    pix_fmt: str = "yuv420p",
) -> None:
    """Encode a video; the suffix of the path chooses the container.

    Args:
        frames: uint8 RGB [height, width, 3] of one size; even sides unless `pix_fmt` is yuv444p.
        path: file to write.
        rate_fps: frame rate.
        codec: a key of `CODEC_OPTIONS`.
        crf: quality, smaller is better (the quantizer for mpeg4 and mjpeg).
        pix_fmt: pixel format of the file, except for mjpeg.
    """
    quality = {"crf": str(crf)}
    if codec in _QUANTIZER:
        quality = {"flags": "+bitexact+qscale", "global_quality": str(_LAMBDA * crf)}
    options = {**_EXACT, **CODEC_OPTIONS[codec], **quality}
    suffix = path.suffix[1:]
    form = _Format(codec, options, pix_fmt, _MUXERS.get(suffix, suffix), {})
    path.write_bytes(_encode(frames, rate_fps, form, {}))


def encode_clips(
    clips_NTHWC: Iterable[np.ndarray],
    rate_fps: float,
    crf: int,
    tags: Sequence[Mapping[str, str]] = (),
) -> list[bytes]:
    """Encode clips as H.264 MP4 in BT.709; return their bytes in order.

    The index (`moov`) comes first in each file, so that a player can start before the file ends.
    Each file is decoded once before it counts.

    Args:
        clips_NTHWC: uint8 RGB with even height and width.
        rate_fps: frame rate.
        crf: quality, smaller is better.
        tags: of each clip `title` and `comment`; empty for none.

    Raises:
        OutOfMemoryError: there is too little memory.
        TransientStorageError: an encoded clip cannot be decoded.
    """
    options = {**_EXACT, **_CLIP_OPTIONS, "crf": str(crf)}
    form = _Format("libx264", options, "yuv420p", "mp4", {"movflags": "+faststart"})
    videos = []
    for frames_THWC, tag in zip(clips_NTHWC, tags or itertools.repeat({}), strict=False):
        videos.append(_encode(frames_THWC, rate_fps, form, tag))
        require_frames(videos[-1], len(frames_THWC))
    return videos


@lru_cache(maxsize=1)
def tool_versions() -> Mapping[str, str]:
    """Return the version of PyAV, which brings its FFmpeg: pixels and bytes depend on it."""
    return {"av": version("av")}


def _encode(
    frames: Iterable[np.ndarray], rate_fps: float, form: _Format, tags: Mapping[str, str]
) -> bytes:
    import av

    options = {"fflags": "+bitexact", **form.muxer_options}
    rate = Fraction(rate_fps).limit_denominator(1001)
    # a name without a disk: the MP4 muxer opens its file again to move the index to the front
    with os.fdopen(os.memfd_create("video"), "rb") as file:
        name = f"file:/proc/self/fd/{file.fileno()}"
        try:
            with av.open(name, "w", format=form.muxer, options=options) as container:
                container.metadata.update(tags)
                _mux(container, frames, rate, form)
        except MemoryError as error:  # PyAV's, too
            hint = "fewer workers, or more memory"
            raise OutOfMemoryError(form.codec, str(error), hint) from error
        return file.read()


def _mux(
    container: "OutputContainer", frames: Iterable[np.ndarray], rate: Fraction, form: _Format
) -> None:
    from av import VideoFrame
    from av.video.reformatter import Interpolation, VideoReformatter

    # a cast: PyAV knows the type of the stream only for a literal name
    stream = cast("VideoStream", container.add_stream(form.codec, rate, dict(form.codec_options)))
    context, pix_fmt = stream.codec_context, form.pix_fmt
    # AVI has no place for these tags: what it lacks is read as BT.601
    matrix, levels = _BT601 if form.codec in _QUANTIZER else _BT709, _LIMITED
    if form.codec == "mjpeg":
        pix_fmt, levels = "yuvj420p", _FULL
    context.colorspace = context.color_primaries = context.color_trc = matrix
    context.color_range = levels
    context.pix_fmt, context.thread_count = pix_fmt, 1
    scaling = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    to_yuv, step = VideoReformatter().reformat, 1 / rate
    for index, frame_HWC in enumerate(frames):
        if index == 0:
            context.height, context.width, _ = frame_HWC.shape
        frame = to_yuv(
            VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame_HWC), format="rgb24"),
            format=pix_fmt,
            interpolation=scaling,
            dst_colorspace=matrix,
            dst_color_range=levels,
            threads=1,
        )
        frame.pts, frame.duration, frame.time_base = index, 1, step
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
