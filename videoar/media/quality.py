"""What a span of frames looks like, measured on 64x36 luma pictures of every frame.

Facts only: thresholds live in `policy`. Small pictures keep the cost near that of decoding alone
(0.87-0.97 of it), and make the scores independent of the source's resolution.
"""

import numpy as np

LUMA_WIDTH, LUMA_HEIGHT = 64, 36
_DARK = 24  # chosen: black in full range plus coding noise
_BLACK_SHARE = 0.98  # blackdetect's picture_black_ratio_th
_FREEZE_DIFF = 0.05  # chosen: a repeat after lossy coding; 0.5 took still cameras for held frames


def measure(luma_Thw: np.ndarray) -> dict[str, float]:  # noqa: N803 - shape suffix
    """Score a span.

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
        "blur_p10": float(np.percentile(_laplacian(luma).var(axis=(1, 2)), 10)),
        "motion_mean": float(motion.mean()),
        "motion_p95": float(np.percentile(motion, 95)),
        "motion_max": float(motion.max()),
        "letterbox_frac": _letterbox(luma_Thw.max(axis=0)),
    }


def _laplacian(luma: np.ndarray) -> np.ndarray:
    inner = luma[:, 1:-1, 1:-1]
    ring = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian: np.ndarray = ring - 4 * inner
    return laplacian


def _letterbox(brightest: np.ndarray) -> float:
    """Return the area share of borders that stay dark through the whole span."""
    lit = brightest >= _DARK
    if not lit.any():
        return 1.0
    kept = [np.ptp(np.flatnonzero(lit.any(axis=axis))) + 1 for axis in (0, 1)]
    return 1.0 - float(kept[0] * kept[1] / lit.size)
