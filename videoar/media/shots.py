"""Group a stream of frames into shots, and shots into spans of a fixed number of frames.

Works in one pass with bounded memory: it holds luma frames and the RGB frames of open spans, never
a decoded source frame. A frame stays pending until everything that can affect it has been seen
(`LOOK_US` ahead). Then the transitions around it are known: frames in and next to a transition are
dropped, and spans are laid back to back into what remains.

    frames      0 1 2 3 4 5 6 7 8 | 9 10 11 12 13 14      cut: frame 9 starts a new shot
    dropped                   7 8   9 10                  `_TRIM` = 2 on each side
    spans of 3  0-2 3-5             11-13                 6 and 14 do not fill a span

Axes: h w pixels of a luma frame, H W pixels of an RGB frame, C colours.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import av
import numpy as np

from videoar.core.types import Row
from videoar.media.detail import Lines
from videoar.media.orientation import UPRIGHT, Orientation
from videoar.media.timeline import MAX_GAP_US
from videoar.media.transitions import LOOK_US, Transition, find_transitions

_TRIM = 2  # chosen: encoders smear a transition over the frames beside it
_BLOCK = 512  # chosen: frames beside a block are analysed twice, a fifth more work at 24 fps
_LOOK_BACK_US = 1_500_000  # chosen: longer ago, what passes is gone and transitions are known
_MAX_PENDING = 4096  # bounds memory where LOOK_US holds very many frames


@dataclass(slots=True)
class SampledFrame:
    """One source frame, reduced to what later steps need."""

    index: int
    time_us: int
    size_px: tuple[int, int]
    """Width and height of the source frame, as displayed."""
    errors: int
    luma_hw: np.ndarray
    rgb: list[av.VideoFrame] = field(default_factory=list)
    """The frame from `FrameResizer.rgb`, once per point of the grid at which it is displayed."""
    orientation: Orientation = UPRIGHT
    lines: Lines | None = None
    """Of one frame of each clip, to measure its detail."""
    tone_map: str | None = None
    """How its colours are mapped."""
    made: Row = field(default_factory=dict)
    """How the RGB frame was made, see `FrameResizer.rgb`."""


@dataclass(frozen=True)
class Start:
    """How a shot starts."""

    kind: str
    """`start` (of the source), `gap` (in time, size, orientation or tone mapping), or the kind
    of transition before it."""
    score: float = 0.0


@dataclass
class Span:
    """The frames of one clip, with what is measured from its first to its last source frame."""

    start: Start
    first: SampledFrame
    last: SampledFrame
    rgb: list[av.VideoFrame] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    """Presentation time of the source frame behind each RGB frame."""
    made: list[Row] = field(default_factory=list)
    """How each RGB frame was made."""
    luma_hw: list[np.ndarray] = field(default_factory=list)
    """Of every source frame: the grid may skip frames, the scores may not."""
    luma_times_us: list[int] = field(default_factory=list)
    errors: int = 0
    lines: Lines | None = None

    def add(self, frame: SampledFrame) -> None:
        """Count a source frame as part of the span."""
        self.lines = frame.lines if self.lines is None else self.lines
        self.luma_hw.append(frame.luma_hw)
        self.luma_times_us.append(frame.time_us)
        self.errors += frame.errors
        self.last = frame


Marked = tuple[SampledFrame, Start | None]
"""A frame that belongs to one shot, with the start of that shot if it is the shot's first frame."""


def shots(frames: Iterable[SampledFrame], *, find: bool = True) -> Iterator[Marked]:
    """Drop frames in and next to transitions; mark the first frame of each shot.

    Args:
        frames: all frames in order.
        find: detect transitions; without it only gaps in time and changes of size end a shot.
    """
    segment: _Segment | None = None
    for frame in frames:
        if segment is None or segment.ends_before(frame):
            if segment is not None:
                yield from segment.flush(len(segment.pending))
            segment = _Segment(Start("start" if segment is None else "gap"), find)
        if ready := segment.add(frame):
            yield from segment.flush(ready)
    if segment is not None:
        yield from segment.flush(len(segment.pending))


class _Segment:
    """Frames without a gap: the pending ones, and the luma of those shortly before them.

    Numbers count frames from the start of the segment:

        0 ......... _offset ......... _flushed ......... _flushed + len(pending)
           evicted          luma kept          luma kept, frames pending
    """

    def __init__(self, start: Start, find: bool) -> None:
        self.pending: list[SampledFrame] = []
        self._find = find
        self._start: Start | None = start
        self._luma_hw: list[np.ndarray] = []
        self._times_us: list[int] = []
        self._offset = 0
        self._flushed = 0
        self._transitions: list[Transition] = []

    def ends_before(self, frame: SampledFrame) -> bool:
        """Return whether a frame does not continue this segment."""
        last = self.pending[-1]
        is_same = (frame.size_px, frame.orientation) == (last.size_px, last.orientation)
        is_same &= frame.tone_map == last.tone_map
        return frame.time_us - last.time_us > MAX_GAP_US or not is_same

    def add(self, frame: SampledFrame) -> int:
        """Append a frame; return how many pending ones nothing later can affect any more."""
        self.pending.append(frame)
        if not self._find:
            return len(self.pending) - 1  # one stays pending: `ends_before` compares with it
        self._luma_hw.append(frame.luma_hw)
        self._times_us.append(frame.time_us)
        is_ready = len(self.pending) > _BLOCK and (
            frame.time_us - self.pending[_BLOCK].time_us >= LOOK_US
            or len(self.pending) >= _MAX_PENDING
        )
        return _BLOCK if is_ready else 0

    def flush(self, count: int) -> Iterator[Marked]:
        """Yield the first `count` pending frames, without those in and next to transitions."""
        if self._find:
            self._detect(self._flushed + count)
        ready, self.pending = self.pending[:count], self.pending[count:]
        covering = {number: t for t in reversed(self._transitions) for number in _dropped(t)}
        for number, frame in enumerate(ready, self._flushed):
            if transition := covering.get(number):
                self._start = Start(transition.kind, transition.score)
            else:
                yield frame, self._start
                self._start = None
        self._flushed += count
        self._evict()

    def _detect(self, limit: int) -> None:
        """Add the transitions that affect frames below `limit`.

        Later transitions are left to a later call, when all of their frames are available. Those
        before `_flushed` were found by the previous call.
        """
        # `stack` costs more
        luma_Thw = np.concatenate(self._luma_hw).reshape(-1, *self._luma_hw[0].shape)
        for found in find_transitions(luma_Thw, np.array(self._times_us, np.int64)):
            first, last = found.first + self._offset, found.last + self._offset
            is_new = all(first > known.last for known in self._transitions)
            if is_new and self._flushed <= first < limit + _TRIM:
                self._transitions.append(Transition(found.kind, first, last, found.score))

    def _evict(self) -> None:
        """Drop transitions and luma frames that cannot affect a pending frame."""
        self._transitions = [t for t in self._transitions if t.last + _TRIM >= self._flushed - 1]
        if self._find:
            num_flushed = self._flushed - self._offset
            near_us = self._times_us[num_flushed - 1] - _LOOK_BACK_US
            count = bisect_left(self._times_us, near_us, hi=num_flushed)
            count = max(count, num_flushed - _MAX_PENDING)
            del self._luma_hw[:count], self._times_us[:count]
            self._offset += count


def _dropped(transition: Transition) -> range:
    # the frame of a cut is the first of the new shot, so it counts as one of the two after it
    after = _TRIM - 1 if transition.kind == "cut" else _TRIM
    return range(transition.first - _TRIM, transition.last + after + 1)


def spans(frames: Iterable[Marked], num_frames: int) -> Iterator[Span]:
    """Lay spans of `num_frames` RGB frames back to back into each shot.

    Args:
        frames: from `shots`.
        num_frames: length of a span; what does not fill one at the end of a shot is dropped.
    """
    span: Span | None = None
    shot_start = Start("start")
    for frame, start in frames:
        if start is not None:
            span, shot_start = None, start
        if span is not None:
            span.add(frame)
        for rgb in frame.rgb:
            if span is None:
                span = Span(shot_start, frame, frame)
                span.add(frame)
            span.rgb.append(rgb)
            span.times_us.append(frame.time_us)
            span.made.append(frame.made)
            if len(span.rgb) == num_frames:
                yield span
                span = None


def thin_out(held: list[Span], most: int) -> None:
    """Remove one span if there are more than `most`, so that those left are spread evenly.

    The first and the last span stay; of the others the one goes whose neighbours are nearest to
    each other. So spans that arrive one by one are thinned in bounded memory, and no distance
    between neighbours becomes more than about twice another, except that to the last span.
    """
    if len(held) <= most:
        return
    starts_us = [span.first.time_us for span in held]
    gaps_us = [after - before for before, after in zip(starts_us, starts_us[2:], strict=False)]
    del held[1 + gaps_us.index(min(gaps_us)) if gaps_us and most > 1 else -1]
