"""Decode the video stream of one source: tolerant of damage, strict about what it opens.

A source is a file of unknown origin. Its own header decides nothing but the values that are checked
here: one demuxer is named to FFmpeg (`videoar.media.probe`), only the `file` protocol is allowed,
and codec, dimensions and duration are bounded before the first frame is decoded.

Damage does not end the pass. Errors are counted at the frames that show them, and the policy
decides later whether a damaged clip is kept (`decode_errors`). Only a source that gives no usable
frame at all is rejected.

Run this in the child process of `videoar.media.sandbox`: a decoder may still crash or hang.
"""

import math
import resource
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.logging import ERROR, Capture, set_level, set_skip_repeated

from videoar.core.errors import MediaError
from videoar.core.types import Frozen
from videoar.media.probe import CODECS, IMAGE_CODECS, detect_demuxer, require_readable

_VFR_SPREAD = 0.2  # chosen: of the median frame duration; up to 120 fps, rounding to ms is less
_PIXEL_BYTES = 4  # chosen: more than one frame needs, in any common pixel format
_MAX_ASPECT = 100  # chosen: above anything real; it bounds the long side once the short one is set
_UNSPECIFIED_FPS = 25  # FFmpeg's own default rate


class DecodePlan(Frozen):
    """Which part of a source to decode, and what a source may be."""

    max_duration_s: float = 600.0
    max_pixels: int = 9_437_184
    allow_images: bool = False
    """Whether a PNG or JPEG file counts as a video of one frame."""
    part: int = 0
    parts: int = 1
    """A long source is decoded in parts of equal duration, each in a separate pass."""
    start_pts: int | None = None
    """Time stamp at which time is 0; None takes that of the first frame."""


@dataclass(frozen=True)
class SourceMetadata:
    """Columns of `clips@1` that belong to the whole source."""

    container: str
    codec: str
    pix_fmt: str
    src_width_px: int
    src_height_px: int
    src_rate_fps: float
    is_vfr: bool
    rotation_deg: int
    start_pts: int
    expected_frames: int | None
    decoded_frames: int


@contextmanager
def open_source(path: Path, plan: DecodePlan) -> Iterator["SourceDecoder"]:
    """Open a source with the one demuxer that its content names.

    Raises:
        MediaError: the file cannot be opened, is not allowed, or FFmpeg fails on it.
    """
    set_level(ERROR)
    set_skip_repeated(False)  # each message is one damaged place; FFmpeg would merge equal ones
    with Capture() as log:
        demuxer = detect_demuxer(path, allow_images=plan.allow_images)
        try:
            container = av.open(
                f"file:{path}",  # the prefix keeps a name such as `concat:a|b` a plain file
                format=demuxer,
                metadata_errors="replace",
                options={"protocol_whitelist": "file", "format_whitelist": demuxer},
            )
        except av.error.MemoryError as error:
            raise MediaError(path.name, "MEM", "out of memory while opening the file") from error
        except av.FFmpegError as error:
            require_readable(path)
            what = f"cannot be opened: {error.strerror}"
            raise MediaError(path.name, "NOT_VIDEO", what) from error
        with container:
            try:
                yield SourceDecoder(path, container, plan, log)
            except av.FFmpegError as error:  # e.g. a pixel format that swscale cannot convert
                raise MediaError(path.name, "CORRUPT", str(error.strerror)) from error


class SourceDecoder:
    """One pass over the video stream of an open container.

    One thread: a process per core gives 1.3 times the throughput of a decoder with threads.
    """

    def __init__(
        self,
        path: Path,
        container: InputContainer,
        plan: DecodePlan,
        log: list[tuple[int, str, str]],
    ) -> None:
        self.name = path.name
        self.times_us: list[int] = []
        """Presentation time of each decoded frame, rising; 0 is the start of the source."""
        self.last_us = -1
        self.last_error = ""
        self._path, self._container, self._plan, self._log = path, container, plan, log
        if not container.streams.video:
            raise MediaError(path.name, "NO_VIDEO_STREAM", "has no video stream")
        self._stream = container.streams.video[0]
        self._codec = self._stream.codec_context
        self._check_header()
        self._start_pts = plan.start_pts
        self._time_base_us = float((self._stream.time_base or 0) * 1_000_000)  # Fractions are slow
        self._stream.thread_type = "NONE"
        self._codec.thread_count = 1
        self._window_us = self._seek_to_part() if plan.parts > 1 else (0.0, math.inf)
        self._first_frame: dict[str, str | int] = {}

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height."""
        return float(self._stream.sample_aspect_ratio or 1) or 1.0

    @property
    def announced_frames(self) -> int:
        """Number of frames that the container announces, 0 for unknown."""
        return self._stream.frames or 0

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Yield each frame with the number of errors that it shows.

        After an error every frame counts as damaged until a key frame with a later time stamp: the
        frames between may refer to the damaged one. An earlier key frame proves nothing, because
        with B-frames the decode order is not the display order.
        """
        damaged_from: int | None = None
        errors = 0  # a packet that gives no frame passes its errors on to the next frame
        for packet in self._packets():
            frames = self._decode(packet)
            errors += len(self._log)
            if self._log:
                # A decoder that fails to allocate logs the same message as for damaged data.
                if _free_bytes() < _PIXEL_BYTES * self._codec.width * self._codec.height:
                    raise MediaError(self.name, "MEM", "no memory left for another frame")
                self.last_error = self._log[-1][2].strip()
                self._log.clear()
                damaged_from = packet.pts or 0
            for frame in frames:
                self._check_size(frame.width, frame.height)  # a stream may change its size
                if frame.is_corrupt:
                    errors += 1
                elif damaged_from is not None and _is_key_frame_after(frame, damaged_from):
                    damaged_from = None
                time_us = self._presentation_time(frame)
                if time_us >= self._window_us[1]:
                    return
                if time_us < self._window_us[0]:
                    continue
                if not self.times_us:
                    self._first_frame = self._describe(frame)
                self.times_us.append(time_us)
                yield frame, max(errors, damaged_from is not None)
                errors = 0

    def seek(self, time_us: float | None) -> None:
        """Move to the last key frame at or before a time; None rewinds the file."""
        if time_us is None:
            self._container.seek(0)
        else:
            target = (self._start_pts or 0) + int(time_us / (self._time_base_us or 1))
            self._container.seek(target, stream=self._stream, backward=True)
        self.last_us = -1

    def metadata(self) -> SourceMetadata:
        """Return the metadata of the source; call it after all frames have been read."""
        steps = np.diff(self.times_us)
        typical = statistics.median(steps.tolist()) if len(steps) else 0
        return SourceMetadata(
            container=self._container.format.name,
            codec=self._codec.codec.canonical_name,
            src_rate_fps=1e6 * len(steps) / float(steps.sum()) if len(steps) else 0.0,
            start_pts=self._start_pts or 0,
            is_vfr=bool(len(steps) and np.ptp(steps) > _VFR_SPREAD * typical),
            # the container announces the frames of the whole file, not those of a part
            expected_frames=self.announced_frames or None if self._plan.parts == 1 else None,
            decoded_frames=len(self.times_us),
            **self._first_frame,  # type: ignore[arg-type] # the four keys of `_describe`
        )

    def _check_header(self) -> None:
        """Check what the header announces, before a frame is decoded."""
        # PyAV returns None for a stream that FFmpeg has no decoder for, contrary to its stubs
        codec = getattr(self._codec, "codec", None)
        name = codec.canonical_name if codec else "none"
        if name not in (CODECS | IMAGE_CODECS if self._plan.allow_images else CODECS):
            raise MediaError(self.name, "CODEC_DENIED", f"codec {name} is not allowed")
        self._check_size(self._codec.width, self._codec.height)
        duration_s = (self._container.duration or 0) / av.time_base
        if duration_s > self._plan.max_duration_s:
            raise MediaError(self.name, "TOO_LONG", f"lasts {duration_s:.0f} s")

    def _check_size(self, width: int, height: int) -> None:
        """Reject sizes that would exhaust memory.

        The aspect ratio counts too: resizing covers the short side, so that the long side of an
        intermediate frame grows with the ratio.
        """
        displayed = (width * self.pixel_aspect, height)
        is_too_narrow = max(displayed) > _MAX_ASPECT * min(displayed) > 0
        if is_too_narrow or width * height > self._plan.max_pixels:
            raise MediaError(self.name, "TOO_LARGE_DIM", f"is {width}x{height} pixels")

    def _seek_to_part(self) -> tuple[float, float]:
        """Seek to the key frame before this part; return the start and end times of the part.

        Where the container does not announce a duration, the first part is the whole source.
        """
        part, parts = self._plan.part, self._plan.parts
        duration_us = float(self._container.duration or 0)
        if not duration_us:
            return (0.0, math.inf) if part == 0 else (math.inf, math.inf)
        # not the first frame's time stamp: parts after the first never see that frame
        self._start_pts = self._stream.start_time or 0
        start_us, end_us = (duration_us * index / parts for index in (part, part + 1))
        if part:
            self.seek(start_us)
        return (start_us, end_us) if part < parts - 1 else (start_us, math.inf)

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        """Demux to the end, or to where the container is broken; then flush the decoder."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError) as error:
                if isinstance(error, av.FFmpegError):
                    require_readable(self._path)
                    self._log.append((ERROR, "demuxer", str(error.strerror)))
                # IndexError: PyAV miscounts at the end of a file in which streams appear later
                flush: av.Packet[Any] = av.Packet()
                flush.stream = self._stream
                yield flush
                return
            if packet is None:
                return
            yield packet

    def _decode(self, packet: "av.Packet[Any]") -> list[av.VideoFrame]:
        try:
            return list(packet.decode())
        except av.error.MemoryError as error:
            raise MediaError(self.name, "MEM", "out of memory while decoding") from error
        except av.FFmpegError as error:  # decoders report damage as many errors, even as EPERM
            self._log.append((ERROR, "decoder", str(error.strerror)))
            return []

    def _presentation_time(self, frame: av.VideoFrame) -> int:
        """Return the time of a frame in us; replace one that is missing or not later than the last.

        Time stamps of damaged or badly muxed files run backwards; everything downstream relies on
        rising times.
        """
        pts, last_us = frame.pts, self.last_us
        if self._start_pts is None:
            self._start_pts = pts or 0
        time_us = last_us if pts is None else round((pts - self._start_pts) * self._time_base_us)
        if last_us < 0:
            time_us = max(0, time_us)
        elif time_us <= last_us:
            rate_fps = self._stream.average_rate or _UNSPECIFIED_FPS
            time_us = last_us + max(1, round(1e6 / rate_fps))
        if time_us > self._plan.max_duration_s * 1e6:  # the header may have announced less
            raise MediaError(self.name, "TOO_LONG", f"has a frame at {time_us / 1e6:.0f} s")
        self.last_us = time_us
        return time_us

    def _describe(self, frame: av.VideoFrame) -> dict[str, str | int]:
        """Return the metadata that the first frame gives: sizes as displayed, square pixels."""
        width, height = max(1, round(frame.width * self.pixel_aspect)), frame.height
        quarter_turns = round(frame.rotation / 90)
        return {
            "pix_fmt": frame.format.name,
            "src_width_px": height if quarter_turns % 2 else width,
            "src_height_px": width if quarter_turns % 2 else height,
            "rotation_deg": -90 * quarter_turns % 360,
        }


def _is_key_frame_after(frame: av.VideoFrame, pts: int) -> bool:
    return bool(frame.key_frame) and (frame.pts or 0) > pts


def _free_bytes() -> float:
    """Return how much more address space this process may map."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
