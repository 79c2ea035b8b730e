"""Frechet distance between two sets of feature vectors, from streaming statistics.

Count, mean and centred second moment are kept in float64 and merged by Chan's rule. The result does
not depend on how the data was split, up to rounding (1e-14); raw float32 sums lose the signal
already at a mean of 100. The matrix square root is never formed, as only its trace is needed: a sum
of square roots of eigenvalues (four times faster than `sqrtm` at 400 features), or a nuclear norm
when there are fewer vectors than features.

Axes: N vectors, D features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoar.core.errors import ContractError

Array = NDArray[np.float64]


@dataclass
class FeatureStats:
    """Count, mean [D] and centred second moment [D, D] of a stream of vectors; memory is O(D^2)."""

    count: int = 0
    mean: Array | None = None
    m2: Array | None = None

    def update(self, x_ND: ArrayLike) -> "FeatureStats":
        """Add vectors; return self.

        Raises:
            ContractError: not a matrix, another number of features than before, or not finite.
        """
        # Before any sum: float32 has 7 digits, and the covariance is a difference of large sums.
        x = np.asarray(x_ND, dtype=np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ContractError("features", f"shape {x.shape} is not a matrix of finite numbers")
        if len(x) == 0:
            return self
        mean = x.mean(axis=0)
        return self.merge(FeatureStats(len(x), mean, (x - mean).T @ (x - mean)))

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Add the vectors of another accumulator; return self.

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm" (1979).
        """
        if other.mean is None or other.m2 is None:
            return self
        if self.mean is None or self.m2 is None:
            # Copies: the two accumulators must not share arrays.
            self.count, self.mean, self.m2 = other.count, other.mean.copy(), other.m2.copy()
            return self
        if self.mean.shape != other.mean.shape:
            raise ContractError("features", f"{len(self.mean)} != {len(other.mean)} features")
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / total)
        outer = np.outer(delta, delta) * (self.count * other.count / total)
        self.m2 = self.m2 + other.m2 + outer
        self.count = total
        return self

    def moments(self, ddof: int = 1) -> tuple[Array, Array]:
        """Return mean [D] and covariance [D, D].

        Args:
            ddof: 1 divides by N - 1 (TF-GAN protocol), 0 by N (StyleGAN-V).

        Raises:
            ContractError: fewer than two vectors.
        """
        if self.mean is None or self.m2 is None or self.count < 2:
            raise ContractError("features", f"{self.count} vectors have no covariance", "need 2")
        return self.mean, self.m2 / (self.count - ddof)


def frechet_distance(a: FeatureStats, b: FeatureStats, ddof: int = 1) -> float:
    """Return |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

    Raises:
        ContractError: fewer than two vectors on a side, or different numbers of features.

    Source: Dowson and Landau, J. Multivariate Analysis 12 (1982).
    """
    mean_a, cov_a = a.moments(ddof)
    mean_b, cov_b = b.moments(ddof)
    if mean_a.shape != mean_b.shape:
        raise ContractError("features", f"{len(mean_a)} != {len(mean_b)} features")
    # tr (S_a S_b)^(1/2) = tr (R^T S_b R)^(1/2) for any R with R R^T = S_a: R^T S_b R is symmetric,
    # so eigvalsh applies. Eigenvalues of a rank-deficient matrix can be negative by rounding.
    root_a = _root(cov_a)
    cross = np.linalg.eigvalsh(root_a.T @ cov_b @ root_a)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + trace)


def _root(cov: Array) -> Array:
    """Return R with R R^T = cov."""
    try:
        return np.asarray(np.linalg.cholesky(cov))  # with `eigh` a distance takes twice as long
    except np.linalg.LinAlgError:  # rank-deficient: fewer vectors than features
        values, vectors = np.linalg.eigh(cov)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def frechet_of_vectors(x_ND: Array, y_ND: Array, ddof: int = 1) -> float:
    """Return the Frechet distance of two sets of vectors; 1 ms at N = 64, D = 400.

    Raises:
        ContractError: see `require_vectors`.
    """
    require_vectors(x_ND, y_ND)
    if max(len(x_ND), len(y_ND)) > x_ND.shape[1]:
        return frechet_distance(FeatureStats().update(x_ND), FeatureStats().update(y_ND), ddof)
    # For centred matrices tr (S_x S_y)^(1/2) is the nuclear norm of X Y^T over the counts, because
    # both have the same non-zero eigenvalues.
    mean_x, mean_y = x_ND.mean(axis=0), y_ND.mean(axis=0)
    x = (x_ND - mean_x) / np.sqrt(len(x_ND) - ddof)
    y = (y_ND - mean_y) / np.sqrt(len(y_ND) - ddof)
    cross = np.linalg.norm(x @ y.T, ord="nuc")
    return float(((mean_x - mean_y) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * cross)


def require_vectors(x_ND: Array, y_ND: Array) -> None:
    """Raise unless two sets of vectors can be compared.

    Raises:
        ContractError: fewer than two vectors on a side, different numbers of features, not finite.
    """
    if x_ND.ndim != 2 or x_ND.shape[1:] != y_ND.shape[1:] or min(len(x_ND), len(y_ND)) < 2:
        what = f"shapes {x_ND.shape} and {y_ND.shape} cannot be compared"
        raise ContractError("features", what, "need two vectors of equal length on each side")
    if not (np.isfinite(x_ND).all() and np.isfinite(y_ND).all()):
        raise ContractError("features", "not finite")


def frechet_by_count(
    x_ND: Array, y_ND: Array, ddof: int = 1, *, seed: int
) -> list[tuple[int, float]]:
    """Return (N, distance) of random subsets of eight sizes, from a quarter to all vectors.

    Raises:
        ContractError: fewer than 16 vectors on a side, or see `require_vectors`.
    """
    require_vectors(x_ND, y_ND)
    num = min(len(x_ND), len(y_ND))
    if num < 16:
        raise ContractError("features", f"{num} vectors are too few for subsets", "need 16")
    generator = np.random.default_rng(seed)
    return [
        (
            int(size),
            frechet_of_vectors(
                generator.permutation(x_ND)[:size], generator.permutation(y_ND)[:size], ddof
            ),
        )
        for size in np.linspace(num // 4, num, 8).astype(int)
    ]


def extrapolate(by_count: Sequence[tuple[int, float]]) -> float:
    """Return the distance at N = infinity: the intercept of a linear fit in 1/N.

    The bias is proportional to 1/N, so that distances at several N lie on a line. The intercept of
    a small distance can be negative.

    Source: Chong and Forsyth, "Effectively Unbiased FID" (CVPR 2020), with subsets of both sides.
    """
    sizes, values = np.array(by_count).T
    return float(np.polyfit(1 / sizes, values, 1)[1])


def frechet_interval(
    x_ND: Array, y_ND: Array, seed: int, num_resamples: int = 200, ddof: int = 1
) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the distance, see `bootstrap_interval`."""
    distance = partial(frechet_of_vectors, ddof=ddof)
    low, high = bootstrap_interval(distance, x_ND, y_ND, seed, num_resamples)
    # A distance is not negative; the normal interval of a small one can be.
    return max(0.0, low), high


def bootstrap_interval(
    distance: Callable[[Array, Array], float],
    x_ND: Array,
    y_ND: Array,
    seed: int,
    num_resamples: int = 200,
) -> tuple[float, float]:
    """Return a 95 % interval of a distance: its value +- 1.96 bootstrap standard deviations.

    Bootstrap percentiles would be biased: a resample repeats vectors, which acts like a smaller N
    and raises the distance, so at small N the percentiles may not contain the value.
    """
    # 200 resamples: the standard error of a standard deviation s is s / sqrt(2 * 200), 5 % of it.
    generator = np.random.default_rng(seed)
    resampled = [
        distance(*(v[generator.integers(len(v), size=len(v))] for v in (x_ND, y_ND)))
        for _ in range(num_resamples)
    ]
    value, half = distance(x_ND, y_ND), 1.96 * float(np.std(resampled))
    return value - half, value + half
