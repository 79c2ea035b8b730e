"""Metrics of generated and reconstructed clips, rows of `scores@1`, rules of promotion gates.

Names are imported on first access (PEP 562): report and gate must not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoar.evaluation.frechet import FeatureStats, frechet_distance
    from videoar.evaluation.i3d import I3D
    from videoar.evaluation.vbench import temporal_flickering, vbench_scores

__all__ = ["I3D", "FeatureStats", "frechet_distance", "temporal_flickering", "vbench_scores"]

_MODULES = {
    "FeatureStats": "frechet",
    "frechet_distance": "frechet",
    "I3D": "i3d",
    "temporal_flickering": "vbench",
    "vbench_scores": "vbench",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"videoar.evaluation.{_MODULES[name]}"), name)
