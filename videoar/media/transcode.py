"""Encode frames to video files, deterministically.

Equal frames give equal bytes with the same version of PyAV: one thread, bit-exact flags, no
metadata but the given tags. Clips are stored by the digest of their bytes, so this is what makes a
re-run idempotent.

Encoders run in this process: the pixels are our own, and a start of ffmpeg costs several times as
much as a small clip. Files are encoded in memory, so that no disk can cut one short.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from videoar.core.errors import OutOfMemoryError
from videoar.media.decode import require_frames

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CODEC_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "libx264": {"preset": "fast"},
    "libx265": {"preset": "fast", "x265-params": "log-level=error:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b": "0", "cpu-used": "4"},
    "mpeg4": {},
    "mjpeg": {},
}
# Chosen (benchmarks/results/ingest.md): one encoder serves many clips, as to open it costs a third
# of a clip. So nothing of a clip may depend on those before it: no rate control that remembers
# (qcomp=1 gives all frames one quantizer), no frames read ahead, no key frames but the first ones.
# What saves bytes at so low a cost is the distribution of bits over macroblocks (aq), deblocking.
_CLIP_OPTIONS = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "forced-idr": "1",
    "x264-params": "qcomp=1:keyint=infinite:aq-mode=1:aq-strength=0.7:deblock=1:subme=2"
    ":cpu-independent=1",
}
_LESS_CRF = 1.15  # chosen: bytes and PSNR are then those of the same crf with x264's mbtree
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
    rate: Fraction
    muxer: str
    muxer_options: Mapping[str, str]

    @property
    def matrix(self) -> int:
        """AVI has no place for this tag: what it lacks is read as BT.601."""
        return _BT601 if self.codec in _QUANTIZER else _BT709

    @property
    def levels(self) -> int:
        return _FULL if self.codec == "mjpeg" else _LIMITED


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
    pix_fmt = "yuvj420p" if codec == "mjpeg" else pix_fmt
    form = _Format(codec, options, pix_fmt, _rate(rate_fps), _MUXERS.get(suffix, suffix), {})
    path.write_bytes(_file(form, {}, partial(_mux, frames, form)))


def encode_clips(
    clips_NTHWC: Iterable[np.ndarray],
    rate_fps: float,
    crf: int,
    tags: Sequence[Mapping[str, str]] = (),
) -> list[bytes]:
    """Encode clips as H.264 MP4 in BT.709; return their bytes in order.

    The index (`moov`) comes first in each file, so that a player can start before the file ends.
    Each file is decoded once before it counts. Its bytes do not depend on the other clips.

    Args:
        clips_NTHWC: uint8 RGB with even height and width.
        rate_fps: frame rate.
        crf: quality, smaller is better.
        tags: of each clip `title` and `comment`; empty for none.

    Raises:
        OutOfMemoryError: there is too little memory.
        TransientStorageError: an encoded clip cannot be decoded.
    """
    options = {**_EXACT, **_CLIP_OPTIONS, "crf": str(max(crf - _LESS_CRF, 1))}
    movflags = {"movflags": "+faststart"}
    form = _Format("libx264", options, "yuv420p", _rate(rate_fps), "mp4", movflags)
    videos: list[bytes] = []
    tagged = zip(clips_NTHWC, tags or itertools.repeat({}), strict=False)
    for _, of_one_size in itertools.groupby(tagged, lambda item: item[0].shape[1:3]):
        mux = _ClipMuxer(form)
        for frames_THWC, tag in of_one_size:
            videos.append(_file(form, tag, partial(mux, frames_THWC)))
            require_frames(videos[-1], len(frames_THWC))
    return videos


@lru_cache(maxsize=1)
def tool_versions() -> Mapping[str, str]:
    """Return the version of PyAV, which brings its FFmpeg: pixels and bytes depend on it."""
    return {"av": version("av")}


def _rate(rate_fps: float) -> Fraction:
    return Fraction(rate_fps).limit_denominator(1001)


def _file(
    form: _Format, tags: Mapping[str, str], mux: Callable[["OutputContainer"], None]
) -> bytes:
    """Return the file that `mux` fills."""
    import av

    options = {"fflags": "+bitexact", **form.muxer_options}
    # a name without a disk: the MP4 muxer opens its file again to move the index to the front
    with os.fdopen(os.memfd_create("video"), "rb") as file:
        name = f"file:/proc/self/fd/{file.fileno()}"
        try:
            with av.open(name, "w", format=form.muxer, options=options) as container:
                container.metadata.update(tags)
                mux(container)
        except MemoryError as error:  # PyAV's, too
            hint = "fewer workers, or more memory"
            raise OutOfMemoryError(form.codec, str(error), hint) from error
        return file.read()


def _mux(frames: Iterable[np.ndarray], form: _Format, container: "OutputContainer") -> None:
    stream = None
    for frame in _yuv(frames, form):
        stream = stream or _add_stream(container, frame, form)
        container.mux(stream.encode(frame))
    if stream is not None:
        container.mux(stream.encode(None))


class _ClipMuxer:
    """Encodes clips of one size with one encoder, each into a file of its own."""

    def __init__(self, form: _Format) -> None:
        self._form = form
        self._encoder: VideoStream | None = None
        self._times = itertools.count()

    def __call__(self, frames_THWC: np.ndarray, container: "OutputContainer") -> None:
        from av.video.frame import PictureType

        # x264 numbers key frames 0 and 1 in turn, and the quantizer of one depends on the type of
        # the frame before it: all clips begin alike behind a key frame that is not kept
        black, *frames = _yuv([np.zeros_like(frames_THWC[0]), *frames_THWC], self._form)
        if self._encoder is None:
            self._encoder = stream = _add_stream(container, black, self._form)
            container.start_encoding()
        else:
            stream = container.add_stream_from_template(self._encoder)
        for index, frame in enumerate([black, *frames], -1):
            frame.pts = next(self._times)
            frame.pict_type = PictureType.I if index < 1 else PictureType.NONE
            (packet,) = self._encoder.encode(frame)
            if index >= 0:
                packet.pts = packet.dts = index
                packet.stream = stream
                container.mux(packet)


def _add_stream(container: "OutputContainer", frame: "VideoFrame", form: _Format) -> "VideoStream":
    options = dict(form.codec_options)
    # a cast: PyAV knows the type of the stream only for a literal name
    stream = cast("VideoStream", container.add_stream(form.codec, form.rate, options))
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = form.matrix
    context.color_range = form.levels
    context.pix_fmt, context.thread_count = form.pix_fmt, 1
    context.width, context.height = frame.width, frame.height
    return stream


def _yuv(frames: Iterable[np.ndarray], form: _Format) -> Iterator["VideoFrame"]:
    from av import VideoFrame
    from av.video.reformatter import Interpolation, VideoReformatter

    scaling = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    to_yuv, step = VideoReformatter().reformat, 1 / form.rate
    for index, frame_HWC in enumerate(frames):
        frame = to_yuv(
            VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame_HWC), format="rgb24"),
            format=form.pix_fmt,
            interpolation=scaling,
            dst_colorspace=form.matrix,
            dst_color_range=form.levels,
            threads=1,
        )
        frame.pts, frame.duration, frame.time_base = index, 1, step
        yield frame
