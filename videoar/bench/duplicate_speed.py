"""CPU seconds and memory of the searches for duplicates, on random rows.

    OMP_NUM_THREADS=1 python -m videoar.bench.duplicate_speed [--near 200000] [--semantic 50000]

Rows are in 20 partitions, on dask's synchronous scheduler. Random rows have no duplicates, which is
the common case; Parquet is not read.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from videoar.curation.duplicates import keys, near_duplicate_pairs, semantic_pairs
from videoar.media.clip_scores import MIRROR
from videoar.storage.partitions import all_pairs, hash_join

_FILES, _WIDTH = 20, 512  # partitions; width of CLIP's ViT-B/32 embeddings


def hashed(count: int, mask: int, index: int) -> np.ndarray:
    """Return the search keys of one partition: four clips per source, 2 s apart."""
    low, high = -(2**63), 2**63 - 1
    hashes = np.random.default_rng(index).integers(low, high, (count // _FILES, 3)).tolist()
    rows = (
        (
            # as `filter` numbers rows: file above, row below
            index << 32 | i,
            {
                "clip_id": f"{index:04x}{i:028x}",
                "source_id": f"{index}-{i // 4}",
                "span_start_us": i % 4 * 2_000_000,
                "phash": hashes[i],
            },
        )
        for i in range(len(hashes))
    )
    return keys(rows, mask)


def embedded(count: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and embeddings of the rows of one partition."""
    vectors = np.random.default_rng(index).standard_normal((count // _FILES, _WIDTH))
    return np.arange(len(vectors)) * _FILES + index, vectors.astype(np.float32)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate partitions."""
    numbers, vectors = zip(*parts, strict=True)
    return np.concatenate(numbers), np.concatenate(vectors)


def main() -> None:
    """Print one line per search."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--near", type=int, default=200_000)
    parser.add_argument("--semantic", type=int, default=50_000)
    arguments = parser.parse_args()

    def near(mask: int) -> list[np.ndarray]:
        link = partial(near_duplicate_pairs, hamming=6, mask=mask)
        return hash_join(partial(hashed, arguments.near, mask), _FILES, link)

    searches: dict[str, Callable[[], list[np.ndarray]]] = {
        f"near, {arguments.near} clips": partial(near, 0),
        f"mirrored, {arguments.near} clips": partial(near, MIRROR),
        f"semantic, {arguments.semantic} clips of width {_WIDTH}": lambda: all_pairs(
            partial(embedded, arguments.semantic),
            _FILES,
            merge,
            partial(semantic_pairs, cosine=0.98),
        ),
    }
    for name, search in searches.items():
        start = time.process_time()
        pairs = sum(len(part) for part in search())
        seconds = time.process_time() - start
        # KiB on Linux. It never falls: a search also shows the peak of those before it.
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        text = f"{name}: {seconds:.1f} CPU-s, process peak {peak_mib} MiB, {pairs} pairs"
        sys.stdout.write(text + os.linesep)


if __name__ == "__main__":
    main()
