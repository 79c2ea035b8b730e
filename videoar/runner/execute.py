"""Executes a pipeline: one stage after the other, each cached, resumed or run, then committed.

Every decision is made from the content of the store. A run that was killed at any line is resumed
by executing it again under its id: finished stages are found by fingerprint, finished shards by
their records, a training by its newest checkpoint.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from videoar import __version__
from videoar.contracts.names import REJECTS, SOURCES
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    GateError,
    RefMovedError,
    StageError,
    StorageError,
    TimedOutError,
    reason_code,
)
from videoar.core.ids import digest_json
from videoar.core.logging import log_context
from videoar.core.types import Json, Provenance
from videoar.engine.base import Engine, ShardDone
from videoar.pipeline.device_queue import summary
from videoar.pipeline.fingerprint import shard_fingerprint
from videoar.pipeline.input_url import named_input
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.spec import PipelineSpec, StageSpec, parse_pipeline
from videoar.pipeline.stage import Inputs, MapStage, Shard, Stage
from videoar.pipeline.work.progress import ProgressWriter, clear_progress, rank_usage
from videoar.pipeline.work.rank import training_prefix
from videoar.pipeline.work.task import StageTask, WorkRecord, find_record, merge
from videoar.records.run import RowCounts, Run, ShardCounts, StageRun, Status
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
    ShardWork,
    absence,
    check_datasets,
    check_tools,
    decide,
    skip_reason,
)
from videoar.runner.drift import find_drift, made_with
from videoar.runner.inputs import Listing, compare, nothing_new, resolve
from videoar.runner.strikes import suspects
from videoar.runner.supervisor import Supervisor
from videoar.storage import layout
from videoar.storage.delta_log import missing_files
from videoar.storage.lease import HolderWatch
from videoar.storage.reader import read_file
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
                    self._update(skipped, status="SKIPPED")
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
            listed = listed.commit(self.store, self._provenance(name, "", {}))
        if listed.contract == SOURCES:
            comparison = compare(self.store, self.spec.name, self.run_id, name, listed)
            self._log.input(name, comparison)
            logger.info("input %s: %s", name, comparison)
        return listed

    def _provenance(self, stage: str, fingerprint: str, parents: dict[str, str]) -> Provenance:
        return Provenance(
            run_id=self.run_id,
            pipeline=self.spec.name,
            stage=stage,
            fingerprint=fingerprint,
            code_version=__version__,
            parents=parents,
        )

    def _run_stage(self, spec: StageSpec, *, must_exist: bool) -> None:
        """Reuse or compute the output of one stage; record an error before it is raised."""
        inputs = {port: self._snapshots[source] for port, source in spec.ports.items()}
        started = time.monotonic()
        ids = {port: snapshot.id for port, snapshot in inputs.items()}
        self._update(spec.name, status="RUNNING", inputs=ids, started_at=time.time())
        try:
            with damage_removed(self.store, inputs, self._made_again()):
                # a resumed run is not compared with itself: it would report that nothing changed
                decision = decide(
                    self.store, self.spec, spec, inputs, self.registry, before=self.run_id
                )
                self._update(spec.name, fingerprint=decision.fingerprint, reason=decision.reason)
                snapshot = (
                    self._execute(spec, decision, inputs, started, must_exist=must_exist)
                    if decision.existing is None
                    else self._reuse(spec.name, decision, decision.existing)
                )
                # here: a blocked promotion is a failure of the stage, which has been committed
                self._supervisor.check()
                decision.stage.after_commit(snapshot, self.store, self.run_id)
        except BaseException as error:
            self._record_failure(spec.name, error, time.monotonic() - started)
            raise
        self._snapshots[spec.name] = snapshot

    def _made_again(self) -> set[str]:
        """Return the datasets that this pipeline makes: of its stages and of its listings."""
        listings = {name for name, url in self.spec.inputs.items() if not named_input(url)}
        return listings | {stage.name for stage in self.spec.stages}

    def _record_failure(self, name: str, error: BaseException, seconds: float) -> None:
        error = self._supervisor.cause or error
        status = _status_of(error)
        self._update(
            name, status=status, code=reason_code(error), error=str(error) or status,
            seconds=round(seconds, 3),
        )  # fmt: skip
        self._log.stage(self.stages[name])

    def _reuse(self, name: str, decision: Decision, snapshot: Snapshot) -> Snapshot:
        rejects = snapshot.rejects()
        self._update(
            name,
            status="CACHED",
            snapshot=snapshot.id,
            rejects=snapshot.commit.rejects,
            rows=RowCounts(out=snapshot.rows, rejected=rejects.rows if rejects else 0),
        )
        # recorded for cached stages, too: the next run is compared with the newest run
        self._log.stage(self.stages[name], decision.fingerprint_parts)
        logger.info("cached as %s", snapshot.id)
        return snapshot

    def _execute(
        self,
        spec: StageSpec,
        decision: Decision,
        inputs: Inputs,
        started: float,
        *,
        must_exist: bool,
    ) -> Snapshot:
        if must_exist:
            what = "has no finished snapshot"
            raise ConfigError(f"stages.{spec.name}", what, "run without --from")
        clear_progress(self.store, self.run_id, spec.name)
        self._update(spec.name, shards=_shard_counts(decision))
        # the parts go first: the next run can tell what changed, even if this one is killed
        self._log.stage(self.stages[spec.name], decision.fingerprint_parts)
        logger.info("running: %s", decision.reason)
        task = StageTask(
            run_id=self.run_id,
            dataset=spec.name,
            stage_type=spec.type,
            config=spec.config.model_dump(mode="json"),
            inputs={port: snapshot.id for port, snapshot in inputs.items()},
            fingerprint_parts=decision.fingerprint_parts,
            store_url=self.store.url,
            store_endpoint=self.store.endpoint,
            registry=self.registry,
        )
        stage, state = f"stage {spec.name}", partial(self._progress, spec.name)
        with self._supervisor.limits(stage, spec.config, state):
            self.engine.waits = partial(self._backoff, spec.name)
            record = self._compute(task, decision)
        self._check_rejects(spec, record)
        snapshot = self._commit(task, decision.stage, record)
        seconds = time.monotonic() - started
        self._update(
            spec.name,
            status="SUCCEEDED",
            snapshot=snapshot.id,
            rejects=snapshot.commit.rejects,
            seconds=round(seconds, 3),
            rows=RowCounts(in_=record.rows_in, out=record.rows_out, rejected=record.rows_rejected),
        )
        self._log.stage(self.stages[spec.name])
        logger.info("committed %s after %.1f s", snapshot.id, seconds)
        return snapshot

    def _progress(self, name: str) -> object:
        """Return what changes with each step of a stage: its counts, and a training's progress."""
        key = layout.progress_key(self.run_id, name)
        return self.stages[name].shards, self.store.objects.find(key)

    def _compute(self, task: StageTask, decision: Decision) -> WorkRecord:
        stage = decision.stage
        if isinstance(stage, MapStage):
            return self._map(task, stage, decision.work)
        is_loop = stage.shape == "loop"
        record_key = layout.loop_record_key if is_loop else layout.reduce_record_key
        key = record_key(task.dataset, task.fingerprint)
        # two gangs on one training would take its checkpoints from each other
        right = training_prefix(task).rstrip("/") if is_loop else key.removesuffix(".json")
        self._supervisor.claim(right, partial(self._waits_for, task.dataset, key))
        self._update(task.dataset, status="RUNNING")
        record = find_record(self.store, key)
        # lost: killed before the commit, and files were withdrawn or removed since
        if record is not None and any(missing_files(self.store.objects, record.all_files)):
            self.store.objects.delete(key)  # the engine would adopt it
            record = None
        if record is None:
            record = self.engine.loop(task) if is_loop else self.engine.reduce(task)
            usage = sum(rank_usage(self.store, self.run_id, task.dataset), record.usage)
            self._update(task.dataset, usage=usage)
        self._update(task.dataset, shards=ShardCounts(planned=1, done=1))
        return record

    def _waits_for(self, name: str, key: str, holder: HolderWatch) -> bool:
        """Show that a stage waits for another run; return whether that has done the work."""
        if self.stages[name].status != "WAITING":
            waiting = f"lease: {holder} does the same work"
            self._update(name, status="WAITING", waiting=waiting)
            self._log.stage(self.stages[name])
            logger.info("waiting: %s", waiting)
        return self.store.ledger.read(key) is not None

    def _backoff(self, name: str, error: Exception | None) -> None:
        """Show that a stage waits to be tried again after an error; None: that it goes on."""
        if error is None:
            if self.stages[name].waiting.startswith(_STORE):
                self._show(name)
            self._update(name, status="RUNNING")
            self._show(name)
            return
        kind = _STORE if isinstance(error, StorageError) else "backoff"
        self._update(name, status="WAITING", waiting=f"{kind}: tried again after {error}")
        if kind != _STORE:  # that is recorded when the store is back
            self._show(name)

    def _show(self, name: str) -> None:
        """Record the state of a stage for displays only: it goes on if the store fails again."""
        try:
            self._log.stage(self.stages[name])
        except StorageError as error:
            logger.warning("%s is not recorded: %s", self.stages[name].status, error)

    def _map(self, task: StageTask, stage: MapStage[Any], work: ShardWork) -> WorkRecord:
        # before any worker starts: it would adopt such a record, and the commit would name missing
        # files
        for key in work.stale_keys:
            self.store.objects.delete(key)
        records = dict(work.done)
        counts = self.stages[task.dataset].shards
        write_progress = ProgressWriter(task, "shard")

        def finished(shard: Shard, record: WorkRecord) -> None:
            nonlocal counts
            self._supervisor.check()
            records[shard.index] = record
            counts = counts.model_copy(
                update={
                    "done": counts.done + 1,
                    "quarantined": counts.quarantined + record.rows_rejected,
                }
            )
            rows = self.stages[task.dataset].rows
            self._update(
                task.dataset,
                shards=counts,
                usage=self.stages[task.dataset].usage + record.usage,
                rows=RowCounts(
                    in_=rows.in_ + record.rows_in,
                    out=rows.out + record.rows_out,
                    rejected=rows.rejected + record.rows_rejected,
                ),
            )
            report()

        def report() -> None:
            rows = self.stages[task.dataset].rows
            metrics = {"rows": rows.out, "rejected": rows.rejected}
            write_progress(counts.cached + counts.done, counts.planned, metrics)

        if work.missing:
            report()
            self._map_missing(task, stage, work.missing, finished)
        # an engine that loses a shard must not lead to a snapshot with fewer rows
        for shard in work.shards:
            if shard.index not in records:
                raise StageError(f"stage {task.dataset}, shard {shard.index}", "has no work record")
        # in the order of the plan: files and sums of floats must not depend on which shard ended
        # first
        total = merge([records[shard.index] for shard in work.shards])
        self._update(
            task.dataset,
            # the counts so far are those of this attempt; `total` includes cached shards
            shards=counts.model_copy(update={"quarantined": total.rows_rejected}),
        )
        if total.rows_rejected and not total.rows_out and not stage.allows_empty_output:
            self._fail_empty(task, stage, work.shards, total)
        metrics = summary(total.metrics)
        self._update(task.dataset, metrics=metrics)
        return total.model_copy(update={"metrics": metrics})

    def _map_missing(
        self,
        task: StageTask,
        stage: MapStage[Any],
        missing: Sequence[Shard],
        finished: ShardDone,
    ) -> None:
        alone = suspects(self.store, self.run_id, stage, task.dataset, missing)
        for shard in alone:
            where = f"stage {task.dataset}, shard {shard.index}"
            logger.warning("%s: runs by itself, because the run has not got past it", where)
            self._supervisor.watch(where)
            self.engine.map_alone(task, shard, finished)
        self._supervisor.watch(f"stage {task.dataset}")
        if rest := missing[len(alone) :]:
            self.engine.map(task, rest, finished)

    def _fail_empty(
        self, task: StageTask, stage: MapStage[Any], shards: Sequence[Shard], total: WorkRecord
    ) -> None:
        """Fail a stage that rejected all of its rows; the next run tries them again.

        Most often the sources were unreachable: the records must not make that permanent.
        """
        columns = ["reasons", "uri", "detail"]
        (first, *_) = read_file(self.store.objects, total.rejects[0], columns).to_pylist()
        for shard in shards:
            name = shard_fingerprint(task.fingerprint_parts, stage.sharded, shard)
            self.store.objects.delete(layout.shard_record_key(task.dataset, name))
        example = f"{first['reasons'][0]}: {first['uri']} {first['detail']}"
        what = f"all of its {total.rows_rejected} rows were rejected, such as {example}"
        raise StageError(f"stage {task.dataset}", what, "check that the sources are reachable")

    def _check_rejects(self, spec: StageSpec, record: WorkRecord) -> None:
        total, bound = record.rows_in, spec.config.max_reject_fraction
        if total and record.rows_rejected > bound * total:
            counts = {k: n for k, n in record.metrics.items() if k.startswith("reject/")}
            most = max(counts, key=lambda k: counts[k], default="").removeprefix("reject/")
            what = f"{record.rows_rejected} of {total} rows were rejected, more than"
            what += f" max_reject_fraction {bound:g}" + f", most often for {most}" * bool(most)
            hint = "list the reasons with: videoar quarantine ls, or raise the bound"
            raise StageError(f"stage {spec.name}", what, hint)

    def _commit(self, task: StageTask, stage: Stage[Any], record: WorkRecord) -> Snapshot:
        self._supervisor.check()
        crash_point("before-commit")
        provenance = self._provenance(task.dataset, task.fingerprint, dict(task.inputs))
        rejected = self.store.dataset(layout.rejects_dataset(task.dataset), REJECTS)
        # rejects first: the commit of the output names their snapshot. Killed in between, the next
        # attempt finds it by its fingerprint.
        rejects = rejected.commit(record.rejects, provenance, {}).id if record.rejects else None
        crash_point("rejects-committed")
        dataset = self.store.dataset(task.dataset, stage.produces)
        snapshot = dataset.commit(record.files, provenance, record.metrics, rejects)
        crash_point("committed")
        return snapshot

    def _update(self, name: str, **changes: object) -> None:
        if "status" in changes:
            changes = {"waiting": "", **changes}
        self.stages[name] = self.stages[name].model_copy(update=changes)


def _shard_counts(decision: Decision) -> ShardCounts:
    if not isinstance(decision.stage, MapStage):
        return ShardCounts(planned=1)
    return ShardCounts(planned=len(decision.work.shards), cached=len(decision.work.done))


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
