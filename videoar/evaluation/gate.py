"""Rules of promotion gates.

A rule fails closed: a score that is missing, not finite, of fewer than `MIN_CLIPS` clips or of
another protocol than the champion's does not pass, and the reason says so.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, FiniteFloat, field_validator, model_validator

from videoar.core.errors import ContractError, did_you_mean
from videoar.core.types import Frozen, Row
from videoar.evaluation.metric_names import (
    FLOOR,
    METRICS,
    Metric,
    is_paired,
    metric_of,
    suffix_of,
    with_suffix,
)
from videoar.evaluation.paired import SampleSet, paired_difference

MIN_CLIPS = 16
"""chosen: the 95 % interval of 8 right ones of 16 is 0.28 to 0.72; of fewer it is wider still."""
_FORMS = {
    "min": ">=",
    "max": "<=",
    "max_regression": "regression <=",
    "noninferior": "not inferior by more than",
    "above_chance": "above chance",
    "max_over_floor": "<= floor times",
}
_RESCORE = "score the champion under this protocol: connect port champion_scores"


class Rule(Frozen):
    """One condition of a promotion gate: a metric and exactly one bound."""

    metric: str
    """Name of the metric, as in `scores@1`, such as `rendered/colour_acc`, `fvd`, `recon/psnr`."""
    min: FiniteFloat | None = None
    """Smallest value that passes."""
    max: FiniteFloat | None = None
    """Largest value that passes."""
    max_regression: FiniteFloat | None = Field(default=None, ge=0)
    """Largest allowed loss against the ref's current holder, in units of the metric."""
    noninferior: FiniteFloat | None = Field(default=None, ge=0)
    """Largest loss against the ref's current holder that the 95 % interval of the difference may
    contain, in units of the metric. Bootstrap over prompts and seeds, which both models share."""
    above_chance: Literal[True] | None = None
    """The 95 % interval of the value is above the chance value."""
    max_over_floor: FiniteFloat | None = Field(default=None, ge=1)
    """Largest multiple of its floor (distance of other real clips) at which a distance passes."""

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if metric_of(name) is None:
            raise ValueError(f"unknown metric {name} ({did_you_mean(name, METRICS)})")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> "Rule":
        if sum(getattr(self, form) is not None for form in _FORMS) != 1:
            raise ValueError(f"set exactly one of {', '.join(_FORMS)}")
        if self.max_over_floor is not None and not self.definition.is_distance:
            raise ValueError(f"{self.metric} is no distance, so it has no floor")
        if self.noninferior is not None and not is_paired(self.metric):
            raise ValueError(f"{self.metric} cannot be paired by sample (use max_regression)")
        return self

    @property
    def definition(self) -> Metric:
        """Definition of the metric."""
        metric = metric_of(self.metric)
        if metric is None:  # `_known` has rejected it
            raise ValueError(f"unknown metric {self.metric}")
        return metric

    @property
    def form(self) -> str:
        """Name of the bound that is set."""
        return next(form for form in _FORMS if getattr(self, form) is not None)

    @property
    def judges_samples(self) -> bool:
        """Whether the metric is computed from generated samples, not from real clips alone."""
        return self.definition.kind != "reconstruction" and suffix_of(self.metric) != FLOOR

    def __str__(self) -> str:
        bound = getattr(self, self.form)
        text = f"{self.metric} {_FORMS[self.form]}"
        return text if bound is True else f"{text} {bound:g}"


class RuleResult(Frozen):
    """Outcome of one rule for one candidate: the columns of `releases@1` that differ by rule."""

    rule: str
    metric: str
    value: float | None
    bound: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class ScoreCard:
    """Scores of a model."""

    rows: Mapping[str, Row]
    """Rows of `scores@1`, by metric."""
    samples: SampleSet | str
    """What rules `noninferior` compare; a text says why it is missing."""


class _Outcome(NamedTuple):
    value: float | None
    bound: float | None
    problem: str
    """Why the rule does not pass, "" if it passes."""
    note: str = "holds"


def evaluate_rule(rule: Rule, candidate: ScoreCard, champion: ScoreCard | None) -> RuleResult:
    """Evaluate a rule; a missing, non-finite or incomparable value does not pass.

    Args:
        rule: condition with exactly one bound.
        candidate: its scores.
        champion: scores of the ref's current holder; None if the ref has none: then rules that
            compare with it pass.
    """
    row = candidate.rows.get(rule.metric)
    problem = problem_of(row) or (_too_few(rule, row) if row else "")
    if row is None or problem:
        value, bound = (row["value"] if row else None), _fixed_bound(rule)
        outcome = _Outcome(value, bound, problem)
    elif rule.form in ("max_regression", "noninferior"):
        outcome = _compare(rule, row, candidate, champion)
    elif rule.form == "above_chance":
        outcome = _above_chance(row)
    elif rule.form == "max_over_floor":
        outcome = _over_floor(rule, row, candidate.rows.get(with_suffix(rule.metric, FLOOR)))
    else:
        outcome = _absolute(rule, row)
    return RuleResult(
        rule=str(rule),
        metric=rule.metric,
        value=outcome.value,
        bound=outcome.bound,
        passed=not outcome.problem,
        reason=outcome.problem or outcome.note,
    )


def problem_of(row: Row | None) -> str:
    """Return why a row of `scores@1` has no value to compare, "" if it has one."""
    if row is None:
        return "no such score"
    if row["status"] != "ok":
        return f"not evaluated: {row['reason']}"
    if row["value"] is None or not math.isfinite(row["value"]):
        return f"value is {row['value']}"
    return ""


def _too_few(rule: Rule, row: Row) -> str:
    """Return why a score is of too few clips for a decision, "" if it is not."""
    if not rule.judges_samples:
        return ""
    sides = [row["num_samples"], *([row["num_reference"]] if rule.definition.is_distance else [])]
    if min(sides) >= MIN_CLIPS:
        return ""
    return f"of {min(sides)} clips; a decision needs {MIN_CLIPS} on each side"


def _fixed_bound(rule: Rule) -> float | None:
    return rule.min if rule.min is not None else rule.max


def _absolute(rule: Rule, row: Row) -> _Outcome:
    value, bound = row["value"], _fixed_bound(rule)
    passed = value >= rule.min if rule.min is not None else value <= rule.max
    return _Outcome(value, bound, "" if passed else f"value is {value:.4g}")


def _above_chance(row: Row) -> _Outcome:
    chance, low, high = row["chance"], row["ci_low"], row["ci_high"]
    if chance is None or low is None or high is None:
        return _Outcome(row["value"], chance, "has no chance value or no interval")
    passed = low > chance if row["higher_is_better"] else high < chance
    text = f"95 % interval {low:.4g} to {high:.4g}, chance {chance:.4g}"
    return _Outcome(row["value"], chance, "" if passed else f"not above chance: {text}", text)


def _over_floor(rule: Rule, row: Row, floor: Row | None) -> _Outcome:
    if problem := problem_of(floor):
        return _Outcome(row["value"], None, f"floor: {problem}")
    # an unbiased estimate (KVD) of a distance that is 0 may be negative
    if floor is None or floor["value"] <= 0:
        return _Outcome(row["value"], None, f"floor is {floor and floor['value']:.4g}, not above 0")
    bound = (rule.max_over_floor or 1) * floor["value"]
    text = f"{row['value'] / floor['value']:.3g} times the floor {floor['value']:.4g}"
    return _Outcome(row["value"], bound, "" if row["value"] <= bound else text, text)


def _compare(rule: Rule, row: Row, candidate: ScoreCard, champion: ScoreCard | None) -> _Outcome:
    value = row["value"]
    if champion is None:
        return _Outcome(value, None, "", "no champion to compare with")
    other = champion.rows.get(rule.metric)
    if other is None or problem_of(other):
        return _Outcome(value, None, f"champion: {problem_of(other)}")
    if other["lock_digest"] != row["lock_digest"]:
        changed = ", ".join(lock_difference(row, other))
        what = f"the champion's protocol differs in {changed} ({_RESCORE})"
        return _Outcome(value, None, what)
    if rule.form == "noninferior":
        return _noninferior(rule, row, candidate.samples, champion.samples)
    # With sign, "not worse than" is >= for both directions of a metric.
    sign = 1 if row["higher_is_better"] else -1
    bound = other["value"] - sign * (rule.max_regression or 0.0)
    passed = sign * value >= sign * bound
    return _Outcome(value, bound, "" if passed else f"champion has {other['value']:.4g}")


def _noninferior(
    rule: Rule, row: Row, candidate: SampleSet | str, champion: SampleSet | str
) -> _Outcome:
    if isinstance(candidate, str) or isinstance(champion, str):
        missing = {"candidate": candidate, "champion": champion}
        texts = (f"{name}: {text}" for name, text in missing.items() if isinstance(text, str))
        return _Outcome(row["value"], None, "; ".join(texts))
    try:
        change = paired_difference(row, candidate, champion)
    except ContractError as error:
        return _Outcome(row["value"], None, str(error))
    # the end of the interval at which the candidate is worst
    margin = rule.noninferior or 0.0
    worst = change.low if row["higher_is_better"] else -change.high
    text = f"change {change.value:+.4g}, 95 % interval {change.low:+.4g} to {change.high:+.4g}"
    return _Outcome(row["value"], None, "" if worst >= -margin else text, text)


def lock_difference(row: Row, other: Row) -> list[str]:
    """Return the fields in which the protocol locks of two rows of `scores@1` differ."""
    a, b = json.loads(row["lock_json"]), json.loads(other["lock_json"])
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
