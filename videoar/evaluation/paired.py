"""Difference of two models that generated samples of the same prompts and seeds, with its interval.

What two samples of one prompt and seed share cancels in their difference, so its interval is much
narrower than those of the two scores.

Axes: N samples, D features.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError
from videoar.core.types import Row
from videoar.evaluation.evalset import REFERENCE, clip_rows, compared
from videoar.evaluation.frechet import frechet_of_vectors
from videoar.evaluation.kvd import weighted_kernel_distance
from videoar.evaluation.metric_names import is_paired, metric_of
from videoar.evaluation.sample_values import FeatureTable, sample_values
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

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

    @classmethod
    def of(cls, scores: Snapshot, store: Store) -> "SampleSet":
        """Return what scores were computed from.

        Raises:
            ContractError: they were computed without vectors.
            GateError: a takedown has removed a source of the evaluation set.
            StorageError: samples or vectors cannot be read.
        """
        parents = scores.commit.provenance.parents
        needed = ("samples", "evalset", "sample_features")
        if missing := [port for port in needed if port not in parents]:
            raise ContractError(scores.id, f"was computed without {', '.join(missing)}")
        ports = (*needed, "reference_features")  # which means of samples do not need
        samples, evalset, *features = (store.snapshot(parents[p]) for p in ports if p in parents)
        reference = [row["clip_id"] for row in clip_rows(evalset, REFERENCE)]
        return cls(samples.table().to_pylist(), FeatureTable.read(*features), reference)


class Difference(NamedTuple):
    """Value of one model minus that of another, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(row: Row, a: SampleSet, b: SampleSet, seed: int = 0) -> Difference:
    """Return the difference `a - b` of a metric that has values of samples, or is a distance.

    Args:
        row: of `scores@1`, with the name and the protocol of the metric.
        a: samples of one model.
        b: samples of the other one, of the same prompts and seeds.
        seed: of the bootstrap.

    Raises:
        ContractError: no such metric, other prompts or seeds, or a clip without a vector.
    """
    name, lock = row["metric"], json.loads(row["lock_json"])
    metric = metric_of(name)
    if metric is None or not is_paired(name):
        raise ContractError(name, "cannot be paired by sample")
    if metric.kind == "mean":
        return _mean_difference(name, _pairs(a.samples, b.samples), a, b, seed)
    pairs = _pairs(*(compared(side.samples, len(a.reference)) for side in (a, b)))
    preset = lock.get("preset", metric.preset)
    reference_MD = a.features.vectors(metric.network, preset, a.reference)
    prompts = [left["prompt"] for left, _ in pairs]
    drawn_rows = _resamples(prompts, _DISTANCE_RESAMPLES, seed)
    # of few samples, a resample may hold one alone: it has no distance
    usable = (rows for rows in drawn_rows if len(np.unique(rows)) > 1)
    resamples = [np.arange(len(pairs)), *usable]

    def distances(i: int, side: SampleSet) -> NDArray[np.float64]:
        ids = [pair[i]["sample_id"] for pair in pairs]
        x_ND = side.features.vectors(metric.network, preset, ids)
        if metric.kind == "kvd":
            w_NB = np.array([np.bincount(rows, minlength=len(ids)) for rows in resamples]).T
            v_MB = np.ones((len(reference_MD), len(resamples)))
            return weighted_kernel_distance(x_ND, reference_MD, w_NB.astype(np.float64), v_MB)
        ddof = 0 if lock.get("covariance") == "1/N" else 1
        return np.array([frechet_of_vectors(x_ND[r], reference_MD, ddof=ddof) for r in resamples])

    value, *drawn = distances(0, a) - distances(1, b)
    half = 1.96 * float(np.std(drawn))
    return Difference(float(value), float(value) - half, float(value) + half)


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
