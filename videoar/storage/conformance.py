"""Test whether put-if-absent of a store is atomic under concurrent writers.

Sequential requests do not show it: OpenStack Swift answers 412 to a second writer that comes later,
yet lets several of eight racing writers win (45 of 60 rounds). Other servers ignore the header.
"""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from videoar.core.errors import StorageError
from videoar.storage.layout import PROBE_PASSED_KEY, PROBES_PREFIX
from videoar.storage.object_store import ObjectStore


def race(objects: ObjectStore, rounds: int = 8, writers: int = 8) -> list[int]:
    """Race writers for one new key per round; return the number of winners of each round."""
    # random: two processes that probe one store at the same time must not race each other
    prefix = f"{PROBES_PREFIX}race-{secrets.token_hex(8)}"
    with ThreadPoolExecutor(writers) as pool:
        return [_race_once(objects, f"{prefix}/{i}", writers, pool) for i in range(rounds)]


def _race_once(objects: ObjectStore, key: str, writers: int, pool: ThreadPoolExecutor) -> int:
    start = threading.Barrier(writers)  # all requests in flight at once, else there is no race

    def attempt(writer: int) -> bool:
        start.wait()
        return objects.put(key, f"writer {writer}".encode(), if_absent=True)

    try:
        return sum(pool.map(attempt, range(writers)))
    finally:
        objects.delete(key)


def ensure_put_if_absent(objects: ObjectStore) -> None:
    """Race the store once in its lifetime; a marker object records that it passed.

    Raises:
        StorageError: two racing writers won, or the precondition is ignored.
    """
    if objects.size(PROBE_PASSED_KEY) is not None:
        return
    winners = race(objects)
    if any(count != 1 for count in winners):
        what = f"put-if-absent is not atomic: {max(winners)} of 8 concurrent writers won"
        hint = "use an S3 server that makes If-None-Match atomic, in an unversioned bucket"
        raise StorageError(objects.url, what, hint)
    objects.put(PROBE_PASSED_KEY, b'{"rounds":8,"writers":8}')
