"""The protocols under which distances are computed, by name.

A distance depends on N, on the preprocessing of frames and on how the covariance is normalized:
the same model has an FVD of 99 at 2,048 samples and of 57 at 10,000 (arXiv 2503.19325, table 3).
Values of different protocols are therefore never compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from videoar.core.errors import ConfigError, did_you_mean
from videoar.evaluation.metric_names import Metric


@dataclass(frozen=True)
class Protocol:
    """How distances are computed."""

    i3d_preset: str = "common_metrics"
    """Preset of I3D; other networks have their own."""
    ddof: int = 1
    """The covariance is divided by N - ddof."""
    num_clips: int | None = None
    """Clips on each side; None: as many as the reference has."""
    description: str = ""
    """What the sets hold, as far as the source says."""

    def preset_of(self, metric: Metric) -> str:
        """Return the preset of the network of a metric: of I3D, that of the protocol."""
        return self.i3d_preset if metric.network.endswith("i3d") else metric.preset

    @property
    def covariance(self) -> str:
        """Normalization of the covariance, as in protocol locks."""
        return "1/(N-1)" if self.ddof else "1/N"


PROTOCOLS: Mapping[str, Protocol] = {
    "default": Protocol(),
    "fvd2048_16f": Protocol(
        "stylegan-v", 0, 2048, "StyleGAN-V: a random clip of 16 frames of each of 2,048 videos"
    ),
    "ucf101-larp-10k": Protocol(
        "stylegan-v", 0, 10_000, "LARP: labels of 10,000 train clips, 16 frames at 128 px"
    ),
    "tats-2048_16f": Protocol(
        "common_metrics", 1, 2048, "TATS: classes balanced, reference of the train split, 16 frames"
    ),
    "omnitok-2048_17f": Protocol(
        "common_metrics-17f", 1, 2048, "OmniTokenizer: reconstructions of 2,048 clips, 17 frames"
    ),
}
"""Protocols by name, which is column `protocol` of an evaluation set."""


def protocol_named(name: str) -> Protocol:
    """Return a protocol.

    Raises:
        ConfigError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name}", "unknown", did_you_mean(name, PROTOCOLS))
    return PROTOCOLS[name]
