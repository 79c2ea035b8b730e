"""VBench aggregate scores from dimension values, and the one dimension that needs no network.

A total requires all 16 dimensions. The official script replaces a missing dimension by 0 before
normalizing, which is silently wrong (below the minimum of five of them); here a missing or unknown
dimension is an error.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError
from videoar.evaluation.vbench_constants import DIMENSIONS, QUALITY, SEMANTIC


def vbench_scores(raw: Mapping[str, float]) -> dict[str, float]:
    """Aggregate the 16 raw dimension values.

    Args:
        raw: dimension to value in [0, 1], before normalization.

    Returns:
        `quality`, `semantic` and `total` in percent; total = (4 quality + semantic) / 5.

    Raises:
        ContractError: a dimension is missing, unknown or not finite.
    """
    missing = [name for name in DIMENSIONS if not math.isfinite(raw.get(name, math.nan))]
    unknown = sorted(set(raw) - set(DIMENSIONS))
    if missing or unknown:
        raise ContractError(
            "vbench", f"missing: {missing}, unknown: {unknown}", "a total needs all 16"
        )
    quality, semantic = weighted(raw, QUALITY), weighted(raw, SEMANTIC)
    return {"quality": quality, "semantic": semantic, "total": (4 * quality + semantic) / 5}


def normalized(dimension: str, value: float) -> float:
    """Return a raw value on the scale of VBench, 0 at its `min` and 1 at its `max`; not clipped."""
    low, high, _ = (QUALITY | SEMANTIC)[dimension]
    return (value - low) / (high - low)


def weighted(
    raw: Mapping[str, float], constants: Mapping[str, tuple[float, float, float]]
) -> float:
    """Return the weighted mean, in percent, of the normalized values of a group of dimensions."""
    total = sum(normalized(name, raw[name]) * weight for name, (_, _, weight) in constants.items())
    return 100 * total / sum(weight for _, _, weight in constants.values())


def temporal_flickering(frames_THWC: NDArray[np.uint8]) -> float:
    """Return (255 - mean absolute difference of neighbouring frames) / 255, in [0, 1].

    A frozen clip scores 1, so read it together with a measure of motion.

    Raises:
        ContractError: fewer than two frames.

    Source: VBench vbench/temporal_flickering.py.
    """
    if len(frames_THWC) < 2:
        raise ContractError("temporal_flickering", f"{len(frames_THWC)} frames", "need two")
    # int16, because differences of uint8 wrap around.
    steps = np.abs(np.diff(frames_THWC.astype(np.int16), axis=0))
    return float((255 - steps.mean()) / 255)
