"""Read a source once: spans, their scores and hashes, and what the file turned out to be.

The only decode of a source. PyAV with one thread (a process per core beats threads by 1.3x), every
frame as a small luma picture for shots and scores, RGB at clip size for frames on the grid alone.
The grid is fixed in presentation time from the start of the source, so that it does not depend on
where shots begin. Decoding is tolerant, errors are counted per span: whether a damaged clip may
stay is a matter of policy. This runs in the killable child of `isolate`; nothing else should call
it on files of others.
"""

import itertools
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
from videoar.media.clip_scores import phash, score_span
from videoar.media.frame_resizer import FrameResizer, Size
from videoar.media.probe import CODECS, detect_demuxer
from videoar.media.shots import MAX_GAP_US, SampledFrame, Span, shots, spans
from videoar.media.transitions import Transition, find_transitions

_VFR_SPREAD = 0.2
_INTACT_SHARE = 0.98
_EARLY_US = 1_500  # containers round to milliseconds
_PIXEL_BYTES = 4  # chosen: more than a picture needs; decoders may not say why they lost one
_MAX_ASPECT = 100  # chosen: nothing real; bounds a frame whose long side grows with the short one


class ScanPlan(Frozen):
    """What to take from a source, and what a source may be."""

    num_frames: int = 17
    rate_fps: float | None = None
    size_px: int | tuple[Size, ...] = 64
    """Side of square clips, or sizes (height, width) to choose from: see `FrameResizer`."""
    find_shots: bool = True
    max_clips: int = 64
    max_duration_s: float = 600.0
    max_pixels: int = 9_437_184
    part: int = 0
    parts: int = 1
    """A long source is read in parts of equal duration, each one by itself."""
    take_us: tuple[int, ...] = ()
    """Take the frames that are shown at these times instead of looking for clips."""
    start_pts: int | None = None
    """Time stamp from which on times count; with `take_us`."""


@dataclass(frozen=True)
class DecodedClip:
    """One clip: pixels at clip size, and its scores."""

    frames_THWC: np.ndarray  # noqa: N815 - shape suffix
    columns: dict[str, Any]
    """Columns of `clips@1` that belong to the span."""


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


def scan(path: Path, plan: ScanPlan) -> Iterator[DecodedClip | SourceMetadata]:
    """Yield a source's clips in order, then the metadata of the source.

    Raises:
        MediaError: the file cannot be used as a whole.
    """
    with _opened(path, plan) as reading:
        yield from reading.decoded()


def detect_transitions(path: Path, plan: ScanPlan) -> list[Transition]:
    """Return the changes of shot of a source, by the same reading; for measurements."""
    with _opened(path, plan) as reading:
        luma_frames = np.stack([reading.resizer.luma(frame) for frame, _ in reading.frames()])
        return find_transitions(luma_frames, np.array(reading.times_us))


@contextmanager
def _opened(path: Path, plan: ScanPlan) -> Iterator["_Reading"]:
    """Open a source with the one demuxer that may read it; what FFmpeg raises becomes ours."""
    set_level(ERROR)
    set_skip_repeated(False)
    with Capture() as log:
        demuxer = detect_demuxer(path)
        try:
            container = av.open(
                f"file:{path}",
                format=demuxer,
                metadata_errors="replace",
                options={"protocol_whitelist": "file", "format_whitelist": demuxer},
            )
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error
        with container:
            try:
                yield _Reading(path.name, container, plan, log)
            except av.FFmpegError as error:  # such as a picture in colours that nothing converts
                raise MediaError(path.name, "CORRUPT", str(error.strerror)) from error


def _unreadable(path: Path, error: av.FFmpegError) -> MediaError:
    if isinstance(error, av.error.MemoryError):
        return MediaError(path.name, "MEM", "out of memory while opening")
    return MediaError(path.name, "NOT_VIDEO", f"cannot be opened: {error.strerror}")


class _Reading:
    """The state of one pass over one open container."""

    def __init__(
        self, name: str, container: InputContainer, plan: ScanPlan, log: list[Any]
    ) -> None:
        self.name, self.container, self.plan, self.log = name, container, plan, log
        if not container.streams.video:
            raise MediaError(name, "NO_VIDEO_STREAM", "no video stream")
        self.stream = container.streams.video[0]
        self.codec = self.stream.codec_context
        self._refuse()
        self.start = plan.start_pts
        self.tick_us = float((self.stream.time_base or 0) * 1_000_000)  # fractions are slow
        self.stream.thread_type = "NONE"
        self.codec.thread_count = 1
        self.times_us: list[int] = []
        self.window_us = self._seek() if plan.parts > 1 else (0.0, math.inf)
        self.last_us = -1
        self.last_error = ""
        self.columns: dict[str, Any] = {}
        self.resizer = FrameResizer(plan.size_px, self._aspect())

    def decoded(self) -> Iterator[DecodedClip | SourceMetadata]:
        if self.plan.take_us:
            yield DecodedClip(np.stack(self._taken()), {})
            return
        frames = self.frames()
        ticks = self._ticks(frames) if self.plan.rate_fps is None else self._grid(frames)
        found = spans(shots(ticks, find=self.plan.find_shots), self.plan.num_frames)
        count = 0
        for span in itertools.islice(found, self.plan.max_clips):
            count += 1
            yield self._excerpt(span)
        for _ in frames:  # the rest of the source still counts and still shows its errors
            pass
        self._judge(count)
        if self.times_us:
            yield self._source()

    def _refuse(self) -> None:
        """Refuse what the header alone forbids, before a frame is decoded."""
        # PyAV's types leave out that a codec without a decoder has no context
        name = self.codec.codec.canonical_name if self.codec else "none"  # type: ignore[truthy-bool]
        if name not in CODECS:
            raise MediaError(self.name, "CODEC_DENIED", f"codec {name}")
        self._refuse_size(self.codec.width, self.codec.height)
        duration_s = (self.container.duration or 0) / av.time_base
        if duration_s > self.plan.max_duration_s:
            raise MediaError(self.name, "TOO_LONG", f"{duration_s:.0f} s")

    def _refuse_size(self, width: int, height: int) -> None:
        shown = (width * self._aspect(), height)
        is_needle = max(shown) > _MAX_ASPECT * min(shown) > 0
        if is_needle or width * height > self.plan.max_pixels:
            raise MediaError(self.name, "TOO_LARGE_DIM", f"{width}x{height}")

    def _seek(self) -> tuple[float, float]:
        """Go to the key frame before this part; return the part's begin and end.

        Where the container does not say how long it is, the first part is the whole.
        """
        part, parts = self.plan.part, self.plan.parts
        duration_us = float(self.container.duration or 0)
        if not duration_us:
            return (0.0, math.inf) if part == 0 else (math.inf, math.inf)
        self.start = self.stream.start_time or 0
        begin, end = (duration_us * place / parts for place in (part, part + 1))
        if part:
            target = self.start + int(begin / (self.tick_us or 1))
            self.container.seek(target, stream=self.stream, backward=True)
        return (begin, end) if part < parts - 1 else (begin, math.inf)

    def _taken(self) -> list[np.ndarray]:
        """Find known frames again: after a seek, or from the beginning if that leads astray."""
        wanted = self.plan.take_us
        target = (self.start or 0) + int(wanted[0] / (self.tick_us or 1))
        found: dict[int, np.ndarray] = {}
        for place in (target, None):
            if place is not None:
                self.container.seek(place, stream=self.stream, backward=True)
            else:
                self.container.seek(0)
            self.last_us = -1
            found.clear()
            for frame, _ in self.frames():
                if self.last_us in wanted:
                    found[self.last_us] = self.resizer.picture(frame)
                if self.last_us >= wanted[-1]:
                    break
            if len(found) == len(set(wanted)):
                return [found[time_us] for time_us in wanted]
        what = f"only {len(found)} of {len(set(wanted))} frames are where they were"
        raise MediaError(self.name, "CORRUPT", what)

    def _judge(self, count: int) -> None:
        seen = len(self.times_us)
        if self.plan.part:
            return  # a part without a shot long enough is no defect of the source
        if seen == 0:
            raise MediaError(
                self.name, "CORRUPT", f"no frame decodes: {self.last_error or 'empty'}"
            )
        if count == 0:
            is_cut_off = seen < _INTACT_SHARE * (self.stream.frames or 0)
            code = "TRUNCATED" if is_cut_off else "TOO_SHORT"
            what = f"no shot of {self.plan.num_frames} frames in {seen} decoded ones"
            raise MediaError(self.name, code, what)

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Decode; yield each frame with the number of errors that it shows.

        After an error every frame counts as damaged until a key frame that comes later in time.
        """
        damaged_from: int | None = None
        errors = 0  # a packet that gives no picture leaves its errors to the next one
        for packet in self._packets():
            frames = self._decode(packet)
            errors += len(self.log)
            if self.log:
                if _free_bytes() < _PIXEL_BYTES * self.codec.width * self.codec.height:
                    raise MediaError(self.name, "MEM", "no memory for another picture")
                self.last_error = self.log[-1][2].strip()
                self.log.clear()
                damaged_from = packet.pts or 0
            for frame in frames:
                self._refuse_size(frame.width, frame.height)
                if frame.is_corrupt:
                    errors += 1
                elif (
                    damaged_from is not None and frame.key_frame and (frame.pts or 0) > damaged_from
                ):
                    damaged_from = None
                time_us = self._clock(frame)
                if time_us >= self.window_us[1]:
                    return
                if time_us < self.window_us[0]:
                    continue
                if not self.times_us:
                    self._note(frame)
                self.times_us.append(time_us)
                yield frame, max(errors, damaged_from is not None)
                errors = 0

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        """Demux up to the end or to where the container breaks; then flush the decoder."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError) as error:
                if isinstance(error, av.FFmpegError):
                    self.log.append((ERROR, "demuxer", str(error.strerror)))
                # else PyAV lost count, at the end of a file whose streams appeared on the way
                flush: av.Packet[Any] = av.Packet()
                flush.stream = self.stream
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
        except av.FFmpegError as error:  # decoders find many words for damage, even EPERM
            self.log.append((ERROR, "decoder", str(error.strerror)))
            return []

    def _clock(self, frame: av.VideoFrame) -> int:
        """Return the frame's presentation time; mend one that is missing or runs backwards."""
        pts, before = frame.pts, self.last_us
        if self.start is None:
            self.start = pts or 0
        time_us = before if pts is None else round((pts - self.start) * self.tick_us)
        if before < 0:
            time_us = max(0, time_us)
        elif time_us <= before:
            time_us = before + max(1, round(1e6 / (self.stream.average_rate or 25)))
        if time_us > self.plan.max_duration_s * 1e6:
            raise MediaError(self.name, "TOO_LONG", f"a frame at {time_us / 1e6:.0f} s")
        self.last_us = time_us
        return time_us

    def _ticks(self, frames: Iterator[tuple[av.VideoFrame, int]]) -> Iterator[SampledFrame]:
        """Take every frame."""
        for frame, errors in frames:
            yield self._tick(frame, errors, [self.resizer.picture(frame)])

    def _grid(self, frames: Iterator[tuple[av.VideoFrame, int]]) -> Iterator[SampledFrame]:
        """Take the frame on display at each point of the grid."""
        step_us = 1e6 / (self.plan.rate_fps or 1)
        point = 0
        shown: tuple[av.VideoFrame, SampledFrame] | None = None
        for frame, errors in frames:
            tick = self._tick(frame, errors, [])
            next_point = max(0, math.ceil((tick.time_us - _EARLY_US) / step_us))
            if shown is None or tick.time_us - shown[1].time_us > MAX_GAP_US:
                point = next_point  # time is never filled
            if shown is not None:
                self._show(*shown, next_point - point)
                yield shown[1]
            point = max(point, next_point)
            if point * step_us <= tick.time_us + _EARLY_US:
                self._show(frame, tick, 1)
                point += 1
            shown = frame, tick
        if shown is not None:
            yield shown[1]

    def _show(self, frame: av.VideoFrame, tick: SampledFrame, times: int) -> None:
        """Add the frame's picture for some points of the grid."""
        if times > 0:
            picture = tick.pictures[0] if tick.pictures else self.resizer.picture(frame)
            tick.pictures += [picture] * times

    def _tick(self, frame: av.VideoFrame, errors: int, pictures: list[np.ndarray]) -> SampledFrame:
        return SampledFrame(
            index=len(self.times_us) - 1,
            time_us=self.times_us[-1],
            size_px=(frame.width, frame.height),
            errors=errors,
            luma=self.resizer.luma(frame),
            pictures=pictures,
        )

    def _aspect(self) -> float:
        """Return the width of a pixel over its height."""
        return float(self.stream.sample_aspect_ratio or 1) or 1.0

    def _note(self, frame: av.VideoFrame) -> None:
        width, height = max(1, round(frame.width * self._aspect())), frame.height
        turns = round(frame.rotation / 90)
        self.columns = {
            "pix_fmt": frame.format.name,
            "src_width_px": height if turns % 2 else width,
            "src_height_px": width if turns % 2 else height,
            "rotation_deg": -90 * turns % 360,
        }

    def _source(self) -> SourceMetadata:
        steps = np.diff(self.times_us)
        typical = statistics.median(steps.tolist()) if len(steps) else 0
        return SourceMetadata(
            container=self.container.format.name,
            codec=self.codec.codec.canonical_name,
            src_rate_fps=1e6 * len(steps) / float(steps.sum()) if len(steps) else 0.0,
            start_pts=self.start or 0,
            is_vfr=bool(len(steps) and np.ptp(steps) > _VFR_SPREAD * typical),
            expected_frames=self.stream.frames or None if self.plan.parts == 1 else None,
            decoded_frames=len(self.times_us),
            **self.columns,
        )

    def _excerpt(self, span: Span) -> DecodedClip:
        frames = np.stack(span.images)
        ends = frames[[0, len(frames) // 2, -1]]
        columns = {
            "span_start_us": span.first.time_us,
            "span_end_us": span.last.time_us,
            "frame_index_start": span.first.index,
            "frame_times_us": span.times_us,
            "num_frames": len(frames),
            "height_px": frames.shape[1],
            "width_px": frames.shape[2],
            "decode_errors": span.errors,
            "cut_in": span.start.kind,
            "cut_in_score": span.start.score,
            "phash": phash(ends),
            **score_span(np.stack(span.luma_frames)),
        }
        return DecodedClip(frames, columns)


def _free_bytes() -> float:
    """Return how much address space this process may still take."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
