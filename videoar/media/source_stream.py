"""The video stream of one source: its packets, and what its container announces.

A source is a file of unknown origin. Its own header decides nothing but the values that are checked
here: one demuxer is named to FFmpeg (`videoar.media.probe`), only the `file` protocol is allowed,
and codec, dimensions and duration are bounded before the first frame is decoded.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.format import Flags
from av.video.stream import VideoStream

from videoar.core.errors import MediaError
from videoar.core.types import Frozen
from videoar.media.probe import (
    ANIMATION_CODECS,
    CODECS,
    IMAGE_CODECS,
    detect_demuxer,
    read_error,
    require_readable,
    why_unreadable,
)
from videoar.media.stream_choice import choose_stream, codec_name
from videoar.media.timeline import MAX_GAP_US
from videoar.media.transport_stream import TransportStream

_MAX_ASPECT = 100  # chosen: above anything real; it bounds the long side once the short one is set
_UNSPECIFIED_FPS = 25  # FFmpeg's own default rate
_MAX_FPS = 1000  # chosen: above it, what is announced is a clock
_UNTIMED = {"h264", "hevc", "mpegvideo", "m4v", "obu"}  # raw streams: their time stamps are guesses
# Where recordings are joined, the announced duration is the difference of two clocks: beyond half
# the range of a transport stream's clock, or with less data than any film has, it says nothing.
_HALF_CLOCK_US = 2**32 / 0.09
_MIN_BYTES_PER_S = 4_000  # chosen: a tenth of what streams at 240p have
# Containers that state the shape of a pixel, which then holds for players. In others it may change.
_SHAPED = ("mov", "matroska", "mxf", "asf")


class DecodePlan(Frozen):
    """Which part of a source to decode, and what a source may be."""

    max_duration_s: float = 600.0
    max_pixels: int = 9_437_184
    allow_images: bool = False
    """Whether a PNG or JPEG file counts as a video of one frame."""
    allow_animations: bool = False
    """Whether a GIF counts as a video."""
    part: int = 0
    parts: int = 1
    """A long source is decoded in parts of equal duration, each in a separate pass."""
    start_pts: int | None = None
    """Time stamp at which time is 0; None takes that of the first frame."""
    is_set_back: bool | None = None
    """Column of that name; None: a container that may hold joined recordings is read for it."""


class SourceStream:
    """The video stream of an open file.

    One thread: a process per core gives 1.3 times the throughput of a decoder with threads.
    """

    def __init__(self, path: Path, plan: DecodePlan, opened: ExitStack) -> None:
        """Open a file with the one demuxer that its content names.

        Args:
            path: the file.
            plan: what it may be.
            opened: closes it.

        Raises:
            MediaError: it cannot be opened, or is not allowed.
        """
        self.name = path.name
        self._path, self._plan, self._opened = path, plan, opened
        self._demuxer = detect_demuxer(
            path, allow_images=plan.allow_images, allow_animations=plan.allow_animations
        )
        self.container = container = self._open()
        allowed = CODECS | (IMAGE_CODECS if plan.allow_images else frozenset())
        allowed |= ANIMATION_CODECS if plan.allow_animations else frozenset()
        stream = choose_stream(container.streams.video, allowed)
        if stream is None:
            covers = ", only a picture" if container.streams.video else ""
            raise MediaError(path.name, "NO_VIDEO_STREAM", f"has no video stream{covers}")
        self.codec_name = codec_name(stream)
        if self.codec_name not in allowed:  # "none" has no context
            raise MediaError(path.name, "CODEC_DENIED", f"codec {self.codec_name} is not allowed")
        self._use(stream)
        self.last_error = ""
        """Newest message of container or decoder."""
        self._is_timed = container.format.name not in _UNTIMED
        self.is_in_decoding_order = container.format.name == "avi"
        is_live = container.format.name == "flv"  # recordings of RTMP, whose clock restarts
        self._is_joinable = is_live or bool(Flags(container.format.flags) & Flags.ts_discont)
        self.set_back = plan.is_set_back
        """Whether time stamps jump back, as in joined recordings; None: not known."""
        self.duration_us = self._announced_duration()
        """Duration that the container announces; 0 for unknown."""
        stated = stream.sample_aspect_ratio
        self.pixel_aspect = float(stated or 1) or 1.0
        """Width of a pixel over its height, of the last frame."""
        self._is_shape_coded = not stated or (
            stated == self.codec.sample_aspect_ratio
            and not container.format.name.startswith(_SHAPED)
        )
        self.check_size(self.codec.width, self.codec.height)
        if self.duration_us > plan.max_duration_s * 1e6:
            raise MediaError(self.name, "TOO_LONG", f"lasts {self.duration_us / 1e6:.0f} s")
        self.tick_us = float((stream.time_base or 0) * 1_000_000)  # Fractions are slow
        declared_fps = None if self._is_timed else self.codec.framerate
        rate_fps = float(declared_fps or stream.guessed_rate or 0)
        self.step_us = round(1e6 / (rate_fps if 0 < rate_fps < _MAX_FPS else _UNSPECIFIED_FPS))
        """Duration of a frame whose time stamp says nothing."""
        self.num_presentable = _presentable_frames(container, stream)

    def packets(self) -> Iterator["av.Packet[Any]"]:
        """Demux to the end, or to where the container is broken; then flush the decoder."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError) as error:
                if isinstance(error, av.FFmpegError):
                    require_readable(self._path)
                    self.last_error = str(error.strerror)  # the frames before it are whole
                # IndexError: PyAV miscounts at the end of a file in which streams appear later
                flush: av.Packet[Any] = av.Packet()
                flush.stream = self.stream
                yield flush
                return
            if packet is None:
                return
            yield packet

    def stamp(self, frame: av.VideoFrame) -> int | None:
        """Return the time stamp of a frame, None where its container has none."""
        if not self._is_timed:
            return None
        # an AVI has the order of decoding only: FFmpeg guesses times of showing without B-frames
        return frame.dts if self.is_in_decoding_order else frame.pts

    def seek(self, pts: int) -> None:
        """Go on with a packet before a time stamp.

        Raises:
            av.FFmpegError: the stream has no places.
        """
        self.container.seek(pts, stream=self.stream, backward=True)

    def rewind(self) -> None:
        """Open the file again: a seek to 0 goes to the start only where times begin at 0."""
        index = self.stream.index
        self.container.close()  # with the frames that its decoder holds
        self.container = self._open()
        self._use(next(s for s in self.container.streams.video if s.index == index))

    def is_set_back(self) -> bool:
        """Return whether times name no place; where that is not known, read all packets for it."""
        if self.set_back is None and self._is_joinable:
            stamps = (packet.dts for packet in self.packets() if packet.dts is not None)
            steps_us = ((after - before) * self.tick_us for before, after in pairwise(stamps))
            self.set_back = any(step_us < -MAX_GAP_US for step_us in steps_us)
            self.rewind()
        return bool(self.set_back)

    def follow_shape(self) -> None:
        """Take the shape of a pixel that the stream itself states now, where that counts."""
        if self._is_shape_coded:
            self.pixel_aspect = float(self.codec.sample_aspect_ratio or 1) or 1.0

    def check_size(self, width: int, height: int) -> None:
        """Reject sizes that would exhaust memory.

        The aspect ratio counts too: resizing covers the short side, so that the long side of an
        intermediate frame grows with the ratio.
        """
        displayed = (width * self.pixel_aspect, height)
        if width * height > self._plan.max_pixels:
            raise MediaError(self.name, "TOO_LARGE_DIM", f"is {width}x{height} pixels")
        if max(displayed) > _MAX_ASPECT * min(displayed) > 0:
            what = f"is shown as {displayed[0]:.0f}x{height}: one side is over {_MAX_ASPECT} times"
            raise MediaError(self.name, "TOO_LARGE_DIM", f"{what} the other")

    def _use(self, stream: VideoStream) -> None:
        self.stream, self.codec = stream, stream.codec_context
        stream.thread_type = "NONE"
        self.codec.thread_count = 1

    def _announced_duration(self) -> float:
        duration_us = float(self.container.duration or 0)
        is_thin = self.container.size < _MIN_BYTES_PER_S * duration_us / 1e6
        is_long = duration_us > self._plan.max_duration_s * 1e6  # is refused, if that is true
        is_wrong = self._is_joinable and duration_us > _HALF_CLOCK_US
        is_wrong |= is_thin and (self._is_joinable or is_long)
        return 0.0 if is_wrong or not self._is_timed else duration_us

    def _open(self) -> InputContainer:
        try:
            container = av.open(
                # the prefix keeps a name such as `concat:a|b` a plain file
                self._transport_stream() or f"file:{self._path}",
                mode="r",
                format=self._demuxer,
                metadata_errors="replace",
                options={"protocol_whitelist": "file", "format_whitelist": self._demuxer},
            )
        except av.error.MemoryError as error:
            raise MediaError(self.name, "MEM", "out of memory while opening the file") from error
        except av.FFmpegError as error:
            require_readable(self._path)
            if self._demuxer == "mov" and (why := why_unreadable(self._path)):
                raise MediaError(self.name, "TRUNCATED", why) from error
            what = f"cannot be opened: {error.strerror}"
            raise MediaError(self.name, "NOT_VIDEO", what) from error
        return self._opened.enter_context(container)

    def _transport_stream(self) -> TransportStream | None:
        if self._demuxer != "mpegts":
            return None
        try:
            return self._opened.enter_context(TransportStream(self._path))
        except OSError as error:
            raise read_error(self._path, error) from error


def _presentable_frames(container: InputContainer, stream: VideoStream) -> int:
    """Return the number of frames that are there to be shown, 0 for unknown.

    Headers count samples: also those that an edit list hides, and the empty ones with which AVI
    holds a picture. The index, once read, has neither, or marks them.
    """
    num_samples, index = stream.frames or 0, stream.index_entries
    is_whole = container.format.name.startswith("mov")
    if container.format.name == "avi" and len(index) > 1:  # the clock of H.264 counts fields
        last, before = index[-1].timestamp, index[-2].timestamp
        is_whole = 2 * last - before >= num_samples
    if not num_samples or not len(index) or not is_whole:
        return num_samples
    return sum(not entry.is_discard for entry in index)
