"""Decode the video stream of one source: tolerant of damage, strict about what it opens.

A source is a file of unknown origin. Its own header decides nothing but the values that are checked
here: one demuxer is named to FFmpeg (`videoar.media.probe`), only the `file` protocol is allowed,
and codec, dimensions and duration are bounded before the first frame is decoded.

Damage does not end the pass. Errors are counted at the frames that show them (`media.damage`), and
the policy decides later whether a damaged clip is kept (`decode_errors`). Only a source that gives
no usable frame at all is rejected.

Run this in the child process of `videoar.media.sandbox`: a decoder may still crash or hang.
"""

import math
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.format import Flags
from av.logging import ERROR, Capture, set_level, set_skip_repeated
from av.video.stream import VideoStream

from videoar.core.errors import MediaError
from videoar.core.types import Frozen, Row
from videoar.media.color import color_columns, require_known_colors, settle_matrix
from videoar.media.damage import DamageTracker
from videoar.media.orientation import UPRIGHT, Orientation, orientation_of
from videoar.media.probe import (
    ANIMATION_CODECS,
    CODECS,
    IMAGE_CODECS,
    detect_demuxer,
    require_readable,
    why_unreadable,
)
from videoar.media.stream_choice import choose_stream, codec_name
from videoar.media.timeline import MAX_GAP_US, Timeline, rate_and_regularity

_PIXEL_BYTES = 4  # chosen: more than one frame needs, in any common pixel format
_MAX_ASPECT = 100  # chosen: above anything real; it bounds the long side once the short one is set
_UNSPECIFIED_FPS = 25  # FFmpeg's own default rate
_MAX_FPS = 1000  # chosen: above it, what is announced is a clock
_WITHHOLDING = {"h264", "hevc"}  # their decoders give no frame that refers to a missing one
_UNTIMED = {"h264", "hevc", "mpegvideo", "m4v", "obu"}  # raw streams: their time stamps are guesses
# Where recordings are joined, the announced duration is the difference of two clocks: beyond half
# the range of a transport stream's clock, or with less data than any film has, it says nothing.
_HALF_CLOCK_US = 2**32 / 0.09
_MIN_BYTES_PER_S = 4_000  # chosen: a tenth of what streams at 240p have
# Containers that state the shape of a pixel, which then holds for players. In others it may change.
_SHAPED = ("mov", "matroska", "mxf", "asf")
_FIELD_ORDERS = {1: "progressive", 2: "tff", 3: "bff", 4: "bff", 5: "tff"}  # AVFieldOrder, as shown
_MAX_REFERRED = 3000  # chosen: frames, two minutes; streams without key frames refresh sooner
_LOOK_FRAMES = 4  # chosen: the usual number of frames between two that are no B-frames
_PREROLL_US = (0.0, 2e6, 8e6, 32e6, math.inf)  # chosen: how far before a part a seek is tried


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


@dataclass(frozen=True)
class SourceMetadata:
    """Columns of `clips@1` that belong to the whole source."""

    container: str
    stream_index: int
    codec: str
    pix_fmt: str
    src_width_px: int
    src_height_px: int
    src_rate_fps: float
    is_vfr: bool
    rotation_deg: int
    is_mirrored: bool
    color_transfer: str | None
    color_primaries: str | None
    color_matrix: str | None
    color_range: str
    field_order: str
    start_pts: int
    expected_frames: int | None
    decoded_frames: int
    is_set_back: bool | None
    clips_found: int | None = None
    clips_left_out: str | None = None


@contextmanager
def open_source(path: Path, plan: DecodePlan) -> Iterator["SourceDecoder"]:
    """Open a source with the one demuxer that its content names.

    Raises:
        MediaError: the file cannot be opened, is not allowed, or FFmpeg fails on it.
    """
    set_level(ERROR)
    set_skip_repeated(False)  # each message is one damaged place; FFmpeg would merge equal ones
    with Capture() as log:
        demuxer = detect_demuxer(
            path, allow_images=plan.allow_images, allow_animations=plan.allow_animations
        )
        with ExitStack() as opened:
            try:
                yield SourceDecoder(
                    path, lambda: opened.enter_context(_open(path, demuxer)), plan, log
                )
            except av.FFmpegError as error:  # e.g. a pixel format that swscale cannot convert
                raise MediaError(path.name, "CORRUPT", str(error.strerror)) from error


def _open(path: Path, demuxer: str) -> InputContainer:
    try:
        return av.open(
            f"file:{path}",  # the prefix keeps a name such as `concat:a|b` a plain file
            format=demuxer,
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": demuxer},
        )
    except av.error.MemoryError as error:
        raise MediaError(path.name, "MEM", "out of memory while opening the file") from error
    except av.FFmpegError as error:
        require_readable(path)
        if demuxer == "mov" and (why := why_unreadable(path)):
            raise MediaError(path.name, "TRUNCATED", why) from error
        what = f"cannot be opened: {error.strerror}"
        raise MediaError(path.name, "NOT_VIDEO", what) from error


class SourceDecoder:
    """One pass over the video stream of an open container.

    One thread: a process per core gives 1.3 times the throughput of a decoder with threads.
    """

    def __init__(
        self,
        path: Path,
        open_container: Callable[[], InputContainer],
        plan: DecodePlan,
        log: list[tuple[int, str, str]],
    ) -> None:
        self.name = path.name
        self.times_us: list[int] = []
        """Presentation time of each decoded frame, rising; 0 is the start of the source."""
        self._orientation: Orientation | None = None
        self.last_error = ""
        self._keys: list[int] = []  # indices of key frames in `times_us`
        self._skip_until_us: float = 0.0
        container = open_container()
        self._open, self._container = open_container, container
        self._path, self._plan, self._log = path, plan, log
        allowed = CODECS | (IMAGE_CODECS if plan.allow_images else frozenset())
        allowed |= ANIMATION_CODECS if plan.allow_animations else frozenset()
        stream = choose_stream(container.streams.video, allowed)
        if stream is None:
            covers = ", only a picture" if container.streams.video else ""
            raise MediaError(path.name, "NO_VIDEO_STREAM", f"has no video stream{covers}")
        if (codec := codec_name(stream)) not in allowed:  # "none" has no context
            raise MediaError(path.name, "CODEC_DENIED", f"codec {codec} is not allowed")
        self._use(stream)
        stated = stream.sample_aspect_ratio
        self.pixel_aspect = float(stated or 1) or 1.0
        """Width of a pixel over its height, of the last frame."""
        self._is_shape_coded = not stated or (
            stated == self._codec.sample_aspect_ratio
            and not container.format.name.startswith(_SHAPED)
        )
        self._withholds = codec in _WITHHOLDING
        self._is_timed = container.format.name not in _UNTIMED
        self._is_in_decoding_order = container.format.name == "avi"
        self._is_joinable = bool(Flags(container.format.flags) & Flags.ts_discont)
        self._duration_us = self._announced_duration()
        self._check_header()
        self._tick_us = float((stream.time_base or 0) * 1_000_000)  # Fractions are slow
        declared_fps = None if self._is_timed else self._codec.framerate
        rate_fps = float(declared_fps or stream.guessed_rate or 0)
        self._step_us = round(1e6 / (rate_fps if 0 < rate_fps < _MAX_FPS else _UNSPECIFIED_FPS))
        self._restart(plan.start_pts)
        self._num_announced = _presentable_frames(container, stream)
        self._num_withheld = 0
        self._has_jump_back = plan.is_set_back
        self._first_frame: Row = {}
        self._end_us = self._seek_to_part() if plan.parts > 1 else math.inf

    @property
    def orientation(self) -> Orientation:
        """Orientation of the last frame."""
        return self._orientation or UPRIGHT

    @property
    def expected_frames(self) -> int | None:
        """Number of frames that the container has for showing; None where it does not say."""
        # the container announces the frames of the whole file, not those of a part
        if not self._num_announced or self._plan.parts > 1:
            return None
        return max(1, self._num_announced - self._num_withheld)

    @property
    def last_us(self) -> int:
        """Presentation time of the last frame."""
        return self._timeline.last_us

    @property
    def announced_s(self) -> float:
        """Duration that the container announces, in s; 0 for unknown."""
        return self._duration_us / 1e6

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Yield each frame with the number of errors that it shows."""
        before: list[int] = []  # time stamps of the packets before the first frame
        for packet, following in _with_next(self._packets()):
            decoded = self._decode(packet)
            self._note_errors(packet, following)
            if not self.times_us and packet.pts is not None and not packet.is_discard:
                before.append(packet.pts)
            for frame in decoded:
                self._check_frame(frame)
                if not self._withholds and self._damage.is_rootless(frame):
                    continue
                errors = self._damage.errors_of(frame)
                self._orientation = orientation_of(frame, self._orientation, self.name)
                if self._skip_until_us and self._clock_us(frame) < self._skip_until_us:
                    continue
                self._skip_until_us = 0.0
                time_us = self._place(frame)
                if time_us >= self._end_us:
                    return
                if not self.times_us:
                    require_known_colors(frame, self._codec.codec_tag, self.name)
                    self._first_frame = self._describe(frame)
                    self._num_withheld = sum(pts < (frame.pts or 0) for pts in before)
                if frame.key_frame:
                    self._keys.append(len(self.times_us))
                self.times_us.append(time_us)
                yield frame, errors

    def times_behind(self, first: int, last: int) -> list[int]:
        """Return the times of frames by index, and of those before that they may refer to."""
        before = bisect_right(self._keys, first) - 1
        start = max(self._keys[before] if before >= 0 else 0, first - _MAX_REFERRED)
        return self.times_us[start : last + 1]

    def seek(self, time_us: float | None) -> None:
        """Go on with the frame shown at a time, or the first one after it; None rewinds the file.

        Containers without an index seek by guessing: they may land behind the time, or where frames
        refer to earlier ones, and the first time stamps may be those of other frames. So the first
        frames are looked at, and an earlier place is tried until they are right. Where a recording
        sets its clock back, a time names no place: the file is read from its start.
        """
        if time_us is None or (self._is_joinable and self._is_set_back()):
            self._rewind()
            return
        for preroll_us in _PREROLL_US:
            from_us = time_us - preroll_us
            if from_us <= 0:
                continue
            try:
                self.seek_near(from_us)
            except av.FFmpegError:
                continue  # streams without a container have no places
            found = (frame for packet in self._packets() for frame in self._decode(packet))
            first = list(islice(found, _LOOK_FRAMES))
            times_us = [self._clock_us(frame) for frame in first]
            is_rising = all(before < after for before, after in pairwise(times_us))
            if first and first[0].key_frame and is_rising and times_us[0] <= time_us:
                self.seek_near(from_us)
                break
        else:
            self._rewind()
        self._skip_until_us = time_us

    def seek_near(self, time_us: float) -> None:
        """Go on with some key frame near a time, for a look: it may be any other one."""
        start_pts = self._timeline.start_pts
        target = (start_pts or 0) + int(time_us / (self._tick_us or 1))
        self._container.seek(target, stream=self._stream, backward=True)
        self._restart(start_pts)

    def _use(self, stream: VideoStream) -> None:
        self._stream, self._codec = stream, stream.codec_context
        stream.thread_type = "NONE"
        self._codec.thread_count = 1

    def _rewind(self) -> None:
        """Open the file again: a seek to 0 goes to the start only where times begin at 0."""
        index = self._stream.index
        self._container.close()  # with the frames that its decoder holds
        self._container = self._open()
        self._use(next(s for s in self._container.streams.video if s.index == index))
        self._restart(self._timeline.start_pts)

    def _clock_us(self, frame: av.VideoFrame) -> float:
        """Return the time that a frame's own time stamp gives; -inf without one."""
        stamp = self._stamp(frame)
        if stamp is None:
            return -math.inf
        return round((stamp - (self._timeline.start_pts or 0)) * self._tick_us)

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """Return the time stamp of a frame, None where its container has none."""
        if not self._is_timed:
            return None
        # an AVI has the order of decoding only: FFmpeg guesses times of showing without B-frames
        return frame.dts if self._is_in_decoding_order else frame.pts

    def _restart(self, start_pts: int | None) -> None:
        """Forget what was read: the next packet may be from anywhere."""
        self._skip_until_us = 0.0
        self._log.clear()  # also what demuxers and decoders say while a file is opened
        self._timeline = Timeline(self._tick_us, self._step_us, start_pts)
        self._damage = DamageTracker(MAX_GAP_US / (self._tick_us or 1))
        self._orientation = None

    def metadata(self) -> SourceMetadata:
        """Return the metadata of the source; call it after all frames have been read."""
        rate_fps, is_vfr = rate_and_regularity(self.times_us)
        if self._has_jump_back is None:
            self._has_jump_back = self._timeline.is_set_back
        return SourceMetadata(
            container=self._container.format.name,
            stream_index=self._stream.index,
            codec=codec_name(self._stream),
            src_rate_fps=rate_fps,
            start_pts=self._timeline.start_pts or 0,
            is_vfr=is_vfr,
            expected_frames=self.expected_frames,
            decoded_frames=len(self.times_us),
            is_set_back=self._has_jump_back,
            **self._first_frame,
        )

    def _announced_duration(self) -> float:
        """Return the duration that the container announces, us; 0 for unknown."""
        duration_us = float(self._container.duration or 0)
        is_thin = self._container.size < _MIN_BYTES_PER_S * duration_us / 1e6
        is_long = duration_us > self._plan.max_duration_s * 1e6  # is refused, if that is true
        is_wrong = self._is_joinable and duration_us > _HALF_CLOCK_US
        is_wrong |= is_thin and (self._is_joinable or is_long)
        return 0.0 if is_wrong or not self._is_timed else duration_us

    def _check_header(self) -> None:
        """Check what the header announces, before a frame is decoded."""
        self._check_size(self._codec.width, self._codec.height)
        if self._duration_us > self._plan.max_duration_s * 1e6:
            raise MediaError(self.name, "TOO_LONG", f"lasts {self._duration_us / 1e6:.0f} s")

    def _check_frame(self, frame: av.VideoFrame) -> None:
        """Check what a stream may change on the way: size, shape of a pixel and colours."""
        if self._is_shape_coded and (frame.key_frame or not self.times_us):
            self.pixel_aspect = float(self._codec.sample_aspect_ratio or 1) or 1.0
        self._check_size(frame.width, frame.height)
        settle_matrix(frame, self.name)

    def _check_size(self, width: int, height: int) -> None:
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

    def _seek_to_part(self) -> float:
        """Seek to the first frame of this part; return the time at which the part ends.

        Where the container does not announce a duration, or its clock is set back on the way, so
        that a time names no place, the first part is the whole source.
        """
        part, parts = self._plan.part, self._plan.parts
        if not self._duration_us or (self._is_joinable and self._is_set_back()):
            return math.inf if part == 0 else 0.0
        # not the first frame's time stamp: parts after the first never see that frame
        start_pts = self._stream.start_time or 0
        if self._is_in_decoding_order:  # the first frame is given out some packets later
            found = (frame for packet in self._packets() for frame in self._decode(packet))
            start_pts = next((frame.dts for frame in found), None) or 0
            self._rewind()
        self._restart(start_pts)
        start_us, end_us = (self._duration_us * index / parts for index in (part, part + 1))
        if part:
            self.seek(start_us)
        return end_us if part < parts - 1 else math.inf

    def _is_set_back(self) -> bool:
        """Read all packets, once: return whether time stamps jump back, as in joined recordings."""
        if self._has_jump_back is not None:
            return self._has_jump_back
        stamps = (packet.dts for packet in self._packets() if packet.dts is not None)
        steps_us = ((after - before) * self._tick_us for before, after in pairwise(stamps))
        self._has_jump_back = any(step_us < -MAX_GAP_US for step_us in steps_us)
        self._rewind()
        return self._has_jump_back

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        """Demux to the end, or to where the container is broken; then flush the decoder."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError) as error:
                if isinstance(error, av.FFmpegError):
                    require_readable(self._path)
                    self.last_error = str(error.strerror)  # the frames before it are whole
                # IndexError: PyAV miscounts at the end of a file in which streams appear later
                flush: av.Packet[Any] = av.Packet()
                flush.stream = self._stream
                yield flush
                return
            if packet is None:
                return
            yield packet

    def _note_errors(self, packet: "av.Packet[Any]", following: list["av.Packet[Any]"]) -> None:
        """Count the messages that decoding a packet has given."""
        messages = [message.strip() for _, _, message in self._log]
        if messages:
            # A decoder that fails to allocate logs the same message as for damaged data.
            if _free_bytes() < _PIXEL_BYTES * self._codec.width * self._codec.height:
                raise MediaError(self.name, "MEM", "no memory left for another frame")
            self.last_error = messages[-1]
        self._damage.feed(packet, messages, following)

    def _place(self, frame: av.VideoFrame) -> int:
        """Return the presentation time of a frame."""
        time_us = self._timeline.place(self._stamp(frame))
        # the header may have announced less
        if self._timeline.shown_us > self._plan.max_duration_s * 1e6:
            what = f"shows more than {self._plan.max_duration_s:g} s"
            raise MediaError(self.name, "TOO_LONG", what)
        return time_us

    def _decode(self, packet: "av.Packet[Any]") -> list[av.VideoFrame]:
        if packet.is_keyframe and packet.has_sidedata("encryption_info"):
            raise MediaError(self.name, "ENCRYPTED", "is encrypted, and its key is elsewhere")
        self._log.clear()  # what was said since the last packet is about the container or the sound
        try:
            return list(packet.decode())
        except av.error.MemoryError as error:
            raise MediaError(self.name, "MEM", "out of memory while decoding") from error
        except av.FFmpegError as error:  # decoders report damage as many errors, even as EPERM
            self._log.append((ERROR, "decoder", str(error.strerror)))
            return []

    def _describe(self, frame: av.VideoFrame) -> Row:
        """Return the metadata that the first frame gives: sizes as displayed, square pixels."""
        width, height = max(1, round(frame.width * self.pixel_aspect)), frame.height
        return {
            "pix_fmt": frame.format.name,
            "src_width_px": height if self.orientation.is_sideways else width,
            "src_height_px": width if self.orientation.is_sideways else height,
            **self.orientation._asdict(),
            **color_columns(frame),
            "field_order": _FIELD_ORDERS.get(int(self._codec.field_order), "unknown"),
        }


def _with_next(
    packets: Iterator["av.Packet[Any]"],
) -> Iterator[tuple["av.Packet[Any]", list["av.Packet[Any]"]]]:
    """Yield each packet with the two after it."""
    window = list(islice(packets, 3))
    while window:
        packet, *following = window
        yield packet, following
        window = following + list(islice(packets, 1))


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


def _free_bytes() -> float:
    """Return how much more address space this process may map."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
