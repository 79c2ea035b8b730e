"""Executes a pipeline: one stage after the other, each cached, resumed or run, then committed.

Every decision is made from the content of the store. A run that was killed at any line is resumed
by executing it again under its id: finished stages are found by fingerprint, finished shards by
their records, a training by its newest checkpoint.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from videoar import __version__
from videoar.contracts.names import SOURCES
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    GateError,
    RefMovedError,
    TimedOutError,
    reason_code,
)
from videoar.core.ids import digest_json
from videoar.core.logging import log_context
from videoar.core.types import Json
from videoar.engine.base import Engine
from videoar.pipeline.input_url import named_input
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.spec import PipelineSpec, StageSpec, parse_pipeline
from videoar.pipeline.stage import Inputs
from videoar.records.run import RowCounts, Run, StageRun, Status
from videoar.records.run_folds import fold_runs_if_due
from videoar.records.run_log import RunLog
from videoar.records.run_record import (
    has_succeeded,
    load_run,
    named_inputs,
    next_run_id,
    with_progress,
)
from videoar.runner.damage import damage_removed
from videoar.runner.decide import (
    Decision,
    absence,
    check_datasets,
    check_tools,
    decide,
    skip_reason,
)
from videoar.runner.drift import find_drift, made_with
from videoar.runner.inputs import Listing, compare, nothing_new, resolve
from videoar.runner.run_context import RunContext
from videoar.runner.stage_work import StageWork
from videoar.runner.supervisor import Supervisor
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_STORE = "store"
_MAX_DECISIONS = 5
"""chosen: a ref that moves during each of so many decisions is moved by something in a loop."""


@dataclass
class Execution:
    """One run in progress. `stages` is live: a display may read it at any time."""

    spec: PipelineSpec
    store: Store
    engine: Engine
    run_id: str = ""
    """Default: an id after all runs of the store."""
    registry: Registry = field(default_factory=lambda: BUILTIN)
    accept_drift: bool = False
    """Resume although code or files have changed since; the record keeps which."""
    wait: bool = False
    """Wait for an equal run to end, and adopt what it made; otherwise it is an error."""
    trigger: Mapping[str, Json] | None = None
    """What a schedule started it for; None: a person did."""
    stages: dict[str, StageRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_id = self.run_id or next_run_id(self.store)
        self._supervisor = Supervisor(self.store, self.run_id, wait=self.wait)
        self._log = RunLog(self.store, self.run_id, self._supervisor.require_held)
        self._snapshots: dict[str, Snapshot] = {}
        self._absent: dict[str, str] = {}
        self.has_started = False
        self.stages = {s.name: StageRun(name=s.name, type=s.type) for s in self.spec.stages}
        self._context = RunContext(
            store=self.store,
            run_id=self.run_id,
            pipeline=self.spec.name,
            registry=self.registry,
            log=self._log,
            supervisor=self._supervisor,
            stages=self.stages,
        )

    def run(self, start: str | None = None, until: str | None = None) -> Run:
        """Execute the pipeline, or the part from `start` to `until`, to its end or first error.

        The record of the run is complete in every case: an error is recorded and raised as well.

        Raises:
            VideoARError: what stopped the run.
        """
        # all checks before the first record: a mistake in the file leaves no run behind
        selected = self.spec.select(start, until)
        tools = check_tools(selected, self.registry)
        made = made_with(selected, tools, self.registry)
        drift = find_drift(self.store, self.run_id, made, accept=self.accept_drift)
        check_datasets(selected, self.store, self.registry)
        # listed before the run is recorded, committed after it: a commit names its run
        inputs = self._resolve_inputs()
        try:
            with self._recorded(), log_context(run_id=self.run_id):
                on_queued = partial(self._queued, start, until)
                self._supervisor.start(self._work(inputs, start, until), on_queued)
                if has_succeeded(self.store, self.run_id):  # by the driver that this one waited for
                    return load_run(self.store, self.run_id)
                self._create(start, until)
                for skipped in self.stages.keys() - {stage.name for stage in selected}:
                    self._context.update(skipped, status="SKIPPED")
                # marks the run as running again if it is resumed, so only after everything that may
                # refuse it
                self._log.driver(made, drift)
                for name, listed in inputs.items():
                    self._set_input(name, listed)
                if reason := nothing_new(self.store, self.spec, inputs, self.run_id):
                    for stage in selected:
                        self._skip(stage, reason)
                else:
                    self._run_all(selected, start)
        finally:
            self._supervisor.stop()
        fold_runs_if_due(self.store, self.run_id)
        return load_run(self.store, self.run_id)

    def _create(self, start: str | None, until: str | None) -> None:
        self._log.create(self.spec, __version__, start, until, self.trigger)
        self.has_started = True

    def _queued(self, start: str | None, until: str | None, lease: str) -> None:
        self._create(start, until)
        crash_point("run-created")
        self._log.queued(lease)
        crash_point("run-queued")
        logger.info("queued: an equal run is in progress")

    def _work(
        self, inputs: Mapping[str, Snapshot | Listing | None], start: str | None, until: str | None
    ) -> str:
        """Return the name of what this execution does: equal for equal runs."""
        digests: dict[str, Json] = {
            n: None if s is None else s.fingerprint for n, s in inputs.items()
        }
        work: Json = {
            "pipeline": self.spec.digest, "inputs": digests, "from": start, "until": until,
        }  # fmt: skip
        return f"{self.spec.name}/{digest_json(work)}"

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record how the run ends; nothing of one that was refused."""
        status: Status = "SUCCEEDED"
        problem: str | None = None
        code: str | None = None
        try:
            yield
        except BaseException as error:
            # BaseException: SystemExit, too, must not leave a run that looks killed. What ended the
            # run from outside may arrive as any error: Ray has handlers of its own for signals.
            cause = self._supervisor.cause or error
            status, problem = _status_of(cause), str(cause) or "cancelled"
            code = reason_code(cause)
            if cause is not error:
                raise cause from error
            raise
        finally:
            self._supervisor.settle()
            if self.has_started:
                self._log.finish(status, problem, code)

    def current(self) -> list[StageRun]:
        """Return the stages; one that runs with its progress and its seconds so far.

        Raises:
            StorageError: the store does not answer.
        """
        return [
            with_progress(self.store, self.run_id, stage, time.time())
            if stage.is_in_progress
            else stage
            for stage in list(self.stages.values())
        ]

    def _run_all(self, selected: list[StageSpec], start: str | None) -> None:
        """Run the stages; if a ref moves during a decision on it, those that depend on it again."""
        for attempt in range(1, _MAX_DECISIONS + 1):
            try:
                self._run_stages(selected, start)
            except RefMovedError as error:
                if attempt == _MAX_DECISIONS:
                    what = f"moved during each of {attempt} decisions, at last: {error.what}"
                    raise GateError(error.where, what, "run again") from error
                logger.info("decided again, because the ref has moved: %s", error)
                self._resolve_again(error.where)
            else:
                return

    def _run_stages(self, selected: list[StageSpec], start: str | None) -> None:
        must_exist = self.spec.upstream(start) if start else set()
        absent = dict(self._absent)
        for stage in selected:
            with log_context(stage=stage.name):
                if (reason := skip_reason(stage, absent, self.registry)) is not None:
                    absent[stage.name] = reason
                    self._skip(stage, reason)
                elif not self._is_finished(connected := stage.without(absent)):
                    self._run_stage(connected, must_exist=stage.name in must_exist)

    def _skip(self, stage: StageSpec, reason: str) -> None:
        skipped = StageRun(name=stage.name, type=stage.type, status="SKIPPED", reason=reason)
        self.stages[stage.name] = skipped
        self._log.stage(skipped)
        logger.info("skipped: %s", reason)

    def _is_finished(self, spec: StageSpec) -> bool:
        """Return whether this execution has the output of a stage, of the inputs of now."""
        inputs = {port: self._snapshots[source].id for port, source in spec.ports.items()}
        state = self.stages[spec.name]
        return state.status in {"SUCCEEDED", "CACHED"} and state.inputs == inputs

    def _resolve_again(self, ref: str) -> None:
        """Resolve the inputs that name a ref; if some are not read by a training, only those.

        The champion to compare with is another one then; what was trained from the one before is
        not trained again.
        """
        named = {name: named_input(url) for name, url in self.spec.inputs.items()}
        names = {n for n, of in named.items() if of and (of.scheme, of.name) == ("ref", ref)}
        for name in sorted(names - self._inputs_of_trainings() or names):
            self._set_input(name, resolve(self.store, name, self.spec.inputs[name]))

    def _inputs_of_trainings(self) -> set[str]:
        types = {stage.name: stage_class(stage.type, self.registry) for stage in self.spec.stages}
        trainings = {name for name, type_ in types.items() if type_.shape == "loop"}
        stages = trainings.union(*map(self.spec.upstream, trainings))
        return {source for name in stages for source in self.spec.stage(name).ports.values()}

    def _resolve_inputs(self) -> dict[str, Snapshot | Listing | None]:
        """Resolve the inputs; refs of a resumed run to what they pointed at when it started.

        It takes the decisions that it would have taken: its own promotion, too, moves a ref.
        """
        recorded = named_inputs(self.store, self.run_id)
        urls = {
            name: f"snapshot://{recorded[name]}" if recorded.get(name) else url
            for name, url in self.spec.inputs.items()
        }
        return {
            name: None if recorded.get(name, "") is None else resolve(self.store, name, url)
            for name, url in urls.items()
        }

    def _set_input(self, name: str, listed: Snapshot | Listing | None) -> None:
        url = self.spec.inputs[name]
        if named_input(url):
            self._log.named(name, listed.id if isinstance(listed, Snapshot) else None)
        if listed is None:
            self._absent[name] = absence(name, url)
        else:
            self._absent.pop(name, None)
            self._snapshots[name] = self._commit_input(name, listed)

    def _commit_input(self, name: str, listed: Snapshot | Listing) -> Snapshot:
        if isinstance(listed, Listing):
            listed = listed.commit(self.store, self._context.provenance(name, "", {}))
        if listed.contract == SOURCES:
            comparison = compare(self.store, self.spec.name, self.run_id, name, listed)
            self._log.input(name, comparison)
            logger.info("input %s: %s", name, comparison)
        return listed

    def _run_stage(self, spec: StageSpec, *, must_exist: bool) -> None:
        """Reuse or compute the output of one stage; record an error before it is raised."""
        inputs = {port: self._snapshots[source] for port, source in spec.ports.items()}
        started = time.monotonic()
        ids = {port: snapshot.id for port, snapshot in inputs.items()}
        self._context.update(spec.name, status="RUNNING", inputs=ids, started_at=time.time())
        try:
            with damage_removed(self.store, inputs, self._made_again()):
                # a resumed run is not compared with itself: it would report that nothing changed
                decision = decide(
                    self.store, self.spec, spec, inputs, self.registry, before=self.run_id
                )
                self._context.update(
                    spec.name, fingerprint=decision.fingerprint, reason=decision.reason
                )
                snapshot = self._output_of(spec, decision, inputs, started, must_exist=must_exist)
                # here: a blocked promotion is a failure of the stage, which has been committed
                self._supervisor.check()
                decision.stage.after_commit(snapshot, self.store, self.run_id)
        except BaseException as error:
            self._record_failure(spec.name, error, time.monotonic() - started)
            raise
        self._snapshots[spec.name] = snapshot

    def _output_of(
        self,
        spec: StageSpec,
        decision: Decision,
        inputs: Inputs,
        started: float,
        *,
        must_exist: bool,
    ) -> Snapshot:
        if decision.existing is not None:
            return self._reuse(spec.name, decision, decision.existing)
        if must_exist:
            what = "has no finished snapshot"
            raise ConfigError(f"stages.{spec.name}", what, "run without --from")
        return StageWork(self._context, self.engine, spec, decision, inputs).execute(started)

    def _made_again(self) -> set[str]:
        """Return the datasets that this pipeline makes: of its stages and of its listings."""
        listings = {name for name, url in self.spec.inputs.items() if not named_input(url)}
        return listings | {stage.name for stage in self.spec.stages}

    def _record_failure(self, name: str, error: BaseException, seconds: float) -> None:
        error = self._supervisor.cause or error
        status = _status_of(error)
        self._context.update(
            name, status=status, code=reason_code(error), error=str(error) or status,
            seconds=round(seconds, 3),
        )  # fmt: skip
        self._context.record(name)

    def _reuse(self, name: str, decision: Decision, snapshot: Snapshot) -> Snapshot:
        rejects = snapshot.rejects()
        self._context.update(
            name,
            status="CACHED",
            snapshot=snapshot.id,
            rejects=snapshot.commit.rejects,
            rows=RowCounts(out=snapshot.rows, rejected=rejects.rows if rejects else 0),
        )
        # recorded for cached stages, too: the next run is compared with the newest run
        self._context.record(name, decision.fingerprint_parts)
        logger.info("cached as %s", snapshot.id)
        return snapshot


def _status_of(error: BaseException) -> Status:
    """Return the state of a run that an error ended."""
    states: dict[type[BaseException], Status] = {
        KeyboardInterrupt: "CANCELLED",
        GateError: "GATE_BLOCKED",
        TimedOutError: "TIMED_OUT",
        ClusterUnknownError: "UNKNOWN",
    }
    return next((s for kind, s in states.items() if isinstance(error, kind)), "FAILED")


def resume_spec(run_id: str, store: Store, registry: Registry = BUILTIN) -> PipelineSpec:
    """Return the pipeline of an earlier run, to be executed again under the same id."""
    run = load_run(store, run_id)
    return parse_pipeline(run.document, run.source, registry)
