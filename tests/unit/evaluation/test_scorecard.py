"""Score rows: values are finite and have a protocol lock."""

import math

import pytest

from videoar.core.errors import ContractError
from videoar.evaluation.scorecard import (
    mean_interval,
    not_above_chance,
    not_evaluated,
    require_equal_counts,
    score_row,
)

LOCK = {"num_frames": 17}


def test_score_row_non_finite_value_is_rejected_and_lock_contains_metric():
    for value in (math.nan, math.inf):
        with pytest.raises(ContractError):
            score_row("a", value, lock=LOCK, num_samples=4)
    a, b = (score_row(name, 1, lock=LOCK, num_samples=1) for name in "ab")
    assert a["lock_digest"] != b["lock_digest"]
    assert a["lock_digest"] == not_evaluated("a", "why", lock=LOCK)["lock_digest"]


def test_invariant_4_require_equal_counts_unequal_counts_are_rejected():
    require_equal_counts("m", 2, 2)
    for counts in ((2, 3), (1, 1), (0, 0)):
        with pytest.raises(ContractError):
            require_equal_counts("m", *counts)


def test_mean_interval_is_deterministic_and_of_known_width():
    low, high = mean_interval([0.0, 1.0] * 50, seed=0)
    assert (low, high) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.6, abs=0.03))
    assert (low, high) == mean_interval([0.0, 1.0] * 50, seed=0)


@pytest.mark.parametrize(
    ("value", "end", "higher", "is_chance"),
    [(0.5, 0.3, True, False), (0.5, 0.2, True, True), (0.1, 0.0, True, True),
     (0.5, None, True, False), (0.1, 0.2, False, False), (0.1, 0.3, False, True)],
)  # fmt: skip
def test_score_is_chance_unless_its_interval_is_on_the_better_side(value, end, higher, is_chance):
    low, high = (end, None) if higher else (None, end)
    row = {
        "value": value,
        "chance": 0.25,
        "higher_is_better": higher,
        "ci_low": low,
        "ci_high": high,
    }
    assert not_above_chance(row) == is_chance
