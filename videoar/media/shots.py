"""Cuts and spans, decided while the frames pass by.

A frame leaves the delay line once the next four are known: then it is certain whether it lies
within two frames of a cut. What remains are shots, and spans are laid into them back to back. At
most a handful of decoded frames is alive at any time.
Source of the cut rule: a 16-bin luma histogram distance (L1) above 0.5 found every known hard cut
of the calibration set and no other. The adaptive branch adds cuts between similar pictures, the
comparison of frame pairs keeps flicker (A B A B ...) from counting as cuts.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

_ADAPTIVE_SHARE, _ADAPTIVE_RATIO = 0.5, 5.0  # chosen: half the fixed rule, far above neighbours
_LOOK = 2
_TRIM = 2
MAX_GAP_US = 500_000  # a longer gap in time is a new shot: time is never filled
_EARLY_US = 1_500  # containers round to milliseconds


@dataclass
class Tick:
    """One decoded frame on its way through the planner."""

    index: int
    time_us: int
    size_px: tuple[int, int]
    errors: int
    grey: np.ndarray
    histogram: np.ndarray
    distance: float
    """Histogram L1 distance to the frame before; 0 at the start."""
    image: Callable[[], np.ndarray]
    """Makes the frame's RGB picture at clip size."""
    is_cut: bool = False


@dataclass
class Span:
    """The frames of one clip, and what was seen from the first to the last of them."""

    cut_in_score: float
    index_start: int
    start_us: int
    last: Tick
    """Newest frame; the only one whose decoded picture is kept alive."""
    images: list[np.ndarray] = field(default_factory=list)
    greys: list[np.ndarray] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    errors: int = 0

    def see(self, tick: Tick) -> None:
        """Count a source frame as part of the span."""
        if self.greys:
            self.distances.append(tick.distance)
        self.greys.append(tick.grey)
        self.errors += tick.errors
        self.last = tick


def shots(ticks: Iterable[Tick], cut_distance: float | None) -> Iterator[tuple[Tick, float | None]]:
    """Drop the frames around cuts; mark each first frame of a shot with the cut's distance.

    Args:
        ticks: frames in order.
        cut_distance: histogram L1 distance (0 to 2) of a hard cut; None never cuts.
    """
    cut: float | None = 0.0
    before: Tick | None = None
    for around in _windows(_mark_cuts(ticks, cut_distance), _TRIM):
        tick = around[_TRIM]
        if tick is None:
            continue
        if tick.is_cut or _is_broken(before, tick):
            cut = tick.distance
        before = tick
        if any(other and other.is_cut for other in around[1:]):
            continue
        yield tick, cut
        cut = None


def spans(
    ticks: Iterable[tuple[Tick, float | None]], num_frames: int, rate_fps: float | None
) -> Iterator[Span]:
    """Lay spans of `num_frames` frames back to back into each shot.

    Args:
        ticks: what `shots` yields.
        num_frames: frames of a clip.
        rate_fps: the grid in presentation time that frames are picked on (the one on display at
            each grid point), or None for every frame of the source.
    """
    step_us = 1e6 / rate_fps if rate_fps else None
    span: Span | None = None
    cut_in = 0.0
    for tick, cut in ticks:
        if cut is not None:
            span, cut_in = None, cut
        if span is not None:
            _advance(span, tick, num_frames, step_us)
            if len(span.images) == num_frames:
                yield span
                is_used = span.last is tick
                span = None
                if is_used:
                    continue
        if span is None:
            span = Span(cut_in, tick.index, tick.time_us, tick, [tick.image()])
            span.see(tick)


def _advance(span: Span, tick: Tick, num_frames: int, step_us: float | None) -> None:
    """Add a frame to a span: at once on the native grid, else when its grid points are due."""
    if step_us is not None:
        while len(span.images) < num_frames and _due(span, step_us) < tick.time_us - _EARLY_US:
            span.images.append(span.last.image())
        if len(span.images) == num_frames:
            return
    if step_us is None or _due(span, step_us) <= tick.time_us + _EARLY_US:
        span.images.append(tick.image())
    span.see(tick)


def _due(span: Span, step_us: float) -> float:
    return span.start_us + len(span.images) * step_us


def _is_broken(before: Tick | None, tick: Tick) -> bool:
    return before is not None and (
        tick.time_us - before.time_us > MAX_GAP_US or tick.size_px != before.size_px
    )


def _mark_cuts(ticks: Iterable[Tick], cut_distance: float | None) -> Iterator[Tick]:
    for around in _windows(ticks, _LOOK):
        tick = around[_LOOK]
        if tick is None:
            continue
        tick.is_cut = cut_distance is not None and _is_cut(around, tick, cut_distance)
        yield tick


def _is_cut(around: list[Tick | None], tick: Tick, cut_distance: float) -> bool:
    if tick.distance <= _ADAPTIVE_SHARE * cut_distance or around[_LOOK - 1] is None:
        return False
    before = [other for other in around[:_LOOK] if other]
    after = [other for other in around[_LOOK : 2 * _LOOK] if other]
    pair = np.abs(_mean_histogram(before) - _mean_histogram(after)).sum()
    others = [other.distance for other in around if other and other is not tick]
    level = _ADAPTIVE_RATIO * sum(others) / len(others)
    return bool(pair > cut_distance or pair > max(_ADAPTIVE_SHARE * cut_distance, level))


def _mean_histogram(ticks: list[Tick]) -> np.ndarray:
    mean: np.ndarray = np.mean([tick.histogram for tick in ticks], axis=0)
    return mean


def _windows(ticks: Iterable[Tick], reach: int) -> Iterator[list[Tick | None]]:
    """Yield each tick in the middle of its `reach` neighbours to both sides (None beyond)."""
    window: deque[Tick | None] = deque([None] * (2 * reach + 1), maxlen=2 * reach + 1)
    for tick in ticks:
        window.append(tick)
        yield list(window)
    for _ in range(reach):
        window.append(None)
        yield list(window)
