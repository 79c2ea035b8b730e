"""How much a frame shows, whatever the size of its file: of copies, the richest one is kept.

The spectrum of a picture over cycles per picture does not change when the picture is enlarged: the
added frequencies are empty. Coding, blur and scaling down empty the high ones. So the power of all
frequencies, weighted by the frequency, compares copies of different sizes. Bars are left out.

It ranks copies of one picture and says nothing about different pictures. A copy that was sharpened,
or to which noise was added, counts as richer.

Axes: H W pixels, N lines, L samples of a line.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoar.media.color import has_luma, is_full_range, luma_of

_LINES = 96  # chosen: lines sampled per axis; 0.6 ms at 480p, 3.4 ms at 2160p
_FLAT = 2.0  # chosen: standard deviation of the grey levels of a bar with its coding noise
_EXPANSION = (255 / 219) ** 2  # of the power of a frame in limited range to that in full range


def frame_detail(frame: av.VideoFrame) -> float:
    """Return the detail of a decoded frame: see `detail`."""
    is_full = is_full_range(frame) or not has_luma(frame)
    return detail(luma_of(frame, VideoReformatter())) * (1 if is_full else _EXPANSION)


def detail(luma_HW: np.ndarray) -> float:
    """Return the mean over both axes of the power of a line, each frequency times its number.

    The unit is a squared grey level; 0 for a flat picture.

    Args:
        luma_HW: grey levels, 0 to 255, at the size of the source.
    """
    return float(np.sqrt(_weighted_power(_lines(luma_HW)) * _weighted_power(_lines(luma_HW.T))))


def _lines(luma_HW: np.ndarray) -> np.ndarray:
    """Return evenly spaced rows without the bars at the ends of both axes: [N, L] float32."""
    step = max(1, len(luma_HW) // _LINES)
    lines = luma_HW[step // 2 :: step].astype(np.float32)
    for _ in range(2):  # rows, then columns
        shown = np.flatnonzero(lines.std(axis=1) > _FLAT)
        if not len(shown):
            return lines[:0]
        lines = lines[shown[0] : shown[-1] + 1].T
    return lines


def _weighted_power(lines_NL: np.ndarray) -> float:
    if not lines_NL.size:
        return 0.0
    # a line does not continue at its other end; without a window that step would fill the spectrum
    window = np.hanning(lines_NL.shape[1] + 2)[1:-1].astype(np.float32)
    centred = (lines_NL - lines_NL.mean(axis=1, keepdims=True)) * window
    power = np.square(np.abs(np.fft.rfft(centred, axis=1)) / window.sum()).mean(axis=0)
    # the window spreads the mean over the first two frequencies
    return float((power * np.arange(len(power)))[2:].sum())
