"""Networks and measures by name, with their presets. Planning reads the names: none is loaded."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from videoar.core.errors import ConfigError, did_you_mean
from videoar.evaluation.extractor import Extractor


class Presets(NamedTuple):
    """The presets of a network."""

    default: tuple[str, ...]
    """Computed if only the network is named."""
    others: tuple[str, ...] = ()
    """Computed if named, as `NETWORK:PRESET`."""


_OF_I3D = Presets(("common_metrics",), ("common_metrics-17f", "google-research", "stylegan-v"))
NETWORKS: Mapping[str, Presets] = {
    "lite0": Presets(("mean4", "change4"), ("windows", "consistency")),
    "i3d": _OF_I3D,
    "random_i3d": _OF_I3D,
    "pixels": Presets(("clip", "windows")),
    "synthetic": Presets(("scene",)),
    "domain": Presets(("penultimate",)),
}
"""Networks and measures by name."""


def requested_presets(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the presets of each network among names such as `lite0` and `lite0:windows`.

    Raises:
        ConfigError: no such network or preset.
    """
    presets: dict[str, tuple[str, ...]] = {}
    for text in names:
        name, _, preset = text.partition(":")
        if name not in NETWORKS:
            raise ConfigError(text, "unknown network", did_you_mean(name, NETWORKS))
        known = NETWORKS[name]
        if preset and preset not in known.default + known.others:
            hint = did_you_mean(preset, known.default + known.others)
            raise ConfigError(text, f"unknown preset of {name}", hint)
        added = (preset,) if preset else known.default
        presets[name] = tuple(dict.fromkeys(presets.get(name, ()) + added))
    return presets


DOMAIN = "domain"
"""The classifier of a labelled corpus: a model of the store, so `open_extractor` has none."""


def open_extractor(name: str, presets: tuple[str, ...] = (), *, seed: int = 0) -> Extractor:
    """Load a network or measure.

    Args:
        name: key of `NETWORKS`, but not `DOMAIN`.
        presets: to compute; by default those of the network.
        seed: of the weights of `random_i3d`.

    Raises:
        ConfigError: no such network or preset; its weights are missing or other ones.
    """
    if name == DOMAIN:
        raise ConfigError(name, "is a model of a store", "give `features` the port domain")
    entries = [f"{name}:{preset}" for preset in presets] or [name]
    presets = requested_presets(entries)[name]
    # imported here: a measure of pixels needs no torch
    if name == "pixels":
        from videoar.evaluation.pixel_measures import PixelMeasures

        return PixelMeasures(presets)
    if name == "synthetic":
        from videoar.evaluation.synthetic import SyntheticClassifier

        return SyntheticClassifier()
    from videoar.evaluation import networks

    if name == "lite0":
        return networks.Lite0Features(presets)
    return networks.I3DLogits(name, presets, seed)
