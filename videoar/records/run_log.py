"""Writers of the run record: the driver of a run, and who asks it to stop."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, StorageError
from videoar.core.hardware import hardware
from videoar.core.processes import this_process
from videoar.core.types import Json
from videoar.pipeline.fingerprint import FingerprintParts
from videoar.pipeline.spec import PipelineSpec
from videoar.records.run import InputRun, Software, StageRun, Status
from videoar.records.run_record import events_of, load_run
from videoar.storage.layout import (
    cancel_key,
    claim_log,
    folded_events_key,
    log_entry_key,
    run_claim,
    run_events,
    run_key,
)
from videoar.storage.lease import Lease
from videoar.storage.ledger import current_user
from videoar.storage.store import Store

logger = logging.getLogger(__name__)


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
