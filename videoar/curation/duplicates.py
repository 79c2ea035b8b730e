"""Find clips that repeat a better one: candidate pairs by equal keys, then one decision.

Clips are vertices, "looks the same" is an edge. In order from the best clip to the worst, a clip is
kept unless an edge leads to a clip that was kept before. So of a chain a-b-c whose ends differ only
b is rejected. The result depends on the clips alone, not on their order or their files.

Near duplicates come from different sources, start at the same time in them and have three hashes
that differ in few bits. Comparing all pairs would be quadratic. Two such clips almost always agree
in one of the twelve 16-bit bands of their hashes, so only clips that agree in a band are compared
(locality-sensitive hashing). A hash that differs in at most 3 bits has an equal band; of three
hashes that differ in 6 random bits each, one has with probability 0.94. Measured shares are in
`benchmarks/results/near_duplicates.md`.

A mirrored copy is near once the bits that mirroring flips have been flipped.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from videoar.core.ids import seed_from
from videoar.core.types import Row

DUPLICATE_EXACT = "DUPLICATE_EXACT"
DUPLICATE_NEAR = "DUPLICATE_NEAR"
DUPLICATE_MIRRORED = "DUPLICATE_MIRRORED"
DUPLICATE_SEMANTIC = "DUPLICATE_SEMANTIC"
REASONS = (DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_MIRRORED, DUPLICATE_SEMANTIC)
COLUMNS = (
    "clip_id", "source_id", "source_uri", "src_width_px", "src_height_px", "decoded_frames",
    "decode_errors", "span_start_us", "phash",
)  # fmt: skip
"""Columns of `clips@1` that are needed, beside `embedding` for semantic duplicates."""
_BANDS = np.arange(0, 64, 16, dtype=np.uint64)
_SAME_START_US = 250_000  # chosen: re-encoding shifts times by a few frames
_ROUNDING = 1e-3  # above the error of a float32 product of unit vectors
_SLAB = 1024  # chosen: rows of one product; 128 MB against 32,000 others
_KEYS = np.dtype([
    ("key", np.uint64),
    ("row", np.int64),
    ("clip", np.int64),
    ("source", np.int64),
    ("start_us", np.int64),
    ("hashes", np.uint64, 3),
])
Pair = tuple[int, int]
"""Row numbers of two clips."""


def keys(rows: Iterable[tuple[int, Row]], mask: int = 0) -> np.ndarray:
    """Return each clip once per key under which its duplicates are found.

    Args:
        rows: (number, row of `clips@1` with at least `COLUMNS`).
        mask: bits in which the hashes of a mirrored copy differ; 0 for plain copies.

    Returns:
        Structured array with the field `key`, as `videoar.storage.partitions.hash_join` takes it.
    """
    clips = np.array([(0, *_key_fields(number, row)) for number, row in rows], dtype=_KEYS)
    return np.concatenate([_with_key(clips, key) for key in _iter_keys(clips, mask)])


def _key_fields(number: int, clip: Row) -> tuple[Any, ...]:
    # Arrow has signed integers, bit operations need unsigned ones
    hashes = tuple(value & (1 << 64) - 1 for value in clip["phash"])
    ids = (seed_from(clip["clip_id"]), seed_from(clip["source_id"]))
    return (number, *ids, clip["span_start_us"], hashes)


def _iter_keys(clips: np.ndarray, mask: int) -> Iterator[np.ndarray]:
    """Yield the key of the clip's id, then those of the bands of its hashes.

    The top bit and the number of the band make keys of different kinds unequal. A band and the same
    band after the mask share one key, the smaller value, so that a clip is compared with its
    mirrored copy.
    """
    yield clips["clip"].astype(np.uint64)
    for frame in range(3):
        for band, shift in enumerate(_BANDS):
            candidates = [clips["hashes"][:, frame] ^ np.uint64(bits) for bits in (0, mask)]
            value = np.minimum(*(hashes >> shift & np.uint64(0xFFFF) for hashes in candidates))
            yield value | np.uint64((1 << 63) + (4 * frame + band << 16))


def _with_key(clips: np.ndarray, key: np.ndarray) -> np.ndarray:
    copy = clips.copy()
    copy["key"] = key
    return copy


def near_duplicate_pairs(bucket: np.ndarray, hamming: int, mask: int = 0) -> np.ndarray:
    """Return the pairs of one bucket that are the same clip or near duplicates, as rows [N, 2].

    Rows are sorted by key and start time. Each row is then compared with the next one, the one
    after, and so on, until the key or the start time differs too much: memory is linear in the
    rows, time in the pairs that share a key and start together.

    Args:
        bucket: rows of `keys`.
        hamming: largest number of differing bits per hash, after the mask.
        mask: the same as for `keys`.
    """
    pairs = [np.empty((0, 2), np.int64)]
    rows = bucket[np.lexsort((bucket["start_us"], bucket["key"]))]
    active, step = np.arange(len(rows)), 1
    while len(active := active[active + step < len(rows)]):
        first, second = rows[active], rows[active + step]
        together = first["key"] == second["key"]
        together &= second["start_us"] - first["start_us"] <= _SAME_START_US
        is_same = first["clip"] == second["clip"]
        linked = together & (is_same | _near(first, second, hamming, mask))
        pairs.append(np.stack([first["row"][linked], second["row"][linked]], axis=1))
        active, step = active[together], step + 1
    # a pair may share several keys
    unique: np.ndarray = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return unique


def _near(first: np.ndarray, second: np.ndarray, hamming: int, mask: int) -> np.ndarray:
    differing = first["hashes"] ^ second["hashes"] ^ np.uint64(mask)
    bits = np.bitwise_count(differing).max(axis=1)
    # clips of one source are no copies of each other, even where a static shot looks the same
    near: np.ndarray = (bits <= hamming) & (first["source"] != second["source"])
    return near


def semantic_pairs(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], cosine: float
) -> np.ndarray:
    """Return the pairs of two blocks whose embeddings have at least this cosine, as rows [N, 2].

    A float32 product proposes pairs, float64 decides on each: a matrix product rounds differently
    for other block sizes, and the result must not depend on how the rows are divided.

    Args:
        first: row numbers [N] and embeddings [N, D].
        second: another block, or the same one.
        cosine: smallest cosine.
    """
    (rows_a, vectors_a), (rows_b, vectors_b) = first, second
    found = [np.empty((0, 2), np.int64)]
    if not len(rows_b):
        return found[0]
    unit_b = _unit(vectors_b)
    across = unit_b.astype(np.float32).T
    for start in range(0, len(rows_a), _SLAB):
        unit_a = _unit(vectors_a[start : start + _SLAB])
        a, b = np.nonzero(unit_a.astype(np.float32) @ across >= cosine - _ROUNDING)
        exact = (unit_a[a] * unit_b[b]).sum(axis=1)
        pairs = np.sort(np.stack([rows_a[start + a], rows_b[b]], axis=1), axis=1)
        # a < b drops a row's pair with itself, which the block has when compared with itself
        found.append(pairs[(exact >= cosine) & (pairs[:, 0] < pairs[:, 1])])
    return np.concatenate(found)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale to unit length in float64; a zero vector stays zero and is similar to nothing."""
    wide = vectors.astype(np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit: np.ndarray = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return unit


def pick_representatives(
    clips: Mapping[int, Row],
    near: Iterable[Pair],
    mirrored: Iterable[Pair] = (),
    semantic: Iterable[Pair] = (),
    preferred: Collection[str] = (),
) -> dict[int, tuple[str, int]]:
    """Decide which of the paired clips repeat a better one.

    The best clip is kept: most pixels, then the source with the most decoded frames and the fewest
    errors, then ids. Ids are compared source first, so that of two equal copies of a film all clips
    of one copy are kept.

    Args:
        clips: number and row of every clip that is in a pair.
        near: pairs that are the same clip or near duplicates.
        mirrored: pairs that are near duplicates once one of them is mirrored.
        semantic: pairs with similar embeddings.
        preferred: ids of clips that are better than all others.

    Returns:
        Number of each repeating clip, with its reason and the number of the clip that it repeats.
    """
    edges: dict[int, set[tuple[int, int]]] = {}
    for kind, pairs in ((1, near), (2, mirrored), (3, semantic)):
        for a, b in pairs:
            is_same = clips[a]["clip_id"] == clips[b]["clip_id"]
            edges.setdefault(a, set()).add((0 if is_same else kind, b))
            edges.setdefault(b, set()).add((0 if is_same else kind, a))
    position: dict[int, int] = {}
    repeats: dict[int, tuple[str, int]] = {}

    def order(number: int) -> tuple[Any, ...]:
        clip = clips[number]
        return (clip["clip_id"] not in preferred, _rank(clip), number)

    for number in sorted(clips, key=order):
        better = [(kind, position[n], n) for kind, n in edges.get(number, ()) if n in position]
        if better:
            kind, _, kept = min(better)  # the strongest reason, then the best clip
            repeats[number] = (REASONS[kind], kept)
        else:
            position[number] = len(position)
    return repeats


def _rank(clip: Row) -> tuple[Any, ...]:
    pixels = clip["src_width_px"] * clip["src_height_px"]
    quality = (-pixels, -clip["decoded_frames"], clip["decode_errors"])
    return (*quality, clip["source_id"], clip["clip_id"], clip["source_uri"])
