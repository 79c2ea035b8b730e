"""Keeps writers safe beside `videoar gc apply`, which deletes files and objects that nothing names.

Keys are hashes of contents: what a killed writer has left is garbage, until another writer makes
the same content again. Both sides first announce what they do, and then look at the other:

    collector   1 acquires the lease `gc`    2 reads what is named      3 deletes    4 releases it
    writer      a writes files and objects   b names them in a record   c waits for the end of a
                                               or a commit                collection, then looks
                                                                          whether all are there

If b comes before 2, the collector finds the name and keeps what it names. Otherwise c comes after
1: the writer waits for 4, after which nothing more is deleted, and finds what was. It then takes
its record back and fails with a `TransientStorageError`; the work runs again. Every step is a
put-if-absent, a read or a listing, so listings must have what was written before them (as those of
AWS, Ceph and file systems do). A collector that is killed counts as ended as any owner of a lease
does; one that was suspended renews its lease before it deletes more.

Commits look at data files alone: the objects that their rows name are looked at when the work
record of those rows is made, before the commit. What is left is a worker that is killed between b
and c, in the moment in which the collector deletes an object that this worker has just written.
"""

import logging
import time
from collections.abc import Callable, Iterable

from videoar.core.errors import TransientStorageError
from videoar.storage.layout import COLLECTOR_LEASE, lease_log
from videoar.storage.lease import HolderWatch, Records

logger = logging.getLogger(__name__)


class CollectionWatch:
    """Finds out whether garbage was collected since it was made.

    Args:
        store: where.
    """

    def __init__(self, store: Records) -> None:
        self._store = store
        self._next = store.ledger.length(lease_log(COLLECTOR_LEASE))
        # one that still runs counts as a later one
        if self._next and not self._watch(self._next - 1).has_ended():
            self._next -= 1

    def _watch(self, epoch: int) -> HolderWatch:
        return HolderWatch(self._store, COLLECTOR_LEASE, epoch)

    def has_collected(self) -> bool:
        """Return whether a collection has begun since; wait for its end."""
        # not by looking for the next epoch alone: epochs but the last one are garbage, too
        has_begun = self._store.ledger.length(lease_log(COLLECTOR_LEASE)) > self._next
        return has_begun and wait_for_collection(self._store)

    def require_all(self, where: str, keys: Callable[[], Iterable[str]]) -> None:
        """Return if nothing of what was just named was deleted; may wait for a collection to end.

        Args:
            where: what names the keys.
            keys: called only if garbage was collected.

        Raises:
            TransientStorageError: a key is not there any more.
        """
        for key in keys() if self.has_collected() else ():
            if self._store.objects.size(key) is None:
                what = f"{key} was deleted as garbage while it was made"
                raise TransientStorageError(where, what, "it is made again")


def wait_for_collection(store: Records) -> bool:
    """Return when no garbage is being collected; return whether it ever was."""
    while number := store.ledger.length(lease_log(COLLECTOR_LEASE)):
        holder = HolderWatch(store, COLLECTOR_LEASE, number - 1)
        if holder.has_ended():
            return True
        logger.info("waiting: %s deletes garbage", holder)
        while not holder.has_ended():
            time.sleep(holder.poll_s)
    return False
