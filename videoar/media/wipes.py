"""Find stretches in which one picture replaces another from place to place: wipes, slides, pushes.

Frames are compared on a coarse clock. Two models:

    wipe     each cell goes from the old picture to the new one in few steps of the clock, at a time
             of its own: neither all cells at once, as in a cut, nor all slowly, as in a dissolve
    slide    on one side of a seam is the new picture, on the other the old one; each stands still
             or moves with the seam (both: a push), and the seam moves on

Worked example of a wipe to the right, one row of four cells, old 10 and new 90:

    t  0    10 10 10 10
    t  1    90 10 10 10     each cell has one step of 80, and each frame a quarter of all steps
    t  2    90 90 10 10
    t  3    90 90 90 10
    t  4    90 90 90 90

A stretch that fits a model is only a candidate: `videoar.media.transitions` compares its ends.

Axes: t points of the clock, N stretches, h w cells.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoar.media.luma_frames import Array, ClockFrames, Sums

# All numbers below are chosen on drawn films, as those of `videoar.media.transitions`.
SPANS_US = (360_000, 500_000, 700_000, 1_000_000, 1_400_000, 1_900_000)
_ENDS = 8.0  # luma levels: smallest distance of the ends
_ALIKE = 0.55  # largest correlation of the ends
_ACTIVE = 1.9  # steps inside, relative to those on the quieter side
_BESIDE = 5  # points on each side
_MIN_BESIDE = 3  # one may be a repeated frame
_ABRUPT = 0.4  # of a cell's change in its two largest steps: 0 if all are equal, 1 for a hard edge
_DETOUR = 1.8  # largest way of a cell, relative to the distance of the ends
_ALL_AT_ONCE = 0.6  # largest share of the change that is in one step
_BETWEEN = 0.14  # largest distance of a cell to both pictures, relative to that of the pictures
_MISFIT = 0.17  # largest deviation from a slide, relative to the distance of the ends
_COARSE_MISFIT = 0.35
_SHARES = [0.3, 0.5, 0.7]  # of the time of a slide: where it is looked at
_PROGRESS = 0.15  # smallest way of the seam from the first to the last of them, in sides
_PIXELS = 36 * 64
_IN_BAND = {18: 6, 32: 8}  # cells added across the way of the seam, by their number


@dataclass(frozen=True)
class Stretch:
    """A stretch of the clock that fits a model."""

    cost: float
    """0 for a perfect fit, 1 at the bound."""
    first: int
    last: int


def find_stretches(frames: ClockFrames, taken_t: NDArray[np.bool_]) -> Iterator[Stretch]:
    """Yield the stretches that fit a model, at several lengths each.

    Args:
        frames: at the points of the clock.
        taken_t: whether a point or what follows it belongs to another transition.
    """
    pictures_tc = frames.pictures_tc
    num_taken = np.concatenate([[0], np.cumsum(taken_t)])
    steps_tc = np.abs(np.diff(frames.cells_tc, axis=0))
    pairs_tc = steps_tc[1:] + steps_tc[:-1]
    before_t, after_t = _beside(frames.way_t)
    firsts, lasts = [], []
    for span, distance in frames.spans(SPANS_US):
        inside = (frames.way_t[span:] - frames.way_t[:-span]) / span
        quieter = np.minimum(before_t[:-span], after_t[span:])
        is_candidate = (distance > _ENDS) & (inside > _ACTIVE * quieter)
        is_candidate &= num_taken[span:-1] == num_taken[: -span - 1]
        first = np.flatnonzero(is_candidate)
        correlation = (pictures_tc[first] * pictures_tc[first + span]).sum(axis=1)
        first = first[correlation < _ALIKE]
        if len(first):
            yield from _wipes(frames, pairs_tc, first, span, distance[first])
            firsts.append(first)
            lasts.append(first + span)
    if firsts:
        yield from _slides(frames, np.concatenate(firsts), np.concatenate(lasts))


def _beside(way_t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean step in the points before each point, and in those after it.

    Without points enough it is not known, thus nan: a pan that a film begins with is no push.
    """
    point = np.arange(len(way_t))
    first, last = np.maximum(0, point - _BESIDE), np.minimum(len(way_t) - 1, point + _BESIDE)
    before = (way_t - way_t[first]) / np.maximum(1, point - first)
    after = (way_t[last] - way_t) / np.maximum(1, last - point)
    before[:_MIN_BESIDE] = after[-_MIN_BESIDE:] = np.nan
    return before, after


def _wipes(
    frames: ClockFrames, pairs_tc: Array, first_N: NDArray[np.intp], span: int, distance_N: Array
) -> Iterator[Stretch]:
    """Yield the best stretch of each neighbourhood."""
    cells_tc = frames.cells_tc
    detour = (frames.way_t[first_N + span] - frames.way_t[first_N]) / distance_N
    at_once = _sliding_max(frames.steps_t[:, None], span)[first_N, 0] / distance_N
    of_pair = _sliding_max(pairs_tc, span - 1)[first_N].mean(axis=1) / distance_N
    abrupt = (of_pair - 2 / span) / (1 - 2 / span)
    fits = (abrupt > _ABRUPT) & (detour < _DETOUR) & (at_once < _ALL_AT_ONCE)
    first_N, distance_N = first_N[fits], distance_N[fits]
    old, new = cells_tc[first_N], cells_tc[first_N + span]
    deviations = []
    for offset in {round(span * share) for share in (0.25, 0.5, 0.75)}:
        seen = cells_tc[first_N + offset]
        deviations.append(np.minimum(np.abs(seen - old), np.abs(seen - new)).mean(axis=1))
    between = np.mean(deviations, axis=0) / distance_N
    first_N, between = first_N[between < _BETWEEN], between[between < _BETWEEN]
    for run in np.split(np.arange(len(first_N)), np.flatnonzero(np.diff(first_N) > 1) + 1):
        if len(run):
            best = run[np.argmin(between[run])]
            first = int(first_N[best])
            yield Stretch(float(between[best]) / _BETWEEN, first, first + span)


def _sliding_max(values: Array, length: int) -> Array:
    """Return the maximum of each `length` consecutive rows."""
    width = 1
    while 2 * width <= length:
        values = np.maximum(values[:-width], values[width:])
        width *= 2
    rest = length - width
    return np.maximum(values[: len(values) - rest], values[rest:]) if rest else values


def _slides(
    frames: ClockFrames, first_N: NDArray[np.intp], last_N: NDArray[np.intp]
) -> Iterator[Stretch]:
    """Yield the candidates that fit a slide."""
    num = len(frames.index_t)
    change_Nhw = np.abs(frames.quarter_thw[first_N] - frames.quarter_thw[last_N])
    distance_N = np.tile(change_Nhw.sum(axis=(1, 2), dtype=np.int32) / _PIXELS, 2)
    # both ways that a seam moves along an axis: those of mirrored frames follow the others
    first_N, last_N = (np.concatenate([at, at + num]) for at in (first_N, last_N))
    half_hwt, quarter_hwt = (
        np.ascontiguousarray(frames_thw.reshape(num, -1).T).reshape(*frames_thw.shape[1:], num)
        for frames_thw in (frames.half_thw, frames.quarter_thw)
    )
    for axes in ((0, 1, 2), (1, 0, 2)):
        half, quarter = (
            np.concatenate([upright, upright[:, ::-1]], axis=2)
            for upright in (
                np.ascontiguousarray(frames_hwt.transpose(axes))
                for frames_hwt in (half_hwt, quarter_hwt)
            )
        )
        at, costs = _slide_costs(half, quarter, first_N, last_N, distance_N)
        for index, cost in zip(at.tolist(), costs.tolist(), strict=True):
            first = int(first_N[index]) % num
            yield Stretch(cost, first, first + int(last_N[index] - first_N[index]))


def _slide_costs(
    half_hwt: Sums,
    quarter_hwt: Sums,
    first_N: NDArray[np.intp],
    last_N: NDArray[np.intp],
    distance_N: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return which candidates fit a slide, and their costs; coarser pictures rule most out."""
    height, width = half_hwt.shape[:2]
    misfits = _misfits(quarter_hwt, first_N, last_N, [0.5])
    at = np.flatnonzero(misfits.min(axis=(0, 1, 2)) < _COARSE_MISFIT * distance_N)
    bound_N = 3 * _MISFIT * distance_N
    # a bound: the difference of two sums is at most the sum of the differences
    bands = half_hwt.reshape(-1, _IN_BAND[height], width, half_hwt.shape[2])
    early, middle, late = _misfits(
        bands.sum(axis=1, dtype=np.int16), first_N[at], last_N[at], _SHARES
    )
    way = math.ceil(_PROGRESS * width)
    early = np.minimum.accumulate(early[:, :-way], axis=1)
    least = (early + late[:, way:]).min(axis=1) + middle.min(axis=1)
    at = at[least.min(axis=0) < bound_N[at]]
    misfits = _misfits(half_hwt, first_N[at], last_N[at], _SHARES)
    early, middle, late = (misfits.argmin(axis=2) + 1) / width
    total = misfits.min(axis=2).sum(axis=0)
    total[(early > middle) | (middle > late) | (late - early < _PROGRESS)] = np.inf
    costs = total.min(axis=0) / bound_N[at]
    return at[costs < 1], costs[costs < 1]


def _misfits(
    frames_hwt: Sums, first_N: NDArray[np.intp], last_N: NDArray[np.intp], shares: list[float]
) -> Array:
    """Return the deviations from a cover, an uncovering and a push with the seam at each column.

    Args:
        frames_hwt: frames; the seam moves along their second axis, upwards.
        first_N: of each candidate.
        last_N: of each candidate.
        shares: which frames between them.

    Returns:
        Luma levels [shares, 3, w - 1, N].
    """
    middles = [first_N + np.rint(share * (last_N - first_N)).astype(int) for share in shares]
    seen = frames_hwt.take(np.concatenate(middles), axis=2)
    width = seen.shape[1]
    # new, then old: from `width - seam` on with the seam at that column
    pushed = np.concatenate([frames_hwt.take(at, axis=2) for at in (last_N, first_N)], axis=1)
    pushed = np.tile(pushed, len(shares))
    change = np.empty_like(seen)

    def deviations(begin: int) -> Array:
        np.subtract(seen, pushed[:, begin : begin + width], out=change)
        np.abs(change, out=change)
        sums: Array = change.view(np.uint16).sum(axis=0, dtype=np.uint16).astype(np.float32)
        return sums

    # for each seam in 1 .. w - 1: the columns before it, and those after it
    is_new = np.tri(width - 1, width, dtype=np.float32)
    sides_sw = np.stack([is_new, 1 - is_new], axis=1)
    new_still, old_still = is_new @ deviations(0), (1 - is_new) @ deviations(width)
    moves = np.empty((width - 1, 2, seen.shape[2]), np.float32)
    for seam, sides in enumerate(sides_sw, 1):
        np.matmul(sides, deviations(width - seam), out=moves[seam - 1])
    new_moves, old_moves = moves[:, 0], moves[:, 1]
    models = np.stack([new_moves + old_still, new_still + old_moves, new_moves + old_moves])
    models /= _PIXELS
    return models.reshape(3, width - 1, len(shares), -1).transpose(2, 0, 1, 3)
