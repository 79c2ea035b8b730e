"""The metrics of `scores@1`, as a table: what each is computed from, and how.

A module without numpy and torch, so that a misspelt metric in a promotion rule is found when the
pipeline is planned, hours before the rule would be evaluated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from videoar.core.errors import ConfigError, did_you_mean
from videoar.evaluation.vbench_constants import DIMENSIONS

SYNTHETIC = ("colour_acc", "shape_acc", "motion_acc", "all_acc", "valid_frac")
"""Scores of the synthetic corpus, below one of `SYNTHETIC_PREFIXES`."""
SYNTHETIC_PREFIXES = ("rendered", "rendered_recon")
"""Generated clips, and reconstructions of real clips."""
RECONSTRUCTION = ("recon/psnr", "recon/ssim")
FRECHET_RANDOM, FVD = "frechet_random_i3d", "fvd"
FLOOR, LIMIT = "/floor", "/inf"
"""Suffixes: the same distance between two sets of real clips; its extrapolation to N = infinity."""
FLICKERING, MOTION = "temporal_flickering", "proxy/frame_diff_top5"
VBENCH = ("vbench/total", "vbench/quality", "vbench/semantic")
PIXEL_COMPONENTS = (
    FLICKERING,
    "frame_diff_top5",
    "laplacian_var",
    "exposure",
    "colourfulness",
    "hist_consistency",
    "linear_interp_residual",
)
"""Components of the vector of a clip of network `pixels`, preset `clip`, in this order."""
WINDOW_COMPONENTS = ("laplacian_var", "exposure", "colourfulness")
"""Components of each window of its preset `windows`."""
GROUPS = {
    "rendered": ("rendered/",),
    "recon": ("recon/", "rendered_recon/"),
    "proxy": ("proxy/",),
    "vbench": ("vbench/",),
}
"""Names that stand for all metrics with these prefixes."""


@dataclass(frozen=True)
class Metric:
    """Definition of a metric."""

    kind: Literal["mean", "frechet", "kvd", "memorisation", "reconstruction", "vbench"]
    """`mean`: of one value per sample. `frechet`, `kvd`: distance of two sets of clips."""
    network: str = ""
    """Network (column of `features@1`) whose vectors it is computed from."""
    preset: str = ""
    """Preset of the network; of the I3D, the one unless the protocol names another."""
    component: str = ""
    """Name of the component of the vector that is a sample's value (`mean`)."""
    higher_is_better: bool = True
    unit: str = ""
    """"" for fractions in [0, 1] and distances."""

    @property
    def is_distance(self) -> bool:
        """Whether it compares two sets, so that it has a floor and a bias of O(1 / N)."""
        return self.kind in ("frechet", "kvd")


_SPACES = {
    "lite0": ("lite0", "mean4"),
    "lite0_change": ("lite0", "change4"),
    "random_i3d": ("random_i3d", "common_metrics"),
    "i3d": ("i3d", "common_metrics"),
    "domain": ("domain", "penultimate"),
}
"""Feature spaces of distances: network and preset."""


def _distance(kind: Literal["frechet", "kvd"], space: str) -> Metric:
    return Metric(kind, *_SPACES[space], higher_is_better=False)


METRICS: Mapping[str, Metric] = {
    **{f"rendered/{name}": Metric("mean", "synthetic", "scene", name) for name in SYNTHETIC},
    **{f"rendered_recon/{name}": Metric("reconstruction") for name in SYNTHETIC},
    "recon/psnr": Metric("reconstruction", unit="dB"),
    "recon/ssim": Metric("reconstruction"),
    # The letters FVD are those of the trained I3D alone.
    "fvd": _distance("frechet", "i3d"),
    **{f"frechet_{space}": _distance("frechet", space) for space in _SPACES if space != "i3d"},
    **{f"kvd_{space}": _distance("kvd", space) for space in _SPACES},
    FLICKERING: Metric("mean", "pixels", "clip", FLICKERING),
    **{f"proxy/{name}": Metric("mean", "pixels", "clip", name) for name in PIXEL_COMPONENTS[1:]},
    # how far a frame is from the mean of its neighbours: smooth motion has little
    "proxy/linear_interp_residual": Metric(
        "mean", "pixels", "clip", "linear_interp_residual", higher_is_better=False
    ),
    "proxy/lite0_consistency": Metric("mean", "lite0", "consistency"),
    "memorisation": Metric("memorisation", "lite0", "mean4", higher_is_better=False),
    **{name: Metric("vbench", unit="%") for name in VBENCH},
    **{f"vbench/{name}": Metric("vbench") for name in DIMENSIONS},
}


def requested_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics that names of metrics and of `GROUPS` stand for.

    Raises:
        ConfigError: there is no such metric or group.
    """
    found: dict[str, None] = {}
    for name in names:
        prefixes = GROUPS.get(name, ())
        if not prefixes and name not in METRICS:
            raise ConfigError(name, "unknown metric", did_you_mean(name, (*GROUPS, *METRICS)))
        found |= dict.fromkeys(m for m in METRICS if m == name or m.startswith(prefixes or "\0"))
    return tuple(found)


def with_suffix(name: str, suffix: str) -> str:
    """Return the name of the floor or limit of a distance, before any digest of its network."""
    base, at, digest = name.partition("@")
    return f"{base}{suffix}{at}{digest}"


def suffix_of(name: str) -> str:
    """Return `FLOOR`, `LIMIT` or "" of the name of a score."""
    base = name.partition("@")[0]
    return next((suffix for suffix in (FLOOR, LIMIT) if base.endswith(suffix)), "")


def is_paired(name: str) -> bool:
    """Return whether two models can be compared sample by sample: of means and of distances."""
    metric = None if suffix_of(name) else metric_of(name)
    return metric is not None and (metric.kind == "mean" or metric.is_distance)


def metric_of(name: str) -> Metric | None:
    """Return the definition of a metric, None if there is no such metric.

    A suffix `@<digest of the network>` is ignored; `/floor` and `/inf` exist for distances.
    """
    suffix = suffix_of(name)
    metric = METRICS.get(name.partition("@")[0].removesuffix(suffix))
    return metric if metric is None or not suffix or metric.is_distance else None


def unit_of(name: str) -> str:
    """Return the unit of a metric; "" for fractions in [0, 1] and distances."""
    metric = metric_of(name)
    return metric.unit if metric else ""
