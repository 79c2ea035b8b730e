"""Is one key in two files of a snapshot? Within each file, its writer has asked.

Keys are hashed, and the hashes compared share by share, so that memory does not grow with the rows:
each pass reads the keys of all files and keeps the hashes of one share. Where hashes are equal, the
keys themselves decide.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.errors import TransientStorageError, VideoARError
from videoar.core.types import FileRef
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum

HASHES_AT_ONCE = 1 << 23
"""chosen: a quarter of a gigabyte, with what sorting takes."""


@dataclass(frozen=True)
class DuplicateKey:
    """A key that two files have."""

    key: str
    """The key's columns and values."""
    first: FileRef
    first_row: int
    second: FileRef
    second_row: int

    def __str__(self) -> str:
        return f"{self.key} is in row {self.first_row} of {self.first.key}, too"


def duplicate_keys(snapshot: Snapshot) -> Iterator[DuplicateKey]:
    """Yield one key for every two files of a snapshot that share any.

    Files that cannot be read are left out: that they cannot is for others to say.

    Raises:
        TransientStorageError: the store does not answer; nothing was found out.
    """
    if len(snapshot.files) < 2:
        return
    told: set[tuple[int, ...]] = set()
    shares = max(1, -(-snapshot.rows // HASHES_AT_ONCE))
    for share in range(shares):
        pairs, first = _equal_hashes(snapshot, share, shares)
        file = np.searchsorted(first, pairs, "right") - 1
        for both in np.unique(file[file[:, 0] != file[:, 1]], axis=0).tolist():
            if tuple(both) not in told:
                rows = pairs[(file == both).all(axis=1)] - first[both]
                for found in _equal(snapshot, both, rows):
                    told.add(tuple(both))
                    yield found
                    break


def _equal_hashes(snapshot: Snapshot, share: int, shares: int) -> tuple[np.ndarray, np.ndarray]:
    """Find rows whose keys have one hash, among the hashes of a share.

    Returns:
        [pairs, 2], numbers of two rows counted over all files, and [files], of the first rows.
    """
    hashes, numbers, first = [], [], [0]
    for file in snapshot.files:
        keys = _keys(snapshot, file)
        of_file = np.fromiter(map(_hash, keys), np.uint64, len(keys))
        mine = np.flatnonzero(of_file % np.uint64(shares) == share)
        hashes.append(of_file[mine])
        numbers.append(mine + first[-1])
        first.append(first[-1] + len(keys))
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")  # equal ones stay in the order of the files
    same = np.flatnonzero(np.diff(every[order]) == 0)
    number = np.concatenate(numbers)[order]
    return np.stack([number[same], number[same + 1]], axis=1), np.array(first[:-1])


def _equal(snapshot: Snapshot, both: list[int], rows: np.ndarray) -> Iterator[DuplicateKey]:
    """Yield those of the pairs of rows of two files whose keys are equal indeed."""
    first, second = (snapshot.files[number] for number in both)
    ours, theirs = _keys(snapshot, first), _keys(snapshot, second)
    columns = "+".join(load_contract(snapshot.contract).primary_key)
    for one, other in sorted(rows.tolist()):
        if ours[one] == theirs[other]:
            key = f"{columns} {', '.join(map(str, ours[one]))}"
            yield DuplicateKey(key, first, one, second, other)


def _keys(snapshot: Snapshot, file: FileRef) -> list[tuple[object, ...]]:
    columns = list(load_contract(snapshot.contract).primary_key)
    try:
        table: pa.Table = snapshot.read_file(file, columns)
    except TransientStorageError:
        raise
    except VideoARError:
        return []
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def _hash(key: tuple[object, ...]) -> int:
    return checksum("\0".join(map(str, key)).encode()) % (1 << 64)
