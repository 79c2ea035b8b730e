"""Rows of `scores@1`.

The protocol lock of a row holds everything that must be equal for two values to be comparable, and
its digest is stored beside the value. Model and tokenizer are lineage, not protocol: inside the
lock they would make the values of any two models incomparable.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from videoar.core.errors import ContractError
from videoar.core.ids import canonical_json, digest_json
from videoar.core.types import Json, Row
from videoar.evaluation.metric_names import metric_of
from videoar.evaluation.sample_values import listed

Lock = Mapping[str, Json]


SAMPLE_FORM = ("num_frames", "rate_fps", "width_px", "height_px")
"""Columns of `samples@1` that are equal in all samples of a score."""


def form_of(row: Row) -> str:
    """Return frames, size and rate of a sample or clip in words."""
    size = f"{row['width_px']} x {row['height_px']} px"
    return f"{row['num_frames']} frames of {size} at {row['rate_fps']:g} fps"


def form_problem(samples: Iterable[Row]) -> str:
    """Return which forms samples have, "" if all have one."""
    forms = {tuple(row[name] for name in SAMPLE_FORM): form_of(row) for row in samples}
    texts = [forms[form] for form in sorted(forms)]
    return f"samples have several forms: {listed(texts)}" if len(texts) > 1 else ""


def sample_lock(samples: Sequence[Row]) -> Row:
    """Return the part of a protocol lock that all metrics of some samples share; empty of none.

    Args:
        samples: rows of `samples@1`, of one form and sampler.
    """
    if not samples:
        return {}
    prompts = sorted([row["prompt"], row["index"], row["seed"]] for row in samples)
    first = samples[0]
    return {
        "num_samples": len(samples),
        "prompts": digest_json(prompts),
        "sampler": first["sampler_json"],
        "num_frames": first["num_frames"],
        "rate_fps": first["rate_fps"],
        "size_px": [first["width_px"], first["height_px"]],
        "form": "decoded H.264",  # frames before encoding have other scores
    }


def score_row(  # noqa: PLR0913 - one keyword per column of the contract
    metric: str,
    value: float,
    *,
    lock: Lock,
    num_samples: int,
    num_reference: int = 0,
    interval: tuple[float, float] | None = None,
    chance: float | None = None,
    higher_is_better: bool = True,
    details: Mapping[str, Json] | None = None,
) -> Row:
    """Return the row of an evaluated metric, values rounded to six significant digits.

    Further digits depend on the number of threads (order of floating-point sums).

    Args:
        metric: name, one of `metric_names.METRICS`.
        value: the score.
        lock: protocol lock without the name of the metric.
        num_samples: generated clips used.
        num_reference: reference clips used.
        interval: lower and upper end of the 95 % interval.
        chance: expected value of guessing, where it is known.
        higher_is_better: direction of the metric.
        details: JSON values such as confusion matrices and per-sample values.

    Raises:
        ContractError: the value is not finite.
    """
    if not math.isfinite(value):
        raise ContractError(metric, f"value is {value}")
    low, high = (_six_digits(end) for end in interval) if interval else (None, None)
    return {
        **_row(metric, lock, higher_is_better=higher_is_better),
        "status": "ok",
        "value": _six_digits(value),
        "ci_low": low,
        "ci_high": high,
        "chance": chance,
        "num_samples": num_samples,
        "num_reference": num_reference,
        "details_json": canonical_json(details or {}),
    }


def mean_row(
    metric: str,
    values: Sequence[float],
    *,
    lock: Lock,
    seed: int,
    num_reference: int = 0,
    details: Mapping[str, Json] | None = None,
) -> Row:
    """Return the row of the mean of one value per sample, with its bootstrap interval."""
    definition = metric_of(metric)
    return score_row(
        metric,
        float(np.mean(values)),
        lock=lock,
        num_samples=len(values),
        num_reference=num_reference,
        interval=mean_interval(values, seed),
        higher_is_better=definition is None or definition.higher_is_better,
        details=details,
    )


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def not_evaluated(metric: str, reason: str, *, lock: Lock, higher_is_better: bool = True) -> Row:
    """Return the row of a metric without a value, with the reason."""
    return {
        **_row(metric, lock, higher_is_better=higher_is_better),
        "status": "not_evaluated",
        "reason": reason,
    }


def _row(metric: str, lock: Lock, *, higher_is_better: bool) -> Row:
    # Every column is present: `pa.Table.from_pylist` takes the columns from the first row alone.
    full = {"metric": metric, **lock}
    return {
        "metric": metric,
        "status": "",
        "reason": None,
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "chance": None,
        "higher_is_better": higher_is_better,
        "num_samples": 0,
        "num_reference": 0,
        "lock_digest": digest_json(full),
        "lock_json": canonical_json(full),
        "details_json": "{}",
    }


def protocol_of(row: Row) -> str:
    """Return preset and N of a score; one N where both sides have as many clips."""
    sides = dict.fromkeys(filter(None, (row["num_samples"], row["num_reference"])))
    count = f"N = {' / '.join(f'{n:,}' for n in sides)}" if sides else ""
    return ", ".join(filter(None, (json.loads(row["lock_json"]).get("preset"), count)))


def not_above_chance(row: Row) -> bool:
    """Return whether guessing explains a score: its 95 % interval is not on the better side."""
    if row["chance"] is None or row["value"] is None:
        return False
    low, high = (row["value"] if end is None else end for end in (row["ci_low"], row["ci_high"]))
    return bool(low <= row["chance"] if row["higher_is_better"] else high >= row["chance"])


def require_equal_counts(metric: str, num_samples: int, num_reference: int) -> None:
    """Raise unless both sets have the same size: the bias of a Frechet distance is O(1 / N).

    Raises:
        ContractError: the counts differ or are below two.
    """
    if num_samples != num_reference or num_samples < 2:
        raise ContractError(
            metric, f"{num_samples} samples, {num_reference} reference clips", "need equal N >= 2"
        )


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean (1,000 resamples)."""
    # Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993): percentile intervals
    # need about 1,000 resamples, standard deviations about 200.
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(data), size=(1000, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
