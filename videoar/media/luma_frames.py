"""Luma frames at the sizes at which transitions are sought, with what is measured of each.

Axes: T frames, t points of a coarse clock, h w cells of a frame.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Sums = NDArray[np.int16]
"""Cells as the sums of their pixels, which are exact; those of a row or column fit into uint16."""
_PIECE = 64  # chosen: arrays of about 128 KiB
CLOCK_US = 80_000  # chosen: as the numbers of `videoar.media.transitions`


class LumaFrames:
    """The frames at half and quarter size, with contrast and steps."""

    def __init__(self, luma_Thw: NDArray[np.uint8], times_us: NDArray[np.int64]) -> None:
        self.times_us = times_us
        self._times_us: list[int] = times_us.tolist()
        pieces = [_sums_and_contrast(luma_Thw[piece]) for piece in _pieces(len(luma_Thw))]
        half, quarter, self.contrast_T = (
            np.concatenate(arrays) for arrays in zip(*pieces, strict=True)
        )
        self.half_sums_Thw: Sums = half.view(np.int16)
        self.quarter_sums_Thw: Sums = quarter.view(np.int16)
        self.half_Thw: Array = half * np.float32(1 / 4)
        self.quarter_Thw: Array = quarter * np.float32(1 / 16)
        pixels = self.half_Thw.reshape(len(luma_Thw), -1)
        steps = mean_difference(pixels[1:], pixels[:-1])
        self.steps_T: Array = np.concatenate([np.zeros(1, np.float32), steps])

    def __len__(self) -> int:
        return len(self.half_Thw)

    def around(self, index: int, count: int, length_us: int) -> tuple[int, int]:
        """Return the frames `count` before and after a frame, further ones within `length_us`."""
        time_us = self._times_us[min(index, len(self) - 1)]
        first = bisect_left(self._times_us, time_us - length_us)
        last = bisect_right(self._times_us, time_us + length_us) - 1
        return max(0, min(index - count, first)), max(index + count, last)

    def difference(self, first: int, second: int) -> float:
        """Return the mean difference of two frames, in luma levels."""
        return float(np.abs(self.half_Thw[first] - self.half_Thw[second]).mean())


class ClockFrames:
    """The frames on display at the points of a coarse clock.

    The clock makes films of different frame rates comparable. Its points are multiples of the step
    in absolute time, so that they do not depend on where a block of frames begins. Where no
    multiple is among the frames, the last frame is the only point.
    """

    def __init__(self, frames: LumaFrames) -> None:
        times_us = frames.times_us
        self.step_us = max(CLOCK_US, int(np.median(np.diff(times_us))))
        first_us = min(-(-times_us[0] // self.step_us) * self.step_us, times_us[-1])
        clock = np.arange(first_us, times_us[-1] + 1, self.step_us)
        self.index_t: NDArray[np.intp] = np.searchsorted(times_us, clock, side="right") - 1
        self.half_thw = frames.half_sums_Thw[self.index_t]
        self.quarter_thw = frames.quarter_sums_Thw[self.index_t]
        self.cells_tc = frames.quarter_Thw[self.index_t].reshape(len(clock), -1)
        self.steps_t = mean_difference(self.cells_tc[1:], self.cells_tc[:-1])
        self.way_t = np.concatenate([[0.0], np.cumsum(self.steps_t)])
        self.pictures_tc = self.cells_tc - self.cells_tc.mean(axis=1, keepdims=True)
        """Their products are correlations; noise in frames without contrast does not correlate."""
        self.pictures_tc /= np.sqrt((self.pictures_tc**2).sum(axis=1, keepdims=True)) + 1
        self._distances: dict[int, Array] = {}

    def spans(self, lengths_us: Iterable[int]) -> Iterator[tuple[int, Array]]:
        """Yield each length in points, with the distances of all frames so far apart."""
        for length_us in lengths_us:
            span = max(4, round(length_us / self.step_us))
            if span >= len(self.cells_tc):
                return
            if span not in self._distances:
                old_Nc, new_Nc = self.cells_tc[:-span], self.cells_tc[span:]
                self._distances[span] = mean_difference(old_Nc, new_Nc)
            yield span, self._distances[span]


def mean_difference(old_Nc: Array, new_Nc: Array) -> Array:
    """Return the mean difference of each row, in luma levels; faster than `mean`."""
    means, ones = np.empty(len(old_Nc), np.float32), np.ones(old_Nc.shape[1], np.float32)
    for piece in _pieces(len(old_Nc)):
        change = old_Nc[piece] - new_Nc[piece]
        np.matmul(np.abs(change, out=change), ones, out=means[piece])
    return means / np.float32(len(ones))


def _pieces(num: int) -> Iterator[slice]:
    """Yield slices of few frames: fresh pages for larger arrays cost more than the arithmetic."""
    return (slice(begin, begin + _PIECE) for begin in range(0, num, _PIECE))


def _sums_and_contrast(
    luma_Thw: NDArray[np.uint8],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], Array]:
    """Return the cells at half and quarter size, and the contrast of each frame."""
    half = _sums(luma_Thw)
    cells = half.reshape(len(half), -1) * np.float32(1 / 4)
    ones = np.ones(cells.shape[1], np.float32)
    # for arrays this small, `std` costs more than its arithmetic
    cells -= (cells @ ones / ones.size)[:, None]
    contrast = np.sqrt(np.square(cells, out=cells) @ ones / ones.size)
    return half, _sums(half), contrast


def _sums(cells_Thw: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Add cells of 2x2, whose sums fit into 16 bits.

    Two neighbours in a row are read as one number and taken apart: ten times as fast as views with
    a step of two.
    """
    bits = 8 * cells_Thw.itemsize
    pairs = cells_Thw.view(f"u{2 * cells_Thw.itemsize}")
    rows = pairs & ((1 << bits) - 1)
    rows += pairs >> bits
    sums: NDArray[np.uint16] = (rows[:, ::2] + rows[:, 1::2]).astype(np.uint16, copy=False)
    return sums
