"""Find clips that repeat a better one, by what they show: in one pass, from the best clip down.

Clips are taken in order, best first. A clip is kept unless most of its frames are frames of kept
clips of one source. So of a chain a-b-c whose ends differ only b is rejected, and the result
depends on the clips alone, not on their files.

Copies begin elsewhere, run faster, are cropped, or repeat inside a source. So every frame has a
hash. Two frames match the better the fewer bits of their hashes differ; a frame may also match
nine tenths of the other. Two clips match on the line of frame numbers, j = rate i + shift, on which
their frames match best. Frames of a static shot look alike at any time: they must agree more
closely, and inside one source only moving shots repeat each other.

Only kept clips that share a key with a clip are compared with it. The key of a frame is its 24
lowest frequencies, which copies change least. Kept clips are chained by key; memory is linear in
the clips, however many copies there are. Measured shares, time and memory are in
`benchmarks/results/near_duplicates.md`.

Axes: N clips, S = 2 scales, T frames, P pairs of clips, L lines.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from videoar.core.ids import seed_from

DUPLICATE_EXACT = "DUPLICATE_EXACT"
DUPLICATE_NEAR = "DUPLICATE_NEAR"
DUPLICATE_MIRRORED = "DUPLICATE_MIRRORED"
DUPLICATE_SEMANTIC = "DUPLICATE_SEMANTIC"
REASONS = (DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_MIRRORED, DUPLICATE_SEMANTIC)
COLUMNS = (
    "clip_id", "source_id", "src_width_px", "src_height_px", "decoded_frames",
    "decode_errors", "num_frames", "phash", "frame_hashes", "detail",
)  # fmt: skip
"""Columns of `clips@1` that are needed, beside `embedding` for semantic duplicates."""
_SHOWN = 0.6  # chosen: how well clips of one source must show the frames of a copy, 1 is equal
_FEWEST = 3  # chosen: frames that are evidence
_RATES = (1.0, 1.25, 0.8, 1.5, 2 / 3)  # of two clips
_STATIC_BITS, _MOVING_SHARE = 2.0, 0.5  # chosen: see `_most_bits`
_LAG = 4  # frames, half a second at 8 fps, after which a moving picture has changed
_REPEAT_BITS, _REPEAT_SHARE = 2.0, 0.2  # chosen: of a repeat inside a source
_NO_MATCH = 64
_BLOCK = 256  # chosen: clips decided together
_PAIRS = 2048  # chosen: pairs compared together; 60 MB
_INSIDE = 8  # chosen: see `_sharing_within`
_KEY_BITS = 24
_LONGEST_CHAIN = 64  # chosen: a key of more kept clips says little; other frames have other keys
_ROUNDING = 1e-3  # above the error of a float32 product of unit vectors
_SLAB = 1024  # chosen: rows of one product; 128 MB against 32,000 others
_NEIGHBOURS = 4  # chosen: better neighbours per clip and pair of blocks


def _low_frequencies() -> np.uint64:
    """Return the bits of the 24 lowest frequencies but the mean, by the sum of both numbers."""
    down, across = np.divmod(np.arange(64), 8)
    order = np.lexsort((np.maximum(down, across), down + across))[1 : 1 + _KEY_BITS]
    return np.uint64(sum(1 << 63 - int(place) for place in order))


_LOW = _low_frequencies()
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, golden ratio: Fibonacci hashing


@dataclass(frozen=True)
class Candidates:
    """Clips among which duplicates are sought, in columns."""

    rows: np.ndarray
    """Structured: `number` of the row, ids as numbers, and what ranks a clip."""
    hashes: np.ndarray
    """uint64 [N, S, T]; 0 where there is none."""

    @classmethod
    def read(cls, numbers: np.ndarray, table: pa.Table) -> "Candidates":
        """Read rows of `clips@1` with at least `COLUMNS`."""
        rows = np.zeros(table.num_rows, RANKED)
        rows["number"] = numbers
        for name in ("clip_id", "source_id"):
            rows[name] = [seed_from(value) for value in table[name].to_pylist()]
        sides = (table[name].to_numpy() for name in ("src_width_px", "src_height_px"))
        rows["pixels"] = np.multiply(*(side.astype(np.int64) for side in sides))
        for name in ("decoded_frames", "decode_errors"):
            rows[name] = table[name].to_numpy()
        rows["detail"] = table["detail"].fill_null(0).to_numpy()
        lists = (table[name].to_pylist() for name in ("frame_hashes", "phash", "num_frames"))
        per_clip = [_by_frame(*of_clip) for of_clip in zip(*lists, strict=True)]
        longest = max((len(of_clip) // 2 for of_clip in per_clip), default=0)
        hashes = np.zeros((len(per_clip), 2, longest), np.int64)
        for into, of_clip in zip(hashes, per_clip, strict=True):
            into[:, : len(of_clip) // 2] = np.reshape(of_clip, (2, -1))
        return cls(rows, hashes.view(np.uint64))

    @classmethod
    def concatenate(cls, parts: list["Candidates"]) -> "Candidates":
        """Join the parts and empty the list: their memory is freed as it is copied."""
        rows = np.concatenate([part.rows for part in parts])
        longest = max(part.hashes.shape[2] for part in parts)
        hashes = np.zeros((len(rows), 2, longest), np.uint64)
        start = 0
        while parts:
            part = parts.pop(0).hashes
            hashes[start : start + len(part), :, : part.shape[2]] = part
            start += len(part)
        return cls(rows, hashes)

    def order(self, preferred: Collection[int] = ()) -> np.ndarray:
        """Return the positions of the clips from the best to the worst.

        First `preferred` ones; then by the mean detail of the source, because of two copies of a
        film all clips of one must be kept; pixels, decoded frames, errors; then ids, and of equal
        clips the first row.

        Args:
            preferred: `clip_id`s, as numbers.
        """
        rows = self.rows
        _, source, clips = np.unique(rows["source_id"], return_inverse=True, return_counts=True)
        detail = (np.bincount(source, rows["detail"]) / clips)[source]
        is_other = ~np.isin(rows["clip_id"], np.fromiter(preferred, np.uint64))
        ids = (rows["number"], rows["clip_id"], rows["source_id"])
        quality = (rows["decode_errors"], -rows["decoded_frames"], -rows["pixels"], -detail)
        return np.lexsort((*ids, *quality, is_other))


RANKED = np.dtype([
    ("number", np.int64),
    ("clip_id", np.uint64),
    ("source_id", np.uint64),
    ("detail", np.float32),
    ("pixels", np.int64),
    ("decoded_frames", np.int64),
    ("decode_errors", np.int32),
])
"""A clip by its row number, its ids as numbers, and what ranks it."""


def _by_frame(hashes: list[int] | None, phash: list[int], num_frames: int) -> list[int]:
    """Return the hashes of a clip; for one of an earlier version its three, at their frames."""
    if hashes is not None:
        return hashes
    places = [0] * (2 * min(num_frames, 32))
    last = len(places) // 2 - 1
    for place, value in zip((0, (last + 1) // 2, last), phash, strict=True):
        places[place] = value
    return places


def find_repeats(
    clips: Candidates, order: np.ndarray, hamming: int, masks: Sequence[int]
) -> dict[int, tuple[str, int]]:
    """Decide which clips repeat a better one.

    Args:
        clips: all candidates.
        order: their positions, best first; a clip's place in it is its rank.
        hamming: number of differing bits from which on two frames do not match.
        masks: bits in which the hashes of a copy differ, one search for each: 0 finds plain copies,
            `MIRROR` mirrored ones.

    Returns:
        Rank of each repeating clip, with its reason and the rank of the kept clip.
    """
    ids = clips.rows["clip_id"][order]
    _, first, of_id = np.unique(ids, return_index=True, return_inverse=True)
    first_of = first[of_id]
    unique = np.flatnonzero(first_of == np.arange(len(ids)))
    repeats: dict[int, tuple[str, int]] = {}
    for mask in masks:
        reason = DUPLICATE_MIRRORED if mask else DUPLICATE_NEAR
        search = _Search(clips, order, hamming, mask)
        for start in range(0, len(unique), _BLOCK):
            found = search.decide(unique[start : start + _BLOCK])
            repeats |= {rank: (reason, kept) for rank, kept in found}
        unique = unique[~np.isin(unique, np.fromiter(repeats, np.int64))]
    for rank in np.flatnonzero(first_of != np.arange(len(ids))).tolist():
        best = int(first_of[rank])
        repeats[rank] = repeats.get(best, (DUPLICATE_EXACT, best))
    return repeats


class _Search:
    """Decides on clips from the best to the worst; chains those it keeps by their keys."""

    def __init__(self, clips: Candidates, order: np.ndarray, hamming: int, mask: int) -> None:
        self._all, self._order = clips.hashes, order
        self._sources = clips.rows["source_id"][order]
        self._hamming, self._mask = hamming, np.uint64(mask)
        self._chains = _Chains()

    def decide(self, block: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield those of the next best clips that repeat a kept one, and that one.

        Args:
            block: their ranks, rising.
        """
        hashes = self._hashes(block).reshape(len(block), -1)
        wanted = np.where(hashes, hashes ^ self._mask, 0)
        rows, kept = self._chains.sharing(wanted)
        agreement = self._agreement(block[rows], kept)
        best = np.full(len(block), -1)
        for row, of_row in _groups(rows):
            best[row] = self._repeated(block[row], kept[of_row], agreement[of_row])
        # a clip may also repeat one of this block, unless that one repeats another
        undecided = np.flatnonzero(best < 0)
        pairs = _sharing_within(wanted[undecided], hashes[undecided])
        later, earlier = (undecided[of_pair] for of_pair in pairs)
        inside = self._agreement(block[later], block[earlier])
        bounds = np.searchsorted(rows, np.arange(len(block) + 1))
        for row, of_row in _groups(later):
            is_kept = best[earlier[of_row]] < 0
            before = slice(bounds[row], bounds[row + 1])
            best[row] = self._repeated(
                block[row],
                np.concatenate([kept[before], block[earlier[of_row][is_kept]]]),
                np.concatenate([agreement[before], inside[of_row][is_kept]]),
            )
        is_kept = best < 0
        self._chains.add(block[is_kept], hashes[is_kept])
        yield from zip(block[~is_kept].tolist(), best[~is_kept].tolist(), strict=True)

    def _repeated(self, clip: int, kept: np.ndarray, agreement: np.ndarray) -> int:
        """Return the kept clip that shows most of a clip if its source shows enough, else -1."""
        frames = int(np.count_nonzero(self._hashes(clip)[0]))
        needed = _SHOWN * max(_FEWEST, frames) * self._hamming
        # where a copy begins elsewhere, two clips of the source show the parts of one of the copy
        for source in np.unique(self._sources[kept[agreement.any(axis=1)]]):
            of_source = self._sources[kept] == source
            if agreement[of_source].max(axis=0).sum() >= needed:
                return int(kept[of_source][agreement[of_source].sum(axis=1).argmax()])
        return -1

    def _hashes(self, ranks: np.ndarray | int) -> np.ndarray:
        hashes: np.ndarray = self._all[self._order[ranks]]
        return hashes

    def _agreement(self, copies: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Return by how many bits each frame of each copy is nearer than the bound: [P, T]."""
        parts = [np.empty((0, self._all.shape[2]), np.int32)]
        for start in range(0, len(copies), _PAIRS):
            parts.append(self._compare(copies[start:][:_PAIRS], kept[start:][:_PAIRS]))
        return np.concatenate(parts)

    def _compare(self, copies: np.ndarray, kept: np.ndarray) -> np.ndarray:
        one, two = self._hashes(copies), self._hashes(kept)
        near = np.maximum(0, self._hamming - _differing_bits(one, two, self._mask))
        agreement = _on_best_line(near)
        matching = (agreement > 0).sum(axis=1)
        bits = self._hamming * matching - agreement.sum(axis=1)
        is_within = self._sources[copies] == self._sources[kept]
        motion = np.minimum(_motion(one), _motion(two))
        is_evidence = bits <= _most_bits(motion, is_within) * matching
        if self._mask:
            is_evidence &= ~is_within
        agreement[~is_evidence] = 0
        return agreement


def _groups(rows: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each value of a sorted array with its place."""
    values, starts = np.unique(rows, return_index=True)
    for value, start, end in zip(values, starts, [*starts, len(rows)][1:], strict=True):
        yield value, slice(start, end)


def _motion(hashes: np.ndarray) -> np.ndarray:
    """Return the mean number of bits that change in half a second; no number for three hashes."""
    before, after = hashes[:, 0, :-_LAG], hashes[:, 0, _LAG:]
    both = (before != 0) & (after != 0)
    bits = np.where(both, np.bitwise_count(before ^ after), 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        motion: np.ndarray = bits / both.sum(axis=1)
    return motion


def _most_bits(motion: np.ndarray, is_within: np.ndarray) -> np.ndarray:
    """Return the largest mean number of bits in which matching frames of two clips may differ.

    Where a clip changes little, other moments of its shot look like a copy: only a closer match is
    evidence. Inside a source nothing was coded twice, and its static shots are not repeats.
    """
    most = np.fmin(_NO_MATCH, _STATIC_BITS + _MOVING_SHARE * motion)
    return np.where(is_within, np.fmin(_REPEAT_BITS, _REPEAT_SHARE * motion), most)


class _Chains:
    """Kept clips by key: a hash table of chains, the newest clip first."""

    def __init__(self) -> None:
        self._heads = np.full(1 << _KEY_BITS, -1, np.int32)
        self._clips, self._next = np.empty(0, np.int32), np.empty(0, np.int32)
        self._used = 0

    def add(self, clips: np.ndarray, hashes: np.ndarray) -> None:
        """Append clips, each once under each of its keys."""
        slots, rows = _slots(hashes)
        codes = np.unique(slots << np.int64(32) | rows)
        slots, clips = codes >> 32, clips[codes & 0xFFFFFFFF]
        start, self._used = self._used, self._used + len(codes)
        if self._used > len(self._clips):
            size = max(1 << 16, self._used * 5 // 4)
            self._clips, self._next = (_grown(a, size) for a in (self._clips, self._next))
        self._clips[start : self._used] = clips
        is_first = np.diff(slots, prepend=-1) != 0
        entries = np.arange(start, self._used, dtype=np.int32)
        self._next[start : self._used] = np.where(is_first, self._heads[slots], entries - 1)
        is_last = np.diff(slots, append=-1) != 0
        self._heads[slots[is_last]] = entries[is_last]

    def sharing(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of hashes and the clips that share at least two keys with them."""
        slots, rows = _slots(hashes)
        entries = self._heads[slots]
        codes = [np.empty(0, np.int64)]
        for _ in range(_LONGEST_CHAIN):
            rows, entries = rows[entries >= 0], entries[entries >= 0]
            if not len(rows):
                break
            codes.append(rows << np.int64(32) | self._clips[entries])
            entries = self._next[entries]
        return _repeated(np.concatenate(codes))


def _grown(values: np.ndarray, size: int) -> np.ndarray:
    longer = np.empty(size, values.dtype)
    longer[: len(values)] = values
    return longer


def _slots(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the key of each hash that is not 0, as a place in a table, and its row."""
    rows, columns = np.nonzero(hashes)
    keys = (hashes[rows, columns] & _LOW) * _SPREAD >> np.uint64(64 - _KEY_BITS)
    return keys.astype(np.int64), rows


def _repeated(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both halves of the codes that are there twice: one equal key may be chance."""
    codes, counts = np.unique(codes, return_counts=True)
    codes = codes[counts > 1]
    return codes >> 32, codes & 0xFFFFFFFF


def _sharing_within(wanted: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows, later and earlier, that share at least two keys.

    Of each row the pairs with the first `_INSIDE` earlier ones, and those that share most keys: of
    a block of copies of one clip, not all pairs.
    """
    slots, rows = _slots(wanted)
    places, owners = _slots(hashes)
    own = np.unique(places << np.int64(32) | owners)
    places, owners = own >> 32, own & 0xFFFFFFFF
    first, last = (np.searchsorted(places, slots, side) for side in ("left", "right"))
    count = last - first
    index = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    later, earlier = np.repeat(rows, count), owners[index]
    is_later = later > earlier
    codes, shared = np.unique(
        later[is_later] << np.int64(32) | earlier[is_later], return_counts=True
    )
    codes, shared = codes[shared > 1], shared[shared > 1]
    by_keys = codes[np.lexsort((codes, -shared, codes >> 32))]
    codes = np.union1d(_leading(codes, _INSIDE), _leading(by_keys, _INSIDE))
    return codes >> 32, codes & 0xFFFFFFFF


def _leading(codes: np.ndarray, count: int) -> np.ndarray:
    """Return the first codes of each upper half; codes are grouped by it."""
    upper = codes >> 32
    return codes[np.arange(len(upper)) - np.searchsorted(upper, upper) < count]


@lru_cache(maxsize=2)
def _lines(frames: int) -> np.ndarray:
    """Return, per line and frame of a copy, the frame of the kept clip; `frames` outside of it."""
    own = np.arange(frames)
    lines = []
    for rate in _RATES:
        reach = round(rate * frames)
        for shift in range(1 - max(reach, frames), frames):
            line = np.round(rate * own + shift).astype(int)
            lines.append(np.where((line >= 0) & (line < frames), line, frames))
    return np.array(lines).reshape(-1, frames)


def _on_best_line(near: np.ndarray) -> np.ndarray:
    """Return, of each pair, the values [P, T] on the line of the largest sum."""
    padded = np.pad(near, ((0, 0), (0, 0), (0, 1)))  # outside of the kept clip nothing is near
    frames, lines = np.arange(padded.shape[1]), _lines(padded.shape[1])
    line = padded[:, frames, lines].sum(axis=2, dtype=np.int32).argmax(axis=1)
    on_line: np.ndarray = padded[np.arange(len(padded))[:, None], frames, lines[line]]
    return on_line


def _differing_bits(copies: np.ndarray, kept: np.ndarray, mask: np.uint64) -> np.ndarray:
    """Return the bits in which the frames of two clips differ, at the best of three framings."""
    pairs, _, frames = copies.shape
    least = np.full((pairs, frames, frames), _NO_MATCH, np.int8)
    for scale, other in ((0, 0), (1, 0), (0, 1)):
        one, two = copies[:, scale, :, None], kept[:, other, None, :]
        bits = np.where((one != 0) & (two != 0), np.bitwise_count(one ^ two ^ mask), _NO_MATCH)
        np.minimum(least, bits.astype(np.int8), out=least)
    return least


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
        for part in range(0, len(a), _PAIRS * 16):
            near = slice(part, part + _PAIRS * 16)
            exact = (unit_a[a[near]] * unit_b[b[near]]).sum(axis=1)
            is_near[a[near], b[near]] = exact >= cosine
        # of each clip of either block, the first better ones of the other
        better_b = is_near & (ranks_b < ranks)
        better_b &= np.cumsum(better_b, axis=1, dtype=np.int32) <= _NEIGHBOURS
        better_a = is_near & (ranks_b > ranks)
        better_a &= np.cumsum(better_a, axis=0, dtype=np.int32) <= _NEIGHBOURS
        a, b = np.nonzero(better_a | better_b)
        pairs = np.sort(np.stack([ranks[a, 0], ranks_b[b]]), axis=0)
        codes = _leading(np.union1d(codes, pairs[1] << np.int64(32) | pairs[0]), _NEIGHBOURS)
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
