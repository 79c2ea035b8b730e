"""Executes a pipeline: one stage after the other, each one cached, resumed or run, then committed.

Everything that is decided here is decided by what the store holds, so a run that was killed at any
line is resumed by executing it again under its old id: finished stages are found by fingerprint,
finished shards by their records, training by its newest checkpoint.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from videoar import __version__
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, GateError, StageError
from videoar.core.logging import log_context
from videoar.core.types import Provenance
from videoar.engine.base import Engine
from videoar.pipeline.device_queue import summary
from videoar.pipeline.fingerprint import (
    Components,
    components,
    fingerprint,
    shard_fingerprint,
)
from videoar.pipeline.registry import BUILTIN, Registry
from videoar.pipeline.spec import INPUT_CONTRACT, PipelineSpec, StageSpec, parse_pipeline
from videoar.pipeline.stage import Inputs, MapStage, Shard, Stage
from videoar.pipeline.work import (
    REJECTS,
    Task,
    WorkRecord,
    find_record,
    loop_key,
    merge,
    record_key,
)
from videoar.records.run_record import (
    RowCounts,
    Run,
    RunLog,
    ShardCounts,
    StageRun,
    Status,
    load_run,
    next_run_id,
)
from videoar.runner.inputs import Listing, compare, resolve
from videoar.runner.plan import build, check_contracts, check_tools, split_done, why
from videoar.storage.delta_log import missing_files
from videoar.storage.reader import read_file
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
_RELEASES = "releases@1"


@dataclass
class Execution:
    """One run in progress. `stages` is live: a display may read it at any time."""

    spec: PipelineSpec
    store: Store
    engine: Engine
    run_id: str = ""
    """Default: an id after all runs of the store."""
    registry: Registry = field(default_factory=lambda: BUILTIN)
    stages: dict[str, StageRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_id = self.run_id or next_run_id(self.store)
        self._log = RunLog(self.store, self.run_id)
        self._snapshots: dict[str, Snapshot] = {}
        self.has_begun = False
        self.stages = {s.name: StageRun(name=s.name, type=s.type) for s in self.spec.stages}

    def run(self, start: str | None = None, until: str | None = None) -> Run:
        """Execute the pipeline, or the part from `start` until `until`, to its end or first error.

        The record of the run is complete whatever happens; errors are in it and raised as well.

        Raises:
            VideoARError: what stopped the run.
        """
        wanted = self._selected(start, until)
        check_tools(wanted, self.registry)
        found = {name: resolve(self.store, name, url) for name, url in self.spec.inputs.items()}
        self.has_begun = True
        self._log.create(self.spec, __version__, start, until)
        for skipped in self.stages.keys() - {stage.name for stage in wanted}:
            self.stages[skipped] = self.stages[skipped].model_copy(update={"status": "SKIPPED"})
        self._log.driver()
        status: Status = "SUCCEEDED"
        problem: str | None = None
        try:
            with log_context(run_id=self.run_id):
                self._snapshots |= {
                    name: self._commit_input(name, made) for name, made in found.items()
                }
                self._run_all(wanted, start)
        except KeyboardInterrupt:
            status, problem = "CANCELLED", "cancelled"
            raise
        except GateError as error:
            status, problem = "GATE_BLOCKED", str(error)
            raise
        except BaseException as error:
            status, problem = "FAILED", str(error)
            raise
        finally:
            self._log.finish(status, problem)
        return load_run(self.store, self.run_id)

    def _selected(self, start: str | None, until: str | None) -> list[StageSpec]:
        names = {stage.name for stage in self.spec.stages}
        if until is not None:
            names = self.spec.upstream(until) | {until}
        if start is not None and self.spec.stage(start).name not in names:
            raise ConfigError(start, f"comes after {until}", "swap --from and --until")
        return [stage for stage in self.spec.stages if stage.name in names]

    def _run_all(self, wanted: list[StageSpec], start: str | None) -> None:
        must_exist = self.spec.upstream(start) if start else set()
        for stage in wanted:
            with log_context(stage=stage.name):
                self._run_stage(stage, must_exist=stage.name in must_exist)

    def _commit_input(self, name: str, found: Snapshot | Listing) -> Snapshot:
        if isinstance(found, Listing):
            found = found.commit(self.store, self._provenance(name, "", {}))
        if found.contract == INPUT_CONTRACT:
            seen = compare(self.store, self.spec.name, self.run_id, name, found)
            self._log.input(name, seen)
            logger.info("input %s: %s", name, seen)
        return found

    def _provenance(self, stage: str, asked: str, parents: dict[str, str]) -> Provenance:
        return Provenance(
            run_id=self.run_id,
            pipeline=self.spec.name,
            stage=stage,
            fingerprint=asked,
            code_version=__version__,
            parents=parents,
        )

    def _run_stage(self, spec: StageSpec, *, must_exist: bool) -> None:
        inputs = {port: self._snapshots[source] for port, source in spec.ports.items()}
        check_contracts(spec, inputs, self.registry)
        stage = build(spec, self.registry)
        parts = components(stage, inputs)
        asked = fingerprint(parts)
        begun = time.monotonic()
        self._update(
            spec.name,
            status="RUNNING",
            fingerprint=asked,
            inputs={port: snapshot.id for port, snapshot in inputs.items()},
        )
        found = self.store.dataset(spec.name, stage.produces).find(asked)
        if found is not None:
            self._reuse(spec.name, found, parts)
        elif must_exist:
            raise ConfigError(
                f"stages.{spec.name}", "has no finished snapshot", "run without --from"
            )
        else:
            found = self._make(spec, stage, inputs, parts, begun)
        self._snapshots[spec.name] = found
        if stage.produces == _RELEASES:
            self._settle_gate(spec.name, found)

    def _reuse(self, name: str, found: Snapshot, parts: Components) -> None:
        refused = found.rejects()
        rows = RowCounts(out=found.rows, rejected=refused.rows if refused else 0)
        self._update(
            name,
            status="CACHED",
            snapshot=found.id,
            rejects=found.commit.rejects,
            rows=rows,
            reason="nothing changed",
        )
        self._log.stage(self.stages[name], parts)
        logger.info("cached as %s", found.id)

    def _make(
        self,
        spec: StageSpec,
        stage: Stage[Any],
        inputs: Inputs,
        parts: Components,
        begun: float,
    ) -> Snapshot:
        reason = why(self.store, self.spec.name, spec.name, parts, self.run_id)
        self._update(spec.name, reason=reason)
        self._log.stage(self.stages[spec.name], parts)
        logger.info("runs (%s)", reason)
        task = Task(
            run_id=self.run_id,
            dataset=spec.name,
            stage_type=spec.type,
            config=spec.config.model_dump(mode="json"),
            inputs={port: snapshot.id for port, snapshot in inputs.items()},
            parts=parts,
            store_url=self.store.url,
            store_endpoint=self.store.endpoint,
            registry=self.registry,
        )
        try:
            record = self._work(task, stage, inputs)
            self._check_rejects(spec, record)
            snapshot = self._commit(task, stage, record)
        except BaseException as error:
            failed: Status = "GATE_BLOCKED" if isinstance(error, GateError) else "FAILED"
            status: Status = "CANCELLED" if isinstance(error, KeyboardInterrupt) else failed
            seconds = time.monotonic() - begun
            self._update(spec.name, status=status, error=str(error) or status, seconds=seconds)
            self._log.stage(self.stages[spec.name])
            raise
        self._update(
            spec.name,
            status="SUCCEEDED",
            snapshot=snapshot.id,
            rejects=snapshot.commit.rejects,
            seconds=round(time.monotonic() - begun, 3),
            rows=RowCounts(in_=record.rows_in, out=record.rows_out, rejected=record.rows_rejected),
        )
        self._log.stage(self.stages[spec.name])
        logger.info("made %s in %.1f s", snapshot.id, time.monotonic() - begun)
        return snapshot

    def _work(self, task: Task, stage: Stage[Any], inputs: Inputs) -> WorkRecord:
        if isinstance(stage, MapStage):
            return self._map(task, stage, inputs)
        self._update(task.dataset, shards=ShardCounts(planned=1))
        loops = stage.shape == "loop"
        key = loop_key(task) if loops else record_key(task, "reduced", task.fingerprint)
        before = find_record(self.store, key)
        if before is not None and any(missing_files(self.store.objects, before.all_files)):
            self.store.objects.delete(key)
        record = self.engine.loop(task) if loops else self.engine.reduce(task)
        self._update(task.dataset, shards=ShardCounts(planned=1, done=1))
        return record

    def _map(self, task: Task, stage: MapStage[Any], inputs: Inputs) -> WorkRecord:
        shards = list(stage.shards(inputs))
        records, missing, stale = split_done(self.store, task.dataset, task.parts, stage, shards)
        for key in stale:  # whoever runs the shard would adopt it
            self.store.objects.delete(key)
        counts = ShardCounts(planned=len(shards), cached=len(records))
        self._update(task.dataset, shards=counts)
        last_line = time.monotonic()

        def finished(shard: Shard, record: WorkRecord) -> None:
            nonlocal counts, last_line
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
                rows=RowCounts(
                    in_=rows.in_ + record.rows_in,
                    out=rows.out + record.rows_out,
                    rejected=rows.rejected + record.rows_rejected,
                ),
            )
            if time.monotonic() - last_line >= _LOG_EVERY_S:
                last_line = time.monotonic()
                logger.info("%d of %d shards done", counts.done + counts.cached, counts.planned)

        if missing:
            self.engine.map(task, missing, finished)
        for shard in shards:
            if shard.index not in records:
                raise StageError(f"stage {task.dataset}, shard {shard.index}", "left no record")
        total = merge([records[shard.index] for shard in shards])
        self._update(
            task.dataset,
            shards=counts.model_copy(update={"quarantined": total.rows_rejected}),
        )
        if total.rows_rejected and not total.rows_out and not stage.may_refuse_all:
            self._fail_empty(task, stage, shards, total)
        metrics = summary(total.metrics)
        self._update(task.dataset, metrics=metrics)
        return total.model_copy(update={"metrics": metrics})

    def _fail_empty(
        self, task: Task, stage: MapStage[Any], shards: list[Shard], total: WorkRecord
    ) -> None:
        """Fail a stage that has refused all of its rows, and let the next run try them again."""
        keys = ["reasons", "uri", "detail"]
        (first, *_) = read_file(self.store.objects, total.rejects[0], keys).to_pylist()
        for shard in shards:
            name = shard_fingerprint(task.parts, stage.primary, shard)
            self.store.objects.delete(record_key(task, "shards", name))
        raise StageError(
            f"stage {task.dataset}",
            f"all of its {total.rows_rejected} rows were refused, such as "
            f"{first['reasons'][0]}: {first['uri']} {first['detail']}",
            "are the sources where they were?",
        )

    def _check_rejects(self, spec: StageSpec, record: WorkRecord) -> None:
        total = record.rows_out + record.rows_rejected
        bound = spec.config.max_reject_fraction
        if total and record.rows_rejected > bound * total:
            raise StageError(
                f"stage {spec.name}",
                f"{record.rows_rejected} of {total} rows were refused, more than "
                f"max_reject_fraction {bound:g}",
                "see the reasons with: videoar show, or raise the bound",
            )

    def _commit(self, task: Task, stage: Stage[Any], record: WorkRecord) -> Snapshot:
        crash_point("before-commit")
        provenance = self._provenance(task.dataset, task.fingerprint, dict(task.inputs))
        refused = self.store.dataset(f"{task.dataset}.rejects", REJECTS)
        rejects = refused.commit(record.rejects, provenance, {}).id if record.rejects else None
        crash_point("rejects-committed")
        dataset = self.store.dataset(task.dataset, stage.produces)
        snapshot = dataset.commit(record.files, provenance, record.metrics, rejects)
        crash_point("committed")
        return snapshot

    def _settle_gate(self, name: str, decision: Snapshot) -> None:
        """Move the ref if every rule passed and this decision has not moved it yet."""
        rules = decision.table().to_pylist()
        broken = [rule for rule in rules if not rule["passed"]]
        if broken or not rules:
            why_not = "; ".join(f"{rule['rule']}: {rule['reason']}" for rule in broken)
            self._update(name, status="GATE_BLOCKED", error=why_not or "no rule was evaluated")
            self._log.stage(self.stages[name])
            raise GateError(f"gate {name}", why_not or "no rule was evaluated", "nothing promoted")
        ref, candidate = rules[0]["ref"], rules[0]["candidate"]
        history = self.store.refs.history(ref)
        if all(entry["evidence"].get("decision") != decision.id for entry in history):
            head = self.store.refs.head_record(ref)
            self.store.refs.advance(
                ref,
                candidate,
                expect=head["seq"] if head else None,
                evidence={"decision": decision.id},
                by_run=self.run_id,
            )
            logger.info("promoted %s to %s", candidate, ref)

    def _update(self, name: str, **changes: Any) -> None:  # noqa: ANN401 - fields of StageRun
        self.stages[name] = self.stages[name].model_copy(update=changes)


def resume_spec(run_id: str, store: Store, registry: Registry = BUILTIN) -> PipelineSpec:
    """Return the pipeline of an earlier run, to be executed again under the same id."""
    run = load_run(store, run_id)
    if run.code_version != __version__:
        logger.warning(
            "run %s began with version %s, this is %s", run_id, run.code_version, __version__
        )
    return parse_pipeline(run.document, run.source, registry)
