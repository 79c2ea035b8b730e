"""Bring a store of format version 1 to version 2: seal its records and commits.

A record is replaced in one step, one that has its digest is left alone, and the new version is
recorded last: a call that was killed is repeated. A process of an earlier version of videoar that
still writes would leave records without a digest, so all of them must have ended before.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from videoar.core.crash_points import crash_point
from videoar.core.errors import DamagedError
from videoar.core.ids import canonical_json
from videoar.core.prefetch import concurrently
from videoar.storage import layout
from videoar.storage.ledger import is_sealed, seal, unseal
from videoar.storage.store import Store
from videoar.storage.store_format import check_format, find_format, record_format

_NONCE = "append_nonce"  # of no use: an append that was repeated is known by its content


def migrate(store: Store) -> dict[str, Any]:
    """Migrate a store to the format of this version.

    Args:
        store: opened with `any_format`.

    Returns:
        `{from, to, sealed, ok, damaged}`: the versions, how many records and commits got a digest,
        and those that cannot be read, which stay as they are.

    Raises:
        StorageError: its format is newer.
    """
    before = find_format(store.objects)
    if before is None or before >= layout.FORMAT_VERSION:
        check_format(store.objects)
        return {"from": before, "to": before, "sealed": 0, "ok": True, "damaged": []}
    sealed, damaged = 0, []

    def seal_one(key: str) -> bool | DamagedError:
        try:
            return _seal(store, key)
        except DamagedError as error:
            return error

    for _, result in concurrently(seal_one, _keys(store)):
        if isinstance(result, DamagedError):
            damaged.append(str(result))
        else:
            sealed += result
    record_format(store.objects, if_absent=False)
    return {
        "from": before, "to": layout.FORMAT_VERSION, "sealed": sealed, "ok": not damaged,
        "damaged": damaged,
    }  # fmt: skip


def _keys(store: Store) -> Iterator[str]:
    for info in store.objects.list(""):
        if layout.is_record(info.key) or layout.is_log_version(info.key):
            yield info.key


def _seal(store: Store, key: str) -> bool:
    """Give a record or commit its digest; return whether it had none."""
    before = store.objects.find(key)
    if before is None:  # deleted since it was listed
        return False
    lines = before.splitlines() if layout.is_log_version(key) else [before]
    try:
        data = b"\n".join(_sealed_line(key, line) for line in lines if line.strip())
    except (TypeError, ValueError) as error:
        raise DamagedError(key, "damaged: no JSON object", "restore it from a copy") from error
    if data == b"\n".join(line for line in lines if line.strip()):
        return False
    store.objects.put(key, data)
    crash_point("migrate.sealed")
    return True


def _sealed_line(key: str, line: bytes) -> bytes:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise TypeError(type(record))
    if not layout.is_log_version(key):
        return _sealed(key, record, lambda sealed: sealed) or line
    commit = record.get("commitInfo", {}).get("videoar")
    if commit is None:
        return line
    if isinstance(commit, str):
        commit = json.loads(commit)

    def in_log(sealed: dict[str, Any]) -> dict[str, Any]:
        return {**record, "commitInfo": {**record["commitInfo"], "videoar": canonical_json(sealed)}}

    return _sealed(key, commit, in_log) or line


def _sealed(
    key: str, record: dict[str, Any], place: Callable[[dict[str, Any]], dict[str, Any]]
) -> bytes | None:
    """Return a record with its digest, in its place; None if it has one.

    Raises:
        DamagedError: the one it has is wrong, or there is nothing in it.
    """
    if is_sealed(record):
        unseal(key, record)
        return None
    record.pop(_NONCE, None)
    if not record:
        raise DamagedError(key, "damaged: an empty record", "restore it from a copy")
    return canonical_json(place(seal(key, record))).encode()
