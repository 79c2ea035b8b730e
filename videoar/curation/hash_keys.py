"""Find clips that share keys: the key of a frame is its 24 lowest frequencies.

Copies change these bits least, so most frames of a copy have a key of the original. Kept clips are
chained by key; memory is linear in the clips, however many copies there are.
"""

from collections.abc import Iterator

import numpy as np

_INSIDE = 8  # chosen: see `sharing_within`
_KEY_BITS = 24
_LONGEST_CHAIN = 64  # chosen: a key of more kept clips says little; other frames have other keys


def _low_frequencies() -> np.uint64:
    """Return the bits of the 24 lowest frequencies but the mean, by the sum of both numbers."""
    down, across = np.divmod(np.arange(64), 8)
    order = np.lexsort((np.maximum(down, across), down + across))[1 : 1 + _KEY_BITS]
    return np.uint64(sum(1 << 63 - int(place) for place in order))


_LOW = _low_frequencies()
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, golden ratio: Fibonacci hashing


class Chains:
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


def sharing_within(wanted: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    codes = np.union1d(leading(codes, _INSIDE), leading(by_keys, _INSIDE))
    return codes >> 32, codes & 0xFFFFFFFF


def leading(codes: np.ndarray, count: int) -> np.ndarray:
    """Return the first codes of each upper half; codes are grouped by it."""
    upper = codes >> 32
    return codes[np.arange(len(upper)) - np.searchsorted(upper, upper) < count]


def groups(rows: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each value of a sorted array with its place."""
    values, starts = np.unique(rows, return_index=True)
    for value, start, end in zip(values, starts, [*starts, len(rows)][1:], strict=True):
        yield value, slice(start, end)
