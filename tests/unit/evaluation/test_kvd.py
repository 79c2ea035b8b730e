"""Kernel distance: its definition, no bias, intervals, rejected input."""

import numpy as np
import pytest

from videoar.core.errors import ContractError
from videoar.evaluation.kvd import kernel_distance, kernel_interval


def by_definition(x, y):
    """The double sums of Binkowski et al., equation (4)."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * np.mean([[kernel(a, b) for b in y] for a in x])


def test_kernel_distance_equals_its_definition():
    draw_from = np.random.default_rng(0)
    x, y = draw_from.normal(size=(7, 3)), draw_from.normal(0.5, 1, size=(5, 3))
    assert kernel_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-12)
    assert kernel_distance(y, x) == pytest.approx(kernel_distance(x, y), rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average_at_any_count():
    draw_from = np.random.default_rng(1)
    for count in (4, 32):
        values = [kernel_distance(*draw_from.normal(size=(2, count, 8))) for _ in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_kernel_distance_blocks_of_rows_equal_one_block():
    draw_from = np.random.default_rng(2)
    x, y = draw_from.normal(size=(1500, 4)), draw_from.normal(size=(1100, 4))
    sub = kernel_distance(x[:1000], y[:1000])
    gram = (x[:1000] @ y[:1000].T / 4 + 1) ** 3
    own = [((v @ v.T / 4 + 1) ** 3) for v in (x[:1000], y[:1000])]
    within = sum((k.sum() - np.trace(k)) / (1000 * 999) for k in own)
    assert sub == pytest.approx(within - 2 * gram.mean(), rel=1e-9)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(x[::-1], y[::-1]), abs=1e-12)


def test_kernel_interval_covers_the_spread_of_new_sets():
    """The interval is that of a value measured on new clips, not of resampled duplicates."""
    draw_from = np.random.default_rng(3)
    values = [kernel_distance(*_pair(draw_from)) for _ in range(200)]
    low, high = kernel_interval(*_pair(draw_from), seed=0)
    assert high - low == pytest.approx(2 * 1.96 * np.std(values), rel=0.35)


def _pair(draw_from):
    return draw_from.normal(size=(48, 8)), draw_from.normal(0.6, 1, size=(48, 8))


def test_invariant_4_kernel_distance_invalid_input_is_rejected():
    good = np.zeros((3, 4))
    for bad in (np.zeros((1, 4)), np.zeros((3, 5)), np.full((3, 4), np.nan), np.zeros(3)):
        with pytest.raises(ContractError):
            kernel_distance(good, bad)
