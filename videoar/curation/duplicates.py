"""Which clips repeat a better one: candidates by equal keys, then a verdict without any order.

Clips are vertices, "looks the same" is an edge. Taken from the best clip to the worst, a clip is
kept unless an edge leads to one that was kept before, so that a chain a-b-c whose ends differ
loses only b. The result depends on the clips alone, not on their order or files.

Near means: another source, the same start within it, and three hashes that differ in few bits.
Two such clips almost always share one of the twelve 16-bit bands of their hashes, and only clips
that share one are compared. A mirrored copy is near once the bits that mirroring flips are flipped.
"""

from collections.abc import Iterable, Iterator, Mapping
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
    "clip_id",
    "source_id",
    "source_uri",
    "src_width_px",
    "src_height_px",
    "decoded_frames",
    "decode_errors",
    "span_start_us",
    "phash",
)
"""Columns of `clips@1` that are needed, beside `embedding` for semantic duplicates."""
_BANDS = np.arange(0, 64, 16, dtype=np.uint64)
_SAME_START_US = 250_000
_ROUNDING = 1e-3  # more than float32 products of unit vectors lose
_SLAB = 1024  # chosen: rows of one product; 128 MB against 32,000 others
_KEYS = np.dtype([
    ("key", np.uint64),
    ("row", np.int64),
    ("clip", np.int64),
    ("source", np.int64),
    ("start_us", np.int64),
    ("hashes", np.uint64, 3),
])
Link = tuple[int, int]
"""Row numbers of two clips."""


def keys(rows: Iterable[tuple[int, Row]], mask: int = 0) -> np.ndarray:
    """Return each clip once per key under which a clip that it repeats is found.

    Args:
        rows: (number, row of `clips@1` with at least `COLUMNS`).
        mask: bits in which the hashes of the copies in search differ, all of them.
    """
    made = [(0, *facts) for facts in map(_facts, rows)]
    clips = np.array(made, dtype=_KEYS)
    return np.concatenate([_with_key(clips, key) for key in _each_key(clips, mask)])


def _facts(numbered: tuple[int, Row]) -> tuple[Any, ...]:
    number, clip = numbered
    hashes = tuple(value & (1 << 64) - 1 for value in clip["phash"])
    ids = (seed_from(clip["clip_id"]), seed_from(clip["source_id"]))
    return (number, *ids, clip["span_start_us"], hashes)


def _each_key(clips: np.ndarray, mask: int) -> Iterator[np.ndarray]:
    """Yield the key of the clip's id and those of its bands; the top bits tell their kinds.

    A band and the same band after the mask have one key, the smaller of the two.
    """
    yield clips["clip"].astype(np.uint64)
    for frame in range(3):
        for band, shift in enumerate(_BANDS):
            either = [clips["hashes"][:, frame] ^ np.uint64(bits) for bits in (0, mask)]
            value = np.minimum(*(hashes >> shift & np.uint64(0xFFFF) for hashes in either))
            yield value | np.uint64((1 << 63) + (4 * frame + band << 16))


def _with_key(clips: np.ndarray, key: np.ndarray) -> np.ndarray:
    copy = clips.copy()
    copy["key"] = key
    return copy


def near_duplicate_pairs(bucket: np.ndarray, hamming: int, mask: int = 0) -> np.ndarray:
    """Return the pairs of one bucket of `keys` that are the same clip or near, as rows [N, 2].

    Memory is linear in the rows, time in the pairs of a key that start together.

    Args:
        bucket: rows of `keys`.
        hamming: bits in which each hash of near clips may differ, after the mask.
        mask: the same as for `keys`.
    """
    found = [np.empty((0, 2), np.int64)]
    rows = bucket[np.lexsort((bucket["start_us"], bucket["key"]))]
    open_rows, step = np.arange(len(rows)), 1
    while len(open_rows := open_rows[open_rows + step < len(rows)]):
        first, second = rows[open_rows], rows[open_rows + step]
        together = first["key"] == second["key"]
        together &= second["start_us"] - first["start_us"] <= _SAME_START_US
        linked = together & (
            (first["clip"] == second["clip"]) | _near(first, second, hamming, mask)
        )
        found.append(np.stack([first["row"][linked], second["row"][linked]], axis=1))
        open_rows, step = open_rows[together], step + 1
    pairs: np.ndarray = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return pairs


def _near(first: np.ndarray, second: np.ndarray, hamming: int, mask: int) -> np.ndarray:
    differing = first["hashes"] ^ second["hashes"] ^ np.uint64(mask)
    bits = np.bitwise_count(differing).max(axis=1)
    near: np.ndarray = (bits <= hamming) & (first["source"] != second["source"])
    return near


def semantic_pairs(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], cosine: float
) -> np.ndarray:
    """Return the pairs of two blocks whose embeddings are at least that close, as rows [N, 2].

    A float32 product proposes, float64 decides: the same answer however the blocks are cut.

    Args:
        first: row numbers [N] and embeddings [N, D].
        second: another block, or the same one.
        cosine: least cosine.
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
        found.append(pairs[(exact >= cosine) & (pairs[:, 0] < pairs[:, 1])])
    return np.concatenate(found)


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit: np.ndarray = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return unit


def pick_representatives(
    clips: Mapping[int, Row],
    linked: Iterable[Link],
    mirrored: Iterable[Link] = (),
    alike: Iterable[Link] = (),
) -> dict[int, tuple[str, int]]:
    """Decide which of linked clips repeat a better one.

    The best is kept: most pixels, then the source that lost fewest frames, then ids, so that of
    equal copies one source stays whole.

    Args:
        clips: number and row of every linked clip.
        linked: pairs that are the same clip or near.
        mirrored: pairs that are near once one of them is mirrored.
        alike: pairs that are semantic duplicates.

    Returns:
        Number of each repeating clip, with its reason and the number of the clip that it repeats.
    """
    edges: dict[int, set[tuple[int, int]]] = {}
    for kind, pairs in ((1, linked), (2, mirrored), (3, alike)):
        for a, b in pairs:
            is_copy = clips[a]["clip_id"] == clips[b]["clip_id"]
            edges.setdefault(a, set()).add((0 if is_copy else kind, b))
            edges.setdefault(b, set()).add((0 if is_copy else kind, a))
    place: dict[int, int] = {}
    found: dict[int, tuple[str, int]] = {}
    for number in sorted(clips, key=lambda number: (_rank(clips[number]), number)):
        better = [(kind, place[n], n) for kind, n in edges.get(number, ()) if n in place]
        if better:
            kind, _, other = min(better)
            found[number] = (REASONS[kind], other)
        else:
            place[number] = len(place)
    return found


def _rank(clip: Row) -> tuple[Any, ...]:
    pixels = clip["src_width_px"] * clip["src_height_px"]
    quality = (-pixels, -clip["decoded_frames"], clip["decode_errors"])
    return (*quality, clip["source_id"], clip["clip_id"], clip["source_uri"])
