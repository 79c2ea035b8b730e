"""The run record: an immutable `run.json` and append-only events, folded into a `Run` on reading.

A killed run has no `finish` event, so by the record alone it looks like one in progress. A run
without that event whose driver has no living lease (`storage.lease`) is INTERRUPTED.
"""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field

from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, DamagedError, StorageError, did_you_mean
from videoar.core.hardware import hardware
from videoar.core.ids import new_run_id, run_time_s
from videoar.core.prefetch import concurrently
from videoar.core.processes import this_process
from videoar.core.settings import settings
from videoar.core.software import commit_id, packages_digest
from videoar.core.types import Json, Row, Stored
from videoar.pipeline.fingerprint import FingerprintParts
from videoar.pipeline.spec import PipelineSpec
from videoar.pipeline.work.progress import Progress, duration, read_progress
from videoar.pipeline.work.task import Usage
from videoar.storage.layout import (
    RUNS_PREFIX,
    cancel_key,
    claim_log,
    folded_events_key,
    lease_log,
    log_entry_key,
    run_claim,
    run_events,
    run_key,
)
from videoar.storage.lease import HolderWatch, Lease, claim_holder
from videoar.storage.ledger import current_user
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
OnDamage = Callable[[DamagedError], None]
_AT_ONCE = 64
"""chosen: records of runs that are read before it is known whether they are needed."""
Status = Literal[
    "PENDING", "RUNNING", "SUCCEEDED", "CACHED", "FAILED", "GATE_BLOCKED", "CANCELLED",
    "INTERRUPTED", "SKIPPED", "WAITING", "UNKNOWN", "TIMED_OUT", "QUEUED", "DAMAGED",
]  # fmt: skip
"""State of a run or a stage. SKIPPED: a stage outside the requested part (`--until`), or without
an input that it needs; PENDING: a requested stage that has not started; QUEUED: a run before which
another one has to end; DAMAGED: a run of which a record cannot be read, see `readable_run`."""

_EXIT_CODES = {
    "SUCCEEDED": 0, "FAILED": 3, "GATE_BLOCKED": 4, "TIMED_OUT": 6, "DAMAGED": 7, "UNKNOWN": 8,
    "CANCELLED": 130, "INTERRUPTED": 130,
}  # fmt: skip
"""Of the states in which a run has ended, until it is resumed."""


class ShardCounts(Stored):
    """Shards of a map stage; a loop or reduce stage counts as one shard."""

    planned: int = 0
    cached: int = 0
    done: int = 0
    quarantined: int = 0
    """Items rejected with a typed reason."""


class RowCounts(Stored):
    """Input, output and rejected rows of a stage."""

    model_config = ConfigDict(validate_by_name=True)
    in_: int = Field(default=0, alias="in")
    out: int = 0
    rejected: int = 0


class InputRun(Stored):
    """One listed input of a run, compared with the previous run of the same pipeline."""

    snapshot: str
    sources: int
    new: int
    changed: int
    """Sources with the same URI but another etag."""
    gone: int
    """Sources of the previous run that are no longer listed."""

    def __str__(self) -> str:
        difference = f"{self.new} new, {self.changed} changed, {self.gone} gone"
        return f"{self.sources} sources ({difference})"


class StageRun(Stored):
    """One stage of a run."""

    name: str
    type: str
    """Stage type, the value of `stage:` in the pipeline file."""
    status: Status = "PENDING"
    fingerprint: str | None = None
    snapshot: str | None = None
    rejects: str | None = None
    """Snapshot of the rejected rows; the id of `snapshot` does not depend on it."""
    inputs: dict[str, str] = Field(default_factory=dict)
    shards: ShardCounts = ShardCounts()
    rows: RowCounts = RowCounts()
    started_at: float | None = None
    """When it began, seconds since 1970."""
    seconds: float = 0.0
    """Duration; of a stage that runs, so far."""
    progress: Progress | None = None
    """How far it is, while it runs or where it was killed; not part of the record."""
    usage: Usage = Usage()
    """Of this run's work, without what was cached and what attempts before the last one used."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Sums over the shards of a map stage, of all attempts, and values derived from them."""
    reason: str = ""
    waiting: str = ""
    """What it waits for while it is WAITING: `lease: ...`, `store: ...` or `backoff: ...`."""
    error: str | None = None
    code: str | None = None
    """Reason code of the error."""

    @property
    def is_in_progress(self) -> bool:
        """Return whether the driver is at this stage."""
        return self.status in {"RUNNING", "WAITING"}


class Software(Stored):
    """Who ran it, and with which software."""

    user: str
    commit: str = ""
    """Of this package; "" if it was installed without its checkout."""
    is_clean: bool | None = None
    """Whether the code was that of the commit."""
    packages: str
    """SHA-256 over the names and versions of all installed packages."""
    python: str
    image: str = ""
    """The setting `image`."""

    @classmethod
    def current(cls) -> Self:
        """Return that of this process."""
        commit = commit_id()
        return cls(
            user=current_user(),
            commit=commit.removesuffix("-dirty"),
            is_clean=not commit.endswith("-dirty") if commit else None,
            packages=packages_digest(),
            python=platform.python_version(),
            image=settings().image,
        )


class Run(Stored):
    """One execution of a pipeline."""

    run_id: str
    pipeline: str
    status: Status
    started_at: float
    seconds: float
    code_version: str
    pipeline_digest: str
    document: dict[str, Any]
    source: str
    from_: str | None = Field(default=None, alias="from")
    """First requested stage; None: from the beginning. Stages before it must be cached."""
    until: str | None = None
    """Last requested stage; None: to the end."""
    trigger: dict[str, Any] | None = None
    """What a schedule started it for: key, and window or consumed snapshot."""
    stages: tuple[StageRun, ...]
    outputs: dict[str, str]
    """Stage name to snapshot id."""
    inputs: dict[str, InputRun] = Field(default_factory=dict)
    """Listed inputs by name."""
    software: Software | None = None
    """That of its newest driver."""
    accepted_drift: tuple[str, ...] = ()
    """What changed between two drivers of the run: `resume --accept-drift`."""
    queued_behind: str | None = None
    """While it is QUEUED: the run that has to end before."""
    error: str | None = None
    code: str | None = None
    """Reason code of the error, see `docs/operators.md`."""

    def stage(self, name: str) -> StageRun:
        """Return one stage.

        Raises:
            ConfigError: the run has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        hint = did_you_mean(name, [stage.name for stage in self.stages])
        raise ConfigError(name, f"run {self.run_id} has no such stage", hint)

    @property
    def has_ended(self) -> bool:
        """Return whether nothing works on it any more; a resume may change that."""
        return self.status in _EXIT_CODES

    @property
    def exit_code(self) -> int:
        """The exit code that stands for how the run ended; 0 while it has not."""
        return _EXIT_CODES.get(self.status, 0)

    def public(self) -> dict[str, Any]:
        """Return the JSON document that the command line prints."""
        return self.model_dump(mode="json", by_alias=True, exclude={"document"})


class RunLog:
    """Writer of the record of one run.

    Args:
        store: of the run.
        run_id: the run.
        fence: called before each write; raises if another driver has taken over.
    """

    def __init__(self, store: Store, run_id: str, fence: Callable[[], None]) -> None:
        self.run_id = run_id
        self._store = store
        self._fence = fence

    def create(
        self,
        spec: PipelineSpec,
        code_version: str,
        start: str | None,
        until: str | None,
        trigger: Mapping[str, Json] | None = None,
    ) -> None:
        """Create `run.json` if it does not exist; a resumed run keeps its first one."""
        record = {
            "run_id": self.run_id,
            "pipeline": spec.name,
            "pipeline_digest": spec.digest,
            "document": dict(spec.document),
            "source": spec.source,
            "from": start,
            "until": until,
            "trigger": trigger and dict(trigger),
            "code_version": code_version,
            "started_at": time.time(),
            "stages": [{"name": stage.name, "type": stage.type} for stage in spec.stages],
        }
        # False if a resumed run has one: its pipeline and start stay those of the first attempt
        self._store.ledger.create(run_key(self.run_id), record)

    def event(self, kind: str, **fields: Json) -> None:
        """Append one event."""
        self._fence()
        event = {"kind": kind, "time": time.time(), **fields}
        self._store.ledger.append(run_events(self.run_id), event)

    def driver(self, made_with: Json, accepted_drift: Sequence[str]) -> None:
        """Record the driver process of the run, and what it makes the run with."""
        process = this_process()
        self.event(
            "driver",
            host=process.host,
            pid=process.pid,
            hardware=hardware(),
            software=Software.current().model_dump(),
            made_with=made_with,
            accepted_drift=accepted_drift,
        )

    def queued(self, lease: str, *, is_first: bool = False) -> None:
        """Record that it starts when a lease is free.

        Args:
            lease: its name.
            is_first: record nothing if the run has an event: another process has started it.
        """
        if not is_first:
            self.event("queued", lease=lease)
            return
        event = {"kind": "queued", "time": time.time(), "lease": lease}
        self._store.ledger.create(log_entry_key(run_events(self.run_id), 0), event)

    def input(self, name: str, listed: InputRun) -> None:
        """Record the listing of an input."""
        self.event("input", name=name, input=listed.model_dump(mode="json"))

    def named(self, name: str, snapshot: str | None) -> None:
        """Record what an input `ref://` or `snapshot://` names; None: it is absent."""
        self.event("named", name=name, snapshot=snapshot)

    def stage(self, stage: StageRun, parts: FingerprintParts | None = None) -> None:
        """Record the new state of a stage."""
        extra = {"parts": parts} if parts else {}
        self.event("stage", stage=stage.model_dump(mode="json", by_alias=True), **extra)

    def finish(self, status: Status, error: str | None, code: str | None = None) -> None:
        """Record how the run ended, and its events in one object for readers."""
        self.event("finish", status=status, error=error, code=code)
        crash_point("run-finished")
        try:
            _fold(self._store, self.run_id)
        except StorageError as error_:
            logger.warning("events are read one by one: %s", error_)


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
        records = read_records(store, _event_keys(store, run_id))
        for damaged in (record for record in records if isinstance(record, DamagedError)):
            raise damaged
        return [record for record in records if isinstance(record, dict)]
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


def _fold(store: Store, run_id: str) -> None:
    """Write the events of a run in one object, unless an earlier driver has.

    Derived, and created once: what comes after it is read event by event.
    """
    key = folded_events_key(run_id)
    if store.objects.size(key) is None:
        events = events_of(store, run_id)
        # an event that is lost must stay visible as lost
        if len(events) == store.ledger.length(run_events(run_id)):
            store.ledger.create(key, {"events": events})


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
    requested = _requested_stages(record)
    stages = {
        raw["name"]: StageRun(**raw, status="PENDING" if raw["name"] in requested else "SKIPPED")
        for raw in record["stages"]
    }
    # events are in the order in which they were written, so the last state of each stage wins
    for event in events:
        if event["kind"] == "stage":
            stage = StageRun.model_validate(event["stage"])
            stages[stage.name] = stage
    state = _run_state(events)
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
        seconds=_busy_seconds(events, time.time() if is_running else None),
        outputs={stage.name: stage.snapshot for stage in stages.values() if stage.snapshot},
    )


def _run_state(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the events of a run say of it as a whole; `queued_behind` is a lease."""
    inputs: dict[str, InputRun] = {}
    drift: dict[str, None] = {}
    # killed between run.json and the first event of its driver
    status, error, code, software, lease = "PENDING", None, None, None, None
    for event in events:
        match event["kind"]:
            case "queued":
                status, lease = "QUEUED", event["lease"]
            case "input":
                inputs[event["name"]] = InputRun.model_validate(event["input"])
            case "finish":
                status, error, code = event["status"], event["error"], event.get("code")
                lease = None
            case "driver":  # a resumed run: an earlier `finish` no longer holds
                status, error, code, lease = "RUNNING", None, None, None
                software = event.get("software")
                drift |= dict.fromkeys(event.get("accepted_drift", ()))
    return {
        "status": status, "error": error, "code": code, "software": software, "inputs": inputs,
        "queued_behind": lease, "accepted_drift": tuple(drift),
    }  # fmt: skip


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


def _requested_stages(record: Mapping[str, Any]) -> set[str]:
    """Return the names of the stages up to `until`, its ancestors and itself; all without it."""
    stages = record["document"]["stages"]
    if record["until"] is None:
        return set(stages)
    requested: set[str] = set()
    queue = [record["until"]]
    while queue:
        name = queue.pop()
        if name in stages and name not in requested:  # the ports of a stage may also name inputs
            requested.add(name)
            queue += stages[name].get("from", {}).values()
    return requested


def _busy_seconds(events: list[dict[str, Any]], now: float | None) -> float:
    """Return the sum of the time from each driver's first to its last event, or to now.

    The time between an interruption and the resume does not count.
    """
    total, first, last = 0.0, 0.0, 0.0
    for event in events:
        if event["kind"] == "driver":
            total, first = total + last - first, event["time"]
        last = event["time"] if first else 0.0  # time in a queue does not count
    return total + (now or last) - first


def stage_parts(store: Store, run_id: str, stage: str) -> FingerprintParts | None:
    """Return the fingerprint parts that a run recorded for a stage, None if it has none."""
    result: FingerprintParts | None = None
    for event in events_of(store, run_id):
        if event["kind"] == "stage" and event["stage"]["name"] == stage and "parts" in event:
            # the last ones: a resumed run records them again, perhaps by newer code
            result = event["parts"]
    return result


def _warn(error: DamagedError) -> None:
    logger.warning("%s; an earlier run is compared", error)


def _refuse(error: DamagedError) -> None:
    raise error


def previous_parts(
    store: Store,
    pipeline: str,
    stage: str,
    before: str | None = None,
    on_damage: OnDamage = _warn,
) -> tuple[str, FingerprintParts] | None:
    """Return the newest run of a pipeline that recorded this stage, and its parts.

    Args:
        store: where runs are recorded.
        pipeline: name of the pipeline.
        stage: name of the stage.
        before: only runs before this run id.
        on_damage: called for each run with a damaged record; the one before it is taken.
    """
    parts = _newest(store, pipeline, before, lambda i: stage_parts(store, i, stage), on_damage)
    return next(parts, None)


def previous_input(store: Store, pipeline: str, name: str, before: str) -> InputRun | None:
    """Return the listing of an input by the newest run of a pipeline before `before`."""
    listed = _newest(store, pipeline, before, lambda i: load_run(store, i).inputs.get(name), _warn)
    return next((value for _, value in listed), None)


def _newest(
    store: Store,
    pipeline: str,
    before: str | None,
    read: Callable[[str], _T | None],
    on_damage: OnDamage,
) -> Iterator[tuple[str, _T]]:
    """Yield what is read of the runs of a pipeline that have it, newest first."""
    for run_id in _newest_first(store, pipeline, before, on_damage):
        try:
            value = read(run_id)
        except DamagedError as error:
            on_damage(error)
        else:
            if value is not None:
                yield run_id, value


def ended_runs(store: Store, pipeline: str, before: str | None) -> Iterator[Run]:
    """Yield the runs of a pipeline that came to their end, newest first.

    That is a decision: a model, or a gate that blocked. Runs that were stopped or failed, or that
    were asked for a part of the pipeline only, or skipped all of it, are left out.
    """
    for run_id in _newest_first(store, pipeline, before):
        run = load_run(store, run_id)
        is_whole = run.until is None and any(stage.status != "SKIPPED" for stage in run.stages)
        if is_whole and run.status in {"SUCCEEDED", "GATE_BLOCKED"}:
            yield run


def _newest_first(
    store: Store, pipeline: str, before: str | None, on_damage: OnDamage = _refuse
) -> Iterator[str]:
    ids = [run_id for run_id in reversed(run_ids(store)) if before is None or run_id < before]
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        records = read_records(store, [run_key(run_id) for run_id in some])
        for run_id, record in zip(some, records, strict=True):
            if isinstance(record, DamagedError):
                on_damage(record)
            elif record is not None and record.get("pipeline") == pipeline:
                yield run_id


def cancel_run(store: Store, run_id: str) -> None:
    """Ask the driver of a run, on any host, to stop; it records CANCELLED.

    The driver looks for such requests with each heartbeat of its lease. A run that waits for a tick
    has none; this process ends it in its place.

    Raises:
        ConfigError: the run is not running.
        LeaseHeldError: another process cancels it.
    """
    if load_run(store, run_id).status not in {"RUNNING", "QUEUED"}:
        raise ConfigError(run_id, "is not running")
    claim = store.ledger.length(claim_log(run_claim(run_id))) - 1
    if claim < 0 and _end_queued(store, run_id):
        return
    _request_cancel(store, run_id, max(claim, 0))


def _request_cancel(store: Store, run_id: str, claim: int) -> None:
    store.ledger.create(cancel_key(run_id, claim), {"user": current_user(), "at": time.time()})


def _end_queued(store: Store, run_id: str) -> bool:
    """Record the end of a run that no process drives; return False if one was faster."""
    lease = Lease(store, run_claim(run_id), f"run {run_id}")
    lease.acquire()
    try:
        # a driver that starts now finds this claim, and goes on when it has ended
        claim = lease.claim(run_claim(run_id), lambda _: True)
        if claim is None:
            return False
        _request_cancel(store, run_id, claim)
        crash_point("queued-cancelled")
        what = f"cancelled by {current_user()}"
        RunLog(store, run_id, lease.require_held).finish("CANCELLED", what, "CANCELLED")
    finally:
        lease.release()
    return True
