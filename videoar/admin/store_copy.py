"""Copy a store to another folder or bucket, and compare the two.

A copy of a store in use is one of the moment at which it began. Keys are listed from what names to
what is named: refs, then logs and commits, then records, then files and objects; so everything that
a listed key names exists by then. They are copied in the opposite order: whatever moment the copy
is killed at, nothing in it names what it lacks, and it has no ref before it has all of its target.
A second call continues it, and brings an older copy up to date.

Leases and claims stay behind: they are of living processes. So does the MLflow database, which
`videoar doctor --fix` fills from the copy. What a takedown has removed is removed
from the copy, too.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from videoar.core.errors import ConfigError, StorageError, WithdrawnError
from videoar.core.ids import sha256_hex
from videoar.core.prefetch import concurrently
from videoar.core.scratch import Scratch
from videoar.core.settings import settings
from videoar.storage import layout
from videoar.storage.local_store import LocalObjectStore
from videoar.storage.store import Store, open_store

_LEFT_OUT = (
    layout.LEASES_PREFIX, layout.CLAIMS_PREFIX, layout.PROBES_PREFIX, layout.MLFLOW_PREFIX,
)  # fmt: skip
_CONTENT = (
    layout.OBJECTS_PREFIX, layout.CHECKPOINTS_PREFIX, layout.TEXT_FEATURES_PREFIX,
    layout.JOB_VIDEOS_PREFIX,
)  # fmt: skip
_DIGEST = re.compile(r"([0-9a-f]{64})(?:\.\w+)*$")


def copy(store: Store, url: str) -> dict[str, Any]:
    """Copy everything that is not in the copy yet; read back and compare what was written.

    Args:
        store: the original.
        url: of the copy: an empty place, or an earlier copy of the same store.

    Returns:
        `{objects, bytes, copied, ok, errors}`: what the copy holds, how many objects of it this
        call wrote, and the damaged objects of the original, which were not copied.

    Raises:
        ConfigError: the copy is another store, not empty, or inside the original; or there is
            no original.
        StorageError: the copy has gone on by itself; or a store does not respond.
    """
    target = _opened(store, url)
    _claim(store, target)
    report: dict[str, Any] = {"objects": 0, "bytes": 0, "copied": 0, "ok": True, "errors": []}
    for keys in _in_order(store):
        for key, result in concurrently(partial(_copy_object, store, target), filter(None, keys)):
            _count(report, key, *result)
            report["copied"] += result[1]
    withdrawn = store.ledger.list(layout.WITHDRAWN_PREFIX)
    for key in map(layout.key_withdrawn_by, withdrawn):
        target.objects.purge(key)
    return report


def verify(store: Store, url: str) -> dict[str, Any]:
    """Compare a copy with its original, byte by byte.

    Returns:
        `{objects, bytes, ok, errors}`: an error for each object that the copy lacks or has other
        bytes of, such as those written since, and for each ref and log entry that only it has.
    """
    target = _opened(store, url)
    report: dict[str, Any] = {"objects": 0, "bytes": 0, "ok": True, "errors": []}
    for key, result in concurrently(partial(_compare, store, target), _all_keys(store)):
        _count(report, key, *result)
    for key in _added(store, target):
        _count(report, key, 0, False, "is not in the original")
    return report


def _opened(store: Store, url: str) -> Store:
    if store.objects.find(layout.FORMAT_KEY) is None:  # else a copy of nothing would be whole
        raise ConfigError(store.url, "there is no store", "name the one to copy: --store URL")
    return open_store(url, endpoint=settings().s3_endpoint)


def _count(report: dict[str, Any], key: str, size_bytes: int, _: bool, error: str) -> None:
    report["objects"] += not error
    report["bytes"] += 0 if error else size_bytes
    if error:
        report["ok"] = False
        report["errors"].append({"key": key, "error": error})


def _claim(store: Store, target: Store) -> None:
    """Mark the target as a copy of this store, before anything else makes it a store."""
    marker = sha256_hex(store.url.encode()).encode()
    places = sorted(f"{_place(each)}/" for each in (store, target))
    if places[0] != places[1] and places[1].startswith(places[0]):
        what = f"one of it and {store.url} is inside the other"
        raise ConfigError(target.url, what, "copy to a place of its own")
    if next(iter(target.objects.list("")), None) is None:
        target.objects.put(layout.COPY_KEY, marker, if_absent=True)
    if target.objects.find(layout.COPY_KEY) != marker:
        what = "is neither empty nor a copy of this store"
        raise ConfigError(target.url, what, "copy to an empty folder or prefix")
    target.ledger.prepare_write()
    for key in _added(store, target):
        raise _diverged(target, key)


def _added(store: Store, target: Store) -> Iterator[str]:
    """Yield refs and entries of logs of a copy that the original does not have."""
    for info in target.objects.list(""):
        if _is_history(info.key) and store.objects.size(info.key) is None:
            yield info.key


def _place(store: Store) -> str:
    """Return the URL of a store, of a folder without links and `..`."""
    objects = store.objects
    return objects.root.resolve().as_uri() if isinstance(objects, LocalObjectStore) else store.url


def _is_history(key: str) -> bool:
    """Return whether a key is of a ref or a log, which only ever grow."""
    return key.startswith(layout.REFS_PREFIX) or layout.is_log_version(key)


def _diverged(target: Store, key: str) -> StorageError:
    what = f"has gone on by itself, or is damaged: {key}"
    return StorageError(target.url, what, "copy to an empty place")


def _in_order(store: Store) -> Iterator[Iterable[str]]:
    """Yield groups of keys; those of one group may be copied in any order."""
    refs = [info.key for info in store.objects.list(layout.REFS_PREFIX)]
    runs: dict[str, list[str]] = defaultdict(list)
    for info in store.objects.list(layout.RUNS_PREFIX):
        runs[info.key.split("/")[1]].append(info.key)
    tables = [info.key for info in store.objects.list(layout.TABLES_PREFIX)]
    decisions = [info.key for info in store.objects.list(f"{layout.DECISIONS_LOG}/")]
    commits = [info.key for info in store.objects.list(layout.COMMITS_PREFIX)]
    folds = [info.key for info in store.objects.list(layout.FOLDS_PREFIX)]
    logs = [key for key in tables if layout.data_sha256(key) is None]
    later = (
        layout.REFS_PREFIX, layout.RUNS_PREFIX, layout.TABLES_PREFIX, layout.COMMITS_PREFIX,
        layout.FOLDS_PREFIX, f"{layout.DECISIONS_LOG}/",
    )  # fmt: skip
    records = [k for k in _all_keys(store) if not (_is_content(k) or k.startswith(later))]
    yield filter(_is_content, _all_keys(store))
    yield records
    # one after another: a version of a log without the one before it would end the log
    yield from ([key] for key in logs + decisions)
    yield commits
    # of each run the record, its events in their order, and what sums them up; all runs at once
    yield from zip_longest(*(sorted(keys, key=_place_in_run) for keys in runs.values()))
    yield from ([key] for key in refs)
    yield folds


def _place_in_run(key: str) -> tuple[bool, bool, str]:
    return key != layout.run_key(key.split("/")[1]), layout.is_folded_events(key), key


def _all_keys(store: Store) -> Iterator[str]:
    left_out = (*_LEFT_OUT, layout.FORMAT_KEY, layout.COPY_KEY)
    for info in store.objects.list(""):
        if "/" in info.key and not info.key.startswith(left_out):
            yield info.key


def _is_content(key: str) -> bool:
    return layout.data_sha256(key) is not None or key.startswith(_CONTENT)


def _copy_object(store: Store, target: Store, key: str) -> tuple[int, bool, str]:
    """Copy an object; return its size, whether it was written, and what is wrong with it."""
    size = store.objects.size(key)
    if size is None:  # deleted since it was listed
        return 0, False, ""
    digest = _DIGEST.search(key) if _is_content(key) else None
    if digest and target.objects.size(key) == size:
        return size, False, ""
    copied = _digest(target, key)
    if copied is not None and copied == _digest(store, key):
        return size, False, ""
    if copied is not None and _is_history(key):
        raise _diverged(target, key)
    with Scratch() as folder:
        path = folder / "object"
        try:
            sha256 = store.fetch(key, size, path)
        except WithdrawnError:
            return 0, False, ""
        if digest and sha256 != digest[1]:
            return size, False, "damaged: its bytes are not those of its name"
        target.objects.put_file(key, path)
    return size, True, "" if _digest(target, key) == sha256 else "read back other bytes"


def _compare(store: Store, target: Store, key: str) -> tuple[int, bool, str]:
    size = store.objects.size(key) or 0
    mine, copied = _digest(store, key), _digest(target, key)
    if mine is None or mine == copied:  # None: deleted since it was listed
        return size, False, ""
    if copied is None:
        return size, False, "missing"
    return size, False, "has other bytes" + (": delete it and copy again" * _is_content(key))


def _digest(store: Store, key: str) -> str | None:
    """Return the SHA-256 of an object, None if there is none."""
    size = store.objects.size(key)
    if size is None:
        return None
    try:
        return store.fetch(key, size, Path(os.devnull))
    except WithdrawnError:
        return None
