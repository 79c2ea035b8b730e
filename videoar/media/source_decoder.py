"""Decode the video stream of one source: tolerant of damage, strict about what it shows.

Damage does not end the pass. Errors are counted at the frames that show them (`media.damage`), and
the policy decides later whether a damaged clip is kept (`decode_errors`). Only a source that gives
no usable frame at all is rejected.

Run this in the child process of `videoar.media.sandbox`: a decoder may still crash or hang.
"""

import math
import resource
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
from av.logging import ERROR, Capture, set_level, set_skip_repeated

from videoar.core.errors import MediaError
from videoar.core.types import Row
from videoar.media.color import color_columns, require_known_colors, settle_matrix
from videoar.media.damage import DENSE_CODECS, DamageTracker, has_hole, length_bytes
from videoar.media.orientation import UPRIGHT, Orientation, orientation_of
from videoar.media.picture_kind import picture_kind
from videoar.media.source_stream import DecodePlan, SourceStream
from videoar.media.timeline import MAX_GAP_US, Timeline, rate_and_regularity

_PIXEL_BYTES = 4  # chosen: more than one frame needs, in any common pixel format
_WITHHOLDING = {"h264", "hevc"}  # their decoders give no frame that refers to a missing one
_FIELD_ORDERS = {1: "progressive", 2: "tff", 3: "bff", 4: "bff", 5: "tff"}  # AVFieldOrder, as shown
_MAX_REFERRED = 3000  # chosen: frames, two minutes; streams without key frames refresh sooner
_LOOK_FRAMES = 4  # chosen: the usual number of frames between two that are no B-frames
_PREROLL_US = (0.0, 2e6, 8e6, 32e6, math.inf)  # chosen: how far before a part a seek is tried


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
    picture_kind: str | None
    start_pts: int
    expected_frames: int | None
    decoded_frames: int
    is_set_back: bool | None
    clips_found: int | None = None
    clips_left_out: str | None = None


@contextmanager
def open_source(path: Path, plan: DecodePlan) -> Iterator["SourceDecoder"]:
    """Open a source for one pass.

    Raises:
        MediaError: the file cannot be opened, is not allowed, or FFmpeg fails on it.
    """
    set_level(ERROR)
    set_skip_repeated(False)  # each message is one damaged place; FFmpeg would merge equal ones
    with Capture() as log, ExitStack() as opened:
        try:
            yield SourceDecoder(SourceStream(path, plan, opened), plan, log)
        except av.FFmpegError as error:  # e.g. a pixel format that swscale cannot convert
            raise MediaError(path.name, "CORRUPT", str(error.strerror)) from error


class SourceDecoder:
    """One pass over the video stream of an open file."""

    def __init__(
        self, source: SourceStream, plan: DecodePlan, log: list[tuple[int, str, str]]
    ) -> None:
        self.name = source.name
        self.times_us: list[int] = []
        """Presentation time of each decoded frame, rising; 0 is the start of the source."""
        self._orientation: Orientation | None = None
        self._keys: list[int] = []  # indices of key frames in `times_us`
        self._skip_until_us: float = 0.0
        self._source, self._plan, self._log = source, plan, log
        self._withholds = source.codec_name in _WITHHOLDING
        self._is_dense = source.codec_name in DENSE_CODECS
        self._length_bytes = length_bytes(source.codec_name, source.codec.extradata or b"")
        self._restart(plan.start_pts)
        self._num_withheld = self._num_packets = self._num_interlaced = 0
        self._first_frame: Row = {}
        self._end_us = self._seek_to_part() if plan.parts > 1 else math.inf

    @property
    def orientation(self) -> Orientation:
        """Orientation of the last frame."""
        return self._orientation or UPRIGHT

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height, of the last frame."""
        return self._source.pixel_aspect

    @property
    def last_error(self) -> str:
        """Newest message of container or decoder."""
        return self._source.last_error

    @property
    def expected_frames(self) -> int | None:
        """Number of frames that the container has for showing; None where it does not say."""
        # the container announces the frames of the whole file, not those of a part
        if not self._source.num_presentable or self._plan.parts > 1:
            return None
        # both fields of a frame may be samples of their own
        without_frame = self._num_packets - len(self.times_us) - self._num_withheld
        second_fields = max(0, min(without_frame, self._num_interlaced))
        return max(1, self._source.num_presentable - self._num_withheld - second_fields)

    @property
    def last_us(self) -> int:
        """Presentation time of the last frame."""
        return self._timeline.last_us

    @property
    def announced_s(self) -> float:
        """Duration that the container announces, in s; 0 for unknown."""
        return self._source.duration_us / 1e6

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Yield each frame with the number of errors that it shows."""
        before: list[int] = []  # time stamps of the packets before the first frame
        for packet, following in _with_next(self._source.packets()):
            decoded = self._decode(packet)
            self._note_errors(packet, following)
            if packet.pts is not None and not packet.is_discard:
                self._num_packets += 1
                if not self.times_us:
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
                    require_known_colors(frame, self._source.codec.codec_tag, self.name)
                    self._first_frame = self._describe(frame)
                    self._num_withheld = sum(pts < (frame.pts or 0) for pts in before)
                if frame.key_frame:
                    self._keys.append(len(self.times_us))
                self._num_interlaced += frame.interlaced_frame
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
        if time_us is None or self._source.is_set_back():
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
            first = list(islice(self._decoded(), _LOOK_FRAMES))
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
        self._source.seek((start_pts or 0) + int(time_us / (self._source.tick_us or 1)))
        self._restart(start_pts)

    def _rewind(self) -> None:
        self._source.rewind()
        self._restart(self._timeline.start_pts)

    def _clock_us(self, frame: av.VideoFrame) -> float:
        """Return the time that a frame's own time stamp gives; -inf without one."""
        stamp = self._source.stamp(frame)
        if stamp is None:
            return -math.inf
        return round((stamp - (self._timeline.start_pts or 0)) * self._source.tick_us)

    def _restart(self, start_pts: int | None) -> None:
        """Forget what was read: the next packet may be from anywhere."""
        self._skip_until_us = 0.0
        self._log.clear()  # also what demuxers and decoders say while a file is opened
        tick_us = self._source.tick_us
        self._timeline = Timeline(tick_us, self._source.step_us, start_pts)
        self._damage = DamageTracker(MAX_GAP_US / (tick_us or 1))
        self._orientation = None

    def metadata(self) -> SourceMetadata:
        """Return the metadata of the source; call it after all frames have been read."""
        source, (rate_fps, is_vfr) = self._source, rate_and_regularity(self.times_us)
        if source.set_back is None:
            source.set_back = self._timeline.is_set_back
        return SourceMetadata(
            container=source.container.format.name,
            stream_index=source.stream.index,
            codec=source.codec_name,
            src_rate_fps=rate_fps,
            start_pts=self._timeline.start_pts or 0,
            is_vfr=is_vfr,
            expected_frames=self.expected_frames,
            decoded_frames=len(self.times_us),
            is_set_back=source.set_back,
            **self._first_frame,
        )

    def _check_frame(self, frame: av.VideoFrame) -> None:
        """Check what a stream may change on the way: size, shape of a pixel and colours."""
        if frame.key_frame or not self.times_us:
            self._source.follow_shape()
        self._source.check_size(frame.width, frame.height)
        settle_matrix(frame, self.name)

    def _seek_to_part(self) -> float:
        """Seek to the first frame of this part; return the time at which the part ends.

        Where the container does not announce a duration, or its clock is set back on the way, so
        that a time names no place, the first part is the whole source.
        """
        part, parts = self._plan.part, self._plan.parts
        if not self._source.duration_us or self._source.is_set_back():
            return math.inf if part == 0 else 0.0
        # not the first frame's time stamp: parts after the first never see that frame
        start_pts = self._source.stream.start_time or 0
        if self._source.is_in_decoding_order:  # the first frame is given out some packets later
            start_pts = next((frame.dts for frame in self._decoded()), None) or 0
            self._rewind()
        self._restart(start_pts)
        start_us, end_us = (self._source.duration_us * index / parts for index in (part, part + 1))
        if part:
            self.seek(start_us)
        return end_us if part < parts - 1 else math.inf

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield frames, for a look at the first ones."""
        return (frame for packet in self._source.packets() for frame in self._decode(packet))

    def _note_errors(self, packet: "av.Packet[Any]", following: list["av.Packet[Any]"]) -> None:
        """Count the messages that decoding a packet has given."""
        messages = [message.strip() for _, _, message in self._log]
        codec_name = self._source.codec_name
        if self._is_dense and has_hole(bytes(packet), codec_name, self._length_bytes):
            messages.append("zeros in place of data")
        if messages:
            # A decoder that fails to allocate logs the same message as for damaged data.
            codec = self._source.codec
            if _free_bytes() < _PIXEL_BYTES * codec.width * codec.height:
                raise MediaError(self.name, "MEM", "no memory left for another frame")
            self._source.last_error = messages[-1]
        self._damage.feed(packet, messages, following)

    def _place(self, frame: av.VideoFrame) -> int:
        """Return the presentation time of a frame."""
        time_us = self._timeline.place(self._source.stamp(frame))
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
            "field_order": _FIELD_ORDERS.get(int(self._source.codec.field_order), "unknown"),
            "picture_kind": picture_kind(
                frame,
                self._source.codec_name,
                has_alpha_layer=self._source.stream.metadata.get("alpha_mode") == "1",
            ),
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


def _free_bytes() -> float:
    """Return how much more address space this process may map."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
