"""Changes of shot - cuts, fades, dissolves - found in small luma pictures of every frame.

The one idea: two shots do not look alike whatever the camera did in between. So a candidate, cheap
and computed for all frames at once, is confirmed by comparing pictures from both sides of it, under
small shifts and without regard to brightness; flashes, pans, exposure ramps and passing objects
fail that test. Suspicions are:

    cut        one step far larger than its neighbours
    fade       a run of flat pictures, widened while contrast rises away from it
    dissolve   a stretch along which every picture is a mixture of the two ends

Measured against PySceneDetect in `benchmarks/results/cuts.md`. Cost: about 20 us per frame.

Axes: T frames, t steps of a coarse clock, h w pixels of a small picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["cut", "fade", "dissolve"]
Array = NDArray[np.float32]

# All numbers below are chosen, on drawn films (`videoar.bench.films`) other than the measured ones.
_STEP = 3.0  # luma levels: the smallest cut
_STEP_RATIO = 2.2  # to the steps around it
_BIG_STEP = 12.0
_SIMILARITY, _BIG_SIMILARITY = 0.62, 0.78  # below: two shots; a big step needs less to confirm it
_REACH = 3  # frames on either side that are compared: flashes are shorter
_FLAT = 2.0  # deviation of a picture without content
_LONGEST_RAMP_US = 1_500_000
_LONG_FLAT_US = 300_000  # so long a run of flat pictures ends a shot whatever surrounds it
_FLAT_SHOT_US = 1_000_000
_CLOCK_US = 80_000
_SPANS_US = (360_000, 500_000, 700_000, 1_000_000, 1_400_000)
_MIXTURE = 0.22  # largest distance from the mixture, in distances of the ends
_ENDS = 6.0  # smallest distance of the ends
_END_SIMILARITY = 0.55
_MARGIN_US = 200_000  # between two changes

LOOK_US = 3_000_000
"""What lies farther away than this does not matter to a frame."""


@dataclass(frozen=True)
class Transition:
    """One change of shot: frames `first` to `last` are not of one shot alone.

    A cut has `first == last`, the first frame of the new shot.
    """

    kind: Kind
    first: int
    last: int
    score: float
    """Mean luma difference between the two sides."""


def find_transitions(luma_Thw: NDArray[np.uint8], times_us: NDArray[np.int64]) -> list[Transition]:  # noqa: N803 - shape suffix
    """Find the changes of shot in pictures that follow each other without a gap.

    Args:
        luma_Thw: uint8 pictures, 36 x 64, of every frame.
        times_us: when each is shown, rising.

    Returns:
        Changes in order; no two overlap.
    """
    if len(luma_Thw) < 2:
        return []
    pictures = _Pictures(luma_Thw, times_us)
    found = _fades(pictures)
    taken = np.zeros(len(luma_Thw), bool)
    for change in found:
        taken[change.first : change.last + 1] = True
    cuts = _cuts(pictures, taken)
    for change in cuts:
        taken[change.first - 1 : change.last + 1] = True
    found += cuts + _dissolves(pictures, taken)
    return sorted(found, key=lambda change: change.first)


class _Pictures:
    """What all three searches read of the pictures."""

    def __init__(self, luma_Thw: NDArray[np.uint8], times_us: NDArray[np.int64]) -> None:  # noqa: N803 - shape suffix
        self.times_us = times_us
        self.half = _shrink(luma_Thw, 2)
        self.small = _shrink(luma_Thw, 4)
        rows = self.half.reshape(len(luma_Thw), -1)
        self.contrast: Array = rows.std(axis=1)
        steps = np.abs(np.diff(rows, axis=0)).mean(axis=1)
        self.steps: Array = np.concatenate([[0.0], steps]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.half)

    def difference(self, first: int, second: int) -> float:
        return float(np.abs(self.half[first] - self.half[second]).mean())


def _shrink(luma_Thw: NDArray[np.uint8], by: int) -> Array:  # noqa: N803 - shape suffix
    frames, height, width = luma_Thw.shape
    cells = luma_Thw.reshape(frames, height // by, by, width // by, by)
    total = np.zeros((frames, height // by, width // by), np.float32)
    for row in range(by):
        for column in range(by):
            total += cells[:, :, row, :, column]
    total /= by**2
    return total


def _fades(pictures: _Pictures) -> list[Transition]:
    found = []
    end_of_all = len(pictures) - 1
    for first, last in _runs(pictures.contrast < _FLAT):
        start, end = _widen(pictures, first, -1), _widen(pictures, last, 1)
        before, after = max(0, start - 1), min(end_of_all, end + 1)
        score = pictures.difference(before, after)
        length_us = pictures.times_us[last] - pictures.times_us[first]
        is_all = first == 0 and last == end_of_all
        if is_all or length_us > _FLAT_SHOT_US:  # a shot of nothing, for policy to judge
            found += [Transition("fade", start, first, score)] if first > 0 else []
            found += [Transition("fade", last, end, score)] if last < end_of_all else []
            continue
        is_plain = start == 0 or end == end_of_all or length_us > _LONG_FLAT_US
        if last > first and (is_plain or _similarity(pictures, before, after) < _SIMILARITY):
            found.append(Transition("fade", start, end, score))
    return _disjoint(found)


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield first and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from ((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))


def _widen(pictures: _Pictures, place: int, way: int) -> int:
    """Follow a ramp away from flat pictures while contrast rises."""
    begin_us, contrast = pictures.times_us[place], pictures.contrast
    while 0 <= place + way < len(pictures):
        is_near = abs(pictures.times_us[place + way] - begin_us) <= _LONGEST_RAMP_US
        if not is_near or contrast[place + way] <= 1.01 * contrast[place]:
            break
        place += way
    return place


def _disjoint(changes: list[Transition]) -> list[Transition]:
    """Join changes that overlap, as two flat runs with one ramp between them do."""
    joined: list[Transition] = []
    for change in changes:
        if joined and change.first <= joined[-1].last:
            old = joined.pop()
            last, score = max(old.last, change.last), max(old.score, change.score)
            joined.append(Transition(old.kind, old.first, last, score))
        else:
            joined.append(change)
    return joined


def _cuts(pictures: _Pictures, taken: NDArray[np.bool_]) -> list[Transition]:
    steps = pictures.steps
    padded = np.concatenate([[0.0], steps, [0.0]])
    is_peak = (steps >= padded[:-2]) & (steps >= padded[2:]) & (steps >= _STEP) & ~taken
    found: list[Transition] = []
    for index in np.flatnonzero(is_peak).tolist():
        sides = (steps[max(1, index - 4) : index], steps[index + 1 : index + 5])
        level = max(float(np.median(side)) if len(side) else 0.0 for side in sides)
        if found and index == found[-1].last + 1:
            continue  # two equal steps: one cut
        step = float(steps[index])
        bound = _BIG_SIMILARITY if step >= _BIG_STEP else _SIMILARITY
        if step >= _STEP_RATIO * level and _similarity(pictures, index - 1, index) < bound:
            found.append(Transition("cut", index, index, step))
    return found


def _similarity(pictures: _Pictures, before: int, after: int) -> float:
    """Return how much anything just before resembles anything just after, at most 1."""
    old = pictures.half[max(0, before - _REACH + 1) : before + 1]
    new = pictures.half[after : after + _REACH + 1]
    return _best_correlation(old, new, (2, 4))


def _best_correlation(old_Nhw: Array, new_Mhw: Array, reach: tuple[int, int]) -> float:  # noqa: N803 - shape suffix
    """Return the best normalised correlation over all pairs and shifts."""
    best = -1.0
    for down in range(-reach[0], reach[0] + 1, reach[0]):
        for right in range(-reach[1], reach[1] + 1, max(1, reach[1] // 2)):
            old = _centred(_shifted(old_Nhw, down, right))
            new = _centred(_shifted(new_Mhw, -down, -right))
            best = max(best, float((old @ new.T).max()))
    return best


def _shifted(pictures_Nhw: Array, down: int, right: int) -> Array:  # noqa: N803 - shape suffix
    """Cut off what has no counterpart in the other picture."""
    height, width = pictures_Nhw.shape[1:]
    rows = slice(max(0, down), height + min(0, down))
    columns = slice(max(0, right), width + min(0, right))
    return pictures_Nhw[:, rows, columns]


def _centred(pictures_Nhw: Array) -> Array:  # noqa: N803 - shape suffix
    """Make correlation a dot product: no mean, unit length (less where there is no contrast)."""
    rows = pictures_Nhw.reshape(len(pictures_Nhw), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    centred: Array = rows / (length + 0.03 * rows.shape[1] ** 0.5)
    return centred


@dataclass(frozen=True)
class _Candidate:
    """A stretch that might be a dissolve."""

    mixture: float
    """Distance from the mixture of the ends, in distances of the ends."""
    first: int
    last: int


def _dissolves(pictures: _Pictures, taken: NDArray[np.bool_]) -> list[Transition]:
    found: list[Transition] = []
    taken = taken.copy()
    for candidate in sorted(_candidates(pictures), key=lambda s: (s.mixture, s.first, s.last)):
        first, last = candidate.first, candidate.last
        if taken[first : last + 1].any():
            continue
        ends = pictures.small[[first, last]]
        if _best_correlation(ends[:1], ends[1:], (1, 2)) < _END_SIMILARITY:
            score = pictures.difference(first, last)
            found.append(Transition("dissolve", first + 1, last - 1, score))
            times = pictures.times_us
            near = (times >= times[first] - _MARGIN_US) & (times <= times[last] + _MARGIN_US)
            taken |= near
    return found


def _candidates(pictures: _Pictures) -> Iterator[_Candidate]:
    """Yield the best stretch of each neighbourhood, on a coarse clock for frame rates to agree."""
    times = pictures.times_us
    tick_us = max(_CLOCK_US, int(np.median(np.diff(times))))
    first_us = -(-times[0] // tick_us) * tick_us  # the same clock wherever looking begins
    clock = np.arange(first_us, times[-1] + 1, tick_us)
    index_t = np.searchsorted(times, clock, side="right") - 1
    picture_t = pictures.small[index_t].reshape(len(clock), -1)
    for span_us in _SPANS_US:
        span = max(4, round(span_us / tick_us))
        if span >= len(clock):
            break
        old, new = picture_t[:-span], picture_t[span:]
        distance = np.abs(new - old).mean(axis=1)
        error = np.zeros_like(distance)
        for place in {round(span * share) for share in (0.25, 0.5, 0.75)}:
            share = place / span
            between = picture_t[place : len(clock) - span + place]
            mixed = np.abs(between - (1 - share) * old - share * new).mean(axis=1)
            error = np.maximum(error, mixed)
        mixture = error / np.maximum(distance, 1)
        for first, last in _runs((distance > _ENDS) & (mixture < _MIXTURE)):
            best = first + int(np.argmin(mixture[first : last + 1]))
            yield _Candidate(float(mixture[best]), int(index_t[best]), int(index_t[best + span]))
