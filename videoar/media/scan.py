"""Turn one source into clips with their scores and hashes, in a single decode.

Every frame is reduced to a small luma frame, for shots and scores. RGB frames at clip size are made
only for the frames that a clip takes: resizing costs more than all else beside decoding.

The grid of clip frames is fixed in presentation time from the start of the source. It does not move
with shot boundaries, so that a change in shot detection changes only the clips around it.

Run this in the child process of `videoar.media.sandbox` on files of unknown origin.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from av.video.reformatter import VideoReformatter

from videoar.core.errors import MediaError
from videoar.core.types import Row
from videoar.media.active_area import Box, edges_covered, find_active
from videoar.media.clip_scores import hashes_and_chroma, phash, score_span
from videoar.media.color import luma_of
from videoar.media.detail import Lines
from videoar.media.frame_resizer import FrameResizer, Size
from videoar.media.pictures import Picture, pictures
from videoar.media.shots import Marked, SampledFrame, Span, shots, spans, thin_out
from videoar.media.source_decoder import SourceDecoder, SourceMetadata, open_source
from videoar.media.source_stream import DecodePlan
from videoar.media.timeline import MAX_GAP_US, missing_frames
from videoar.media.tone_mapping import Curve
from videoar.media.transitions import Transition, find_transitions

_INTACT_SHARE = 0.98  # chosen: the default policy's min_decoded_share
_ROUNDING_US = 1_500  # chosen: containers such as Matroska round time stamps to milliseconds
_HELD_BYTES = 512 << 20  # chosen: a quarter of the default memory of the child process
MAX_CLIPS = "MAX_CLIPS"


class ScanPlan(DecodePlan):
    """Which clips to take from a source."""

    num_frames: int = 17
    rate_fps: float | None = None
    """Rate of the grid; None takes every frame."""
    size_px: int | tuple[Size, ...] = 64
    """Side of square clips, or sizes (height, width) to choose from: see `FrameResizer`."""
    find_shots: bool = True
    max_clips: int = 64
    choose: Literal["spread", "first"] = "spread"
    """Which clips to take of a source that has more than `max_clips`."""
    crop: Literal["active", "none"] = "none"
    """`active` leaves out bars around the picture."""
    deinterlace: Literal["auto", "measure", "off"] = "auto"
    tone_map: Curve | None = "mobius"
    with_pixels: bool = True
    """Whether clips that are looked for have their frames, or only their columns."""
    take_us: tuple[int, ...] = ()
    """Take the frames with these presentation times instead of looking for clips."""
    active_box: tuple[int, int, int, int] | None = None
    """With `take_us`, the column of that name: bars are not looked for again."""


@dataclass(frozen=True)
class DecodedClip:
    """One clip: its frames at clip size, and its scores."""

    frames_THWC: np.ndarray
    """uint8 RGB; no frames without `ScanPlan.with_pixels`."""
    columns: Row
    """Columns of `clips@1` that belong to the span."""


def scan(path: Path, plan: ScanPlan) -> Iterator[DecodedClip | SourceMetadata]:
    """Yield the clips of a source in order, then the metadata of the source.

    With `plan.take_us`, yield one clip of exactly these frames and no metadata.

    Raises:
        MediaError: the file cannot be used as a whole.
    """
    with open_source(path, plan) as decoder:
        source = _ClipScan(decoder, plan, path)
        if plan.take_us:
            yield DecodedClip(source.frames_at(plan.take_us), {})
        else:
            yield from source.clips()


def detect_transitions(path: Path, plan: ScanPlan) -> list[Transition]:
    """Return the transitions of a source, found on the same luma frames; for benchmarks."""
    with open_source(path, plan) as decoder:
        resizer = FrameResizer(plan.size_px)
        luma_Thw = np.stack([resizer.luma(frame) for frame, _ in decoder.frames()])
        return find_transitions(luma_Thw, np.array(decoder.times_us))


class _ClipScan:
    """Clips of one open source."""

    def __init__(self, decoder: SourceDecoder, plan: ScanPlan, path: Path) -> None:
        self._decoder, self._plan, self._path = decoder, plan, path
        self._resizer = FrameResizer(
            plan.size_px,
            deinterlace=plan.deinterlace,
            tone_map=plan.tone_map,
        )
        self._taken = 0
        self._longest_us = 0

    def clips(self) -> Iterator[DecodedClip | SourceMetadata]:
        decoded = self._inside_bars(self._pictures())
        samples = self._every_frame(decoded) if self._plan.rate_fps is None else self._grid(decoded)
        marked = self._measured(shots(samples, find=self._plan.find_shots))
        found = spans(marked, self._plan.num_frames)
        held: list[Span] = []
        count = 0
        is_stopped = False
        if self._plan.choose == "first" or not self._may_exceed():
            for span in itertools.islice(found, self._plan.max_clips):
                count += 1
                yield self._decoded(span)
            # one more only tells that there are more: nothing after it is decoded
            is_stopped = next(found, None) is not None
        else:
            held, count = self._spread(found)
        self._check_yield(count)
        if not self._decoder.times_us:
            return
        metadata = self._decoder.metadata()
        if is_stopped:  # the numbers of the whole source are unknown
            metadata = replace(
                metadata, expected_frames=None, is_set_back=None, clips_left_out=MAX_CLIPS
            )
        else:
            reason = MAX_CLIPS if count > self._plan.max_clips else None
            metadata = replace(metadata, clips_found=count, clips_left_out=reason)
        for span in held:  # after the metadata is complete: reading frames again adds to it
            yield self._decoded(span)
        yield metadata

    def _may_exceed(self) -> bool:
        """Return whether the source may have more than `max_clips` clips, by its header.

        Clips of a source that cannot are handed on while it is decoded. Where the header announces
        too little, the clips beyond are left out, as with `first`.
        """
        rate_fps, duration_s = self._plan.rate_fps, self._decoder.announced_s
        of_part = duration_s / self._plan.parts
        num_frames = of_part * rate_fps if rate_fps else self._decoder.expected_frames or 0
        return num_frames == 0 or num_frames > self._plan.max_clips * self._plan.num_frames

    def _spread(self, found: Iterator[Span]) -> tuple[list[Span], int]:
        """Return clips spread evenly over the source, and the number of all."""
        held: list[Span] = []
        count = 0
        for span in found:
            count += 1
            size = span.rgb[0].width * span.rgb[0].height * 3 * self._plan.num_frames
            if size * self._plan.max_clips > _HELD_BYTES:
                span.rgb.clear()  # read again once it is known which clips remain
            held.append(span)
            thin_out(held, self._plan.max_clips)
        return held, count

    def _measured(self, marked: Iterator[Marked]) -> Iterator[Marked]:
        """Note the length of the longest shot."""
        start_us = 0
        for frame, start in marked:
            if start is not None:
                start_us = frame.time_us
            self._longest_us = max(self._longest_us, frame.time_us - start_us)
            yield frame, start

    def frames_at(self, take_us: tuple[int, ...]) -> np.ndarray:
        """Return frames by their exact times: after a seek, or from the start where it fails.

        A seek may land behind the wanted frame, where the index of the file is broken. And a time
        that replaces a missing time stamp depends on the frames decoded before it.
        """
        frames: dict[int, np.ndarray] = {}
        # deinterlacing needs the frame before the first one, too
        first_us = take_us[0] - (MAX_GAP_US if self._plan.deinterlace == "auto" else 0)
        for position in (first_us, None):
            self._decoder.seek(position)
            frames.clear()
            for picture in self._pictures():
                if picture.time_us in take_us:
                    self._crop_as_recorded(picture)
                    scaled, _ = self._resizer.rgb(picture)
                    frames[picture.time_us] = self._resizer.pixels(scaled, picture.orientation)
                if picture.time_us >= take_us[-1]:
                    break
            if len(frames) == len(set(take_us)):
                return np.stack([frames[time_us] for time_us in take_us])
        what = f"only {len(frames)} of {len(set(take_us))} frames exist at the recorded times"
        raise MediaError(self._decoder.name, "CORRUPT", what)

    def _pictures(self) -> Iterator[Picture]:
        return pictures(self._decoder, with_neighbours=self._plan.deinterlace != "off")

    def _inside_bars(self, decoded: Iterator[Picture]) -> Iterator[Picture]:
        """Look for bars around the picture, if the first frame shows what may be one."""
        first = next(decoded, None)
        if first is None:
            return
        if self._plan.crop == "active":
            luma_HW = luma_of(first.frame, VideoReformatter())
            found = find_active(self._path, self._plan) if edges_covered(luma_HW).any() else None
            size = first.frame.width, first.frame.height
            self._resizer.crop_to(*(found or (Box(0, 0, *size), size)))
        yield first
        yield from decoded

    def _crop_as_recorded(self, picture: Picture) -> None:
        if self._plan.active_box is not None:
            size = picture.frame.width, picture.frame.height
            shown = Box(*self._plan.active_box)
            box = shown.stored(size, picture.orientation, picture.pixel_aspect)
            self._resizer.crop_to(box, size)

    def _check_yield(self, num_clips: int) -> None:
        """Reject a source without a decodable frame or without a clip."""
        if self._plan.part:
            return  # other parts of the source may have a long enough shot
        num_decoded = len(self._decoder.times_us)
        if num_decoded == 0:
            what = f"no frame can be decoded: {self._decoder.last_error or 'the stream is empty'}"
            raise MediaError(self._decoder.name, "CORRUPT", what)
        if num_clips == 0:
            is_cut_off = num_decoded < _INTACT_SHARE * (self._decoder.expected_frames or 0)
            code = "TRUNCATED" if is_cut_off else "TOO_SHORT"
            num_frames = self._plan.num_frames
            rate_fps = self._plan.rate_fps or self._decoder.metadata().src_rate_fps
            what = f"the longest shot lasts {self._longest_us / 1e6:.2f} s"
            if rate_fps:  # 0 if a single frame was decoded
                needed_s = (num_frames - 1) / rate_fps
                what += f"; {num_frames} frames at {rate_fps:.4g} fps need {needed_s:.2f} s"
            raise MediaError(self._decoder.name, code, f"{what} ({num_decoded} frames decoded)")

    def _every_frame(self, decoded: Iterator[Picture]) -> Iterator[SampledFrame]:
        for picture in decoded:
            sample = self._sample(picture)
            self._add_rgb(picture, sample, 1)
            yield sample

    def _grid(self, decoded: Iterator[Picture]) -> Iterator[SampledFrame]:
        """Take, at each point of the grid, the frame that a player displays there.

        A frame is displayed until the next one begins, so a frame is complete only once its
        successor is decoded. Worked example, rate 10 fps, frames at 0, 40, 80, 120, 160, 200 ms:

            point  0 at   0 ms: frame   0 ms
            point  1 at 100 ms: frame  80 ms, known when the frame at 120 ms arrives
            point  2 at 200 ms: frame 200 ms
        """
        step_us = 1e6 / (self._plan.rate_fps or 1)
        point = 0
        displayed: tuple[Picture, SampledFrame] | None = None
        for picture in decoded:
            sample = self._sample(picture)
            next_point = max(0, math.ceil((sample.time_us - _ROUNDING_US) / step_us))
            if displayed is None or sample.time_us - displayed[1].time_us > MAX_GAP_US:
                point = next_point  # a gap in time is never filled with repeats
            if displayed is not None:
                self._add_rgb(*displayed, next_point - point)
                yield displayed[1]
            point = max(point, next_point)
            if point * step_us <= sample.time_us + _ROUNDING_US:
                self._add_rgb(picture, sample, 1)
                point += 1
            displayed = picture, sample
        if displayed is not None:
            yield displayed[1]

    def _add_rgb(self, picture: Picture, sample: SampledFrame, points: int) -> None:
        """Add the RGB frame once for each of some points of the grid."""
        if points > 0:
            # of every `num_frames` frames taken, one: each clip then has one
            is_measured = -self._taken % self._plan.num_frames < points
            self._taken += points
            if not sample.rgb:
                scaled, sample.made = self._resizer.rgb(picture)
                sample.rgb.append(scaled)
                points -= 1
            sample.rgb += sample.rgb[:1] * points
            if is_measured:
                sample.lines = Lines.of(picture.frame, is_combed=bool(sample.made["combed_frac"]))

    def _decoded(self, span: Span) -> DecodedClip:
        if span.rgb:
            upright = (self._resizer.pixels(frame, span.first.orientation) for frame in span.rgb)
            frames_THWC = np.stack(list(upright))
        else:
            frames_THWC = self.frames_at(tuple(span.times_us))
        behind_us = self._decoder.times_behind(span.first.index, span.last.index)
        clip = _decoded_clip(frames_THWC, span, behind_us)
        return clip if self._plan.with_pixels else replace(clip, frames_THWC=frames_THWC[:0])

    def _sample(self, picture: Picture) -> SampledFrame:
        return SampledFrame(
            index=picture.number,
            time_us=picture.time_us,
            size_px=(round(picture.frame.width * picture.pixel_aspect), picture.frame.height),
            errors=picture.errors,
            luma_hw=self._resizer.luma(picture.frame),
            orientation=picture.orientation,
            tone_map=self._resizer.tone_map,
        )


def _decoded_clip(frames_THWC: np.ndarray, span: Span, times_behind_us: list[int]) -> DecodedClip:
    hashes, chroma = hashes_and_chroma(frames_THWC)
    # first, middle, last: a copy must match in all three, single frames often look alike
    hashed = frames_THWC[[0, len(frames_THWC) // 2, -1]]
    columns = {
        "span_start_us": span.first.time_us,
        "span_end_us": span.last.time_us,
        "frame_index_start": span.first.index,
        "frame_times_us": span.times_us,
        "num_frames": len(frames_THWC),
        "height_px": frames_THWC.shape[1],
        "width_px": frames_THWC.shape[2],
        "rotation_deg": span.first.orientation.rotation_deg,
        "is_mirrored": span.first.orientation.is_mirrored,
        "decode_errors": span.errors,
        "missing_frames": missing_frames(times_behind_us),
        "cut_in": span.start.kind,
        "cut_in_score": span.start.score,
        "phash": phash(hashed),
        "frame_hashes": hashes,
        "chroma": chroma,
        "detail": None if span.lines is None else span.lines.detail(),
        **_made(span.made),
        **score_span(np.stack(span.luma_hw), np.array(span.luma_times_us)),
    }
    return DecodedClip(frames_THWC, columns)


def _made(frames: list[Row]) -> Row:
    """Return how a clip was made from how its frames were."""
    combed = [frame["combed_frac"] for frame in frames if frame["combed_frac"] is not None]
    return {
        **frames[0],
        "combed_frac": float(np.mean(combed)) if combed else None,
        "deinterlacer": next((d for frame in frames if (d := frame["deinterlacer"])), None),
    }
