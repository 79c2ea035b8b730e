"""Score rows and gate rules: values have a protocol lock, missing values fail a rule."""

import math
import re

import pytest
from pydantic import ValidationError

from videoar.core.errors import ContractError
from videoar.evaluation.scorecard import (
    Rule,
    evaluate_rule,
    mean_interval,
    not_evaluated,
    require_equal_counts,
    score_row,
)

METRIC = "recon/psnr"
LOCK = {"num_frames": 17}


def card(value=0.5, *, lock=LOCK, up=True):
    row = score_row(METRIC, value, lock=lock, num_samples=4, higher_is_better=up)
    return {METRIC: row}


ABSENT = {METRIC: not_evaluated(METRIC, "no weights", lock=LOCK)}
HOLLOW = {METRIC: {**card()[METRIC], "value": math.nan}}
OTHER = card(0.5, lock={"num_frames": 33})


@pytest.mark.parametrize(
    ("bound", "scores", "champion", "passed", "reason"),
    [
        ({"min": 0.5}, card(0.5), None, True, "holds"),
        ({"min": 0.5}, card(0.4), None, False, "value is 0.4"),
        ({"max": 0.5}, card(0.5), None, True, "holds"),
        ({"max": 0.5}, card(0.6), None, False, "value is 0.6"),
        ({"min": 0.0}, {}, None, False, "no such score"),
        ({"min": 0.0}, ABSENT, None, False, "not evaluated: no weights"),
        ({"max": 9.0}, HOLLOW, None, False, "value is nan"),
        ({"max_regression": 0.1}, card(0.5), None, True, "no champion to compare with"),
        ({"max_regression": 0.1}, card(0.5), card(0.5), True, "holds"),
        ({"max_regression": 0.1}, card(0.9), card(0.5), True, "holds"),
        ({"max_regression": 0.1}, card(0.3), card(0.5), False, "champion has 0.5"),
        ({"max_regression": 0.1}, card(0.3, up=False), card(0.5, up=False), True, "holds"),
        ({"max_regression": 0.1}, card(0.7, up=False), card(0.5, up=False), False, "champion"),
        ({"max_regression": 0.1}, card(0.9), {}, False, "champion: no such score"),
        ({"max_regression": 0.1}, card(0.9), ABSENT, False, "champion: not evaluated"),
        ({"max_regression": 0.1}, card(0.9), HOLLOW, False, "champion: value is nan"),
        ({"max_regression": 0.1}, card(0.9), OTHER, False, "protocol differs in num_frames"),
        ({"max_regression": 0.1}, ABSENT, card(0.5), False, "not evaluated"),
    ],
)
def test_evaluate_rule_gives_expected_result(bound, scores, champion, passed, reason):
    decision = evaluate_rule(Rule(metric=METRIC, **bound), scores, champion)
    assert decision.passed is passed
    assert reason in decision.reason


@pytest.mark.parametrize("bounds", [{}, {"min": 0.0, "max": 1.0}, {"max_regression": -1.0}])
def test_rule_without_exactly_one_bound_is_rejected(bounds):
    with pytest.raises(ValidationError):
        Rule(metric=METRIC, **bounds)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rendered/color_acc", "did you mean rendered/colour_acc?"),
        ("recon/pnsr", "did you mean recon/psnr?"),
        ("FVD@16f", "known: "),
    ],
)
def test_rule_unknown_metric_is_rejected_with_a_suggestion(name, hint):
    with pytest.raises(ValidationError, match=f"unknown metric {name} .{re.escape(hint)}"):
        Rule(metric=name, min=0.0)


def test_rule_metric_suffix_after_at_sign_is_allowed():
    assert Rule(metric="fvd@ucf101-larp-10k", max=100.0).metric == "fvd@ucf101-larp-10k"


def test_score_row_non_finite_value_is_rejected_and_lock_contains_metric():
    for value in (math.nan, math.inf):
        with pytest.raises(ContractError):
            card(value)
    a, b = (score_row(name, 1, lock=LOCK, num_samples=1) for name in "ab")
    assert a["lock_digest"] != b["lock_digest"]
    assert a["lock_digest"] == not_evaluated("a", "why", lock=LOCK)["lock_digest"]


def test_require_equal_counts_unequal_counts_are_rejected():
    require_equal_counts("m", 2, 2)
    for counts in ((2, 3), (1, 1), (0, 0)):
        with pytest.raises(ContractError):
            require_equal_counts("m", *counts)


def test_mean_interval_is_deterministic_and_of_known_width():
    low, high = mean_interval([0.0, 1.0] * 50, seed=0)
    assert (low, high) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.6, abs=0.03))
    assert (low, high) == mean_interval([0.0, 1.0] * 50, seed=0)
