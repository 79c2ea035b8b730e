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

LUMA_WIDTH, LUMA_HEIGHT = 64, 36
_DARK = 24  # chosen: black is 0 in full range; the rest is coding noise
_BLACK_SHARE = 0.98  # default of ffmpeg's blackdetect filter, picture_black_ratio_th
# Mean luma difference below which a frame repeats the one before. chosen: covers what lossy coding
# changes in a repeated frame; 0.5 counted shots of a static camera as frozen.
_FREEZE_DIFF = 0.05

_SIDE, _LOW = 32, 8
MIRROR = 0x5555_5555_5555_5555
"""Bits of the odd horizontal frequencies. Mirroring a frame negates these coefficients, which flips
their bits where the median is near 0: the hash of the mirrored frame is nearly hash ^ MIRROR."""
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601


def score_span(luma_Thw: np.ndarray) -> dict[str, float]:
    """Return the score columns of `clips@1` for one span.

    Args:
        luma_Thw: uint8, every source frame from the first to the last of the span.
    """
    luma = luma_Thw.astype(np.float32)
    motion = np.abs(np.diff(luma, axis=0)).mean(axis=(1, 2)) if len(luma) > 1 else np.zeros(1)
    return {
        "luma_mean": float(luma.mean()),
        "luma_std": float(luma.std(axis=(1, 2)).mean()),
        "black_frac": float(((luma_Thw < _DARK).mean(axis=(1, 2)) >= _BLACK_SHARE).mean()),
        "freeze_frac": float((motion < _FREEZE_DIFF).mean()),
        # variance of the Laplacian is the usual focus measure; the 10th percentile, because a clip
        # is as blurred as its worst frames, and a single frame should not decide
        "blur_p10": float(np.percentile(_laplacian(luma).var(axis=(1, 2)), 10)),
        "motion_mean": float(motion.mean()),
        "motion_p95": float(np.percentile(motion, 95)),
        "motion_max": float(motion.max()),
        # the maximum over time: a dark scene is not a letterbox, a border that is never lit is
        "letterbox_frac": _letterbox(luma_Thw.max(axis=0)),
    }


def _laplacian(luma: np.ndarray) -> np.ndarray:
    inner = luma[:, 1:-1, 1:-1]
    ring = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian: np.ndarray = ring - 4 * inner
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
    luma = frames_THWC @ _LUMA_WEIGHTS
    down, across = _transform(luma.shape[1]), _transform(luma.shape[2])
    low = (down @ luma @ across.T).reshape(len(luma), _LOW * _LOW)
    # coefficient 0 is the mean brightness: far from the others, it would shift their median
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
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
