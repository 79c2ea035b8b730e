"""Frechet distance: closed forms, symmetries, streaming, and rejected input."""

import numpy as np
import pytest

from tests.support.shared_data import shared_json
from videoar.core.errors import ContractError
from videoar.evaluation import FeatureStats, frechet_distance
from videoar.evaluation.frechet import (
    extrapolate,
    frechet_by_count,
    frechet_interval,
    frechet_of_vectors,
)


def exact(mean, covariance):
    """Return statistics with exactly these moments (ddof 1)."""
    return FeatureStats(101, np.asarray(mean, float), np.asarray(covariance, float) * 100)


def sines(count, width, phase, scale, shift):
    i, j = np.arange(count)[:, None], np.arange(width)[None, :]
    wave = scale * np.sin(0.37 * i * (1 + 0.013 * j) + 0.11 * j * j + phase)
    return wave + 0.5 * np.cos(0.05 * (i + 1) * (j + 1) + phase) + shift * j / width


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (([0, 0], np.eye(2)), ([0, 0], np.eye(2)), 0),
        (([0, 0, 0], np.eye(3)), ([1, 2, 2], np.eye(3)), 9),
        (([1, 0], np.diag([4, 9])), ([0, 0], np.diag([1, 16])), 3),
        (([0, 0], [[2, 0.5], [0.5, 1]]), ([0, 0], [[18, 4.5], [4.5, 9]]), 12),
    ],
)
def test_frechet_distance_known_moments_gives_closed_form(a, b, distance):
    assert frechet_distance(exact(*a), exact(*b)) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize(
    ("num_x", "num_y", "width", "unbiased", "biased"),
    [
        (64, 64, 4, 0.36865109996880374, 0.36620571063574126),
        (512, 400, 16, 2.4619616598915393, 2.4577088898226285),
        (64, 64, 400, 83.14949297503699, 82.37517875356332),
    ],
)
def test_invariant_3_frechet_distance_equals_reference_values(
    num_x, num_y, width, unbiased, biased
):
    x, y = sines(num_x, width, 0, 1, 0), sines(num_y, width, 0.7, 1.3, 0.5)
    a, b = FeatureStats().update(x), FeatureStats().update(y)
    assert frechet_distance(a, b) == pytest.approx(unbiased, rel=1e-6)
    assert frechet_distance(a, b, ddof=0) == pytest.approx(biased, rel=1e-6)
    assert frechet_of_vectors(x, y) == pytest.approx(unbiased, rel=1e-6)
    assert frechet_of_vectors(x, y, ddof=0) == pytest.approx(biased, rel=1e-6)


@pytest.mark.shared
def test_reference_vectors_equal_the_shared_file():
    for case in shared_json("eval/frechet_vectors.json")["feature_vectors"]:
        x = sines(case["n_x"], case["d"], 0, 1, 0)
        y = sines(case["n_y"], case["d"], 0.7, 1.3, 0.5)
        assert frechet_of_vectors(x, y) == pytest.approx(case["fd_unbiased"], rel=1e-6)


def test_invariant_3_frechet_distance_is_symmetric_and_invariant_to_rotation_and_shift():
    draw_from = np.random.default_rng(0)
    x, y = draw_from.normal(size=(50, 12)), draw_from.normal(0.3, 2, size=(40, 12))
    turn, _ = np.linalg.qr(draw_from.normal(size=(12, 12)))

    def distance(u, v):
        return frechet_distance(FeatureStats().update(u), FeatureStats().update(v))

    value = distance(x, y)
    assert value > 0
    assert distance(y, x) == pytest.approx(value)
    assert distance(x @ turn, y @ turn) == pytest.approx(value)
    assert distance(x + 7, y + 7) == pytest.approx(value)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)


def test_invariant_3_feature_stats_any_split_and_order_equals_one_batch():
    draw_from = np.random.default_rng(1)
    x = draw_from.normal(100, 1, size=(1000, 20)).astype(np.float32)
    whole = FeatureStats().update(x)
    for _ in range(5):
        cuts = np.sort(draw_from.integers(0, 1001, 6))
        parts = [FeatureStats().update(part) for part in np.split(x, cuts)]
        merged = FeatureStats()
        for i in draw_from.permutation(len(parts)):
            merged.merge(parts[i])
        assert merged.count == 1000
        for ours, theirs in zip(merged.moments(), whole.moments(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_invariant_4_feature_stats_invalid_input_is_rejected():
    good = FeatureStats().update(np.zeros((3, 4)))
    for bad in (np.full((3, 4), np.nan), np.zeros(3)):
        with pytest.raises(ContractError):
            FeatureStats().update(bad)
        with pytest.raises(ContractError):
            frechet_of_vectors(np.zeros((3, 4)), bad)
    for other in (FeatureStats(), FeatureStats().update(np.zeros((1, 4)))):
        with pytest.raises(ContractError):
            frechet_distance(good, other)
    narrow = FeatureStats().update(np.zeros((3, 2)))
    with pytest.raises(ContractError):
        frechet_distance(good, narrow)
    with pytest.raises(ContractError):
        narrow.merge(good)


def test_frechet_interval_contains_value_and_narrows_with_more_clips():
    draw_from = np.random.default_rng(2)
    widths = []
    for count in (16, 96):
        x, y = draw_from.normal(size=(count, 20)), draw_from.normal(1, 1, size=(count, 20))
        low, high = frechet_interval(x, y, seed=0, num_resamples=50)
        assert low <= frechet_of_vectors(x, y) <= high
        assert (low, high) == frechet_interval(x, y, seed=0, num_resamples=50)
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_extrapolate_removes_the_bias_of_small_sets():
    draw_from = np.random.default_rng(3)
    x, y = draw_from.normal(size=(512, 16)), draw_from.normal(size=(512, 16))
    shifted = y + np.eye(16)[0]  # the distance of the distributions is 1
    for others, truth in ((y, 0), (shifted, 1)):
        limit = extrapolate(frechet_by_count(x, others, seed=0))
        assert abs(limit - truth) < abs(frechet_of_vectors(x[:128], others[:128]) - truth) / 2
        assert limit == extrapolate(frechet_by_count(x, others, seed=0))
    with pytest.raises(ContractError, match="15 vectors are too few"):
        frechet_by_count(x[:15], y, seed=0)
