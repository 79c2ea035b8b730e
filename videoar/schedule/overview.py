"""What `videoar schedule ls` shows, from the store alone."""

from datetime import datetime, timedelta
from typing import Any

from videoar.core.errors import ConfigError, DamagedError
from videoar.pipeline.trigger import Trigger
from videoar.records.run import Run
from videoar.records.run_record import readable_run
from videoar.schedule import records
from videoar.storage.layout import run_key
from videoar.storage.store import Store

_HORIZON = timedelta(days=366 * 5)
"""Long enough for every cron expression but 29 February of some weekday."""


def schedule_of(store: Store, pipeline: str, now: datetime) -> dict[str, Any]:
    """Return the schedule of a pipeline, its next window, and how many are due.

    Raises:
        ConfigError: no tick has seen a schedule of this name.
    """
    control = records.control(store, pipeline)
    if control is None:
        raise ConfigError(pipeline, "no tick has seen a schedule of this name")
    trigger = Trigger.model_validate(control.schedule["trigger"])
    windows = [f.window for f in records.firings(store, pipeline) if f.window]
    after = max([control.since, *windows])
    is_cron = trigger.cron is not None
    following = next(trigger.windows(max(after, now), now + _HORIZON), None) if is_cron else None
    return {
        "pipeline": pipeline,
        "trigger": trigger.model_dump(mode="json", exclude_defaults=True),
        "concurrency": control.schedule["concurrency"],
        "is_paused": control.is_paused,
        "since": control.since.isoformat(),
        "next": following.isoformat() if following else None,
        "missed": len(list(trigger.windows(after, now))) if is_cron else 0,
    }


def firings_of(store: Store, pipeline: str, limit: int) -> list[dict[str, Any]]:
    """Return the newest firings of a pipeline, newest key first.

    One with a damaged record is DAMAGED, and its reason names the record.
    """
    firings = records.firings(store, pipeline)[::-1][:limit]
    return [{
        "pipeline": pipeline, "key": firing.key, "number": firing.number,
        **_state_of(store, firing), "is_released": firing.is_released,
    } for firing in firings]  # fmt: skip


def _state_of(store: Store, firing: records.Firing) -> dict[str, Any]:
    try:
        record = records.read(store, firing)
        end = store.ledger.read(firing.record_key("end")) if firing.has_ended else None
    except DamagedError as error:
        what = {"status": "DAMAGED", "reason": str(error)}
        return {"run_id": None, "cause": {}, "at": 0.0, **what}
    run = None if end else _run(store, record["run_id"])
    behind = f"waits for run {run.queued_behind}" if run and run.queued_behind else None
    damage = run.error if run and run.status == "DAMAGED" else None
    return {
        "run_id": record["run_id"],
        "cause": record["cause"],
        "at": record["at"],
        # PENDING: recorded, and its run not started yet
        "status": end["status"] if end else run.status if run else "PENDING",
        "reason": record.get("reason") or behind or damage,
    }


def _run(store: Store, run_id: str | None) -> Run | None:
    is_recorded = run_id and store.objects.size(run_key(run_id)) is not None
    return readable_run(store, run_id) if run_id and is_recorded else None
