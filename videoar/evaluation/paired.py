"""Difference of two models that generated samples of the same prompts and seeds, with its interval.

What two samples of one prompt and seed share cancels in their difference, so its interval is much
narrower than those of the two scores.

Axes: N samples, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError
from videoar.core.types import Row
from videoar.evaluation.frechet import frechet_of_vectors
from videoar.evaluation.metric_names import Metric
from videoar.evaluation.sample_values import FeatureTable, sample_values

_MEAN_RESAMPLES = 1000
"""Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993): for percentiles."""
_DISTANCE_RESAMPLES = 200
"""Source: as above, for a standard deviation; a percentile of a resampled distance is biased, see
`frechet.frechet_interval`."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of a model and the vectors of them and of the reference clips."""

    samples: Sequence[Row]
    """Rows of `samples@1`."""
    features: FeatureTable
    reference: Sequence[str]
    """Ids of the real clips of a distance."""


class Difference(NamedTuple):
    """Value of one model minus that of another, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    name: str, metric: Metric, preset: str, a: SampleSet, b: SampleSet, seed: int = 0
) -> Difference:
    """Return the difference `a - b` of a metric.

    Args:
        name: of the metric.
        metric: its definition, of kind `mean`, `frechet` or `kvd`.
        preset: of the vectors that a distance is computed from.
        a: samples of one model.
        b: samples of the other one, of the same prompts and seeds.
        seed: of the bootstrap.

    Raises:
        ContractError: other prompts or seeds, or a clip without a vector.
    """
    pairs = _pairs(a.samples, b.samples)
    if metric.kind == "mean":
        return _mean_difference(name, pairs, a, b, seed)
    vectors = [
        side.features.vectors(metric.network, preset, [pair[i]["sample_id"] for pair in pairs])
        for i, side in enumerate((a, b))
    ]
    reference_ND = a.features.vectors(metric.network, preset, a.reference)

    def difference(rows: NDArray[np.int64]) -> float:
        x, y = (frechet_of_vectors(x_ND[rows], reference_ND) for x_ND in vectors)
        return x - y

    value = difference(np.arange(len(pairs)))
    prompts = [left["prompt"] for left, _ in pairs]
    drawn = [difference(rows) for rows in _resamples(prompts, _DISTANCE_RESAMPLES, seed)]
    half = 1.96 * float(np.std(drawn))
    return Difference(value, value - half, value + half)


def _mean_difference(
    name: str, pairs: Sequence[tuple[Row, Row]], a: SampleSet, b: SampleSet, seed: int
) -> Difference:
    texts = [{pair[i]["sample_id"]: pair[i]["prompt"] for pair in pairs} for i in (0, 1)]
    left, right = (
        sample_values(name, a.features, texts[0]),
        sample_values(name, b.features, texts[1]),
    )
    ids = [(x["sample_id"], y["sample_id"], x["prompt"]) for x, y in pairs]
    differences = np.array([left[x] - right[y] for x, y, _ in ids if x in left])
    if not len(differences):
        raise ContractError(name, "no sample has a value")
    prompts = [prompt for x, _, prompt in ids if x in left]
    drawn = [differences[rows].mean() for rows in _resamples(prompts, _MEAN_RESAMPLES, seed)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(differences.mean()), float(low), float(high))


def _pairs(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the samples of two models side by side, sorted by prompt and seed."""
    left, right = (
        {(row["prompt"], row["index"], row["seed"]): row for row in rows} for rows in (a, b)
    )
    if left.keys() != right.keys() or len(left) != len(a):
        num = len(left.keys() & right.keys())
        what = f"{num} of {len(a)} and {len(b)} samples have the same prompt and seed"
        raise ContractError("samples", what, "generate both from one evaluation set")
    return [(left[key], right[key]) for key in sorted(left)]


def _resamples(prompts: Sequence[str], count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield indices of samples: prompts are drawn with replacement, then samples of each prompt.

    Samples of one prompt are not independent, so drawing samples alone would give too narrow an
    interval. Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), 3.8.
    """
    generator = np.random.default_rng(seed)
    _, groups = np.unique(np.asarray(prompts), return_inverse=True)
    order, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    begins = np.cumsum(sizes) - sizes
    for _ in range(count):
        drawn = generator.integers(len(sizes), size=len(sizes))
        of_samples = np.repeat(drawn, sizes[drawn])
        offsets = generator.random(len(of_samples)) * sizes[of_samples]
        yield order[begins[of_samples] + offsets.astype(np.int64)]
