"""The format version of a store: recorded before its first write, checked when it is opened.

Reading never writes: a store that was only read stays without a record, also on a read-only disk.
A store without a record was made before the record existed and has version 1.

Raising `FORMAT_VERSION` needs a migration: a store without a record then must not get the new
number by its next write.
"""

import json

from videoar.core.errors import DamagedError, StorageError
from videoar.core.ids import canonical_json
from videoar.storage.conformance import ensure_put_if_absent
from videoar.storage.layout import FORMAT_KEY, FORMAT_VERSION
from videoar.storage.object_store import ObjectStore

_FIELD = "format_version"


def check_format(objects: ObjectStore) -> None:
    """Check that this version of the code can read the store.

    Raises:
        StorageError: the store has a newer format.
        DamagedError: the record is not readable.
    """
    _check(objects, objects.find(FORMAT_KEY))


def _check(objects: ObjectStore, data: bytes | None) -> None:
    if data is None:
        return
    where = f"{objects.url}/{FORMAT_KEY}"
    try:
        version = json.loads(data)[_FIELD]
    except (ValueError, KeyError, TypeError):
        version = None
    # an unreadable record is no version 1: the store may be newer
    if not isinstance(version, int) or version < 1:
        hint = f'restore it from a copy, or write {{"{_FIELD}": {FORMAT_VERSION}}}'
        raise DamagedError(where, "damaged: no format version in it", hint)
    if version > FORMAT_VERSION:
        what = f"store format {version} is newer than {FORMAT_VERSION}, the newest this code reads"
        raise StorageError(where, what, "upgrade videoar")


class WriteGuard:
    """Prepares a store for writing, once per process: probes put-if-absent, records the format."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._is_done = False

    def __call__(self) -> None:
        """Prepare the store; only the first call costs requests.

        Raises:
            StorageError: put-if-absent is not atomic, or the store has a newer format.
        """
        if self._is_done:
            return
        if not self._objects.is_local:  # POSIX makes link() atomic; an S3 server has to show it
            ensure_put_if_absent(self._objects)
        # a writer that loses this race may be the older one of two: it checks the winner's record
        record = canonical_json({_FIELD: FORMAT_VERSION}).encode()
        # put, not find and put: two first writers must agree on one record
        if not self._objects.put(FORMAT_KEY, record, if_absent=True):
            check_format(self._objects)
        self._is_done = True
