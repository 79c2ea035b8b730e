"""Scores and perceptual hashes of a clip: numbers only, bounds are in `videoar.curation.policy`.

Scores are computed from 64x36 luma frames of every source frame of the span. Frames this small cost
little beside decoding (the whole scan runs at 0.87-0.97 of the speed of decoding alone) and make a
score independent of the resolution of the source.

A perceptual hash holds the signs of the low frequencies of one frame. A re-encoded or resized copy
flips few of its 64 bits, an unrelated frame about half of them.
Source: the DCT hash of phash.org; 8x8 coefficients of a 32x32 image against their median.

Axes: T frames, H W pixels, h w pixels of a luma frame, C colours.
"""

from functools import lru_cache

import numpy as np

from videoar.contracts.names import CHROMA_EVERY

LUMA_WIDTH, LUMA_HEIGHT = 64, 36
_DARK = 24  # chosen: black is 0 in full range; the rest is coding noise
_BLACK_SHARE = 0.98  # default of ffmpeg's blackdetect filter, picture_black_ratio_th
# Mean luma difference below which a frame repeats the one before. chosen: covers what lossy coding
# changes in a repeated frame; 0.5 counted shots of a static camera as frozen.
_FREEZE_DIFF = 0.05

_CLOCK_US = 125_000  # chosen: the default grid of clips; drawings held for 2 or 3 frames still move

_SIDE, _LOW = 32, 8
_MOST_HASHED = 32  # chosen: bounds the row of a long clip
_FLAT = 2.0  # chosen: standard deviation of the grey levels of a bar with its coding noise
_STEP, _QUIET = 4.0, 1.0  # chosen: that of the picture beside a bar; that of a bar without a step
_ROUNDING = 1e-2  # above the rounding errors of the coefficients of a flat frame
MIRROR = 0x5555_5555_5555_5555
"""Bits of the odd horizontal frequencies. Mirroring a frame negates these coefficients, which flips
their bits where the median is near 0: the hash of the mirrored frame is nearly hash ^ MIRROR."""
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601


def score_span(luma_Thw: np.ndarray, times_us: np.ndarray) -> dict[str, float]:
    """Return the score columns of `clips@1` for one span.

    Args:
        luma_Thw: uint8, every source frame from the first to the last of the span.
        times_us: presentation times of these frames, rising.
    """
    luma = luma_Thw.astype(np.float32)
    motion = _change(luma_Thw) if len(luma) > 1 else np.zeros(1)
    return {
        "luma_mean": float(luma.mean()),
        "luma_std": float(luma.std(axis=(1, 2)).mean()),
        "black_frac": float((_means(luma_Thw < _DARK) >= _BLACK_SHARE).mean()),
        "freeze_frac": float((motion < _FREEZE_DIFF).mean()),
        # variance of the Laplacian is the usual focus measure; the 10th percentile, because a clip
        # is as blurred as its worst frames, and a single frame should not decide
        "blur_p10": float(np.percentile(_laplacian(luma_Thw).var(axis=(1, 2)), 10)),
        "motion_mean": float(motion.mean()),
        "motion_p95": float(np.percentile(motion, 95)),
        "motion_max": float(motion.max()),
        **_scores_in_time(luma_Thw, times_us),
        # the maximum over time: a dark scene is not a letterbox, a border that is never lit is
        "letterbox_frac": _letterbox(luma_Thw.max(axis=0)),
    }


def _change(luma_Thw: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each frame to the one before, float32."""
    after, before = luma_Thw[1:], luma_Thw[:-1]
    return _means(np.maximum(after, before) - np.minimum(after, before))


def _means(levels_Thw: np.ndarray) -> np.ndarray:
    """Return the mean of each frame, float32."""
    # sums of whole numbers this small are exact
    means: np.ndarray = levels_Thw.reshape(len(levels_Thw), -1).astype(np.float32).mean(axis=1)
    return means


def _scores_in_time(luma_Thw: np.ndarray, times_us: np.ndarray) -> dict[str, float]:
    """Return scores that do not depend on the frame rate of the source.

    They compare the frames on display at points of a clock. Worked example, 24 fps in a container
    of 60, each picture 1 level brighter than the one before:

        frames  0 0 1 1 1 2 2 3 3 3 4 4 5 5 5 6    nine of fifteen repeat the one before
        clock   0             3               6    none repeats; (3 + 3) levels in 0.25 s: 24 per s
    """
    length_us = int(times_us[-1] - times_us[0])
    steps = max(1, round(length_us / _CLOCK_US))
    clock = np.linspace(times_us[0], times_us[-1], steps + 1)
    # half a millisecond: containers round time stamps to milliseconds
    change = _change(luma_Thw[np.searchsorted(times_us, clock + 500, side="right") - 1])
    return {
        "still_frac": float((change < _FREEZE_DIFF).mean()),
        "motion_per_s": float(change.sum() * 1e6 / max(1, length_us)),
    }


def _laplacian(luma_Thw: np.ndarray) -> np.ndarray:
    """Return the Laplacian of the inner pixels, float32."""
    # rows one after the other: four times as fast as rows without their ends
    width, rows = luma_Thw.shape[2], luma_Thw.reshape(len(luma_Thw), -1).astype(np.int16)
    below, above, inner = rows[:, 2 * width :], rows[:, : -2 * width], rows[:, width:-width]
    ring = below + above
    ring[:, 1:-1] += inner[:, 2:] + inner[:, :-2]
    ring -= 4 * inner
    laplacian: np.ndarray = ring.reshape(len(rows), -1, width)[:, :, 1:-1].astype(np.float32)
    return laplacian


def _letterbox(brightest: np.ndarray) -> float:
    """Return the area share of the borders that stay dark during the whole span."""
    lit = brightest >= _DARK
    if not lit.any():
        return 1.0
    content = [np.ptp(np.flatnonzero(lit.any(axis=axis))) + 1 for axis in (0, 1)]
    return 1.0 - float(content[0] * content[1] / lit.size)


def phash(frames_THWC: np.ndarray) -> list[int]:
    """Return the hash of each RGB frame as a signed 64-bit integer (two's complement).

    Cost: 2 us per frame in batches.
    """
    low = _low_frequencies(frames_THWC @ _LUMA_WEIGHTS)
    # coefficient 0 is the mean brightness: far from the others, it would shift their median
    return _packed(low > np.median(low[:, 1:], axis=1, keepdims=True))


def hashes_and_chroma(frames_THWC: np.ndarray) -> tuple[list[int], list[int]]:
    """Return hashes by which copies are found, wherever they begin and however they are framed.

    First those of the centre square of the picture without its bars, one per frame, then those of
    nine tenths of that square: the second hash of a clip is the first one of a copy that was
    cropped by a tenth. At most 32 frames, evenly spaced. A flat frame has the hash 0.

    Hashes know no colours. So the second list has mean Cb and Cr of each quarter of every fourth of
    these frames: from 0 to 255, neutral is 128 (BT.601); eight numbers per frame: upper left, upper
    right, lower left, lower right.

    Cost: 0.8 ms per clip of 17 frames of 128 px.
    """
    chosen = frames_THWC[_hashed(len(frames_THWC))]
    luma = _luma(chosen)
    return _frame_hashes(luma), _chroma(chosen[::CHROMA_EVERY], luma[::CHROMA_EVERY])


def _frame_hashes(luma_THW: np.ndarray) -> list[int]:
    rows, columns = _without_bars(luma_THW)
    picture = luma_THW[:, rows, columns]
    side = min(picture.shape[1:])
    # of both squares at once: the products that mix them cost less than to convert pixels twice
    down, across = (_centres(length, (side, round(0.9 * side))) for length in picture.shape[1:])
    low = (down @ (picture @ across.T)).reshape(-1, 2, _LOW, 2, _LOW)
    return _signs(np.stack([low[:, n, :, n] for n in (0, 1)]).reshape(-1, _LOW * _LOW))


def _chroma(frames_THWC: np.ndarray, luma_THW: np.ndarray) -> list[int]:
    rows, columns = _without_bars(luma_THW)
    planes = luma_THW, frames_THWC[..., 2], frames_THWC[..., 0]
    side = min(luma_THW[0, rows, columns].shape)
    luma, blue, red = (_quarters(_centre(plane[:, rows, columns], side)) for plane in planes)
    colours = 128 + np.stack([0.564 * (blue - luma), 0.713 * (red - luma)], axis=-1)
    return [int(value) for value in colours.round().reshape(-1)]


def _hashed(count: int) -> np.ndarray | slice:
    """Return which of so many frames are hashed: at most 32, evenly spaced."""
    if count <= _MOST_HASHED:
        return slice(None)  # no copy
    return np.linspace(0, count - 1, _MOST_HASHED).round().astype(int)


def _quarters(picture_THW: np.ndarray) -> np.ndarray:
    """Return the means of the quarters of squares: float32 [T, 4]."""
    side = picture_THW.shape[1]
    length = side - side // 2  # of an odd side, both halves have the line between them
    halves = np.zeros((2, side), np.float32)
    halves[0, :length] = halves[1, -length:] = 1
    sums: np.ndarray = halves @ picture_THW.astype(np.float32, order="C") @ halves.T
    return sums.reshape(-1, 4) / np.float32(length**2)


def _luma(frames_THWC: np.ndarray) -> np.ndarray:
    """Return luma in whole levels, uint8."""
    red, green, blue = np.moveaxis(frames_THWC, -1, 0)
    luma: np.ndarray = np.multiply(red, 77, dtype=np.uint16)
    luma += np.multiply(green, 150, dtype=np.uint16)
    luma += np.multiply(blue, 29, dtype=np.uint16)
    luma >>= 8
    return luma.astype(np.uint8)


def _signs(low: np.ndarray) -> list[int]:
    # signs, not a comparison with the median: mirroring then flips the odd ones exactly
    is_flat = np.ptp(low[:, 1:], axis=1, keepdims=True) <= _ROUNDING
    return _packed((low > 0) & ~is_flat)


def _without_bars(luma_THW: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns inside of flat lines at the edges; of a flat picture, all."""
    ends = luma_THW[:, [0, -1]].astype(np.float32), luma_THW[:, :, [0, -1]].astype(np.float32)
    if min(ends[0].std(axis=(0, 2)).min(), ends[1].std(axis=(0, 1)).min()) > _FLAT:  # mostly
        return slice(None), slice(None)
    luma_THW = luma_THW.astype(np.float32)
    by_row, by_column = luma_THW.std(axis=(0, 2)), luma_THW.std(axis=(0, 1))
    if by_row.max() <= _FLAT or by_column.max() <= _FLAT:
        return slice(None), slice(None)
    return _inside(by_row), _inside(by_column)


def _inside(deviations: np.ndarray) -> slice:
    """Return the lines that are no bars, by the deviation of the levels of each line.

    A bar ends with a step; an edge that grows lighter slowly is dark, and flat once it is coded.
    """
    bars = []
    for of_side in (deviations, deviations[::-1]):
        first = int(np.argmax(of_side > _FLAT))
        is_bar = of_side[first : first + 2].max() > _STEP
        bars.append(first if is_bar else int(np.argmax(of_side > _QUIET)))
    return slice(bars[0], len(deviations) - bars[1])


def _centre(luma_THW: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in luma_THW.shape[1:])
    return luma_THW[:, top : top + side, left : left + side]


@lru_cache(maxsize=8)
def _centres(length: int, sides: tuple[int, ...]) -> np.ndarray:
    """Return the transforms of the centre parts of an axis, one below the other."""
    parts = np.zeros((len(sides), _LOW, length))
    for part, side in zip(parts, sides, strict=True):
        first = (length - side) // 2
        part[:, first : first + side] = _transform(side)
    return parts.reshape(-1, length)


def _low_frequencies(luma_THW: np.ndarray) -> np.ndarray:
    """Return the 64 lowest frequencies of each frame, that of the mean first: [T, 64]."""
    down, across = _transform(luma_THW.shape[1]), _transform(luma_THW.shape[2])
    low: np.ndarray = (down @ luma_THW @ across.T).reshape(len(luma_THW), _LOW * _LOW)
    return low


def _packed(bits: np.ndarray) -> list[int]:
    packed: list[int] = np.packbits(bits, axis=1).view(">i8")[:, 0].tolist()
    return packed


@lru_cache(maxsize=8)
def _transform(length: int) -> np.ndarray:
    """Return the matrix [8, length] that averages one axis to 32 cells and applies the DCT.

    Both are linear, so one matrix product per axis does both.
    """
    edges = np.linspace(0, length, _SIDE + 1)
    cells = np.arange(length)
    cover = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    average = np.clip(cover, 0, None) * (_SIDE / length)
    k, n = np.arange(_LOW)[:, None], np.arange(_SIDE)
    transform: np.ndarray = np.cos(np.pi * (n + 0.5) * k / _SIDE) @ average
    return transform
