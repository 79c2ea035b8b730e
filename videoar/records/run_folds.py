"""All runs of a store with few requests: runs that have succeeded change no more, and are folded.

Runs are a log in the order of their ids. The fold of a block has record and events of those that
had succeeded when it was written, see `storage.folds`; all others are read as `readable_run` does.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from videoar.core.prefetch import concurrently
from videoar.records.run import Run
from videoar.records.run_record import events_of, fold_run, readable_run, run_ids
from videoar.storage import folds, layout
from videoar.storage.store import Store


def all_runs(store: Store) -> list[Run]:
    """Return all runs, newest first, as `readable_run` does; all keys of runs are listed."""
    values = dict(folds.read(store.ledger, [_log(store)], lambda _: None))
    others = [layout.run_of(key) for key, value in values.items() if value is None]
    runs = dict(concurrently(partial(readable_run, store), others))
    for value in filter(None, values.values()):
        runs[value["record"]["run_id"]] = fold_run(store, value["record"], value["events"])
    return [runs[run_id] for run_id in sorted(runs, reverse=True)]


def fold_runs(store: Store) -> int:
    """Make the folds of runs that are missing; return how many.

    Raises:
        DamagedError: a record of a run is damaged.
    """
    return folds.write(store.ledger, _log(store), partial(_value, store))


def fold_runs_if_due(store: Store, run_id: str) -> None:
    """Fold runs if this one, which has ended, may complete a block; errors are logged."""
    ids = run_ids(store)
    if run_id in ids:
        number = ids.index(run_id)
        folds.write_if_due(store.ledger, number, partial(_log, store), partial(_value, store))


def _log(store: Store) -> folds.Log:
    entries: dict[str, folds.Entry] = {}
    for info in store.objects.list(layout.RUNS_PREFIX):
        key = layout.run_key(layout.run_of(info.key))
        entries.setdefault(key, folds.Entry(key, None))
        if info.key == key:
            entries[key] = folds.Entry(key, info.size_bytes, info.etag)
    return folds.Log(layout.RUNS_PREFIX, list(entries.values()))


def _value(store: Store, key: str) -> Mapping[str, Any] | None:
    record, events = store.ledger.read(key), events_of(store, layout.run_of(key))
    newest = events[-1] if events else {}
    if record is None or (newest.get("kind"), newest.get("status")) != ("finish", "SUCCEEDED"):
        return None
    # fingerprint parts are most of the events, and no part of a run's state
    return {"record": record, "events": [{**event, "parts": None} for event in events]}
