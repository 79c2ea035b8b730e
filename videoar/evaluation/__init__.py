"""From generated clips to numbers that others can reproduce, a score card and a gate's decision.

Names are loaded when first used: the report and the gate need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoar.evaluation.frechet import FeatureStats, frechet_distance
    from videoar.evaluation.i3d import I3D
    from videoar.evaluation.vbench import temporal_flickering, vbench_scores

__all__ = ["I3D", "FeatureStats", "frechet_distance", "temporal_flickering", "vbench_scores"]

_HOMES = {
    "FeatureStats": "frechet",
    "frechet_distance": "frechet",
    "I3D": "i3d",
    "temporal_flickering": "vbench",
    "vbench_scores": "vbench",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"videoar.evaluation.{_HOMES[name]}"), name)
