"""Luma frames at the sizes at which transitions are sought, with what is measured of each.

Axes: T frames, t points of a coarse clock, h w cells of a frame.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Sums = NDArray[np.int16]
"""Cells as the sums of their pixels, which are exact; those of a row or column fit into uint16."""
CLOCK_US = 80_000  # chosen: as the numbers of `videoar.media.transitions`


class LumaFrames:
    """The frames at half and quarter size, with contrast and steps."""

    def __init__(self, luma_Thw: NDArray[np.uint8], times_us: NDArray[np.int64]) -> None:
        self.times_us = times_us
        half = _sums(luma_Thw)
        quarter = _sums(half)
        self.half_sums_Thw: Sums = half.view(np.int16)
        self.quarter_sums_Thw: Sums = quarter.view(np.int16)
        self.half_Thw: Array = half * np.float32(1 / 4)
        self.quarter_Thw: Array = quarter * np.float32(1 / 16)
        # for arrays this small, `mean` and `std` cost more than their arithmetic
        pixels = self.half_Thw.reshape(len(luma_Thw), -1)
        ones = np.ones(pixels.shape[1], np.float32)
        work = pixels - (pixels @ ones / ones.size)[:, None]
        self.contrast_T: Array = np.sqrt(np.square(work, out=work) @ ones / ones.size)
        np.subtract(pixels[1:], pixels[:-1], out=work[1:])
        work[0] = 0
        self.steps_T: Array = np.abs(work, out=work) @ ones / ones.size

    def __len__(self) -> int:
        return len(self.half_Thw)

    def around(self, index: int, count: int, length_us: int) -> tuple[int, int]:
        """Return the frames `count` before and after a frame, further ones within `length_us`."""
        time_us = self.times_us[min(index, len(self) - 1)]
        first = np.searchsorted(self.times_us, time_us - length_us)
        last = np.searchsorted(self.times_us, time_us + length_us, side="right") - 1
        return max(0, min(index - count, int(first))), max(index + count, int(last))

    def difference(self, first: int, second: int) -> float:
        """Return the mean difference of two frames, in luma levels."""
        return float(np.abs(self.half_Thw[first] - self.half_Thw[second]).mean())

    def clock(self) -> tuple[NDArray[np.intp], int]:
        """Return the frame on display at each point of a coarse clock, and its step.

        The clock makes films of different frame rates comparable. Its points are multiples of the
        step in absolute time, so that they do not depend on where a block of frames begins. Where
        no multiple is among the frames, the last frame is the only point.
        """
        step_us = max(CLOCK_US, int(np.median(np.diff(self.times_us))))
        first_us = min(-(-self.times_us[0] // step_us) * step_us, self.times_us[-1])
        clock = np.arange(first_us, self.times_us[-1] + 1, step_us)
        return np.searchsorted(self.times_us, clock, side="right") - 1, step_us


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
