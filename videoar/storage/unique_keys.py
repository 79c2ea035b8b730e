"""Find primary keys that occur in two files of a snapshot; writers check each single file.

Keys are hashed, and the hashes are compared in shares (hash modulo number of shares), so memory is
bounded: each pass reads the keys of all files and keeps the hashes of one share. Where two hashes
are equal, the keys are compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.errors import TransientStorageError, VideoARError
from videoar.core.types import FileRef
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum

MAX_HASHES = 1 << 23
"""chosen: with sorting, a quarter of a gigabyte."""


@dataclass(frozen=True)
class DuplicateKey:
    """A primary key that occurs in two files."""

    key: str
    """Columns and values of the key."""
    first: FileRef
    first_row: int
    second: FileRef
    second_row: int

    def __str__(self) -> str:
        return f"{self.key} is also in row {self.first_row} of {self.first.key}"


def duplicate_keys(
    snapshot: Snapshot, max_hashes: int = MAX_HASHES, hash_bytes: Callable[[bytes], int] = checksum
) -> Iterator[DuplicateKey]:
    """Yield one key for every pair of files of a snapshot that share a key.

    Skips files that cannot be read: `audit` reports those itself.

    Args:
        snapshot: any snapshot.
        max_hashes: most hashes that memory holds, on average over the shares.
        hash_bytes: hash of a key; equal hashes of different keys cost time, not correctness.

    Raises:
        TransientStorageError: the store does not respond; the result is unknown.
    """
    if len(snapshot.files) < 2:  # writers check within a file
        return
    reported: set[tuple[int, ...]] = set()
    # rounded up, so that a share has at most `max_hashes` on average
    shares = max(1, -(-snapshot.rows // max_hashes))
    for share in range(shares):
        pairs, first = _equal_hashes(snapshot, share, shares, hash_bytes)
        # row number to file: the last file that begins at or before the row
        file = np.searchsorted(first, pairs, "right") - 1
        for pair in np.unique(file[file[:, 0] != file[:, 1]], axis=0).tolist():
            if tuple(pair) not in reported:
                rows = pairs[(file == pair).all(axis=1)] - first[pair]
                for duplicate in _equal(snapshot, pair, rows):
                    reported.add(tuple(pair))
                    yield duplicate
                    break


def _equal_hashes(
    snapshot: Snapshot, share: int, shares: int, hash_bytes: Callable[[bytes], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of rows with equal hashes in one share.

    Returns:
        Row numbers over all files, [pairs, 2], and the number of the first row of each file.
    """
    hashes, numbers, first = [], [], [0]
    for file in snapshot.files:
        keys = _keys(snapshot, file)
        of_file = np.fromiter((_hash(key, hash_bytes) for key in keys), np.uint64, len(keys))
        in_share = np.flatnonzero(of_file % np.uint64(shares) == share)
        hashes.append(of_file[in_share])
        numbers.append(in_share + first[-1])
        first.append(first[-1] + len(keys))
    every = np.concatenate(hashes)
    # after sorting, equal hashes are neighbours: one pass finds all of them
    order = np.argsort(every, kind="stable")  # stable: equal hashes stay in file order
    same = np.flatnonzero(np.diff(every[order]) == 0)
    number = np.concatenate(numbers)[order]
    return np.stack([number[same], number[same + 1]], axis=1), np.array(first[:-1])


def _equal(snapshot: Snapshot, pair: list[int], rows: np.ndarray) -> Iterator[DuplicateKey]:
    """Yield the pairs of rows of two files whose keys, not only their hashes, are equal."""
    first, second = (snapshot.files[number] for number in pair)
    first_keys, second_keys = _keys(snapshot, first), _keys(snapshot, second)
    columns = "+".join(load_contract(snapshot.contract).primary_key)
    for one, other in sorted(rows.tolist()):
        if first_keys[one] == second_keys[other]:
            key = f"{columns} {', '.join(map(str, first_keys[one]))}"
            yield DuplicateKey(key, first, one, second, other)


def _keys(snapshot: Snapshot, file: FileRef) -> list[tuple[object, ...]]:
    columns = list(load_contract(snapshot.contract).primary_key)
    try:
        table: pa.Table = snapshot.read_file(file, columns)
    except TransientStorageError:
        raise
    except VideoARError:  # damaged or withdrawn
        return []
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def _hash(key: tuple[object, ...], hash_bytes: Callable[[bytes], int]) -> int:
    # NUL separates columns: ("a", "bc") and ("ab", "c") must differ
    return hash_bytes("\0".join(map(str, key)).encode()) % (1 << 64)
