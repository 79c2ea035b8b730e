"""Metrics of generated and reconstructed clips, rows of `scores@1`, rules of promotion gates.

Names are imported on first access: report and gate must not import torch.
"""

from typing import TYPE_CHECKING

from videoar.core.lazy import lazy_names

if TYPE_CHECKING:
    from videoar.evaluation.frechet import FeatureStats as FeatureStats
    from videoar.evaluation.frechet import frechet_distance as frechet_distance
    from videoar.evaluation.i3d import I3D as I3D
    from videoar.evaluation.vbench import temporal_flickering as temporal_flickering
    from videoar.evaluation.vbench import vbench_scores as vbench_scores

__getattr__ = lazy_names(
    __name__,
    {
        "FeatureStats": "videoar.evaluation.frechet:FeatureStats",
        "frechet_distance": "videoar.evaluation.frechet:frechet_distance",
        "I3D": "videoar.evaluation.i3d:I3D",
        "temporal_flickering": "videoar.evaluation.vbench:temporal_flickering",
        "vbench_scores": "videoar.evaluation.vbench:vbench_scores",
    },
)
