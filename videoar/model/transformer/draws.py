"""Counter-based random numbers: each is a hash of (seed of the row, stream, position).

One idea: a random choice belongs to a row of the global batch, not to a generator that ranks or
devices advance. So the choices for a row are the same at any world size, batch split and device:
only integer arithmetic is used, which CPUs and GPUs do alike.

    row seed     63 bits, e.g. from (seed of the run, step, number of the row in the global batch)
    stream       what the number is for: `TEXT`, `FRAMES`, `STRENGTH`, or `FLIPS` + scale
    position     index of the number inside its stream

Cost: two rounds of a 32-bit mixer per number, about 20 integer operations.

B rows.
Source: the mixer is `lowbias32` of C. Wellons, "Prospecting for Hash Functions" (2018); the idea is
that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import torch
from torch import Tensor

TEXT, FRAMES, STRENGTH, FLIPS = range(4)
"""Streams; scale k flips by stream `FLIPS + k`."""

BITS = 31
ONE = 1 << BITS
"""Random numbers are integers in [0, ONE); a probability p is the threshold round(p * ONE)."""

_MASK = (1 << 32) - 1
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: multiples spread evenly


def random_numbers(seed_B: Tensor, stream: int, count: int) -> Tensor:
    """Return uniform integers in [0, ONE).

    Args:
        seed_B: int64 seed of each row, not negative.
        stream: see the module.
        count: numbers per row.

    Returns:
        int64 [B, count], on the device of the seeds.
    """
    seed_B1 = seed_B[:, None]
    salt = (_GOLDEN * (stream + 1)) & _MASK
    first_B1 = _mix((seed_B1 & _MASK) ^ salt)
    second_B1 = _mix((seed_B1 >> 32) + salt)
    position = torch.arange(count, device=seed_B.device)[None]
    return _mix(_mix((position * _GOLDEN + first_B1) & _MASK) ^ second_B1) >> (32 - BITS)


def threshold(probability: float) -> int:
    """Return the integer t such that a random number is below t with this probability."""
    return round(probability * ONE)


def bernoulli(seed_B: Tensor, stream: int, count: int, probability: float) -> Tensor:
    """Return bool [B, count], each true with the same probability."""
    return random_numbers(seed_B, stream, count) < threshold(probability)


def _mix(x: Tensor) -> Tensor:
    """Permute 32-bit integers; the product may wrap around 64 bits, its low 32 bits are exact."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
