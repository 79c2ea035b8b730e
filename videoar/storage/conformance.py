"""Does put-if-absent hold under a race? A store is trusted only after it has shown so.

Asking one after the other is not enough: OpenStack Swift answers the second writer correctly when
asked alone, yet lets several of eight racing writers win. Other servers ignore the precondition.
"""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from videoar.core.errors import StorageError
from videoar.storage.layout import PROBE_PASSED_KEY, PROBES_PREFIX
from videoar.storage.object_store import ObjectStore


def race(objects: ObjectStore, rounds: int = 8, writers: int = 8) -> list[int]:
    """Let writers race for one fresh key per round; return the number of winners of each round."""
    prefix = f"{PROBES_PREFIX}race-{secrets.token_hex(8)}"
    with ThreadPoolExecutor(writers) as pool:
        return [_race_once(objects, f"{prefix}/{i}", writers, pool) for i in range(rounds)]


def _race_once(objects: ObjectStore, key: str, writers: int, pool: ThreadPoolExecutor) -> int:
    start = threading.Barrier(writers)

    def attempt(writer: int) -> bool:
        start.wait()
        return objects.put(key, f"writer {writer}".encode(), if_absent=True)

    try:
        return sum(pool.map(attempt, range(writers)))
    finally:
        objects.delete(key)


def ensure_put_if_absent(objects: ObjectStore) -> None:
    """Race the store once in its life; a marker remembers that it passed.

    Raises:
        StorageError: two racing writers won, or the precondition is ignored.
    """
    if objects.size(PROBE_PASSED_KEY) is not None:
        return
    winners = race(objects)
    if any(count != 1 for count in winners):
        raise StorageError(
            objects.url,
            f"put-if-absent is not atomic: {max(winners)} of 8 racing writers won",
            "use an S3 server that makes If-None-Match atomic, in an unversioned bucket",
        )
    objects.put(PROBE_PASSED_KEY, b'{"rounds":8,"writers":8}')
