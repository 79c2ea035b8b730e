"""One tick of a schedule: record what is due, then advance every firing that has not ended.

Idempotent, and safe to call from several places at once. Killed anywhere, the next tick goes on: a
firing without a run gets the run of its record, a run whose driver is gone is continued, and what
hooks have not got yet is sent again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from videoar import __version__
from videoar.core.crash_points import crash_point
from videoar.core.errors import ClusterUnknownError, ConfigError, LeaseHeldError, VideoARError
from videoar.core.types import Json, Provenance
from videoar.pipeline.spec import PipelineSpec
from videoar.pipeline.trigger import NewSnapshot, Trigger
from videoar.records.run import Run
from videoar.records.run_log import RunLog
from videoar.records.run_record import next_run_id
from videoar.runner.inputs import Listing, count_new, resolve
from videoar.schedule import records
from videoar.schedule.decide import (
    Decision,
    Due,
    NewData,
    State,
    data_key,
    due,
    window_key,
)
from videoar.schedule.hooks import HookSender
from videoar.schedule.records import Firing
from videoar.storage.delta_log import iter_commits
from videoar.storage.layout import schedule_lease
from videoar.storage.lease import Lease
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_ENDED = {"SUCCEEDED", "FAILED", "GATE_BLOCKED", "CANCELLED", "TIMED_OUT"}
_TO_START = {"PENDING", "INTERRUPTED", "QUEUED"}
_HINT = "a later tick continues"


class Launcher(Protocol):
    """How the run of a firing is executed: in this process, or as a job elsewhere."""

    def find(self, run_id: str) -> Run | None:
        """Return a run, None if it was never started."""

    def launch(self, spec: PipelineSpec, run_id: str, cause: Mapping[str, Json]) -> None:
        """Start a run under this id, or continue it; may return before it ends.

        Args:
            spec: the pipeline of now.
            run_id: the run.
            cause: kept in its record, see `Due`.

        Raises:
            VideoARError: what stopped the run.
        """

    def cancel(self, run_id: str) -> None:
        """End a run; what it has finished stays."""


@dataclass
class Outcome:
    """What a tick did about one firing or pipeline."""

    pipeline: str
    key: str = ""
    run_id: str = ""
    status: str = ""
    reason: str = ""
    error: VideoARError | None = None
    has_acted: bool = False
    """Whether this tick has started, continued or concluded the run."""

    def public(self) -> dict[str, Any]:
        """Return it as JSON."""
        names = ("pipeline", "key", "run_id", "status", "reason")
        result = {name: value for name in names if (value := getattr(self, name))}
        return result | ({"error": str(self.error)} if self.error else {})


class Ticker:
    """Ticks for one pipeline.

    Args:
        spec: the pipeline, with a trigger.
        store: where its schedule is recorded.
        launcher: executes its runs.
        now: time of the tick.

    Raises:
        ConfigError: the pipeline has no trigger.
    """

    def __init__(self, spec: PipelineSpec, store: Store, launcher: Launcher, now: datetime) -> None:
        if spec.schedule.trigger is None:
            what = "has no trigger"
            raise ConfigError(spec.source, what, 'e.g. trigger: {cron: "0 3 * * *"}')
        self._spec, self._store, self._launcher, self._now = spec, store, launcher, now
        self._trigger: Trigger = spec.schedule.trigger
        self._hooks = HookSender(store, spec.schedule.hooks)
        self._listed: Listing | Snapshot | None = None

    def tick(self) -> list[Outcome]:
        """Do what is due; return what was done, and what not and why."""
        control = records.register(self._store, self._spec.name, self._spec.schedule, self._now)
        if control.is_paused:
            return [self._outcome(reason=f"paused by {control.by}")]
        known = records.firings(self._store, self._spec.name)
        outcomes = self._fire(known, control.since)
        # read again: what this tick has recorded, and what others have
        started = [
            self._advance(firing)
            for firing in records.firings(self._store, self._spec.name)
            if not firing.has_ended
        ]
        return outcomes + started

    def backfill(self, start: datetime, end: datetime) -> list[Outcome]:
        """Run the windows of a time span, both ends included, that have had no run.

        Raises:
            ConfigError: the trigger is no cron expression.
        """
        if self._trigger.cron is None:
            raise ConfigError(self._spec.source, "has no cron trigger", "only windows are filled")
        records.register(self._store, self._spec.name, self._spec.schedule, self._now)
        known = {firing.key: firing for firing in records.firings(self._store, self._spec.name)}
        outcomes = []
        before = datetime.fromtimestamp(start.timestamp() - 1, UTC)
        for window in self._trigger.windows(before, min(end, self._now)):
            key = window_key(self._spec.name, window)
            firing = known.get(key)
            if firing is None:
                self._record(Due(key, {"window": window.isoformat(), "missed": 0}))
                firing = Firing(self._spec.name, key, 0, has_ended=False, is_released=False)
            outcomes.append(
                self._outcome(key, reason="this window has had its run")
                if firing.has_ended
                else self._advance(firing)
            )
        return outcomes

    def has_work(self) -> bool:
        """Return whether `tick` would start something or finish something."""
        control = records.register(self._store, self._spec.name, self._spec.schedule, self._now)
        known = records.firings(self._store, self._spec.name)
        if control.is_paused:
            return False
        is_open = any(firing.is_released or self._can_advance(firing) for firing in known)
        return is_open or bool(self._decide(known, control.since).due)

    def _can_advance(self, firing: Firing) -> bool:
        run_id = None if firing.has_ended else records.read(self._store, firing)["run_id"]
        run = self._launcher.find(run_id) if run_id else None
        return not firing.has_ended and (run is None or run.status in {*_ENDED, *_TO_START})

    def _outcome(
        self, key: str = "", run_id: str = "", status: str = "", reason: str = ""
    ) -> Outcome:
        return Outcome(self._spec.name, key, run_id, status, reason)

    def _decide(self, known: list[Firing], since: datetime) -> Decision:
        after = max([since, *(firing.window for firing in known if firing.window)])
        state = State(self._spec.name, after)
        return due(self._trigger, self._with_data(state, known), self._now)

    def _with_data(self, state: State, known: list[Firing]) -> State:
        """Add to the state of a schedule what a data trigger looks at."""
        if self._trigger.cron is not None:
            return state
        data = [firing for firing in known if firing.window is None]
        record = records.read(self._store, data[-1]) if data else {"cause": {}}
        state = replace(state, firings=len(data), consumed=record["cause"].get("consumed"))
        if self._trigger.new_snapshot:
            return replace(state, current=self._head(self._trigger.new_snapshot))
        if rule := self._trigger.new_sources:
            listed = resolve(self._store, rule.input, self._spec.inputs[rule.input])
            self._listed = listed
            if listed is not None:
                # its run may have listed more than the tick before it
                run = self._launcher.find(record["run_id"]) if data else None
                read = run.inputs.get(rule.input) if run else None
                baseline = read.snapshot if read else state.consumed
                items, num_bytes = count_new(self._store, rule.input, baseline, listed)
                state = replace(state, current=listed.digest)
                return replace(state, new=self._new_data(state, items, num_bytes))
        return state

    def _head(self, rule: NewSnapshot) -> str | None:
        if rule.ref is not None:
            return self._store.refs.head(rule.ref)
        commits = list(iter_commits(self._store.objects, rule.dataset))
        return commits[-1].snapshot if commits else None

    def _new_data(self, state: State, items: int, num_bytes: int) -> NewData | None:
        if not items or not state.current:
            return None
        key = data_key(state.pipeline, state.firings, state.consumed)
        times = records.observe(self._store, state.pipeline, key, state.current, self._now)
        first, last = (datetime.fromtimestamp(seconds, UTC) for seconds in times)
        return NewData(items, num_bytes, first, last)

    def _fire(self, known: list[Firing], since: datetime) -> list[Outcome]:
        """Record what is due and what is released, as the overlap policy allows."""
        decision = self._decide(known, since)
        released = [firing for firing in known if firing.is_released]
        if not decision.due and not released:
            return [self._outcome(reason=decision.reason)]
        blocked = self._blocked_by(known)
        outcomes = []
        for item in decision.due:
            if not blocked:
                self._record(item)
            elif item.key.startswith("data-"):
                outcomes.append(self._outcome(reason=blocked))  # it stays new: the next tick
            elif records.skip(self._store, self._spec.name, item, self._now, blocked):
                outcomes.append(self._outcome(item.key, status="SKIPPED", reason=blocked))
        for firing in released:
            if blocked:
                outcomes.append(self._outcome(firing.key, reason=blocked))
            else:
                cause = records.read(self._store, firing)["cause"]
                self._record(Due(firing.key, cause), firing.number + 1)
        return outcomes

    def _blocked_by(self, known: Iterable[Firing]) -> str:
        """Return why nothing may start beside the runs of now; empty if it may."""
        policy = self._spec.schedule.concurrency
        # a run for each window was asked for: they follow one another
        if policy in {"queue", "allow"} or (policy == "forbid" and self._trigger.missed == "all"):
            return ""
        for firing in known:
            run_id = None if firing.has_ended else records.read(self._store, firing)["run_id"]
            run = self._launcher.find(run_id) if run_id else None
            if run_id is None or (run is not None and run.status in _ENDED):
                continue
            if policy == "forbid":
                return f"run {run_id} is in progress"
            self._replace(firing, run)
        return ""

    def _replace(self, firing: Firing, run: Run | None) -> None:
        """End a firing whose run is replaced; one that has no run will have none."""
        if run is not None and run.status not in _TO_START - {"QUEUED"}:
            self._launcher.cancel(run.run_id)
        records.end(self._store, firing, "CANCELLED", self._now, reason="replaced")

    def _record(self, item: Due, number: int = 0) -> None:
        run_id = next_run_id(self._store)
        if item.key.startswith("data-") and number == 0 and self._listed is not None:
            if isinstance(self._listed, Listing):
                # a baseline for later ticks, also if its run never lists anything
                self._listed = self._listed.commit(self._store, self._provenance(run_id))
            item = replace(item, cause=item.cause | {"consumed": self._listed.id})
        if records.fire(self._store, self._spec.name, item, self._now, run_id, number):
            logger.info("%s: fired %s as run %s", self._spec.name, item.key, run_id)
            crash_point("trigger-recorded")

    def _provenance(self, run_id: str) -> Provenance:
        return Provenance(
            run_id=run_id,
            pipeline=self._spec.name,
            stage=self._listed.name if isinstance(self._listed, Listing) else "",
            fingerprint="",
            code_version=__version__,
        )

    def _advance(self, firing: Firing) -> Outcome:
        """Start, continue or conclude the run of a firing."""
        record = records.read(self._store, firing)
        run_id = record["run_id"]
        if run_id is None:  # killed between the two records of a skipped window
            records.end(self._store, firing, "SKIPPED", self._now)
            return self._outcome(firing.key, status="SKIPPED", reason=record.get("reason", ""))
        outcome = self._outcome(firing.key, run_id=run_id)
        run = self._launcher.find(run_id)
        if run is not None and run.status in _ENDED:
            return self._conclude(firing, outcome, run)
        if run is not None and run.status not in _TO_START:
            outcome.status, outcome.reason = run.status, f"run {run_id} is in progress"
            return outcome
        try:
            with self._lease(firing, run_id):
                return self._launch(firing, record, outcome)
        except LeaseHeldError as error:
            outcome.status, outcome.reason = "QUEUED", str(error)
            if run is None or run.status == "PENDING":
                self._queue(firing, record, error.where.removeprefix("lease "))
        return outcome

    def _queue(self, firing: Firing, record: dict[str, Any], lease: str) -> None:
        """Record a run that starts at a later tick, so that it can be seen and cancelled."""
        log = RunLog(self._store, record["run_id"], lambda: None)
        log.create(self._spec, __version__, None, None, {"key": firing.key, **record["cause"]})
        crash_point("trigger-created")
        log.queued(lease, is_first=True)
        crash_point("trigger-queued")

    @contextmanager
    def _lease(self, firing: Firing, run_id: str) -> Iterator[None]:
        """Hold the right to run firings of this pipeline, or with `allow` this firing."""
        is_shared = self._spec.schedule.concurrency == "allow"
        name = schedule_lease(self._spec.name, firing.key if is_shared else "")
        lease = Lease(self._store, name, f"run {run_id}", hint=_HINT)
        # the run that is replaced ends with the next heartbeat of its driver
        lease.acquire(wait=self._spec.schedule.concurrency == "replace")
        lease.keep(lambda error: logger.warning("%s", error))
        try:
            yield
        finally:
            lease.release()

    def _launch(self, firing: Firing, record: dict[str, Any], outcome: Outcome) -> Outcome:
        run_id, find = outcome.run_id, self._launcher.find
        # another tick may have done it before this one got the lease
        run = find(run_id)
        if run is None or run.status in _TO_START:
            self._hooks.send(["started"], firing, record, run)
            crash_point("trigger-starting")
            outcome.has_acted = True
            try:
                self._launcher.launch(self._spec, run_id, {"key": firing.key, **record["cause"]})
            except LeaseHeldError:  # an equal run, that a person has started: wait for its end
                outcome.has_acted = False
                raise
            except VideoARError as error:
                outcome.error = error
                if error.retryable or isinstance(error, ClusterUnknownError):
                    outcome.status, outcome.reason = "UNKNOWN", _HINT
                    return outcome
            crash_point("trigger-launched")
            run = find(run_id)
        if outcome.error is None and run is not None and run.status not in _ENDED:
            outcome.status = run.status  # launched elsewhere
            return outcome
        return self._conclude(firing, outcome, run)

    def _conclude(self, firing: Firing, outcome: Outcome, run: Run | None) -> Outcome:
        """Send what hooks have not got, then record the end."""
        if run is not None and run.status in _ENDED:
            outcome.status, error = run.status, run.error
        else:  # not started because of a mistake in the file, or not continued because of drift
            outcome.status, error = "FAILED", str(outcome.error)
        outcome.has_acted = True
        record = records.read(self._store, firing)
        is_told = self._hooks.send_end(firing, record, run, error, self._now)
        crash_point("trigger-told")
        if is_told:
            records.end(self._store, firing, outcome.status, self._now, error=error)
        else:
            outcome.reason = "hooks have not got all events: the next tick sends them again"
        return outcome
