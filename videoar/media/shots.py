"""From frames to shots to spans, decided while the frames pass by.

Frames wait in a block until everything that matters to them has been seen; then the changes of
shot among them are known, the frames in and around those are dropped, and spans are laid back to
back into what is left. What waits is a small luma picture of each frame and the pictures of those
that a clip may need, never a decoded frame: memory does not depend on the length of the source.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from videoar.media.transitions import LOOK_US, Transition, find_transitions

_TRIM = 2  # frames on either side of a change: encoders smear it
MAX_GAP_US = 500_000  # a longer gap in time is a new shot: time is never filled
_BLOCK = 512  # chosen: looking again at the frames around a block costs a third on top
_MOST = 4096  # frames that wait at most, however many of them a second has


@dataclass
class SampledFrame:
    """One frame of the source, small."""

    index: int
    time_us: int
    size_px: tuple[int, int]
    errors: int
    luma: np.ndarray
    pictures: list[np.ndarray] = field(default_factory=list)
    """RGB at clip size, one for each point of the grid at which this frame is on display."""


@dataclass(frozen=True)
class Start:
    """How a shot begins."""

    kind: str
    """`start` (of the source), `gap` (in time or size), or the kind of change before it."""
    score: float = 0.0


@dataclass
class Span:
    """The pictures of one clip, and what was seen from the first to the last of them."""

    start: Start
    first: SampledFrame
    last: SampledFrame
    images: list[np.ndarray] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    """When the frame of each image is shown."""
    luma_frames: list[np.ndarray] = field(default_factory=list)
    errors: int = 0

    def add(self, tick: SampledFrame) -> None:
        """Count a source frame as part of the span."""
        self.luma_frames.append(tick.luma)
        self.errors += tick.errors
        self.last = tick


def shots(
    ticks: Iterable[SampledFrame], *, find: bool = True
) -> Iterator[tuple[SampledFrame, Start | None]]:
    """Drop frames that are not of one shot alone; mark each first frame of a shot.

    Args:
        ticks: frames in order.
        find: look for changes of shot; without, only gaps in time or changes of size part shots.
    """
    segment: _Segment | None = None
    for tick in ticks:
        if segment is None or segment.is_left_by(tick):
            if segment is not None:
                yield from segment.flush(len(segment.waiting))
            segment = _Segment(Start("start" if segment is None else "gap"), find)
        yield from segment.add(tick)
    if segment is not None:
        yield from segment.flush(len(segment.waiting))


class _Segment:
    """Frames without a gap: those that wait, and small pictures of those that went before."""

    def __init__(self, start: Start, find: bool) -> None:
        self.waiting: list[SampledFrame] = []
        self._find = find
        self._start: Start | None = start
        self._luma: list[np.ndarray] = []
        self._times_us: list[int] = []
        self._offset = 0  # frame of the segment that the first kept luma is of
        self._settled = 0  # frames of the segment that have been passed on
        self._changes: list[Transition] = []  # in frames of the segment

    def is_left_by(self, tick: SampledFrame) -> bool:
        """Say whether a frame does not belong to this segment any more."""
        last = self.waiting[-1]
        return tick.time_us - last.time_us > MAX_GAP_US or tick.size_px != last.size_px

    def add(self, tick: SampledFrame) -> Iterator[tuple[SampledFrame, Start | None]]:
        """Take a frame; pass on those that are settled by it."""
        self.waiting.append(tick)
        if not self._find:
            yield from self.flush(len(self.waiting) - 1)
            return
        self._luma.append(tick.luma)
        self._times_us.append(tick.time_us)
        ready = len(self.waiting) > _BLOCK and (
            tick.time_us - self.waiting[_BLOCK].time_us >= LOOK_US or len(self.waiting) >= _MOST
        )
        if ready:
            yield from self.flush(_BLOCK)

    def flush(self, count: int) -> Iterator[tuple[SampledFrame, Start | None]]:
        """Pass on the first `count` waiting frames, less those in and around changes."""
        if self._find:
            self._look(self._settled + count)
        ready, self.waiting = self.waiting[:count], self.waiting[count:]
        for tick in ready:
            number, self._settled = self._settled, self._settled + 1
            change = next((c for c in self._changes if _covers(c, number)), None)
            if change is not None:
                self._start = Start(change.kind, change.score)
            else:
                yield tick, self._start
                self._start = None
        self._evict()

    def _look(self, limit: int) -> None:
        """Find the changes that matter below `limit`: those farther on are not yet seen whole."""
        luma_frames = np.stack(self._luma) if self._luma else np.empty((0, 0, 0), np.uint8)
        for found in find_transitions(luma_frames, np.array(self._times_us, np.int64)):
            change = Transition(
                found.kind, found.first + self._offset, found.last + self._offset, found.score
            )
            is_new = all(change.first > known.last for known in self._changes)
            if is_new and self._settled <= change.first < limit + _TRIM:
                self._changes.append(change)

    def _evict(self) -> None:
        """Let go of what does not matter any more."""
        self._changes = [c for c in self._changes if c.last + _TRIM >= self._settled - 1]
        seen = self._settled - self._offset
        old = 0
        while old < min(seen, len(self._times_us)):
            is_far = self._times_us[seen - 1] - self._times_us[old] > LOOK_US
            if not is_far and seen - old <= _MOST:
                break
            old += 1
        del self._luma[:old], self._times_us[:old]
        self._offset += old


def _covers(change: Transition, number: int) -> bool:
    after = _TRIM - 1 if change.kind == "cut" else _TRIM  # a cut's own frame is the new shot's
    return change.first - _TRIM <= number <= change.last + after


def spans(ticks: Iterable[tuple[SampledFrame, Start | None]], num_frames: int) -> Iterator[Span]:
    """Lay spans of `num_frames` pictures back to back into each shot; `ticks` come from `shots`."""
    span: Span | None = None
    begins = Start("start")
    for tick, start in ticks:
        if start is not None:
            span, begins = None, start
        if span is not None:
            span.add(tick)
        for picture in tick.pictures:
            if span is None:
                span = Span(begins, tick, tick)
                span.add(tick)
            span.images.append(picture)
            span.times_us.append(tick.time_us)
            if len(span.images) == num_frames:
                yield span
                span = None
