"""VBench aggregate scores from dimension values, and the one dimension that needs no network.

A total requires all 16 dimensions. The official script replaces a missing dimension by 0 before
normalizing, which is silently wrong (below the minimum of five of them); here a missing or unknown
dimension is an error.

Source: Vchitect/VBench scripts/constant.py @45e79ec (Apache-2.0).
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError

# Dimension: (min, max, weight). A raw value is normalized to (raw - min) / (max - min) before the
# weighted mean; min and max are the empirical ones of the VBench paper.
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
DIMENSIONS = (*QUALITY, *SEMANTIC)


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
    quality, semantic = _weighted(raw, QUALITY), _weighted(raw, SEMANTIC)
    return {"quality": quality, "semantic": semantic, "total": (4 * quality + semantic) / 5}


def normalized(dimension: str, value: float) -> float:
    """Return a raw value on the scale of VBench, 0 at its `min` and 1 at its `max`; not clipped."""
    low, high, _ = (QUALITY | SEMANTIC)[dimension]
    return (value - low) / (high - low)


def _weighted(
    raw: Mapping[str, float], constants: Mapping[str, tuple[float, float, float]]
) -> float:
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
