"""Detect shot transitions - cuts, fades, dissolves, wipes - on small luma frames.

Two steps. A cheap measure, computed for all frames at once, proposes candidates. Each candidate is
then confirmed by comparing the frames on both sides of it: frames of two shots do not correlate,
whatever shift and brightness change is allowed between them. Flashes, pans, exposure ramps and
passing objects produce candidates too, but the two sides still show the same scene.

    cut        one step between frames that is far larger than its neighbours
    fade       a run of flat frames, extended while contrast rises away from it
    dissolve   a stretch in which every frame is a mixture of the two end frames
    wipe       a stretch in which the new picture replaces the old one from place to place, also as
               a slide or push: see `videoar.media.wipes`

Worked example: 3 frames of a shot, a cut, 5 frames of another one, which fades out and into a third
one with a flash. `step` is the mean luma difference to the previous frame, `contrast` the standard
deviation within a frame:

    frame       1   2   3   4   5   6   7   8   9  10  11  12  13  14  15  16  17
    step        0   0  30   0   0   0   0  61  49   0   0  54  55   0  90  90   0
    contrast   25  25  25  25  25  25  25  11   0   0   0  12  25  25  25  25  25

    3      step 30 > 2.2 x the median of the steps beside it; 2 and 3 correlate by 0.11: a cut
    9-11   flat, contrast < 2. Contrast rises to 25 at 7 and at 13: a fade from 7 to 13
    15     step 90, but the frames before and after the flash correlate by 1.00: no cut

Measured against PySceneDetect in `benchmarks/results/cuts.md`. Cost: 7 us per frame, 20 in a film
with a transition every 4 s.

Axes: T frames, t points of a coarse clock, N M frames to compare, h w pixels of a luma frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from videoar.media.correlation import correlates, grid
from videoar.media.luma_frames import CLOCK_US, Array, ClockFrames, LumaFrames, mean_difference
from videoar.media.wipes import find_stretches

Kind = Literal["cut", "fade", "dissolve", "wipe"]

# All numbers below are chosen, on drawn films (`videoar.bench.films`) that are not those measured
# in the benchmark.
_STEP = 3.0  # luma levels: the smallest cut
_STEP_RATIO = 2.2  # of a cut to the steps beside it
_BIG_STEP = 12.0
_SIMILARITY, _BIG_SIMILARITY = 0.62, 0.78  # below: two shots; a big step needs less confirmation
_REACH, _REACH_US = 3, 100_000  # frames compared on each side, and at least their time
_SIDE, _SIDE_US = 4, 134_000  # frames on each side that tell the usual step
_REPEAT = 0.05  # luma levels: a smaller step repeats a frame
_FLAT = 2.0  # contrast of a frame without content
_LONGEST_RAMP_US = 1_500_000
_LONG_FLAT_US = 300_000  # a longer run of flat frames ends a shot whatever surrounds it
_FLAT_SHOT_US = 1_000_000  # a longer one is a shot of its own
_SPANS_US = (360_000, 500_000, 700_000, 1_000_000, 1_400_000)  # lengths of dissolves to try
_MIXTURE = 0.22  # largest deviation from the mixture, relative to the distance of the ends
_ENDS = 6.0  # luma levels: smallest distance of the ends of a dissolve
_END_SIMILARITY = 0.55
_MIX_CONTRAST = 1.1  # largest contrast halfway, relative to that of the mixture of the ends
_MIX_ACTIVE = 1.3  # steps inside, relative to those on the quieter side
_MARGIN_US = 200_000  # between two transitions
_FLASH_US = 350_000
_DARKER = 0.25  # largest share of the change in a flash that takes light away
_PAN_SIMILARITY = 0.7  # of the parts that the ends of a pan have in common
_QUIET, _GROW = 0.3, 0.4  # of the mean step inside: less ends a wipe, more continues it
_TRIES = 2  # stretches that are compared at one place
_LONGEST = 20  # points of the clock
_PASSER_US = (300_000, 600_000, 1_000_000)  # an object that passes leaves the frame within these

# allow for camera motion: more steps sideways, because cameras pan more than they tilt
_HALF_SHIFTS = grid((-2, 0, 2), (-4, -2, 0, 2, 4))
_QUARTER_SHIFTS = grid((-1, 0, 1), range(-2, 3))
_PAN_SHIFTS = grid((0, -2, 2), range(-21, 22)) + grid(range(-12, 13), (0, -2, 2))

LOOK_US = 3_000_000
"""Frames further away than this do not affect the result at a frame: twice the longest ramp."""


@dataclass(frozen=True)
class Transition:
    """One transition: frames `first` to `last` do not belong to one shot alone.

    A cut has `first == last`, the first frame of the new shot.
    """

    kind: Kind
    first: int
    last: int
    score: float
    """Mean luma difference between the two sides."""


def find_transitions(luma_Thw: NDArray[np.uint8], times_us: NDArray[np.int64]) -> list[Transition]:
    """Return the transitions in consecutive frames.

    Args:
        luma_Thw: uint8 [T, 36, 64], every frame.
        times_us: presentation times, rising.

    Returns:
        Transitions in order; no two overlap.
    """
    if len(luma_Thw) < 2:
        return []
    frames = LumaFrames(luma_Thw, times_us)
    # Fades first: the ramp of a fade also looks like a dissolve, and its end like a cut.
    found = _fades(frames)
    taken = np.zeros(len(luma_Thw), bool)
    for fade in found:
        taken[fade.first : fade.last + 1] = True
    cuts = _cuts(frames, taken)
    for cut in cuts:
        taken[cut.first - 1 : cut.last + 1] = True
    clocked = ClockFrames(frames)
    dissolves = _dissolves(frames, clocked, taken)
    for dissolve in dissolves:
        taken[dissolve.first - 1 : dissolve.last + 2] = True
    found += cuts + dissolves + _wipes(frames, clocked, taken)
    return sorted(found, key=lambda transition: transition.first)


def _fades(frames: LumaFrames) -> list[Transition]:
    fades = []
    last_frame = len(frames) - 1
    for first, last in _runs(frames.contrast_T < _FLAT):
        start, end = _extend(frames, first, -1), _extend(frames, last, 1)
        before, after = max(0, start - 1), min(last_frame, end + 1)
        score = frames.difference(before, after)
        length_us = frames.times_us[last] - frames.times_us[first]
        is_all = first == 0 and last == last_frame
        if is_all or length_us > _FLAT_SHOT_US:
            # a shot without content: kept as a shot, for the policy to reject (`black_frac`)
            fades += [Transition("fade", start, first, score)] if first > 0 else []
            fades += [Transition("fade", last, end, score)] if last < last_frame else []
            continue
        is_clear = start == 0 or end == last_frame or length_us > _LONG_FLAT_US
        # a single flat frame is a flash or a dropped frame
        if last > first and (is_clear or not _is_similar(frames, before, after, _SIMILARITY)):
            fades.append(Transition("fade", start, end, score))
    return _merge_overlapping(fades)


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from ((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))


def _extend(frames: LumaFrames, index: int, direction: int) -> int:
    """Follow the ramp away from a flat frame while contrast rises by at least 1 % per frame."""
    start_us, contrast_T = frames.times_us[index], frames.contrast_T
    while 0 <= index + direction < len(frames):
        is_near = abs(frames.times_us[index + direction] - start_us) <= _LONGEST_RAMP_US
        if not is_near or contrast_T[index + direction] <= 1.01 * contrast_T[index]:
            break
        index += direction
    return index


def _merge_overlapping(transitions: list[Transition]) -> list[Transition]:
    """Merge transitions that overlap, as two flat runs with one ramp between them do."""
    merged: list[Transition] = []
    for transition in transitions:
        if merged and transition.first <= merged[-1].last:
            previous = merged.pop()
            last = max(previous.last, transition.last)
            score = max(previous.score, transition.score)
            merged.append(Transition(previous.kind, previous.first, last, score))
        else:
            merged.append(transition)
    return merged


def _cuts(frames: LumaFrames, taken_T: NDArray[np.bool_]) -> list[Transition]:
    steps_T = frames.steps_T
    padded = np.concatenate([[0.0], steps_T, [0.0]])
    is_peak = (steps_T >= padded[:-2]) & (steps_T >= padded[2:]) & (steps_T >= _STEP) & ~taken_T
    cuts: list[Transition] = []
    steps = steps_T.tolist()
    for index in np.flatnonzero(is_peak).tolist():
        if cuts and index == cuts[-1].last + 1:
            continue  # two equal steps in a row are both peaks, but one cut
        step = steps[index]
        # the larger median: motion on one side alone must not hide a cut from the comparison, nor
        # make one of a step that is usual there. Repeated frames say nothing about motion.
        old, new = frames.around(index, _SIDE, _SIDE_US)
        sides = (steps[max(1, old) : index], steps[index + 1 : new + 1])
        moving = [[step for step in side if step > _REPEAT] for side in sides]
        level = max((median(side) for side in moving if side), default=0.0)
        bound = _BIG_SIMILARITY if step >= _BIG_STEP else _SIMILARITY
        is_cut = step >= _STEP_RATIO * level and not _is_similar(frames, index - 1, index, bound)
        if is_cut and not _is_flash(frames, index, bound):
            cuts.append(Transition("cut", index, index, step))
    return cuts


def _is_flash(frames: LumaFrames, index: int, bound: float) -> bool:
    """Return whether the frames on one side of a step are lit, and beyond them the scene goes on.

    A lit frame shows nothing, or the frame beside the step with light added.
    """
    first, last = frames.around(index, 0, _FLASH_US)
    lit, base = index, frames.half_Thw[index - 1]
    while lit <= min(last, len(frames) - 1) and _is_lit(frames, lit, base):
        lit += 1
    if lit > index and _is_similar(frames, index - 1, index + 1, bound, latest=lit):
        return True
    lit, base = index - 1, frames.half_Thw[index]
    while lit >= first and _is_lit(frames, lit, base):
        lit -= 1
    return lit < index - 1 and _is_similar(frames, index - 2, index, bound, earliest=max(0, lit))


def _is_lit(frames: LumaFrames, index: int, base_hw: Array) -> bool:
    change = frames.half_Thw[index] - base_hw
    is_lighter = np.minimum(change, 0).sum() > -_DARKER * np.abs(change).sum()
    return bool(is_lighter or frames.contrast_T[index] < 0.4 * base_hw.std())


def _is_similar(
    frames: LumaFrames,
    before: int,
    after: int,
    bound: float,
    *,
    earliest: int | None = None,
    latest: int | None = None,
) -> bool:
    """Return whether any frame just before looks like any just after.

    Several frames on each side, so that one flash or damaged frame cannot separate two halves of a
    shot. `earliest` and `latest` are other frames that may be the one before and the one after.
    """
    first, _ = frames.around((before if earliest is None else earliest) + 1, _REACH, _REACH_US)
    _, last = frames.around(after if latest is None else latest, _REACH, _REACH_US)
    old_Nhw, new_Mhw = frames.half_Thw[first : before + 1], frames.half_Thw[after : last + 1]
    return correlates(old_Nhw, new_Mhw, _HALF_SHIFTS, bound)


@dataclass(frozen=True)
class _Candidate:
    """A stretch that may be a dissolve."""

    mixture: float
    """Deviation from the mixture of the ends, relative to the distance of the ends."""
    first: int
    last: int


def _dissolves(
    frames: LumaFrames, clocked: ClockFrames, taken_T: NDArray[np.bool_]
) -> list[Transition]:
    dissolves: list[Transition] = []
    taken_T = taken_T.copy()
    # best candidates first: the same dissolve is also found with longer and shorter spans
    for candidate in sorted(_candidates(clocked), key=lambda c: (c.mixture, c.first, c.last)):
        first, last = candidate.first, candidate.last
        if taken_T[first : last + 1].any():
            continue
        if _ends_differ(frames, first, last) and _is_mixed(frames, first, last):
            score = frames.difference(first, last)
            dissolves.append(Transition("dissolve", first + 1, last - 1, score))
            times = frames.times_us
            near = (times >= times[first] - _MARGIN_US) & (times <= times[last] + _MARGIN_US)
            taken_T |= near
    return dissolves


def _ends_differ(frames: LumaFrames, first: int, last: int) -> bool:
    return not _is_alike(frames, [first], [last])


def _is_alike(frames: LumaFrames, first: list[int], last: list[int]) -> bool:
    """Return whether one of the frames in `first` looks roughly like one of those in `last`."""
    old_Nhw, new_Mhw = frames.quarter_Thw[first], frames.quarter_Thw[last]
    return correlates(old_Nhw, new_Mhw, _QUARTER_SHIFTS, _END_SIMILARITY)


def _is_mixed(frames: LumaFrames, first: int, last: int) -> bool:
    """Return whether a stretch changes more than what is beside it, and mixes halfway.

    A rotating gradient is nearly a mixture of its ends in each cell, but it keeps its contrast and
    does not stop.
    """
    middle = (first + last) // 2
    halfway = (frames.half_Thw[first] + frames.half_Thw[last]) / 2
    if frames.contrast_T[middle] > _MIX_CONTRAST * (halfway.std() + 0.5):
        return False
    times_us, margin_us = frames.times_us, 5 * CLOCK_US
    clock = np.arange(times_us[first] - margin_us, times_us[last] + margin_us + 1, CLOCK_US)
    shown = frames.quarter_Thw[np.maximum(np.searchsorted(times_us, clock, side="right") - 1, 0)]
    steps = np.abs(np.diff(shown, axis=0)).mean(axis=(1, 2))
    is_there = (clock[:-1] >= times_us[0]) & (clock[1:] <= times_us[-1])  # not beyond the block
    beside = (steps[:5][is_there[:5]], steps[-5:][is_there[-5:]])
    sides = [side.mean() for side in beside if len(side)]
    return not sides or bool(steps[5:-5].mean() > _MIX_ACTIVE * min(sides))


def _wipes(
    frames: LumaFrames, clocked: ClockFrames, taken_T: NDArray[np.bool_]
) -> list[Transition]:
    index_t = clocked.index_t
    num_taken = np.concatenate([[0], np.cumsum(taken_T)])
    is_taken_t = num_taken[np.append(index_t[1:], len(frames))] > num_taken[index_t]
    stretches = sorted(find_stretches(clocked, is_taken_t), key=lambda s: (s.cost, s.first, s.last))
    steps_t = clocked.steps_t.tolist()
    tried_t = np.zeros(len(index_t), int)
    found: list[Transition] = []
    rejected: set[tuple[int, int]] = set()
    taken_T = taken_T.copy()
    for best in stretches:
        middle = (best.first + best.last) // 2
        if tried_t[middle] == _TRIES or taken_T[index_t[best.first] : index_t[best.last] + 1].any():
            continue
        tried_t[best.first : best.last + 1] += 1
        # part of a push fits as well as the whole
        first, last = (int(index_t[point]) for point in _fitted(steps_t, best.first, best.last))
        if taken_T[first : last + 1].any():
            first, last = int(index_t[best.first]), int(index_t[best.last])
        if (first, last) in rejected:
            continue
        is_wipe = _ends_differ(frames, first, last) and not _passes(frames, first, last)
        if not is_wipe or _is_pan(frames, first, last):
            rejected.add((first, last))
            continue
        score, times = frames.difference(first, last), frames.times_us
        # a point more on each side: the first and last traces of the other picture are small
        near = np.flatnonzero(
            (times > times[first] - clocked.step_us)
            & (times < times[last] + clocked.step_us)
            & ~taken_T
        )
        found.append(Transition("wipe", int(near[0]), int(near[-1]), score))
        taken_T |= (times >= times[first] - _MARGIN_US) & (times <= times[last] + _MARGIN_US)
    return found


def _fitted(steps_t: list[float], first: int, last: int) -> tuple[int, int]:
    """Cut the quiet ends off a stretch of the clock; extend it while as much changes as within."""
    quiet = _QUIET * fmean(steps_t[first:last])
    while last - first > 1 and steps_t[first] < quiet:
        first += 1
    while last - first > 1 and steps_t[last - 1] < quiet:
        last -= 1
    enough = _GROW * fmean(steps_t[first:last])
    low, high = max(0, last - _LONGEST), min(len(steps_t), first + _LONGEST)
    while first > low and steps_t[first - 1] > enough:
        first -= 1
    while last < high and steps_t[last] > enough:
        last += 1
    return first, last


def _is_pan(frames: LumaFrames, first: int, last: int) -> bool:
    """Return whether the ends show one scene, shifted by up to two thirds of a frame."""
    ends = frames.half_Thw[[first, last]]
    return correlates(ends[:1], ends[1:], _PAN_SHIFTS, _PAN_SIMILARITY)


def _passes(frames: LumaFrames, first: int, last: int) -> bool:
    """Return whether the scene of one end comes back: an object has passed close to the camera."""
    times, away_us = frames.times_us, np.array(_PASSER_US)
    after = np.searchsorted(times, times[last] + away_us)
    before = np.searchsorted(times, times[first] - away_us, side="right") - 1
    after, before = after[after < len(frames)], before[before >= 0]
    return _is_alike(frames, [first], after.tolist()) or _is_alike(frames, before.tolist(), [last])


def _candidates(frames: ClockFrames) -> Iterator[_Candidate]:
    """Yield the best stretch of each neighbourhood."""
    cells_tc, index_t = frames.cells_tc, frames.index_t
    for span, distance in frames.spans(_SPANS_US):
        mixture = np.where(distance > _ENDS, 0, np.inf)
        # at 1/2, 1/4 and 3/4 the frame must be old + share x (new - old); a cut or an object that
        # passes deviates at one of the three
        for offset in (round(span * share) for share in (0.5, 0.25, 0.75)):
            first_N = np.flatnonzero(mixture < _MIXTURE)
            old_Nc, new_Nc = cells_tc[first_N], cells_tc[first_N + span]
            mixed_Nc = (1 - offset / span) * old_Nc + offset / span * new_Nc
            error_N = mean_difference(cells_tc[first_N + offset], mixed_Nc)
            error_N /= np.maximum(distance[first_N], 1)
            mixture[first_N] = np.maximum(mixture[first_N], error_N)
        for first, last in _runs(mixture < _MIXTURE):
            best = first + int(np.argmin(mixture[first : last + 1]))
            if frames.pictures_tc[best] @ frames.pictures_tc[best + span] >= _END_SIMILARITY:
                continue  # `_ends_differ` would refuse it, too: its correlation is no smaller
            yield _Candidate(float(mixture[best]), int(index_t[best]), int(index_t[best + span]))
