"""Do two small pictures show one scene, whatever the shift and the brightness between them?

All shifts are compared at once: sums over the part that two shifted pictures have in common are
matrix products with masks, so no part is cut out. Of the first picture is taken what a mask leaves,
of the second one what an index moves onto it; where there is nothing, both are 0.

Axes: N M pictures to compare, S shifts, P pixels of a picture.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Shift = tuple[int, int]
"""Rows down and columns to the right by which the first picture lies before the second one."""
_NOISE = 0.03  # per pixel: keeps noise in pictures without contrast from correlating


class _Table(NamedTuple):
    """How to shift pictures of one size."""

    index_SP: NDArray[np.intp]
    """The pixel of the second picture at each pixel of the first one; P for none."""
    old_PS: NDArray[np.float64]
    new_PS: NDArray[np.float64]
    """1 at the pixels that the other picture has, too."""
    count_S: NDArray[np.float64]


def correlates(
    old_Nhw: NDArray[np.float32],
    new_Mhw: NDArray[np.float32],
    shifts: tuple[Shift, ...],
    bound: float,
) -> bool:
    """Return whether two of the pictures correlate by at least `bound`, shifted by one of `shifts`.

    Args:
        old_Nhw: pictures, each compared with each of the others.
        new_Mhw: the others.
        shifts: to try beside none at all, each of them both ways.
        bound: of the correlation of the common parts.
    """
    if not len(old_Nhw) or not len(new_Mhw):
        return False
    if len(old_Nhw) < len(new_Mhw):
        old_Nhw, new_Mhw = new_Mhw, old_Nhw  # the second ones are shifted
    # float64: a flat part of a picture of high contrast must not correlate by its rounding errors
    pixels_KP = np.concatenate([old_Nhw, new_Mhw], dtype=np.float64).reshape(-1, old_Nhw[0].size)
    num, num_pixels = len(old_Nhw), pixels_KP.shape[1]
    # for arrays this small, `mean` costs more than its arithmetic
    pixels_KP -= np.add.reduce(pixels_KP, axis=1, keepdims=True) / num_pixels
    length_K = np.sqrt(np.einsum("kp,kp->k", pixels_KP, pixels_KP)) + _NOISE * math.sqrt(num_pixels)
    old_NP, new_MP = pixels_KP[:num], pixels_KP[num:]
    # most pictures that look alike do so without a shift
    unshifted_NM = old_NP @ new_MP.T
    if (unshifted_NM >= bound * length_K[:num, None] * length_K[num:]).any():
        return True
    table = _table((old_Nhw.shape[1], old_Nhw.shape[2]), shifts)
    return bool((_correlations(old_NP, new_MP, table) >= bound).any())


def _correlations(
    old_NP: NDArray[np.float64], new_MP: NDArray[np.float64], table: _Table
) -> NDArray[np.float64]:
    """Return the correlation of each pair and shift: [M, N, S]."""
    padded = np.concatenate([new_MP, np.zeros((len(new_MP), 1))], axis=1)
    moved_MSP = padded.take(table.index_SP, axis=1)
    old_sum, new_sum = old_NP @ table.old_PS, (new_MP @ table.new_PS)[:, None]
    common = old_NP @ moved_MSP.transpose(0, 2, 1) - old_sum * new_sum / table.count_S
    old_power = np.square(old_NP) @ table.old_PS - np.square(old_sum) / table.count_S
    new_power = (np.square(new_MP) @ table.new_PS)[:, None] - np.square(new_sum) / table.count_S
    noise = _NOISE * np.sqrt(table.count_S)
    lengths = [np.sqrt(np.maximum(power, 0)) + noise for power in (old_power, new_power)]
    return np.asarray(common / (lengths[0] * lengths[1]))


@lru_cache(maxsize=16)
def _table(size: tuple[int, int], shifts: tuple[Shift, ...]) -> _Table:
    index_SP = np.stack([_moved(size, shift) for shift in shifts])
    back_SP = np.stack([_moved(size, (-down, -right)) for down, right in shifts])
    none = size[0] * size[1]
    old_PS, new_PS = ((index < none).T.astype(np.float64) for index in (index_SP, back_SP))
    return _Table(index_SP, old_PS, new_PS, old_PS.sum(axis=0))


def _moved(size: tuple[int, int], shift: Shift) -> NDArray[np.intp]:
    rows, columns = (np.arange(side) - by for side, by in zip(size, shift, strict=True))
    is_there = ((rows >= 0) & (rows < size[0]))[:, None] & (columns >= 0) & (columns < size[1])
    return np.where(is_there, rows[:, None] * size[1] + columns, size[0] * size[1]).ravel()


def grid(downs: Iterable[int], rights: Iterable[int]) -> tuple[Shift, ...]:
    """Return the shifts of a grid."""
    across = tuple(rights)
    return tuple((down, right) for down in downs for right in across)
