"""Find clips whose embeddings are near that of a better one."""

import numpy as np

from videoar.curation.hash_keys import leading

_ROUNDING = 1e-3  # above the error of a float32 product of unit vectors
_SLAB = 1024  # chosen: rows of one product; 128 MB against 32,000 others
_EXACT = 1 << 15  # chosen: pairs decided in float64 together
_NEIGHBOURS = 4  # chosen: better neighbours per clip and pair of blocks


def semantic_pairs(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], cosine: float
) -> np.ndarray:
    """Return pairs of two blocks whose embeddings have at least this cosine, as ranks [P, 2].

    A float32 product proposes pairs, float64 decides on close ones: a matrix product rounds
    differently for other block sizes, and the result must not depend on how the rows are divided.
    Of each clip the pairs with its best neighbours are returned, not all of a group of copies.

    Args:
        first: ranks [N], the best clip first, and embeddings [N, D].
        second: another block, or the same one.
        cosine: smallest cosine.
    """
    (ranks_a, vectors_a), (ranks_b, vectors_b) = (_by_rank(*block) for block in (first, second))
    codes = np.empty(0, np.int64)
    if not len(ranks_b):
        return codes.reshape(0, 2)
    unit_b = _unit(vectors_b)
    across = unit_b.astype(np.float32).T
    for start in range(0, len(ranks_a), _SLAB):
        unit_a, ranks = _unit(vectors_a[start:][:_SLAB]), ranks_a[start:][:_SLAB, None]
        cosines = unit_a.astype(np.float32) @ across
        is_near = cosines >= cosine + _ROUNDING
        a, b = np.nonzero((cosines >= cosine - _ROUNDING) & ~is_near)
        for part in range(0, len(a), _EXACT):
            near = slice(part, part + _EXACT)
            exact = (unit_a[a[near]] * unit_b[b[near]]).sum(axis=1)
            is_near[a[near], b[near]] = exact >= cosine
        # of each clip of either block, the first better ones of the other
        better_b = is_near & (ranks_b < ranks)
        better_b &= np.cumsum(better_b, axis=1, dtype=np.int32) <= _NEIGHBOURS
        better_a = is_near & (ranks_b > ranks)
        better_a &= np.cumsum(better_a, axis=0, dtype=np.int32) <= _NEIGHBOURS
        a, b = np.nonzero(better_a | better_b)
        pairs = np.sort(np.stack([ranks[a, 0], ranks_b[b]]), axis=0)
        codes = leading(np.union1d(codes, pairs[1] << np.int64(32) | pairs[0]), _NEIGHBOURS)
    return np.stack([codes & 0xFFFFFFFF, codes >> 32], axis=1)


def _by_rank(ranks: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(ranks)
    return ranks[order], vectors[order]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale to unit length in float64; a zero vector stays zero and is similar to nothing."""
    wide = vectors.astype(np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit: np.ndarray = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return unit


def pick_semantic(pairs: np.ndarray) -> dict[int, int]:
    """Return, by rank, the clips that repeat a better kept one, and that one.

    Args:
        pairs: ranks of similar clips, the better one first: [P, 2].
    """
    repeats: dict[int, int] = {}
    for worse, better in np.unique(pairs[:, ::-1], axis=0).tolist():
        if better not in repeats:
            repeats.setdefault(worse, better)
    return repeats
