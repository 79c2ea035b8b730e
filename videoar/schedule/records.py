"""What the store knows about the schedule of a pipeline: firings, pauses, and new data seen.

A firing is a create-once record under its key, so of all ticks that find the same window or data
due, one fires. It has the id of its run: whoever finds a firing without an end finishes that run.
Nothing is rewritten. A released key gets a next firing, with the next number.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.names import is_name
from videoar.pipeline.trigger import Schedule
from videoar.schedule.decide import Due
from videoar.storage.layout import (
    SCHEDULES_PREFIX,
    TRIGGERS_PREFIX,
    log_entry_key,
    schedule_log,
    schedule_of,
    seen_log,
    trigger_key,
    trigger_of,
    triggers_prefix,
)
from videoar.storage.ledger import Record, current_user
from videoar.storage.store import Store


@dataclass(frozen=True)
class Firing:
    """The newest firing of a key, as far as the names of its records tell."""

    pipeline: str
    key: str
    number: int
    has_ended: bool
    is_released: bool

    def record_key(self, kind: str = "") -> str:
        """Return the store key of its record, or of its `end` or `released` record."""
        return trigger_key(self.pipeline, self.key, self.number, kind)

    @property
    def window(self) -> datetime | None:
        """The window of a cron trigger; None for new data."""
        stamp = self.key.partition("-")[0]
        if stamp == "data":
            return None
        return datetime.strptime(stamp, "%Y%m%dt%H%M%Sz").replace(tzinfo=UTC)


def firings(store: Store, pipeline: str = "") -> list[Firing]:
    """Return the newest firing of each key, sorted by key; of all pipelines if none is given."""
    prefix = triggers_prefix(pipeline) if pipeline else TRIGGERS_PREFIX
    kinds: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for listed in store.ledger.list(prefix):
        name, key, number, kind = trigger_of(listed)
        kinds.setdefault((name, key), set()).add((number, kind))
    result = []
    for (name, key), known in sorted(kinds.items()):
        newest = max(number for number, _ in known)
        ended, released = (newest, "end") in known, (newest, "released") in known
        result.append(Firing(name, key, newest, ended, released))
    return result


def find_firing(store: Store, key: str) -> Firing:
    """Return the newest firing of a key, or of a unique prefix of one.

    Raises:
        ConfigError: no key, or several, begin like this.
    """
    known = firings(store)
    found = [firing for firing in known if firing.key.startswith(key)]
    exact = [firing for firing in found if firing.key == key]
    if len(exact or found) != 1:
        what = "no such key" if not found else f"{len(found)} keys begin like this"
        hint = did_you_mean(key, [firing.key for firing in known[-10:]]) if known else ""
        raise ConfigError(key or "''", what, hint or "nothing has fired yet")
    return (exact or found)[0]


def fire(
    store: Store, pipeline: str, due: Due, now: datetime, run_id: str, number: int = 0
) -> bool:
    """Record that a run is to be started; return False if another tick has recorded the key."""
    record = {"run_id": run_id, "cause": due.cause, "at": now.timestamp(), "by": current_user()}
    return store.ledger.create(trigger_key(pipeline, due.key, number), record)


def skip(store: Store, pipeline: str, due: Due, now: datetime, reason: str) -> bool:
    """Record that nothing is started; return False if another tick has recorded the key."""
    record = {"run_id": None, "cause": due.cause, "at": now.timestamp(), "reason": reason}
    created = store.ledger.create(trigger_key(pipeline, due.key, 0), record)
    if created:
        end(store, Firing(pipeline, due.key, 0, has_ended=False, is_released=False), "SKIPPED", now)
    return created


def read(store: Store, firing: Firing) -> Record:
    """Return the record of a firing: `{run_id, cause, at, by}`; `run_id` is None if skipped."""
    return store.ledger.read(firing.record_key()) or {"run_id": None, "cause": {}, "at": 0.0}


def end(store: Store, firing: Firing, status: str, now: datetime, **extra: object) -> None:
    """Record how a firing has ended; a second time changes nothing."""
    record = {"status": status, "at": now.timestamp(), **extra}
    store.ledger.create(firing.record_key("end"), record)


def release(store: Store, key: str, now: datetime) -> Firing:
    """Let a key fire once more, at the next tick, for the same window or data.

    Raises:
        ConfigError: no such key, or its run has not ended.
    """
    firing = find_firing(store, key)
    if not firing.has_ended:
        run_id = read(store, firing)["run_id"]
        hint = f"videoar cancel {run_id}, or wait for its end"
        raise ConfigError(firing.key, f"its run {run_id} has not ended", hint)
    record = {"at": now.timestamp(), "by": current_user()}
    store.ledger.create(firing.record_key("released"), record)
    return firing


@dataclass(frozen=True)
class Control:
    """Since when a schedule counts, and whether it is paused."""

    schedule: dict[str, Any]
    since: datetime
    is_paused: bool
    by: str


def control(store: Store, pipeline: str) -> Control | None:
    """Return the newest control record of a schedule; None before its first tick."""
    record = store.ledger.last(schedule_log(pipeline))
    if record is None:
        return None
    since = datetime.fromtimestamp(record["since"], UTC)
    return Control(record["schedule"], since, record["is_paused"], record["by"])


def register(store: Store, pipeline: str, schedule: Schedule, now: datetime) -> Control:
    """Return the control record; a new or changed trigger counts from now on."""
    wanted = schedule.model_dump(mode="json", exclude={"hooks"})
    while (known := control(store, pipeline)) is None or known.schedule != wanted:
        is_same = known is not None and known.schedule["trigger"] == wanted["trigger"]
        since = known.since if known and is_same else now
        paused, by = (known.is_paused, known.by) if known else (False, "")
        _append(store, pipeline, Control(wanted, since, paused, by))
    return known


def pause(store: Store, pipeline: str, *, paused: bool, now: datetime) -> Control:
    """Pause or resume a schedule; windows during a pause are not missed.

    Raises:
        ConfigError: no tick has seen the schedule yet.
    """
    while True:
        known = control(store, pipeline) if is_name(pipeline) else None
        if known is None:
            names = scheduled_pipelines(store)
            hint = did_you_mean(pipeline, names) if names else "there is none yet"
            raise ConfigError(pipeline, "no tick has seen a schedule of this name", hint)
        if known.is_paused == paused:
            return known
        since = known.since if paused else now
        _append(store, pipeline, Control(known.schedule, since, paused, current_user()))


def _append(store: Store, pipeline: str, new: Control) -> None:
    """Create the next control record; without effect if another process has created it."""
    log = schedule_log(pipeline)
    record = {
        "schedule": new.schedule,
        "since": new.since.timestamp(),
        "is_paused": new.is_paused,
        "by": new.by,
    }
    store.ledger.create(log_entry_key(log, store.ledger.length(log)), record)


def scheduled_pipelines(store: Store) -> list[str]:
    """Return the pipelines whose schedule a tick has seen, sorted."""
    return sorted({schedule_of(key) for key in store.ledger.list(SCHEDULES_PREFIX)})


def observe(
    store: Store, pipeline: str, key: str, digest: str, now: datetime
) -> tuple[float, float]:
    """Record a listing with new sources; return when the first and when this one were seen."""
    log = seen_log(pipeline, key)
    last = store.ledger.last(log)
    if last is None or last["digest"] != digest:
        last = {"digest": digest, "at": now.timestamp()}
        store.ledger.append(log, last)
    first = store.ledger.read(log_entry_key(log, 0)) or last
    return first["at"], last["at"]
