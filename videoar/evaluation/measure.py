"""Compute rows of `scores@1` from the vectors of clips (`features@1`); no video is decoded.

A metric that cannot be computed has a row with the reason: a sample without a vector, such as a
corrupt one, is missing and never left out.

Axes: N clips, D features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError
from videoar.core.types import Json, Row
from videoar.evaluation import scorecard, synthetic
from videoar.evaluation.extractor import NUM_WINDOWS
from videoar.evaluation.frechet import (
    bootstrap_interval,
    extrapolate,
    frechet_by_count,
    frechet_interval,
    frechet_of_vectors,
)
from videoar.evaluation.kvd import kernel_distance, kernel_interval
from videoar.evaluation.metric_names import (
    FLOOR,
    LIMIT,
    METRICS,
    SYNTHETIC,
    WINDOW_COMPONENTS,
    Metric,
    with_suffix,
)
from videoar.evaluation.protocols import Protocol
from videoar.evaluation.sample_values import FeatureTable, predictions, sample_values, scenes_of
from videoar.evaluation.scorecard import Lock
from videoar.media.synthetic import Scene

Array = NDArray[np.float64]
_MIN_BY_COUNT = 16  # `frechet_by_count` needs as many
_LIMIT_RESAMPLES = (
    50  # chosen: the standard error of a deviation is 10 % of it; each costs 8 others
)
_NEAREST = 0.05  # chosen: the share of real clips that counts as too near to a training clip
_NUM_NEAREST = 4  # chosen: pairs to look at


@dataclass(frozen=True)
class ScoreInputs:
    """What the scores of a set of samples are computed from."""

    texts: Mapping[str, str]
    """Prompt of each sample, by id."""
    compared: Sequence[str]
    """Ids of the samples of a distance, as many as clips of the reference."""
    reference: Sequence[str]
    """Ids of real clips to compare with."""
    floor: Sequence[str]
    """Ids of further real clips, whose distance perfect samples would have."""
    features: FeatureTable
    """Vectors of samples and of real clips."""
    lock: Lock
    """Part of the protocol lock that all metrics share."""
    protocol: Protocol
    seed: int
    """Seed of the bootstrap."""
    samples_problem: str = ""
    """Why no metric of the samples can be computed, such as missing ones."""
    distance_problem: str = ""
    """Why no distance can be computed, such as clips of another frame rate."""
    training: Sequence[str] = ()
    """Ids of clips of the training."""


def computable(features: FeatureTable, *, has_training: bool) -> tuple[str, ...]:
    """Return the metrics of samples whose vectors are there."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if (metric.network, metric.preset) in features.spaces
        and (metric.kind != "memorisation" or has_training)
    )


def rows_of(metric: str, data: ScoreInputs) -> list[Row]:
    """Return the rows of a metric of samples: its value; of a distance also floor and limit.

    Args:
        metric: key of `METRICS`, not of kind `reconstruction` or `vbench`.
        data: vectors and protocol.
    """
    definition = METRICS[metric]
    reason = data.samples_problem
    if not reason:
        try:
            return list(_ROWS[definition.kind](metric, definition, data))
        # the other metrics may be computable; a gate does not pass without a value
        except ContractError as error:
            reason = str(error)
    is_higher = definition.higher_is_better
    return [scorecard.not_evaluated(metric, reason, lock=data.lock, higher_is_better=is_higher)]


def _space_lock(metric: Metric, data: ScoreInputs) -> Row:
    """Return network, its digest and preset.

    Raises:
        ContractError: there are no vectors of them.
    """
    preset = data.protocol.preset_of(metric)
    digest = data.features.digest(metric.network, preset)
    if not digest:
        hint = f"add {metric.network}:{preset} to the networks of stage features"
        needs = ", which needs VIDEOAR_I3D_WEIGHTS" if metric.network == "i3d" else ""
        raise ContractError(f"features of {metric.network} {preset}", "none", hint + needs)
    return {"network": metric.network, "network_digest": digest, "preset": preset}


def _mean_rows(name: str, metric: Metric, data: ScoreInputs) -> Iterator[Row]:
    lock = {**data.lock, **_space_lock(metric, data)}
    if metric.network == synthetic.SyntheticClassifier.name:
        yield _synthetic_row(name, data, lock)
        return
    values = sample_values(name, data.features, data.texts)
    details = {"windows": windows} if (windows := _windows(metric, data)) else None
    yield scorecard.mean_row(name, [*values.values()], lock=lock, seed=data.seed, details=details)


def _windows(metric: Metric, data: ScoreInputs) -> dict[str, list[float]]:
    """Return the means of a measure over each part of the clips, of samples and of real clips."""
    space = metric.network, "windows"
    if metric.component not in WINDOW_COMPONENTS or space not in data.features.spaces:
        return {}
    column = WINDOW_COMPONENTS.index(metric.component)
    sides = {"samples": list(data.texts), "reference": data.reference}
    return {
        side: data.features
        .vectors(*space, ids)
        .reshape(len(ids), NUM_WINDOWS, -1)[:, :, column]
        .mean(axis=0)
        .tolist()
        for side, ids in sides.items()
        if ids
    }


def _synthetic_row(name: str, data: ScoreInputs, lock: Lock) -> Row:
    scenes = scenes_of(data.texts)
    if not scenes:
        raise ContractError(name, "no prompt is one of the synthetic corpus")
    seen = predictions(data.features, list(scenes))
    return synthetic_row(name, [*seen.values()], [*scenes.values()], lock)


def synthetic_row(
    name: str, seen: Sequence[synthetic.Prediction], prompted: Sequence[Scene], lock: Lock
) -> Row:
    """Return the row of a score of the synthetic corpus, such as `rendered/colour_acc`."""
    score = synthetic.synthetic_scores(seen, prompted)[name.rpartition("/")[2]]
    return scorecard.score_row(
        name,
        score.value,
        lock=lock,
        num_samples=len(seen),
        interval=(score.low, score.high),
        chance=score.chance,
        details=score.details,
    )


@dataclass(frozen=True)
class _Distance:
    """A distance under a protocol."""

    value: Callable[[Array, Array], float]
    interval: Callable[[Array, Array], tuple[float, float]]
    by_count: Callable[[Array, Array], list[tuple[int, float]]] | None
    """Distances at several N, if there is a bias that depends on it."""
    lock: Lock

    @classmethod
    def of(cls, kind: str, protocol: Protocol, seed: int) -> "_Distance":
        if kind == "kvd":
            kernel = {"kernel": "(x . y / D + 1)^3"}
            return cls(kernel_distance, partial(kernel_interval, seed=seed), None, kernel)
        ddof = protocol.ddof
        return cls(
            partial(frechet_of_vectors, ddof=ddof),
            partial(frechet_interval, seed=seed, ddof=ddof),
            partial(frechet_by_count, seed=seed, ddof=ddof),
            {"covariance": protocol.covariance},
        )


def _distance_rows(name: str, metric: Metric, data: ScoreInputs) -> Iterator[Row]:
    num, protocol = len(data.reference), data.protocol
    if data.distance_problem:
        raise ContractError("distance", data.distance_problem)
    if protocol.num_clips not in {None, num}:
        what = f"needs {protocol.num_clips} clips on each side, the reference has {num}"
        raise ContractError(f"protocol {data.lock['protocol']}", what)
    distance = _Distance.of(metric.kind, protocol, data.seed)
    space = _space_lock(metric, data)
    lock = {**data.lock, **space, **distance.lock, "num_clips": num}
    if metric.network == "domain":  # comparable between equal classifiers only
        name = f"{name}@{space['network_digest'][:12]}"
    vectors = partial(data.features.vectors, metric.network, space["preset"])
    x_ND, y_ND = vectors(data.compared), vectors(data.reference)
    scorecard.require_equal_counts(name, len(x_ND), num)
    by_count = distance.by_count if num >= _MIN_BY_COUNT else None
    row = partial(
        scorecard.score_row, lock=lock, num_samples=num, num_reference=num, higher_is_better=False
    )

    def of_clips(suffixed: str, ids: Sequence[str], z_ND: Array) -> Row:
        details: dict[str, Json] = {}
        if by_count:
            details["by_num_clips"] = by_count(z_ND, y_ND)
        if windows := _window_distances(ids, metric, data, distance):
            details["windows"] = windows
        value, interval = distance.value(z_ND, y_ND), distance.interval(z_ND, y_ND)
        return row(suffixed, value, interval=interval, details=details)

    yield of_clips(name, data.compared, x_ND)
    if by_count:
        limit = partial(_limit, by_count)
        interval = bootstrap_interval(limit, x_ND, y_ND, data.seed, _LIMIT_RESAMPLES)
        yield row(with_suffix(name, LIMIT), limit(x_ND, y_ND), interval=interval)
    floor, floor_name = data.floor[:num], with_suffix(name, FLOOR)
    if len(floor) == num:
        yield of_clips(floor_name, floor, vectors(floor))
    else:
        why = f"needs {num} more real clips, {len(floor)} available"
        yield scorecard.not_evaluated(floor_name, why, lock=lock, higher_is_better=False)


def _limit(
    by_count: Callable[[Array, Array], list[tuple[int, float]]], x_ND: Array, y_ND: Array
) -> float:
    return extrapolate(by_count(x_ND, y_ND))


def _window_distances(
    ids: Sequence[str], metric: Metric, data: ScoreInputs, distance: _Distance
) -> list[float]:
    """Return the distance of each part of the clips to the same part of the reference.

    Of EfficientNet-Lite0 only, whose mean over four frames is that of the parts.
    """
    space = metric.network, "windows"
    if metric.preset != "mean4" or space not in data.features.spaces:
        return []
    x_NWD, y_NWD = (
        data.features.vectors(*space, chosen).reshape(len(chosen), NUM_WINDOWS, -1)
        for chosen in (ids, data.reference)
    )
    return [distance.value(x_NWD[:, i], y_NWD[:, i]) for i in range(NUM_WINDOWS)]


def _memorisation_rows(name: str, metric: Metric, data: ScoreInputs) -> Iterator[Row]:
    """Yield the share of samples that are nearer to a training clip than real clips usually are.

    Nearer than 95 % of the reference clips: of samples that memorize nothing, 5 % are.
    """
    if not data.training or not data.reference:
        raise ContractError(name, "no vectors of training clips", "connect port train_features")
    space = _space_lock(metric, data)
    samples, reference, training = (
        data.features.vectors(metric.network, metric.preset, ids)
        for ids in (list(data.texts), data.reference, data.training)
    )
    of_real = nearest(reference, training)[0]
    limit = float(np.quantile(of_real, _NEAREST))
    distances, which = nearest(samples, training)
    num_near = int((distances < limit).sum())
    pairs = [
        {
            "sample_id": list(data.texts)[i],
            "clip_id": data.training[which[i]],
            "distance": float(distances[i]),
        }
        for i in np.argsort(distances, kind="stable")[:_NUM_NEAREST]
    ]
    yield scorecard.score_row(
        name,
        num_near / len(samples),
        lock={**data.lock, **space, "quantile": _NEAREST},
        num_samples=len(samples),
        num_reference=len(reference),
        interval=synthetic.wilson(num_near, len(samples)),
        higher_is_better=False,
        details={"expected": _NEAREST, "limit": limit, "nearest": pairs},
    )


def nearest(x_ND: Array, y_MD: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the Euclidean distance of each vector to the nearest other one, and its index."""
    distances, indices = np.empty(len(x_ND)), np.empty(len(x_ND), dtype=np.int64)
    for i, x_D in enumerate(x_ND):  # one at a time: N x M x D numbers need not fit in memory
        squares = ((y_MD - x_D) ** 2).sum(axis=1)
        indices[i] = int(squares.argmin())
        distances[i] = np.sqrt(squares[indices[i]])
    return distances, indices


_ROWS: Mapping[str, Callable[[str, Metric, ScoreInputs], Iterator[Row]]] = {
    "mean": _mean_rows,
    "frechet": _distance_rows,
    "kvd": _distance_rows,
    "memorisation": _memorisation_rows,
}


def not_evaluated_rows(metrics: Iterable[str], reason: str, lock: Lock) -> list[Row]:
    """Return rows without values."""
    return [scorecard.not_evaluated(name, reason, lock=lock) for name in metrics]


def synthetic_names(prefix: str) -> tuple[str, ...]:
    """Return the names of the scores of the synthetic corpus below a prefix."""
    return tuple(f"{prefix}/{name}" for name in SYNTHETIC)
