"""Rows of `scores@1` and the rules of promotion gates.

The protocol lock of a row holds everything that must be equal for two values to be comparable, and
its digest is stored beside the value. Model and tokenizer are lineage, not protocol: inside the
lock they would make the values of any two models incomparable. A rule fails closed: a missing,
non-finite or incomparable value does not pass.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from videoar.core.errors import ContractError, did_you_mean
from videoar.core.ids import canonical_json, digest_json
from videoar.core.types import Frozen, Json, Row
from videoar.evaluation.metric_names import METRICS, is_metric

Lock = Mapping[str, Json]


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
    return score_row(
        metric,
        float(np.mean(values)),
        lock=lock,
        num_samples=len(values),
        num_reference=num_reference,
        interval=mean_interval(values, seed),
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


class Rule(Frozen):
    """One condition of a promotion gate."""

    metric: str
    """Name of the metric, as in `scores@1`, such as `rendered/colour_acc`, `fvd`, `recon/psnr`."""
    min: float | None = None
    """Smallest value that passes."""
    max: float | None = None
    """Largest value that passes."""
    max_regression: float | None = Field(default=None, ge=0)
    """Largest allowed loss against the ref's current holder, in units of the metric."""

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_metric(name):
            raise ValueError(f"unknown metric {name} ({did_you_mean(name, METRICS)})")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> "Rule":
        if sum(bound is not None for bound in (self.min, self.max, self.max_regression)) != 1:
            raise ValueError("set exactly one of min, max and max_regression")
        return self


class RuleResult(Frozen):
    """Outcome of one rule for one candidate: a row of `releases@1` without candidate and ref."""

    rule: str
    metric: str
    value: float | None
    bound: float | None
    passed: bool
    reason: str


def evaluate_rule(
    rule: Rule, scores: Mapping[str, Row], champion: Mapping[str, Row] | None
) -> RuleResult:
    """Evaluate a rule; a missing, non-finite or incomparable value does not pass.

    Args:
        rule: condition with exactly one bound.
        scores: rows of `scores@1` of the candidate, by metric.
        champion: rows of the ref's current holder; None if the ref has none, then
            `max_regression` passes.
    """
    form, bound = _bound(rule)
    row = scores.get(rule.metric)
    text = f"{rule.metric} {form} {bound:g}"
    problem = _problem(row)
    if row is None or problem:
        return _result(rule, text, row, bound, problem)
    if form == "regression <=":
        return _regression(rule, text, row, champion)
    passed = row["value"] >= bound if form == ">=" else row["value"] <= bound
    return _result(rule, text, row, bound, "" if passed else f"value is {row['value']:.4g}")


def _bound(rule: Rule) -> tuple[Literal[">=", "<=", "regression <="], float]:
    if rule.min is not None:
        return ">=", rule.min
    if rule.max is not None:
        return "<=", rule.max
    return "regression <=", rule.max_regression or 0.0


def _problem(row: Row | None) -> str:
    if row is None:
        return "no such score"
    if row["status"] != "ok":
        return f"not evaluated: {row['reason']}"
    if row["value"] is None or not math.isfinite(row["value"]):
        return f"value is {row['value']}"
    return ""


def _regression(rule: Rule, text: str, row: Row, champion: Mapping[str, Row] | None) -> RuleResult:
    allowed = rule.max_regression or 0.0
    if champion is None:
        return _result(rule, text, row, None, "", "no champion to compare with")
    other = champion.get(rule.metric)
    problem = _problem(other)
    if other is None or problem:
        return _result(rule, text, row, None, f"champion: {problem}")
    if other["lock_digest"] != row["lock_digest"]:
        changed = ", ".join(_lock_difference(row, other))
        return _result(rule, text, row, None, f"the champion's protocol differs in {changed}")
    # With sign, "not worse than" is >= for both directions of a metric.
    sign = 1 if row["higher_is_better"] else -1
    bound = other["value"] - sign * allowed
    passed = sign * row["value"] >= sign * bound
    return _result(rule, text, row, bound, "" if passed else f"champion has {other['value']:.4g}")


def _lock_difference(row: Row, other: Row) -> list[str]:
    a, b = json.loads(row["lock_json"]), json.loads(other["lock_json"])
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def _result(
    rule: Rule, text: str, row: Row | None, bound: float | None, problem: str, note: str = "holds"
) -> RuleResult:
    return RuleResult(
        rule=text,
        metric=rule.metric,
        value=row["value"] if row else None,
        bound=bound,
        passed=not problem,
        reason=problem or note,
    )
