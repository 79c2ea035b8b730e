"""How much a frame shows, whatever the size of its file: of copies, the richest one is kept.

The spectrum of a picture over cycles per picture does not change when the picture is enlarged: the
added frequencies are empty. Coding, blur and scaling down empty the high ones. So the power of all
frequencies, weighted by the frequency, compares copies of different sizes. Bars are left out, and
the middle counts most, as text, clocks and logos on copies are at the edges.

It ranks copies of one picture and says nothing about different pictures. A copy that was sharpened,
or to which noise was added, counts as richer.

Axes: H W pixels, N lines, L samples of a line.
"""

from functools import lru_cache
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoar.media.color import has_luma, is_full_range, luma_of

_LINES = 96  # chosen: lines sampled per axis; 0.3 ms at 480p
_FLAT = 2.0  # chosen: standard deviation of the grey levels of a bar with its coding noise
_EXPANSION = (255 / 219) ** 2  # of the power of a frame in limited range to that in full range


class Lines(NamedTuple):
    """Rows and columns of one frame, kept until it is known whether its clip is taken."""

    rows_NW: np.ndarray
    """uint8, evenly spaced."""
    columns_NH: np.ndarray
    expansion: float

    @classmethod
    def of(cls, frame: av.VideoFrame, *, is_combed: bool = False) -> "Lines":
        """Return lines of a decoded frame; columns of one field if it is combed."""
        is_full = is_full_range(frame) or not has_luma(frame)
        luma_HW = luma_of(frame, VideoReformatter())
        field_HW = luma_HW[:: 1 + is_combed]  # combs look like detail
        return cls(_spaced(luma_HW), _spaced(field_HW.T), 1 if is_full else _EXPANSION)

    def detail(self) -> float:
        """Return the mean over both axes of the power of a line, each frequency times its number.

        The unit is a squared grey level; 0 for a flat picture.
        """
        across, down = (
            _weighted_power(_inside(lines)) for lines in (self.rows_NW, self.columns_NH)
        )
        return float(np.sqrt(across * down)) * self.expansion


def _spaced(luma_HW: np.ndarray) -> np.ndarray:
    step = max(1, len(luma_HW) // _LINES)
    # "K": columns, which are the rows of a transposed view, stay side by side in memory
    return luma_HW[step // 2 :: step].copy(order="K")


def _inside(lines_NL: np.ndarray) -> np.ndarray:
    """Return lines without the bars at the ends of both axes, float32."""
    lines = lines_NL.astype(np.float32)
    for _ in range(2):  # rows, then columns
        if not (lines[[0, -1]].std(axis=1) > _FLAT).all():  # of few sources
            shown = np.flatnonzero(lines.std(axis=1) > _FLAT)
            if not len(shown):
                return lines[:0]
            lines = lines[shown[0] : shown[-1] + 1]
        lines = lines.T
    return lines


def _weighted_power(lines_NL: np.ndarray) -> float:
    if not lines_NL.size:
        return 0.0
    # a line does not continue at its other end; without a window that step would fill the spectrum
    window, across = (_window(length) for length in lines_NL.shape[::-1])
    centred = (lines_NL - lines_NL.mean(axis=1, keepdims=True)) * window
    # float64: NumPy computes spectra of float32 in float64, too, but in pieces, for twice the time
    spectrum = np.fft.rfft(centred.astype(np.float64), axis=1).astype(np.complex64)
    power = np.average(np.square(np.abs(spectrum) / window.sum()), axis=0, weights=across**2)
    # the window spreads the mean over the first two frequencies
    return float((power * np.arange(len(power)))[2:].sum())


@lru_cache(maxsize=8)
def _window(length: int) -> np.ndarray:
    window: np.ndarray = np.hanning(length + 2)[1:-1].astype(np.float32)
    return window
