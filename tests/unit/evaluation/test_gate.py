"""Gate rules: every form on better, worse, equal, missing and incomparable scores; fails closed.

Invariant 8 of evaluation: the gate table decides as documented.
"""

import dataclasses
import math
import re
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.feature_rows import feature_rows, feature_table, pixel_rows
from videoar.evaluation.evalset import compared
from videoar.evaluation.frechet import frechet_of_vectors
from videoar.evaluation.gate import MIN_CLIPS, Rule, ScoreCard, evaluate_rule
from videoar.evaluation.kvd import kernel_distance
from videoar.evaluation.paired import SampleSet, paired_difference
from videoar.evaluation.scorecard import not_evaluated, score_row
from videoar.stages.promote import PromoteConfig

UP, DOWN, PAIRED = "rendered/colour_acc", "frechet_lite0", "proxy/exposure"
KERNEL = "kvd_lite0"
LOCK = {"num_frames": 17}
NUM = 32


def row(metric, value=0.5, *, lock=LOCK, num=NUM, interval=None, chance=None):
    up = not metric.startswith(("frechet", "kvd"))
    return score_row(metric, value, lock=lock, num_samples=num, num_reference=num,
                     interval=interval, chance=chance, higher_is_better=up)  # fmt: skip


def card(*rows, samples="not read"):
    return ScoreCard({row["metric"]: row for row in rows}, samples)


def one(metric, value=0.5, **options):
    return card(row(metric, value, **options))


def absent(metric):
    return card(not_evaluated(metric, "no weights", lock=LOCK))


def hollow(metric):
    return card({**row(metric), "value": math.nan})


def with_floor(value, floor):
    return card(row(DOWN, value), row(DOWN + "/floor", floor))


def sample_set(offset=0.0, *, noise=0.01, num=NUM, skip=(), seeds=0, seed=0):
    """Samples of two per prompt, with exposures that are `offset` more than those of the prompt."""
    ids = [f"{offset}-{i}" for i in range(num)]
    samples = [
        {"sample_id": id_, "prompt": f"prompt {i // 2}", "index": i % 2, "seed": i + seeds}
        for i, id_ in enumerate(ids)
    ]
    generator = np.random.default_rng(seed)
    own = {
        id_: {"exposure": (i // 2) / 10 + offset + noise * generator.normal()}
        for i, id_ in enumerate(ids)
        if i not in skip
    }
    shared = np.random.default_rng(7).normal(size=(num, 4))
    vectors = {
        id_: [*(shared[i] + 3 * offset + noise * generator.normal(size=4))]
        for i, id_ in enumerate(ids)
        if i not in skip
    }
    real = {
        f"real{i}": vector
        for i, vector in enumerate(np.random.default_rng(8).normal(size=(num, 4)))
    }
    table = feature_table(pixel_rows(own), feature_rows({**vectors, **real}))
    return SampleSet(samples, table, list(real))


def paired(metric, samples, **options):
    return card(row(metric, **options), samples=samples)


FORMS = [
    # rule, metric, candidate, champion, passed, reason
    ({"min": 0.5}, UP, one(UP, 0.5), None, True, "holds"),
    ({"min": 0.5}, UP, one(UP, 0.6), None, True, "holds"),
    ({"min": 0.5}, UP, one(UP, 0.4), None, False, "value is 0.4"),
    ({"max": 0.5}, DOWN, one(DOWN, 0.5), None, True, "holds"),
    ({"max": 0.5}, DOWN, one(DOWN, 0.6), None, False, "value is 0.6"),
    ({"max_regression": 0.1}, UP, one(UP, 0.5), None, True, "no champion to compare with"),
    ({"max_regression": 0.1}, UP, one(UP, 0.5), one(UP, 0.5), True, "holds"),
    ({"max_regression": 0.1}, UP, one(UP, 0.9), one(UP, 0.5), True, "holds"),
    ({"max_regression": 0.1}, UP, one(UP, 0.3), one(UP, 0.5), False, "champion has 0.5"),
    ({"max_regression": 0.1}, DOWN, one(DOWN, 0.3), one(DOWN, 0.5), True, "holds"),
    ({"max_regression": 0.1}, DOWN, one(DOWN, 0.7), one(DOWN, 0.5), False, "champion has 0.5"),
    ({"above_chance": True}, UP, one(UP, interval=(0.4, 0.6), chance=0.3), None, True,
     "0.4 to 0.6"),
    ({"above_chance": True}, UP, one(UP, interval=(0.3, 0.6), chance=0.3), None, False,
     "not above chance: 95 % interval 0.3 to 0.6, chance 0.3"),
    ({"above_chance": True}, UP, one(UP, interval=(0.4, 0.6)), None, False, "no chance value"),
    ({"above_chance": True}, UP, one(UP, chance=0.3), None, False, "no interval"),
    ({"max_over_floor": 2}, DOWN, with_floor(4, 2), None, True, "2 times the floor 2"),
    ({"max_over_floor": 2}, DOWN, with_floor(4.1, 2), None, False, "2.05 times the floor"),
    ({"max_over_floor": 2}, DOWN, with_floor(1, 0), None, False, "floor is 0, not above 0"),
    ({"max_over_floor": 2}, DOWN, with_floor(1, -1), None, False, "floor is -1, not above 0"),
    ({"max_over_floor": 2}, DOWN, one(DOWN), None, False, "floor: no such score"),
    ({"max_over_floor": 2}, DOWN, card(row(DOWN), not_evaluated(DOWN + "/floor", "few", lock=LOCK)),
     None, False, "floor: not evaluated: few"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0)), None, True, "no champion"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.1)),
     paired(PAIRED, sample_set(0.0, seed=1)), True, "change +0.0987"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0)),
     paired(PAIRED, sample_set(0.0)), True, "change +0, 95 % interval +0 to +0"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0)),
     paired(PAIRED, sample_set(0.1, seed=1)), False, "change -0.101"),
    # as good on average, but the interval holds a loss above the margin
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0, noise=0.5)),
     paired(PAIRED, sample_set(0.0, noise=0.5, seed=1)), False, "95 % interval -"),
    ({"noninferior": 0.5}, DOWN, paired(DOWN, sample_set(0.0)),
     paired(DOWN, sample_set(0.0, seed=1)), True, "95 % interval -"),
    ({"noninferior": 0.5}, DOWN, paired(DOWN, sample_set(0.0)),
     paired(DOWN, sample_set(1.0, seed=1)), True, "change -3"),
    ({"noninferior": 0.5}, DOWN, paired(DOWN, sample_set(1.0)),
     paired(DOWN, sample_set(0.0, seed=1)), False, "change +3"),
    ({"noninferior": 0.5}, KERNEL, paired(KERNEL, sample_set(1.0)),
     paired(KERNEL, sample_set(0.0, seed=1)), False, "change +8"),
    ({"noninferior": 0.5}, KERNEL, paired(KERNEL, sample_set(0.0)),
     paired(KERNEL, sample_set(0.0, seed=1)), True, "95 % interval -"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0, skip=(3,))),
     paired(PAIRED, sample_set(0.0)), False, "missing for 0.0-3"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0)),
     paired(PAIRED, sample_set(0.1, seeds=1)), False,
     "0 of 32 and 32 samples have the same prompt and seed"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, "no features"),
     paired(PAIRED, sample_set(0.0)), False, "candidate: no features"),
    ({"noninferior": 0.05}, PAIRED, paired(PAIRED, sample_set(0.0)), one(PAIRED), False,
     "champion: not read"),
]  # fmt: skip


@pytest.mark.parametrize(("bound", "metric", "candidate", "champion", "passed", "reason"), FORMS)
def test_invariant_8_rule_form_gives_expected_result(
    bound, metric, candidate, champion, passed, reason
):
    result = evaluate_rule(Rule(metric=metric, **bound), candidate, champion)
    assert (result.passed, result.value) == (passed, candidate.rows[metric]["value"])
    assert reason in result.reason


BOUNDS = [
    ({"min": 0.0}, UP),
    ({"max": 9.0}, UP),
    ({"max_regression": 0.1}, UP),
    ({"noninferior": 0.1}, UP),
    ({"above_chance": True}, UP),
    ({"max_over_floor": 2}, DOWN),
]


@pytest.mark.parametrize(("bound", "metric"), BOUNDS)
def test_invariant_8_rule_of_every_form_fails_without_a_score(bound, metric):
    """Missing, not evaluated, not finite or of too few clips, with or without a champion."""
    few = f"of {MIN_CLIPS - 1} clips; a decision needs {MIN_CLIPS} on each side"
    reasons = [
        (card(), "no such score"),
        (absent(metric), "not evaluated: no weights"),
        (hollow(metric), "value is nan"),
        (one(metric, num=MIN_CLIPS - 1, chance=0.0, interval=(0.4, 0.6)), few),
    ]
    for champion in (None, one(metric)):
        for candidate, reason in reasons:
            result = evaluate_rule(Rule(metric=metric, **bound), candidate, champion)
            assert (result.passed, result.reason) == (False, reason)


@pytest.mark.parametrize("bound", [{"max_regression": 9.0}, {"noninferior": 9.0}])
def test_invariant_8_rule_that_compares_fails_on_a_champion_without_an_equal_lock(bound):
    rule = Rule(metric=PAIRED, **bound)
    candidate = paired(PAIRED, sample_set(0.0))
    reasons = {
        "champion: no such score": card(),
        "champion: not evaluated: no weights": absent(PAIRED),
        "champion: value is nan": hollow(PAIRED),
        "the champion's protocol differs in network, num_frames (score the champion under this "
        "protocol: connect port champion_scores)": one(
            PAIRED, lock={"num_frames": 33, "network": "x"}
        ),
    }
    for reason, champion in reasons.items():
        result = evaluate_rule(rule, candidate, champion)
        assert (result.passed, result.reason) == (False, reason)


def test_rule_on_real_clips_needs_no_minimum_of_clips():
    metric = "recon/psnr"
    assert evaluate_rule(Rule(metric=metric, min=0.1), one(metric, num=2), None).passed


def test_noninferior_interval_of_pairs_is_narrower_than_that_of_means():
    champion, candidate = sample_set(0.0), sample_set(0.0, seed=1)
    rule = Rule(metric=PAIRED, noninferior=0.02)
    # the exposures of the prompts are 0 to 1.5: unpaired, no interval would be within 0.02
    assert evaluate_rule(rule, paired(PAIRED, candidate), paired(PAIRED, champion)).passed
    shuffled = dataclasses.replace(
        candidate,
        samples=[
            {**sample, "sample_id": other["sample_id"]}
            for sample, other in zip(candidate.samples, candidate.samples[::-1], strict=True)
        ],
    )
    assert not evaluate_rule(rule, paired(PAIRED, shuffled), paired(PAIRED, champion)).passed


@pytest.mark.parametrize(
    ("metric", "lock", "distance"),
    [
        ("frechet_lite0", {"covariance": "1/(N-1)"}, frechet_of_vectors),
        ("frechet_lite0", {"covariance": "1/N"}, partial(frechet_of_vectors, ddof=0)),
        ("kvd_lite0", {}, kernel_distance),
    ],
)
def test_paired_distance_is_that_of_the_samples_that_the_score_compares(metric, lock, distance):
    sides = [sample_set(0.0, num=48), sample_set(0.5, num=48, seed=1)]
    real = sides[0].reference[:20]
    a, b = (dataclasses.replace(side, reference=real) for side in sides)
    real_ND = a.features.vectors("lite0", "mean4", real)
    values = [
        distance(
            side.features.vectors(
                "lite0", "mean4", [row["sample_id"] for row in compared(side.samples, 20)]
            ),
            real_ND,
        )
        for side in (a, b)
    ]
    change = paired_difference(row(metric, lock=lock), a, b)
    assert change.value == pytest.approx(values[0] - values[1], rel=1e-9)
    assert change.low < change.value < change.high


@pytest.mark.parametrize("metric", ["frechet_lite0", "kvd_lite0"])
def test_paired_distance_of_two_samples_leaves_out_resamples_of_one(metric):
    change = paired_difference(row(metric), sample_set(0.0, num=2), sample_set(0.5, num=2))
    assert change.low < change.value < change.high


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": UP}, "set exactly one of min, max,"),
        ({"metric": UP, "min": 0.0, "max": 1.0}, "set exactly one of min, max,"),
        ({"metric": UP, "min": 0.0, "above_chance": True}, "set exactly one of"),
        ({"metric": UP, "above_chance": False}, "Input should be True"),
        ({"metric": UP, "max_regression": -1.0}, "greater than or equal to 0"),
        ({"metric": UP, "noninferior": -1.0}, "greater than or equal to 0"),
        ({"metric": DOWN, "max_over_floor": 0.5}, "greater than or equal to 1"),
        ({"metric": UP, "max_over_floor": 2.0}, "is no distance, so it has no floor"),
        ({"metric": "recon/psnr", "noninferior": 1.0}, "cannot be paired by sample"),
        ({"metric": DOWN + "/floor", "noninferior": 1.0}, "cannot be paired by sample"),
        ({"metric": "frechet_domain/floor@0a", "noninferior": 1.0}, "cannot be paired by sample"),
        ({"metric": DOWN + "/inf", "noninferior": 1.0}, "cannot be paired by sample"),
        ({"metric": "vbench/total", "noninferior": 1.0}, "cannot be paired by sample"),
        ({"metric": UP, "minimum": 1.0}, "Extra inputs are not permitted"),
        ({"metric": UP, "min": math.nan}, "finite number"),
        ({"metric": UP, "min": math.inf}, "finite number"),
        ({"metric": "rendered/color_acc", "min": 0}, "did you mean rendered/colour_acc"),
        ({"metric": "recon/pnsr", "min": 0}, "did you mean recon/psnr"),
        ({"metric": "FVD@16f", "min": 0}, "known: "),
    ],
)
def test_rule_that_cannot_be_evaluated_is_rejected(rule, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Rule(**rule)


def test_rule_metric_suffix_after_at_sign_is_allowed():
    assert Rule(metric="fvd@ucf101-larp-10k", max=100.0).metric == "fvd@ucf101-larp-10k"


@pytest.mark.parametrize(
    "metrics",
    [["recon/psnr"], ["recon/psnr", "rendered_recon/shape_acc"], ["frechet_random_i3d/floor"]],
)
def test_gate_without_a_rule_on_samples_is_rejected_unless_allowed(metrics):
    rules = [{"metric": metric, "min": 0.0} for metric in metrics]
    with pytest.raises(ValidationError, match="no rule judges generated samples, only"):
        PromoteConfig(rules=rules)
    assert PromoteConfig(rules=rules, allow_without_samples=True)
    for metric in (UP, DOWN, "vbench/total", "temporal_flickering"):
        assert PromoteConfig(rules=[*rules, {"metric": metric, "min": 0.0}])
