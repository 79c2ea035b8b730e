"""One function per verb: what the command line, the jobs and notebooks call.

    from videoar import api

    store = api.open_store()
    run = api.run(store, Path("pipelines/quickstart.yaml"), target="inline")
    api.show(store, "model")["metrics"]

Names of runs and snapshots are those that the command line takes (`videoar.records.names`). Errors
are `VideoARError`s. Importing this module loads neither Ray nor torch nor Arrow: each function
imports what it needs, so that `videoar --help` stays fast.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from videoar.core.errors import ConfigError, VideoARError, did_you_mean
from videoar.core.settings import settings

if TYPE_CHECKING:
    from videoar.admin.doctor import Check as Check
    from videoar.admin.validate import Mistake as Mistake
    from videoar.bench.result import BenchResult as BenchResult
    from videoar.contracts.contract import Contract
    from videoar.engine.base import Engine
    from videoar.pipeline.stage_reference import StageReference as StageReference
    from videoar.records.run_record import Run as Run
    from videoar.records.run_record import StageRun as StageRun
    from videoar.runner.execute import Execution as Execution
    from videoar.runner.plan import StagePlan as StagePlan
    from videoar.storage.store import Store as Store

logger = logging.getLogger(__name__)
_FROM_A_NODE = "on a node of the cluster use --target HOST:PORT, the address of its GCS"
_UNFINISHED = "has no finished snapshot"
Document: TypeAlias = dict[str, Any]
"""A JSON object; `json.dumps` takes it as it is."""
Watch: TypeAlias = "Callable[[Execution], AbstractContextManager[None]]"
"""Wraps a run, e.g. to display its progress."""


def open_store(url: str = "") -> Store:
    """Open a store; without a URL the one of VIDEOAR_STORE, or `.videoar` in this directory.

    Raises:
        ConfigError: the URL cannot be used.
        StorageError: an S3 store cannot be reached, or its put-if-absent is not atomic.
    """
    from videoar.storage import store

    return store.open_store(url or settings().store_url, endpoint=settings().s3_endpoint)


def make_engine(target: str) -> Engine:
    """Return the engine of a target: `inline`, `local`, or `HOST:PORT` of a Ray cluster's GCS.

    Raises:
        ConfigError: the target is of another kind.
    """
    if target == "inline":
        from videoar.engine.inline import InlineEngine

        return InlineEngine()
    if target in ("job", "kuberay"):
        raise ConfigError(f"--target {target}", "cannot be driven from here", _FROM_A_NODE)
    if target.startswith("ray://"):  # Ray Client
        raise ConfigError(f"--target {target}", "Ray Data does not run over it", _FROM_A_NODE)
    from videoar.engine.ray_engine import RayEngine

    return RayEngine(target)


# Runs


def run(  # noqa: PLR0913 - the verb's own options
    store: Store,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    start: str | None = None,
    until: str | None = None,
    watch: Watch = lambda _: nullcontext(),
) -> Run:
    """Plan and execute a pipeline file.

    Args:
        store: where snapshots and the run's record go.
        path: pipeline file (YAML).
        overrides: `a.b=value`, e.g. `inputs.videos=/data/videos`.
        target: see `make_engine`.
        start: first stage to run; what it needs must be finished.
        until: last stage to run.
        watch: wraps the execution.

    Raises:
        ConfigError: the file, an override or an input cannot be used; nothing ran.
        GateError: the promotion gate blocked; everything before it is finished.
        StageError: a stage failed.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.runner.execute import Execution

    execution = Execution(load_pipeline(path, overrides), store, make_engine(target))
    return _execute(execution, watch, start, until)


def resume(
    store: Store, name: str, *, target: str = "local", watch: Watch = lambda _: nullcontext()
) -> Run:
    """Execute an earlier run again under its id; finished stages and shards are reused.

    A run that was started with `until` ends there again.

    Raises:
        VideoARError: as for `run`.
    """
    from videoar.records.names import find_run
    from videoar.records.run_record import load_run
    from videoar.runner.execute import Execution, resume_spec

    run_id = find_run(store, name)
    spec, requested = resume_spec(run_id, store), load_run(store, run_id)
    execution = Execution(spec, store, make_engine(target), run_id=run_id)
    return _execute(execution, watch, requested.from_, requested.until)


def _execute(execution: Execution, watch: Watch, start: str | None, until: str | None) -> Run:
    try:
        with watch(execution):
            execution.run(start, until)
    except VideoARError:
        if execution.has_begun:
            _publish_results(execution)
        raise
    finally:
        execution.engine.close()
    _publish_results(execution)
    return status(execution.store, execution.run_id)


def _publish_results(execution: Execution) -> None:
    """Write the report page and the MLflow mirror; a finished run stays finished if they fail."""
    from videoar.records.mlflow_mirror import record_run

    store, run_id = execution.store, execution.run_id
    page: bytes | None = None
    try:
        page = _render_report(store, run_id)[1]
    except VideoARError as error:
        logger.warning("no report page: %s", error)
    try:
        record_run(store, execution.spec, status(store, run_id), page)
    except Exception as error:  # noqa: BLE001 - MLflow is a mirror: if it is down, warn
        logger.warning("not mirrored to MLflow, `videoar report %s` tries again: %s", run_id, error)


def plan(
    store: Store,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    start: str | None = None,
    until: str | None = None,
) -> list[StagePlan]:
    """Return what `run` would do with each requested stage, and why; has no side effect.

    Raises:
        ConfigError: the file, an override or an input cannot be used.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.runner import plan

    spec = load_pipeline(path, overrides)
    requested = {stage.name for stage in spec.select(start, until)}
    plans = [stage for stage in plan.plan(spec, store) if stage.name in requested]
    must_exist = spec.upstream(start) if start else set()
    for stage in plans:
        if stage.name in must_exist and stage.action != "cached":
            raise ConfigError(f"stages.{stage.name}", _UNFINISHED, "leave out --from")
    return plans


def status(store: Store, name: str | None = None) -> Run:
    """Return the state of a run; None means the newest one.

    Raises:
        ConfigError: no run matches, or several do.
    """
    from videoar.records.names import find_run
    from videoar.records.run_record import load_run

    return load_run(store, find_run(store, name))


def ls(store: Store, limit: int | None = None) -> list[Run]:
    """Return the newest `limit` runs, newest first; None means all of them."""
    from videoar.records.run_record import load_run, run_ids

    return [load_run(store, run_id) for run_id in run_ids(store)[::-1][:limit]]


def logs(store: Store, where: str) -> list[Document]:
    """Return the events that a run recorded, in order.

    Args:
        store: where to look.
        where: RUN or RUN/STAGE.

    Raises:
        ConfigError: no such run or stage.
    """
    from videoar.admin import inspect

    return inspect.logs(store, where)


def cancel(store: Store, name: str) -> str:
    """Stop a run that is driven from this machine, and return its id; finished shards stay.

    Raises:
        ConfigError: the run is not running, or is driven from another machine.
    """
    from videoar.records.names import find_run
    from videoar.records.run_record import cancel_run

    run_id = find_run(store, name)
    cancel_run(store, run_id)
    return run_id


def progress(store: Store, run_id: str, stage: str) -> Document | None:
    """Return `{step, total, metrics}` of a training stage in progress; None if it has none yet."""
    from videoar.storage.layout import progress_key

    data = store.objects.find(progress_key(run_id, stage))
    state: Document | None = json.loads(data) if data is not None else None
    return state


def explain(store: Store, name: str | None, stage: str) -> Document:
    """Return what changed in a stage's fingerprint since the pipeline's run before.

    Returns:
        `{run_id, stage, status, previous_run, changed: [{component, old, new}]}`.

    Raises:
        ConfigError: no such run or stage, or the stage did not start.
    """
    from videoar.admin import inspect

    return inspect.explain(store, name, stage)


def report(store: Store, name: str | None = None, out: Path | None = None) -> str:
    """Render a run's report page into the store, or to `out`; return its path.

    Raises:
        ConfigError: no such run, or `out` cannot be written.
    """
    from videoar.records.names import find_run

    key, page = _render_report(store, find_run(store, name))
    if out is None:
        return store.objects.location(key)
    try:
        out.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be written: {error.strerror}") from error
    return str(out)


def report_path(store: Store, run_id: str) -> str | None:
    """Return where a run's report page is; None if it has not been rendered."""
    from videoar.storage.layout import report_key

    key = report_key(run_id)
    return store.objects.location(key) if store.objects.size(key) is not None else None


def _render_report(store: Store, run_id: str) -> tuple[str, bytes]:
    from videoar.report.collect import collect
    from videoar.report.page import render
    from videoar.storage.layout import report_key

    key, page = report_key(run_id), render(collect(store, status(store, run_id))).encode()
    store.objects.put(key, page)
    return key, page


# Data


def show(store: Store, name: str, rows: int = 5) -> Document:
    """Return a snapshot's manifest, schema, statistics, metrics and first rows.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
    """
    from videoar.admin import inspect

    return inspect.show(store, name, rows)


def diff(store: Store, old: str, new: str) -> Document:
    """Compare two snapshots: files and videos that only one has, rows and metrics of both.

    Raises:
        SnapshotNotFoundError: nothing in the store has one of the names.
    """
    from videoar.admin import inspect

    return inspect.diff(store, old, new)


def lineage(store: Store, name: str, *, down: bool = False) -> Document:
    """Return the graph of all that a snapshot came from, or of all that was made of it.

    Returns:
        `{nodes: [...], edges: [{from, to}]}`; sources are nodes with sha256, licence and origin.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
        WithdrawnError: it is a source that was taken down.
    """
    from videoar.records import lineage

    return lineage.lineage(store, name, down=down)


def quarantine(store: Store, name: str | None = None, reason: str | None = None) -> Document:
    """Return the rows that a run's stages, or the stage of one snapshot, rejected.

    Args:
        store: where to look.
        name: run or snapshot; None means the newest run.
        reason: only rows with this code among their reasons.

    Returns:
        `{rows, withdrawn}`; `withdrawn` counts rows that a takedown has removed.
    """
    from videoar.admin import inspect

    return inspect.rejected(store, name, reason)


def validate(
    store: Store, name: str, *, deep: bool = False, tokenizer: str | None = None
) -> list[Mistake]:
    """Return what is wrong with the rows and files of a snapshot; empty if nothing is.

    Args:
        store: where the snapshot is.
        name: its name.
        deep: also check pages, layout, payload, and the objects that rows name.
        tokenizer: name of the tokenizer that the tokens must be of; None means their own parent.

    Raises:
        ConfigError: `tokenizer` is no tokenizer.
        StorageError: the store does not answer; nothing was checked.
    """
    from videoar.admin.validate import validate_snapshot

    return validate_snapshot(store, name, deep=deep, tokenizer=tokenizer)


def validate_pipeline(path: Path) -> list[Mistake]:
    """Return the mistakes of a pipeline file; empty if there are none."""
    from videoar.admin import validate

    return validate.validate_pipeline(path)


def schema(contract: str) -> Contract:
    """Return a data contract by id, e.g. `clips@1`; without `@` the newest major version.

    Raises:
        ConfigError: no such contract.
    """
    from videoar.contracts.contract import contract_ids, load_contract

    known = contract_ids()
    matches = [name for name in known if contract in (name, name.partition("@")[0])]
    if not matches:
        raise ConfigError(contract or "''", "no such contract", did_you_mean(contract, known))
    return load_contract(max(matches, key=lambda name: int(name.partition("@")[2])))


def stages(name: str | None = None) -> list[StageReference]:
    """Return what a stage type takes, makes and can be set to; of all types without a name.

    Raises:
        ConfigError: no stage of this type.
    """
    from videoar.pipeline.stage_reference import stage_references

    return stage_references([name] if name else [])


def export(store: Store, name: str, form: str, to: str, *, shard_mib: float = 256) -> Document:
    """Write a snapshot of tokens as WebDataset or Parquet; see `videoar.admin.export`.

    Returns:
        The manifest: `{format, snapshot, digest, rows, files: [{name, rows, size_bytes, sha256}]}`.

    Raises:
        ConfigError: the format or snapshot cannot be exported, or the folder is not empty.
        StorageError: a row is damaged, or a store does not answer.
    """
    from videoar.admin import export

    return export.export(store, name, form, to, shard_mib=shard_mib)


# Models


def gate(store: Store, name: str | None = None) -> Document:
    """Return the decision of a run's promotion gate; None means the newest run.

    Returns:
        `{passed, decision, candidate, ref, rules: [{name, value, bound, passed, reason}]}`.

    Raises:
        GateError: the run has no decision.
    """
    from videoar.admin import promotion

    return promotion.gate(store, name)


def promote(store: Store, model: str, ref: str = "champion") -> Document:
    """Point a ref at a model that its gate has passed.

    Returns:
        `{ref, snapshot, decision}`.

    Raises:
        GateError: no decision on this model for this ref, or its newest one has a broken rule.
    """
    from videoar.admin import promotion

    return promotion.promote(store, model, ref)


def rollback(store: Store, ref: str) -> Document:
    """Point a ref back at what it pointed at before.

    Returns:
        `{ref, snapshot, was}`.

    Raises:
        ConfigError: no such ref, or it never pointed at anything else.
    """
    from videoar.admin import promotion

    return promotion.rollback(store, ref)


# Operations


def forget(store: Store, source: str, reason: str = "", *, dry_run: bool = False) -> Document:
    """Take a source down; report pages that show its clips are rendered again without them.

    Args:
        store: where it is.
        source: SHA-256 of the source file.
        reason: why; kept in the tombstone.
        dry_run: only return what would be deleted.

    Returns:
        As `videoar.admin.forget`, and `pages`: the runs whose report pages showed it.

    Raises:
        ConfigError: this is no SHA-256.
        SnapshotNotFoundError: nothing in the store is of this source.
    """
    from videoar.admin import forget
    from videoar.storage.layout import report_key

    result = forget.forget(store, source, reason, dry_run=dry_run)
    holders = {entry["id"] for entry in result["derived"] if entry["holds_content"]}
    runs = ls(store)[::-1]
    affected = [run for run in runs if holders & _snapshots_of(run)]
    if not dry_run:
        # All old pages go before the first one is rendered: rendering may fail or be killed.
        for run in affected:
            store.objects.purge(report_key(run.run_id))
        for run in affected:
            _rerender_report(store, run)
    for run in runs:
        if run.status == "RUNNING":
            logger.warning("run %s is in progress: forget again when it has ended", run.run_id)
    return {**result, "pages": [run.run_id for run in affected]}


def _snapshots_of(run: Run) -> set[str]:
    inputs = {snapshot for stage in run.stages for snapshot in stage.inputs.values()}
    return inputs | set(run.outputs.values())


def _rerender_report(store: Store, run: Run) -> None:
    """Render a run's page from what remains, and replace MLflow's copy."""
    from videoar.records.mlflow_mirror import record_run
    from videoar.runner.execute import resume_spec

    try:
        page = _render_report(store, run.run_id)[1]
        record_run(store, resume_spec(run.run_id, store), run, page)
    except Exception as error:  # noqa: BLE001 - the page in the store is gone; MLflow's may be left
        where = f"run {run.run_id}"
        logger.warning("%s: MLflow may still show the old page, forget again: %s", where, error)


def doctor(store: Store) -> list[Check]:
    """Check this machine and the store, and return one answer per check."""
    from videoar.admin.doctor import diagnose

    return diagnose(store)


def bench(name: str, videos: Path | None = None, rounds: int = 3) -> BenchResult:
    """Run a benchmark beside its baselines.

    Args:
        name: one of `videoar.bench.BENCHES`.
        videos: folder to measure on; None draws videos.
        rounds: how often each contestant runs, in turns.

    Raises:
        ConfigError: no such benchmark, or what it compares with is not installed.
    """
    from videoar.bench import measure

    return measure(name, videos, rounds)
