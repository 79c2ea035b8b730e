"""The format version of a store: recorded before its first write, checked when it is opened.

Reading never writes: a store that was only read stays without a record, also on a read-only disk.
A store with runs or tables and without a record was made before the record existed: version 1.

Version 2: every record and commit has the digest of its key and content, so that one without is
damaged. `videoar store migrate` (`admin.migrate`) brings a store from version 1 to 2.
"""

import json

from videoar.core.errors import DamagedError, StorageError
from videoar.core.ids import canonical_json
from videoar.storage.conformance import ensure_put_if_absent
from videoar.storage.layout import (
    FORMAT_KEY,
    FORMAT_VERSION,
    RUNS_PREFIX,
    TABLES_PREFIX,
    is_log_version,
    is_record,
)
from videoar.storage.object_store import ObjectStore

_FIELD = "format_version"


def check_format(objects: ObjectStore) -> None:
    """Check that this version of the code can read the store.

    Raises:
        StorageError: the store has another format.
        DamagedError: the record is not readable.
    """
    where, version = f"{objects.url}/{FORMAT_KEY}", find_format(objects)
    if version is not None and version > FORMAT_VERSION:
        what = f"store format {version} is newer than {FORMAT_VERSION}, the newest this code reads"
        raise StorageError(where, what, "upgrade videoar")
    if version is not None and version < FORMAT_VERSION:
        what = f"store format {version} is older than {FORMAT_VERSION}, which this code reads"
        raise StorageError(where, what, "stop its writers, then run: videoar store migrate")


def find_format(objects: ObjectStore) -> int | None:
    """Return the format version of a store, None if nothing was written to it yet.

    Raises:
        DamagedError: the record is not readable.
    """
    data = objects.find(FORMAT_KEY)
    if data is None:
        has_records = any(is_record(info.key) for info in objects.list(RUNS_PREFIX)) or any(
            is_log_version(info.key) for info in objects.list(TABLES_PREFIX)
        )
        if not has_records:
            return None
        data = objects.find(FORMAT_KEY)  # a first writer may have been at work meanwhile
    if data is None:
        return 1
    try:
        version = json.loads(data)[_FIELD]
    except (ValueError, KeyError, TypeError):
        version = None
    # an unreadable record is no version 1: the store may be newer
    if not isinstance(version, int) or version < 1:
        hint = f'restore it from a copy, or write {{"{_FIELD}": {FORMAT_VERSION}}}'
        where = f"{objects.url}/{FORMAT_KEY}"
        raise DamagedError(where, "damaged: no format version in it", hint)
    return version


def record_format(objects: ObjectStore, *, if_absent: bool) -> bool:
    """Record that a store has the format of this version; return False if it has a record."""
    record = canonical_json({_FIELD: FORMAT_VERSION}).encode()
    return objects.put(FORMAT_KEY, record, if_absent=if_absent)


class WriteGuard:
    """Prepares a store for writing, once per process: probes put-if-absent, records the format."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._is_done = False

    def __call__(self) -> None:
        """Prepare the store; only the first call costs requests.

        Raises:
            StorageError: put-if-absent is not atomic, or the store has another format.
        """
        if self._is_done:
            return
        if not self._objects.is_local:  # POSIX makes link() atomic; an S3 server has to show it
            ensure_put_if_absent(self._objects)
        if find_format(self._objects) is None:
            # put, not find and put: two first writers must agree on one record
            record_format(self._objects, if_absent=True)
        # a writer that loses this race may be the older one of two: it checks the winner's record
        check_format(self._objects)
        self._is_done = True
