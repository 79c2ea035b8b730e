"""The run record: an immutable `run.json` and append-only events, folded into a `Run` on reading.

A killed run has no `finish` event, so by the record alone it looks like one in progress. A run
without that event whose driver has no living lease (`storage.lease`) is INTERRUPTED. `run_log`
writes the record.
"""

import time
from collections.abc import Sequence
from typing import Any

from videoar.core.errors import ConfigError, DamagedError
from videoar.core.ids import new_run_id, run_time_s
from videoar.core.prefetch import concurrently
from videoar.core.types import Row
from videoar.pipeline.work.progress import duration, read_progress
from videoar.records.run import Run, StageRun, busy_seconds, requested_stages, run_state
from videoar.storage.layout import (
    RUNS_PREFIX,
    claim_log,
    folded_events_key,
    lease_log,
    log_entry_key,
    run_claim,
    run_events,
    run_key,
)
from videoar.storage.lease import HolderWatch, claim_holder
from videoar.storage.store import Store


def _is_driven(store: Store, run_id: str) -> bool:
    """Return whether the driver of a run lives, as far as can be known without waiting."""
    return _lives(claim_holder(store, run_claim(run_id)))


def _lives(holder: HolderWatch | None) -> bool:
    return holder is not None and not holder.has_ended() and not holder.is_silent()


def _place(store: Store, run_id: str, lease: str) -> dict[str, Any]:
    """Return the state of a run that waits for a lease, and the run that has the lease."""
    # without a claim no process waits: the next tick of its schedule starts it
    if store.ledger.length(claim_log(run_claim(run_id))) and not _is_driven(store, run_id):
        return {"status": "INTERRUPTED", "queued_behind": None}
    holder = HolderWatch(store, lease, store.ledger.length(lease_log(lease)) - 1)
    return {"queued_behind": holder.owner.removeprefix("run ") if _lives(holder) else None}


def run_ids(store: Store) -> list[str]:
    """Return all run ids, oldest first."""
    return list(store.objects.folders(RUNS_PREFIX))


def next_run_id(store: Store) -> str:
    """Return a run id that sorts after all runs of the store, also if the clock was set back."""
    return new_run_id(after=run_ids(store))


def events_of(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Return the events of a run in order."""
    log, events = run_events(run_id), _folded_events(store, run_id)
    if not events:
        keys = _event_keys(store, run_id)
        if store.objects.is_local:
            return list(map(store.ledger.read_entry, keys))
        return [event for _, event in concurrently(store.ledger.read_entry, keys)]
    # it may have been resumed since
    while (event := store.ledger.read(log_entry_key(log, len(events)))) is not None:
        events.append(event)
    return events


def _event_keys(store: Store, run_id: str) -> list[str]:
    log = run_events(run_id)
    return [log_entry_key(log, number) for number in range(store.ledger.length(log))]


def read_records(store: Store, keys: Sequence[str]) -> list[dict[str, Any] | DamagedError | None]:
    """Return records; None for each that is missing, the error of each that is damaged.

    From a remote store several at once.
    """
    if store.objects.is_local:
        return list(map(store.ledger.try_read, keys))
    return [record for _, record in concurrently(store.ledger.try_read, keys)]


def _folded_events(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Return the events that were written in one object; none without one, or if it is damaged."""
    folded = store.ledger.read_derived(folded_events_key(run_id))
    return folded["events"] if folded else []


def last_driver(store: Store, run_id: str) -> dict[str, Any]:
    """Return the event of the newest driver of a run, empty without one."""
    drivers = [event for event in events_of(store, run_id) if event["kind"] == "driver"]
    return drivers[-1] if drivers else {}


def has_succeeded(store: Store, run_id: str) -> bool:
    """Return whether the newest event of a run is its successful end."""
    newest = store.ledger.last(run_events(run_id)) or {}
    return (newest.get("kind"), newest.get("status")) == ("finish", "SUCCEEDED")


def load_run(store: Store, run_id: str) -> Run:
    """Fold a run's record and events into its state.

    Raises:
        ConfigError: no such run.
    """
    record = store.ledger.read(run_key(run_id))
    if record is None:
        raise ConfigError(run_id, "no such run", "videoar ls lists them")
    return fold_run(store, record, events_of(store, run_id))


def readable_run(store: Store, run_id: str) -> Run:
    """Return the state of a run for people; nothing may be decided by it.

    If a record of it is damaged or lost, its status is DAMAGED, `error` names all such records, and
    the rest is what the others tell.
    """
    try:
        return load_run(store, run_id)
    except (ConfigError, DamagedError):
        pass
    keys = [run_key(run_id), *_event_keys(store, run_id)]
    records = dict(zip(keys, read_records(store, keys), strict=True))
    damaged = [str(record) for record in records.values() if isinstance(record, DamagedError)]
    damaged += [f"{key}: lost (restore it from a copy)" for key in keys if records[key] is None]
    record, *events = ({} if not isinstance(r, dict) else r for r in records.values())
    record = record or {
        "run_id": run_id, "pipeline": "", "pipeline_digest": "", "document": {"stages": {}},
        "source": "", "until": None, "code_version": "", "stages": [],
        "started_at": run_time_s(run_id) or 0.0,
    }  # fmt: skip
    events = list(filter(None, events))
    try:
        run = fold_run(store, record, events)
    except DamagedError as error:  # of its lease
        damaged.append(str(error))
        run = fold_run(store, record, [])
    if not damaged:  # it was written at this moment
        return run
    what = {"error": "; ".join(damaged), "code": DamagedError.code}
    return run.model_copy(update={"status": "DAMAGED", **what})


def fold_run(store: Store, record: Row, events: list[dict[str, Any]]) -> Run:
    """Fold the record and the events of a run into its state.

    Raises:
        DamagedError: the claim or lease of its driver is damaged.
    """
    run_id = record["run_id"]
    # a stage that was not requested has no events: `run.json` alone tells it from one still to come
    requested = requested_stages(record)
    stages = {
        raw["name"]: StageRun(**raw, status="PENDING" if raw["name"] in requested else "SKIPPED")
        for raw in record["stages"]
    }
    # events are in the order in which they were written, so the last state of each stage wins
    for event in events:
        if event["kind"] == "stage":
            stage = StageRun.model_validate(event["stage"])
            stages[stage.name] = stage
    state = run_state(events)
    # computed on reading: a killed process records nothing
    if state["status"] == "RUNNING" and not _is_driven(store, run_id):
        state["status"] = "INTERRUPTED"
    elif state["status"] == "QUEUED":
        state |= _place(store, run_id, state["queued_behind"])
    is_running = state["status"] == "RUNNING"
    for name, stage in stages.items():
        if stage.is_in_progress:
            until = time.time() if is_running else events[-1]["time"]
            current = with_progress(store, run_id, stage, until)
            ended = {} if is_running else {"status": state["status"], "waiting": ""}
            stages[name] = current.model_copy(update=ended)
    return Run(
        **{**record, **state, "stages": tuple(stages.values())},
        seconds=busy_seconds(events, time.time() if is_running else None),
        outputs={stage.name: stage.snapshot for stage in stages.values() if stage.snapshot},
    )


def with_progress(store: Store, run_id: str, stage: StageRun, until: float) -> StageRun:
    """Return a stage that runs with its progress, its shards and its seconds so far.

    While the store does not answer it is WAITING, and nothing is read.

    Args:
        store: of the run.
        run_id: the run.
        stage: as it was recorded.
        until: seconds since 1970; now, or when the run was last seen.
    """
    changes: dict[str, Any] = {"seconds": round(max(0.0, until - (stage.started_at or until)), 3)}
    if silent_s := store.objects.unavailable_s:
        waiting = f"store: no answer for {duration(silent_s)}"
        return stage.model_copy(update={**changes, "status": "WAITING", "waiting": waiting})
    found = read_progress(store, run_id, stage.name)
    if found is not None:
        changes["progress"] = progress = found[0]
        if progress.unit == "shard":
            done = progress.step - stage.shards.cached
            changes["shards"] = stage.shards.model_copy(update={"done": done})
    return stage.model_copy(update=changes)


def named_inputs(store: Store, run_id: str) -> dict[str, str | None]:
    """Return the snapshots that a run reads as `ref://` and `snapshot://`; None: absent."""
    events = events_of(store, run_id)
    return {event["name"]: event["snapshot"] for event in events if event["kind"] == "named"}
