"""The work of one stage of a run that is not cached: computed by an engine, then committed."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from videoar.contracts.names import REJECTS
from videoar.core.crash_points import crash_point
from videoar.core.errors import StageError, StorageError
from videoar.engine.base import Engine, ShardDone
from videoar.pipeline.device_queue import summary
from videoar.pipeline.fingerprint import FingerprintParts
from videoar.pipeline.spec import StageSpec
from videoar.pipeline.stage import Inputs, MapStage, Shard
from videoar.pipeline.work.progress import ProgressWriter, clear_progress, rank_usage
from videoar.pipeline.work.rank import training_prefix
from videoar.pipeline.work.task import StageTask, WorkRecord, find_record, merge
from videoar.records.run import RowCounts, ShardCounts, StageRun
from videoar.runner.decide import Decision, ShardWork
from videoar.runner.run_context import RunContext
from videoar.runner.strikes import suspects
from videoar.storage import layout, record_folds
from videoar.storage.delta_log import missing_files
from videoar.storage.lease import HolderWatch
from videoar.storage.reader import read_file
from videoar.storage.snapshot import Snapshot

logger = logging.getLogger(__name__)
_STORE = "store"
_FOLD_EACH = 1_000
"""chosen: about a fold; after a kill so many records are read one by one."""


class StageWork:
    """Computes and commits the output of a stage.

    Args:
        run: of the stage.
        engine: that computes it.
        spec: the stage, without its absent inputs.
        decision: what of it is to be computed.
        inputs: snapshots by port.
    """

    def __init__(
        self,
        run: RunContext,
        engine: Engine,
        spec: StageSpec,
        decision: Decision,
        inputs: Inputs,
    ) -> None:
        self._run, self._engine, self._spec, self._decision = run, engine, spec, decision
        self._store, self._where = run.store, f"stage {spec.name}"
        self._task = StageTask(
            run_id=run.run_id,
            dataset=spec.name,
            stage_type=spec.type,
            config=spec.config.model_dump(mode="json"),
            inputs={port: snapshot.id for port, snapshot in inputs.items()},
            fingerprint_parts=decision.fingerprint_parts,
            store_url=run.store.url,
            store_endpoint=run.store.endpoint,
            registry=run.registry,
        )

    def execute(self, started: float) -> Snapshot:
        """Compute the output and commit it; `started` is by the monotonic clock."""
        clear_progress(self._store, self._run.run_id, self._spec.name)
        self._update(shards=_shard_counts(self._decision))
        # the parts go first: the next run can tell what changed, even if this one is killed
        self._record(self._decision.fingerprint_parts)
        logger.info("running: %s", self._decision.reason)
        with self._run.supervisor.limits(self._where, self._spec.config, self._progress):
            self._engine.waits = self._backoff
            record = self._compute()
        self._check_rejects(record)
        snapshot = self._commit(record)
        seconds = time.monotonic() - started
        self._update(
            status="SUCCEEDED",
            snapshot=snapshot.id,
            rejects=snapshot.commit.rejects,
            seconds=round(seconds, 3),
            rows=_row_counts(record),
        )
        self._record()
        logger.info("committed %s after %.1f s", snapshot.id, seconds)
        return snapshot

    @property
    def _state(self) -> StageRun:
        return self._run.stages[self._spec.name]

    def _update(self, **changes: object) -> None:
        self._run.update(self._spec.name, **changes)

    def _record(self, fingerprint_parts: FingerprintParts | None = None) -> None:
        self._run.record(self._spec.name, fingerprint_parts)

    def _progress(self) -> object:
        """Return what changes with each step of the stage: its counts, a training's progress."""
        key = layout.progress_key(self._run.run_id, self._spec.name)
        return self._state.shards, self._store.objects.find(key)

    def _compute(self) -> WorkRecord:
        task, stage = self._task, self._decision.stage
        if isinstance(stage, MapStage):
            return self._map(stage, self._decision.work)
        is_loop = stage.shape == "loop"
        record_key = layout.loop_record_key if is_loop else layout.reduce_record_key
        key = record_key(task.dataset, task.fingerprint)
        # two gangs on one training would take its checkpoints from each other
        right = training_prefix(task).rstrip("/") if is_loop else key.removesuffix(".json")
        self._run.supervisor.claim(right, partial(self._waits_for, key))
        self._update(status="RUNNING")
        record = find_record(self._store, key)
        # lost: killed before the commit, and files were withdrawn or removed since
        if record is not None and any(missing_files(self._store.objects, record.all_files)):
            self._store.objects.delete(key)  # the engine would adopt it
            record = None
        if record is None:
            record = self._engine.loop(task) if is_loop else self._engine.reduce(task)
            usage = sum(rank_usage(self._store, self._run.run_id, task.dataset), record.usage)
            self._update(usage=usage)
        self._update(shards=ShardCounts(planned=1, done=1))
        return record

    def _waits_for(self, key: str, holder: HolderWatch) -> bool:
        """Show that the stage waits for another run; return whether that has done the work."""
        if self._state.status != "WAITING":
            waiting = f"lease: {holder} does the same work"
            self._update(status="WAITING", waiting=waiting)
            self._record()
            logger.info("waiting: %s", waiting)
        return self._store.ledger.read(key) is not None

    def _backoff(self, error: Exception | None) -> None:
        """Show that the stage waits to be tried again after an error; None: that it goes on."""
        if error is None:
            if self._state.waiting.startswith(_STORE):
                self._show()
            self._update(status="RUNNING")
            self._show()
            return
        kind = _STORE if isinstance(error, StorageError) else "backoff"
        self._update(status="WAITING", waiting=f"{kind}: tried again after {error}")
        if kind != _STORE:  # that is recorded when the store is back
            self._show()

    def _show(self) -> None:
        """Record the state for displays only: the stage goes on if the store fails again."""
        try:
            self._record()
        except StorageError as error:
            logger.warning("%s is not recorded: %s", self._state.status, error)

    def _map(self, stage: MapStage[Any], work: ShardWork) -> WorkRecord:
        # before any worker starts: it would adopt such a record, and the commit would name missing
        # files
        for key in work.stale_keys:
            self._store.objects.delete(key)
        records, unfolded = dict(work.done), list(work.unfolded)
        write_progress = ProgressWriter(self._task, "shard")

        def finished(shard: Shard, record: WorkRecord) -> None:
            self._run.supervisor.check()
            records[shard.index] = record
            self._add(record)
            report()
            unfolded.append(work.keys[shard.index])
            if len(unfolded) >= _FOLD_EACH:
                self._fold(work, unfolded)
                unfolded.clear()

        def report() -> None:
            shards, rows = self._state.shards, self._state.rows
            metrics = {"rows": rows.out, "rejected": rows.rejected}
            write_progress(shards.cached + shards.done, shards.planned, metrics)

        if work.missing:
            report()
            self._map_missing(stage, work.missing, finished)
        # an engine that loses a shard must not lead to a snapshot with fewer rows
        for shard in work.shards:
            if shard.index not in records:
                raise StageError(f"{self._where}, shard {shard.index}", "has no work record")
        self._fold(work, unfolded)
        # in the order of the plan: files and sums of floats must not depend on which shard ended
        # first
        total = merge([records[shard.index] for shard in work.shards])
        # the counts so far are those of this attempt; `total` includes cached shards
        quarantined = {"quarantined": total.rows_rejected}
        self._update(shards=self._state.shards.model_copy(update=quarantined))
        if total.rows_rejected and not total.rows_out and not stage.allows_empty_output:
            self._fail_empty(work, total)
        metrics = summary(total.metrics)
        self._update(metrics=metrics)
        return total.model_copy(update={"metrics": metrics})

    def _add(self, record: WorkRecord) -> None:
        """Add a shard to the counts."""
        shards, rows, done = self._state.shards, self._state.rows, _row_counts(record)
        counts = {"done": shards.done + 1, "quarantined": shards.quarantined + done.rejected}
        self._update(
            shards=shards.model_copy(update=counts),
            usage=self._state.usage + record.usage,
            rows=RowCounts(
                in_=rows.in_ + done.in_,
                out=rows.out + done.out,
                rejected=rows.rejected + done.rejected,
            ),
        )

    def _map_missing(
        self, stage: MapStage[Any], missing: Sequence[Shard], finished: ShardDone
    ) -> None:
        isolated = suspects(self._store, self._run.run_id, stage, self._spec.name, missing)
        for shard in isolated:
            where = f"{self._where}, shard {shard.index}"
            logger.warning("%s: runs isolated, because the run has not got past it", where)
            self._run.supervisor.watch(where)
            self._engine.map_isolated(self._task, shard, finished)
        self._run.supervisor.watch(self._where)
        if rest := missing[len(isolated) :]:
            self._engine.map(self._task, rest, finished)

    def _fail_empty(self, work: ShardWork, total: WorkRecord) -> None:
        """Fail a stage that rejected all of its rows; the next run tries them again.

        Most often the sources were unreachable: the records must not make that permanent.
        """
        columns = ["reasons", "uri", "detail"]
        (first, *_) = read_file(self._store.objects, total.rejects[0], columns).to_pylist()
        for key in work.keys.values():
            self._store.objects.delete(key)
        example = f"{first['reasons'][0]}: {first['uri']} {first['detail']}"
        what = f"all of its {total.rows_rejected} rows were rejected, such as {example}"
        raise StageError(self._where, what, "check that the sources are reachable")

    def _check_rejects(self, record: WorkRecord) -> None:
        total, bound = record.rows_in, self._spec.config.max_reject_fraction
        if total and record.rows_rejected > bound * total:
            counts = {k: n for k, n in record.metrics.items() if k.startswith("reject/")}
            most = max(counts, key=lambda k: counts[k], default="").removeprefix("reject/")
            what = f"{record.rows_rejected} of {total} rows were rejected, more than"
            what += f" max_reject_fraction {bound:g}" + f", most often for {most}" * bool(most)
            hint = "list the reasons with: videoar quarantine ls, or raise the bound"
            raise StageError(self._where, what, hint)

    def _commit(self, record: WorkRecord) -> Snapshot:
        task = self._task
        self._run.supervisor.check()
        crash_point("before-commit")
        provenance = self._run.provenance(task.dataset, task.fingerprint, task.inputs)
        rejected = self._store.dataset(layout.rejects_dataset(task.dataset), REJECTS)
        # rejects first: the commit of the output names their snapshot. Killed in between, the next
        # attempt finds it by its fingerprint.
        rejects = rejected.commit(record.rejects, provenance, {}).id if record.rejects else None
        crash_point("rejects-committed")
        dataset = self._store.dataset(task.dataset, self._decision.stage.produces)
        snapshot = dataset.commit(record.files, provenance, record.metrics, rejects)
        crash_point("committed")
        return snapshot

    def _fold(self, work: ShardWork, unfolded: Sequence[str]) -> None:
        """Fold records of shards, so that the next plan need not read them one by one."""
        records = layout.shard_records_prefix(self._task.dataset)
        record_folds.write_if_due(
            self._store.objects, self._store.ledger, work.folds_prefix, records, unfolded
        )


def _shard_counts(decision: Decision) -> ShardCounts:
    if not isinstance(decision.stage, MapStage):
        return ShardCounts(planned=1)
    return ShardCounts(planned=len(decision.work.shards), cached=len(decision.work.done))


def _row_counts(record: WorkRecord) -> RowCounts:
    return RowCounts(in_=record.rows_in, out=record.rows_out, rejected=record.rows_rejected)
