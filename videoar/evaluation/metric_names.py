"""Names of the metrics that `score` writes to `scores@1`.

They are constants of a module without imports, so that a misspelt metric in a promotion rule is
found when the pipeline is planned, hours before the rule would be evaluated.
"""

SYNTHETIC = ("colour_acc", "shape_acc", "motion_acc", "all_acc", "valid_frac")
"""Scores of the synthetic corpus, below one of `SYNTHETIC_PREFIXES`."""
SYNTHETIC_PREFIXES = ("rendered", "rendered_recon")
"""Generated clips, and reconstructions of real clips."""
RECONSTRUCTION = ("recon/psnr", "recon/ssim")
FRECHET_RANDOM, FVD = "frechet_random_i3d", "fvd"
FLOOR = "/floor"
"""Suffix: the same distance between two sets of real clips."""
FLICKERING, MOTION = "temporal_flickering", "proxy/frame_diff_top5"
VBENCH = ("vbench/total", "vbench/quality", "vbench/semantic")

METRICS = (
    *(f"{prefix}/{name}" for prefix in SYNTHETIC_PREFIXES for name in SYNTHETIC),
    *RECONSTRUCTION,
    *(name + suffix for name in (FVD, FRECHET_RANDOM) for suffix in ("", FLOOR)),
    FLICKERING,
    MOTION,
    *VBENCH,
)


def is_metric(name: str) -> bool:
    """Return whether `score` can produce a metric; a suffix `@<protocol or digest>` is ignored."""
    return name.partition("@")[0] in METRICS


def unit_of(name: str) -> str:
    """Return the unit of a metric; "" for fractions in [0, 1] and Frechet distances."""
    if name == "recon/psnr":
        return "dB"
    return "%" if name in VBENCH else ""
