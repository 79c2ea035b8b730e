"""Kernel distance between two sets of feature vectors: unbiased polynomial MMD.

Unlike a Frechet distance it has no bias of O(1 / N), so it can be negative. The kernel matrix is
computed in blocks of rows; memory is O(N), not O(N^2).

Axes: N and M vectors, D features, B resamples.
Source: Binkowski et al., "Demystifying MMD GANs" (ICLR 2018): degree 3, gamma 1 / D, c 1.
"""

import numpy as np
from numpy.typing import NDArray

from videoar.evaluation.frechet import require_vectors

Array = NDArray[np.float64]
_BLOCK_ROWS = 1024


def kernel_distance(x_ND: Array, y_MD: Array) -> float:
    """Return the unbiased MMD^2 of two sets.

    Raises:
        ContractError: see `require_vectors`.
    """
    ones = (np.ones((len(x_ND), 1)), np.ones((len(y_MD), 1)))
    return float(weighted_kernel_distance(x_ND, y_MD, *ones)[0])


def kernel_interval(
    x_ND: Array, y_MD: Array, seed: int, num_resamples: int = 200
) -> tuple[float, float]:
    """Return a 95 % interval: the value +- 1.96 bootstrap standard deviations."""
    generator = np.random.default_rng(seed)
    weights = [
        generator.multinomial(n, np.full(n, 1 / n), num_resamples).T.astype(np.float64)
        for n in (len(x_ND), len(y_MD))
    ]
    # of few vectors, a resample may hold one alone: it has no pairs
    is_usable = np.logical_and(*((w > 0).sum(axis=0) > 1 for w in weights))
    weights = [w[:, is_usable] for w in weights]
    value = kernel_distance(x_ND, y_MD)
    half = 1.96 * float(np.std(weighted_kernel_distance(x_ND, y_MD, *weights)))
    return value - half, value + half


def weighted_kernel_distance(x_ND: Array, y_MD: Array, w_NB: Array, v_MB: Array) -> Array:
    """Return MMD^2 [B] of sets in which vector i occurs `w_NB[i]` times.

    Pairs of a vector and a copy of itself are left out: their kernel would bias a resample.
    """
    require_vectors(x_ND, y_MD)
    within = _within(x_ND, w_NB) + _within(y_MD, v_MB)
    across = _sums(x_ND, y_MD, w_NB, v_MB) / (w_NB.sum(axis=0) * v_MB.sum(axis=0))
    return np.asarray(within - 2 * across)


def _within(x_ND: Array, w_NB: Array) -> Array:
    own = ((x_ND**2).mean(axis=1) + 1) ** 3 @ w_NB**2
    pairs = w_NB.sum(axis=0) ** 2 - (w_NB**2).sum(axis=0)
    return np.asarray((_sums(x_ND, x_ND, w_NB, w_NB) - own) / pairs)


def _sums(x_ND: Array, y_MD: Array, w_NB: Array, v_MB: Array) -> Array:
    total = np.zeros(w_NB.shape[1])
    for begin in range(0, len(x_ND), _BLOCK_ROWS):
        rows = slice(begin, begin + _BLOCK_ROWS)
        kernel = (x_ND[rows] @ y_MD.T / x_ND.shape[1] + 1) ** 3
        total += (w_NB[rows] * (kernel @ v_MB)).sum(axis=0)
    return total
