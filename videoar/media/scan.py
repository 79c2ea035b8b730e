"""Read a source once: spans, their scores and hashes, and what the file turned out to be.

The only decode of a source. PyAV with one thread (a process per core beats threads by 1.3x), every
frame at 64x36 grey for cuts and scores, RGB at clip size for the frames of spans alone. Decoding
is tolerant, errors are counted per span: whether a damaged clip may stay is a matter of policy.
This runs in the killable child of `isolate`; nothing else should call it on files of others.
"""

import itertools
import math
import resource
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.logging import ERROR, Capture, set_level, set_skip_repeated
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videoar.core.errors import MediaError
from videoar.core.types import Frozen
from videoar.media.phash import phash
from videoar.media.probe import CODECS, admit
from videoar.media.quality import GREY_HEIGHT, GREY_WIDTH, histogram, measure
from videoar.media.shots import Span, Tick, shots, spans

_HD_HEIGHT = 720  # untagged video at or above it is BT.709, else BT.601, as players assume
_VFR_SPREAD = 0.2
_INTACT_SHARE = 0.98
_PIXEL_BYTES = 4  # chosen: more than a picture needs; decoders may not say why they lost one
_MAX_ASPECT = 100  # chosen: nothing real; bounds a frame whose long side grows with the short one


class ScanPlan(Frozen):
    """What to take from a source, and what a source may be."""

    num_frames: int = 17
    rate_fps: float | None = None
    size_px: int = 64
    cut_distance: float | None = 0.5
    max_clips: int = 64
    max_duration_s: float = 600.0
    max_pixels: int = 9_437_184


@dataclass(frozen=True)
class Excerpt:
    """One clip: pixels at clip size, and its scores."""

    frames_THWC: np.ndarray  # noqa: N815 - shape suffix
    facts: dict[str, Any]
    """Columns of `clips@1` that belong to the span."""


@dataclass(frozen=True)
class SourceFacts:
    """Columns of `clips@1` that belong to the whole source."""

    container: str
    codec: str
    pix_fmt: str
    src_width_px: int
    src_height_px: int
    src_rate_fps: float
    is_vfr: bool
    rotation_deg: int
    expected_frames: int | None
    decoded_frames: int


def scan(path: Path, plan: ScanPlan) -> Iterator[Excerpt | SourceFacts]:
    """Yield a source's clips in order, then the facts about the source.

    Raises:
        MediaError: the file cannot be used as a whole.
    """
    set_level(ERROR)
    set_skip_repeated(False)
    with Capture() as log:
        demuxer = admit(path)
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
                yield from _Reading(path.name, container, plan, log).excerpts()
            except av.FFmpegError as error:  # such as a picture in colours that nothing converts
                raise MediaError(path.name, "CORRUPT", str(error.strerror)) from error


def _unreadable(path: Path, error: av.FFmpegError) -> MediaError:
    if isinstance(error, av.error.MemoryError):
        return MediaError(path.name, "MEM", "out of memory while opening")
    return MediaError(path.name, "NOT_VIDEO", f"cannot be opened: {error.strerror}")


class _Reading:
    """The state of one pass over one open container."""

    def __init__(self, name: str, container: Any, plan: ScanPlan, log: list[Any]) -> None:  # noqa: ANN401 - av container
        self.name, self.container, self.plan, self.log = name, container, plan, log
        if not container.streams.video:
            raise MediaError(name, "NO_VIDEO_STREAM", "no video stream")
        self.stream = container.streams.video[0]
        self.codec = self.stream.codec_context
        self._refuse()
        self.stream.thread_type = "NONE"
        self.codec.thread_count = 1
        self.times_us: list[int] = []
        self.last_error = ""
        self.facts: dict[str, Any] = {}
        self.grey, self.rgb = VideoReformatter(), VideoReformatter()

    def excerpts(self) -> Iterator[Excerpt | SourceFacts]:
        frames = self._frames()
        found = spans(
            shots(self._ticks(frames), self.plan.cut_distance),
            self.plan.num_frames,
            self.plan.rate_fps,
        )
        count = 0
        for span in itertools.islice(found, self.plan.max_clips):
            count += 1
            yield self._excerpt(span)
        for _ in frames:  # the rest of the source still counts and still shows its errors
            pass
        self._judge(count)
        yield self._source()

    def _refuse(self) -> None:
        """Refuse what the header alone forbids, before a frame is decoded."""
        name = self.codec.codec.canonical_name if self.codec else "none"
        if name not in CODECS:
            raise MediaError(self.name, "CODEC_DENIED", f"codec {name}")
        self._refuse_size(self.codec.width, self.codec.height)
        duration_s = (self.container.duration or 0) / av.time_base
        if duration_s > self.plan.max_duration_s:
            raise MediaError(self.name, "TOO_LONG", f"{duration_s:.0f} s")

    def _refuse_size(self, width: int, height: int) -> None:
        if width * height > self.plan.max_pixels:
            raise MediaError(self.name, "TOO_LARGE_DIM", f"{width}x{height}")

    def _judge(self, count: int) -> None:
        seen = len(self.times_us)
        if seen == 0:
            raise MediaError(
                self.name, "CORRUPT", f"no frame decodes: {self.last_error or 'empty'}"
            )
        if count == 0:
            is_cut_off = seen < _INTACT_SHARE * (self.stream.frames or 0)
            code = "TRUNCATED" if is_cut_off else "TOO_SHORT"
            what = f"no shot of {self.plan.num_frames} frames in {seen} decoded ones"
            raise MediaError(self.name, code, what)

    def _frames(self) -> Iterator[tuple[Any, int]]:
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
                self._clock(frame)
                yield frame, max(errors, damaged_from is not None)
                errors = 0

    def _packets(self) -> Iterator[Any]:
        """Demux up to the end or to where the container breaks; then flush the decoder."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError) as error:
                if isinstance(error, av.FFmpegError):
                    self.log.append((ERROR, "demuxer", str(error.strerror)))
                # else PyAV lost count, at the end of a file whose streams appeared on the way
                packet = av.Packet()
                packet.stream = self.stream
                yield packet
                return
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Any) -> list[Any]:  # noqa: ANN401 - av packet
        try:
            return list(packet.decode())
        except av.error.MemoryError as error:
            raise MediaError(self.name, "MEM", "out of memory while decoding") from error
        except av.FFmpegError as error:  # decoders find many words for damage, even EPERM
            self.log.append((ERROR, "decoder", str(error.strerror)))
            return []

    def _clock(self, frame: Any) -> None:  # noqa: ANN401 - av frame
        """Append the frame's presentation time; mend one that is missing or runs backwards."""
        if not self.times_us:
            self.start = frame.pts or 0
            self.times_us.append(0)
            self._note(frame)
            return
        before = self.times_us[-1]
        time_us = (
            before
            if frame.pts is None or not frame.time_base
            else round((frame.pts - self.start) * frame.time_base * 1_000_000)
        )
        if time_us <= before:
            time_us = before + max(1, round(1e6 / (self.stream.average_rate or 25)))
        if time_us > self.plan.max_duration_s * 1e6:
            raise MediaError(self.name, "TOO_LONG", f"a frame at {time_us / 1e6:.0f} s")
        self.times_us.append(time_us)

    def _ticks(self, frames: Iterator[tuple[Any, int]]) -> Iterator[Tick]:
        before: np.ndarray | None = None
        for frame, errors in frames:
            grey = self._grey(frame)
            now = histogram(grey)
            distance = 0.0 if before is None else float(np.abs(now - before).sum())
            before = now
            yield Tick(
                index=len(self.times_us) - 1,
                time_us=self.times_us[-1],
                size_px=(frame.width, frame.height),
                errors=errors,
                grey=grey,
                histogram=now,
                distance=distance,
                image=partial(self._picture, frame),
            )

    def _grey(self, frame: Any) -> np.ndarray:  # noqa: ANN401 - av frame
        small = self.grey.reformat(
            frame,
            GREY_WIDTH,
            GREY_HEIGHT,
            "gray",
            interpolation=Interpolation.AREA,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        grey: np.ndarray = small.to_ndarray()
        return grey

    def _picture(self, frame: Any) -> np.ndarray:  # noqa: ANN401 - av frame
        """Make the clip's picture of a frame: short side to size, turned upright, centre crop."""
        size = self.plan.size_px
        width, height = frame.width * self._aspect(), frame.height
        scale = size / min(width, height)
        if max(width, height) * scale > _MAX_ASPECT * size:
            raise MediaError(self.name, "TOO_LARGE_DIM", f"shown at {width:g}x{height}")
        is_smaller = scale < 1
        scaled = self.rgb.reformat(
            frame,
            max(size, round(width * scale)),
            max(size, round(height * scale)),
            "rgb24",
            src_colorspace=_colorspace(frame),
            interpolation=Interpolation.AREA if is_smaller else Interpolation.BICUBIC,
            threads=1,
        )
        upright = np.rot90(scaled.to_ndarray(), round(frame.rotation / 90))
        top, left = ((side - size) // 2 for side in upright.shape[:2])
        return np.ascontiguousarray(upright[top : top + size, left : left + size])

    def _aspect(self) -> float:
        """Return the width of a pixel over its height."""
        return float(self.stream.sample_aspect_ratio or 1) or 1.0

    def _note(self, frame: Any) -> None:  # noqa: ANN401 - av frame
        width, height = max(1, round(frame.width * self._aspect())), frame.height
        turns = round(frame.rotation / 90)
        self.facts = {
            "pix_fmt": frame.format.name,
            "src_width_px": height if turns % 2 else width,
            "src_height_px": width if turns % 2 else height,
            "rotation_deg": -90 * turns % 360,
        }

    def _source(self) -> SourceFacts:
        steps = np.diff(self.times_us)
        typical = statistics.median(steps.tolist()) if len(steps) else 0
        return SourceFacts(
            container=self.container.format.name,
            codec=self.codec.codec.canonical_name,
            src_rate_fps=1e6 * len(steps) / self.times_us[-1] if len(steps) else 0.0,
            is_vfr=bool(len(steps) and np.ptp(steps) > _VFR_SPREAD * typical),
            expected_frames=self.stream.frames or None,
            decoded_frames=len(self.times_us),
            **self.facts,
        )

    def _excerpt(self, span: Span) -> Excerpt:
        frames = np.stack(span.images)
        ends = frames[[0, len(frames) // 2, -1]]
        facts = {
            "span_start_us": span.start_us,
            "span_end_us": span.last.time_us,
            "frame_index_start": span.index_start,
            "num_frames": len(frames),
            "decode_errors": span.errors,
            "cut_in_score": span.cut_in_score,
            "hist_delta_max": max(span.distances, default=0.0),
            "phash": phash(ends),
            **measure(np.stack(span.greys)),
        }
        return Excerpt(frames, facts)


def _free_bytes() -> float:
    """Return how much address space this process may still take."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()


def _colorspace(frame: Any) -> int | Colorspace:  # noqa: ANN401 - av frame
    if frame.colorspace != 2:  # 2: unspecified
        return int(frame.colorspace)
    return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
