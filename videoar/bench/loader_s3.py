"""The loader compared with bare ranged GETs, on an S3 server with added latency.

    VIDEOAR_S3_ENDPOINT=http://127.0.0.1:7480 python -m videoar.bench.loader_s3 s3://bucket/prefix

Both sides use the same client and the same number of threads. The bare side fetches every row group
(small rows) or value (large rows) once into recycled memory and does nothing with it. Opening
(footers and small columns of all rows) is timed and counted separately: the bare side has none.
Writes a store of about 600 MB per shape under the given prefix and does not delete it.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from threading import Lock
from typing import Any, cast

import numpy as np

from videoar.bench.loader import SHAPES
from videoar.bench.loader_cell import token_tables
from videoar.bench.stores import commit
from videoar.contracts.names import TOKENS
from videoar.core.settings import settings
from videoar.storage.object_store import ObjectStore
from videoar.storage.payload import Payload
from videoar.storage.reader import read_footers
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import open_store
from videoar.training.data.row_group_prefetch import PREFETCH_ROW_GROUPS, REQUESTS
from videoar.training.data.token_loader import TokenLoader

_COLUMNS = ("bits", "latent")


class SlowObjectStore:
    """An object store with latency added to every request."""

    # also for a folder: the loader then prefetches as from S3
    is_local = False

    def __init__(self, objects: ObjectStore, latency_s: float) -> None:
        self._objects, self._latency_s, self.url = objects, latency_s, objects.url
        self.requests, self._lock = 0, Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read a range after the latency of one request."""
        self._wait(1)
        return self._objects.get_range(key, start, length)

    def read_into(self, key: str, spans: list[tuple[int, memoryview]]) -> None:
        """Read ranges after the latency of as many requests."""
        self._wait(len(spans))
        self._objects.read_into(key, spans)

    def _wait(self, requests: int) -> None:
        with self._lock:
            self.requests += requests
        # `S3ObjectStore.read_into` requests its ranges one after the other
        time.sleep(self._latency_s * requests)


def store_rows(url: str, shape: str) -> Snapshot:
    """Commit random rows of a shape; return their snapshot."""
    latent_shape, bits_bytes, rows, _ = SHAPES[shape]
    random = np.random.default_rng(0)
    store = open_store(f"{url}/{shape}", endpoint=settings().s3_endpoint)
    widths = bits_bytes, int(np.prod(latent_shape)) * 2
    payload = [random.integers(0, 256, (rows, width), np.uint8) for width in widths]
    return commit(store, "tokens", TOKENS, token_tables(payload, latent_shape))


def loader_s(snapshot: Snapshot, batch_size: int) -> tuple[float, float, int, int]:
    """Return the seconds of opening and of one epoch, and the number of requests of each."""
    slow = cast("SlowObjectStore", snapshot.objects)
    slow.requests, start = 0, time.perf_counter()
    loader = TokenLoader(snapshot, batch_size, 0, columns=_COLUMNS)
    opened, opening = time.perf_counter(), slow.requests
    rows = sum(len(batch["clip_ids"]) for batch in loader)
    # a loader that skips rows would look fast
    if rows != snapshot.rows:
        raise SystemExit(f"{rows} rows instead of {snapshot.rows}")
    return opened - start, time.perf_counter() - opened, opening, slow.requests - opening


def bare_s(snapshot: Snapshot, shape: str) -> float:
    """Return the seconds of fetching the same bytes with the same requests."""
    footers = read_footers(snapshot.objects, snapshot.files)
    payload = Payload(snapshot.objects, snapshot.files, footers, _COLUMNS)
    if shape == "A":
        row_groups = range(int(payload.row_group_N[-1]) + 1)
        largest = max(map(payload.row_group_bytes, row_groups))
        ring: Any = cycle([np.empty(largest, np.uint8) for _ in range(2 * PREFETCH_ROW_GROUPS)])
        jobs: list[Any] = [
            (payload.read_row_group, group, next(ring)[: payload.row_group_bytes(group)])
            for group in row_groups
        ]
        threads = PREFETCH_ROW_GROUPS
    else:
        outs = {c: np.empty((1, payload.width(c, 0)), np.uint8) for c in _COLUMNS}
        ring = cycle([{c: o.copy() for c, o in outs.items()} for _ in range(2 * REQUESTS)])
        jobs = [(payload.read, np.array([row]), next(ring)) for row in range(snapshot.rows)]
        threads = REQUESTS
    # Opening is not timed here: footers were read above.
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: job[0](*job[1:]), jobs))
    return time.perf_counter() - start


def main() -> None:
    """Print one line per shape and latency."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for shape, (latent_shape, bits_bytes, rows, batch_size) in SHAPES.items():
        near = store_rows(arguments.url, shape)
        num_bytes = rows * (bits_bytes + 2 * int(np.prod(latent_shape)))
        for latency_s in (0.0, 0.02, 0.05):
            slow = SlowObjectStore(near.objects, latency_s)
            snapshot = replace(near, objects=cast("ObjectStore", slow))
            opening, ours, bare = [], [], []
            gets = [0, 0]
            for _ in range(arguments.rounds):
                # in turns: other work on the machine or the server slows both sides
                open_s, epoch_s, *gets = loader_s(snapshot, batch_size)
                opening.append(open_s)
                ours.append(epoch_s)
                bare.append(bare_s(snapshot, shape))
            ratios = [b / o for o, b in zip(ours, bare, strict=True)]
            rate, limit = (num_bytes / 1e6 / np.median(seconds) for seconds in (ours, bare))
            print(
                f"{shape} {latency_s * 1000:.0f} ms: {rate:.0f} MB/s, bare {limit:.0f} MB/s, "
                f"ratio {np.median(ratios):.2f}, {gets[1]} GETs for {rows} rows; "
                f"opening {np.median(opening):.2f} s, {gets[0]} GETs"
            )


if __name__ == "__main__":
    main()
