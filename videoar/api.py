"""What the command line and the jobs call: one function per verb, values in, values out."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from videoar.admin.forget import forget as take_down
from videoar.contracts.names import REJECTS, RELEASES
from videoar.core.errors import ConfigError, GateError, VideoARError
from videoar.engine.base import Engine
from videoar.engine.inline import InlineEngine
from videoar.pipeline.fingerprint import differences
from videoar.pipeline.spec import load_pipeline
from videoar.records.run_record import (
    Run,
    find_run_id,
    load_run,
    previous_parts,
    run_ids,
    stage_parts,
)
from videoar.runner.execute import Execution, resume_spec
from videoar.storage.layout import report_key, table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import withdrawn

logger = logging.getLogger(__name__)
Watch = Callable[[Execution], AbstractContextManager[None]]


def make_engine(target: str) -> Engine:
    """Return the engine of a target: `inline`, `local`, or the address of a Ray cluster.

    Raises:
        ConfigError: the target is of another kind.
    """
    if target == "inline":
        return InlineEngine()
    if target in ("job", "kuberay"):
        raise ConfigError(f"--target {target}", "cannot be driven from here", "use --target ray://")
    from videoar.engine.ray_engine import RayEngine

    return RayEngine(target)


def run_pipeline(  # noqa: PLR0913 - the verb's own options
    store: Store,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    start: str | None = None,
    until: str | None = None,
    watch: Watch = lambda _: nullcontext(),
) -> Run:
    """Plan and execute a pipeline file; `watch` shows the execution."""
    execution = Execution(load_pipeline(path, overrides), store, make_engine(target))
    return _drive(execution, watch, start, until)


def resume_run(
    store: Store, name: str, *, target: str, watch: Watch = lambda _: nullcontext()
) -> Run:
    """Execute an earlier run again under its id: what is finished is found, the rest is done.

    The rest of what was asked for: a run with `until` ends there again.
    """
    run_id = find_run_id(store, name)
    spec, asked = resume_spec(run_id, store), load_run(store, run_id)
    execution = Execution(spec, store, make_engine(target), run_id=run_id)
    return _drive(execution, watch, asked.from_, asked.until)


def _drive(
    execution: Execution, watch: Watch, start: str | None = None, until: str | None = None
) -> Run:
    try:
        with watch(execution):
            execution.run(start, until)
    except VideoARError:
        if execution.has_begun:
            _afterwards(execution)
        raise
    finally:
        execution.engine.close()
    _afterwards(execution)
    return load_run(execution.store, execution.run_id)


def _afterwards(execution: Execution) -> None:
    """Write the report page and the MLflow mirror; a run that ended stays ended if they fail."""
    from videoar.records.mlflow_mirror import record_run

    store, run_id = execution.store, execution.run_id
    run = load_run(store, run_id)
    page: bytes | None = None
    try:
        page = report(store, run_id)[1]
    except VideoARError as error:
        logger.error("no report page: %s", error)  # noqa: TRY400 - one line, as everywhere
    try:
        record_run(store, execution.spec, run, page)
    except Exception as error:  # noqa: BLE001 - MLflow is a mirror: down, it costs a warning
        logger.warning("not mirrored to MLflow, `videoar report %s` tries again: %s", run_id, error)


def report(store: Store, name: str | None) -> tuple[str, bytes]:
    """Render a run's page and keep it in the store; returns its key and bytes."""
    from videoar.report.collect import collect
    from videoar.report.page import render

    run_id = find_run_id(store, name)
    page = render(collect(store, load_run(store, run_id))).encode()
    key = report_key(run_id)
    store.objects.put(key, page)
    return key, page


def explain(store: Store, name: str, stage: str) -> dict[str, Any]:
    """Say what differs between a run's stage and the same stage in the run before."""
    run_id = find_run_id(store, name)
    run = load_run(store, run_id)
    state = run.stage(stage)
    parts = stage_parts(store, run_id, stage)
    if parts is None:
        raise ConfigError(f"run {run_id}", f"stage {stage} did not start")
    previous = previous_parts(store, run.pipeline, stage, run_id)
    return {
        "run_id": run_id,
        "stage": stage,
        "status": state.status,
        "previous_run": previous[0] if previous else None,
        "changed": differences(previous[1], parts) if previous else [],
    }


def show(store: Store, name: str, rows: int = 5) -> dict[str, Any]:
    """Describe a snapshot: manifest, schema, statistics and its first rows."""
    from videoar.contracts.contract import load_contract
    from videoar.storage.statistics import merge, read_statistics

    snapshot = store.snapshot(name)
    commit, contract = snapshot.commit, load_contract(snapshot.contract)
    gone = withdrawn(store.ledger, f"{table_folder(snapshot.dataset)}/")
    there = [file for file in snapshot.files if file.key not in gone]
    statistics = merge(read_statistics(store.objects, there, contract))
    return {
        "snapshot": snapshot.id,
        "digest": snapshot.digest,
        "dataset": snapshot.dataset,
        "contract": snapshot.contract,
        "rows": snapshot.rows,
        "bytes": commit.size_bytes,
        "shards": [file.model_dump() for file in snapshot.files],
        "schema": {column.name: column.type for column in contract.columns},
        "statistics": {name: column.model_dump() for name, column in statistics.items()},
        "provenance": commit.provenance.model_dump(),
        "metrics": commit.metrics,
        "rejects": commit.rejects,
        "first_rows": _first_rows(snapshot, rows),
    }


def _first_rows(snapshot: Snapshot, count: int) -> list[dict[str, Any]]:
    if not snapshot.files or count < 1:
        return []
    rows = snapshot.read_file(snapshot.files[0]).slice(0, count).to_pylist()
    return [
        {
            key: f"<{len(value)} B>" if isinstance(value, bytes) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def diff(store: Store, old: str, new: str) -> dict[str, Any]:
    """Compare two snapshots: files that only one has, rows and metrics of both."""
    before, after = store.snapshot(old), store.snapshot(new)
    before_files = {file.sha256: file for file in before.files}
    after_files = {file.sha256: file for file in after.files}
    keys = sorted(before.commit.metrics.keys() | after.commit.metrics.keys())
    return {
        "old": before.id,
        "new": after.id,
        "same": before.digest == after.digest,
        "rows": {"old": before.rows, "new": after.rows},
        "only_old": [f.key for sha, f in before_files.items() if sha not in after_files],
        "only_new": [f.key for sha, f in after_files.items() if sha not in before_files],
        "metrics": [
            {
                "name": key,
                "old": before.commit.metrics.get(key),
                "new": after.commit.metrics.get(key),
            }
            for key in keys
            if before.commit.metrics.get(key) != after.commit.metrics.get(key)
        ],
    }


def gate(store: Store, name: str | None) -> dict[str, Any]:
    """Return the decision of a run's promotion gate.

    Raises:
        GateError: the run has none; no answer is no pass.
    """
    run = load_run(store, find_run_id(store, name))
    for snapshot_id in run.outputs.values():
        snapshot = store.snapshot(snapshot_id)
        if snapshot.contract == RELEASES:
            rules = snapshot.table().to_pylist()
            return {
                "passed": bool(rules) and all(rule["passed"] for rule in rules),
                "rules": [
                    {key: rule[key] for key in ("rule", "value", "bound", "passed", "reason")}
                    for rule in rules
                ],
            }
    raise GateError(f"run {run.run_id}", "has no gate decision", "nothing is promoted without one")


def promote(store: Store, model: str, ref: str) -> dict[str, Any]:
    """Point a ref at a model that some gate decision passed.

    Raises:
        GateError: no decision on this model, or its newest one has a broken rule.
    """
    candidate = store.snapshot(model).id
    decision: list[dict[str, Any]] = []
    evidence = ""
    for snapshot in store.snapshots():
        if snapshot.contract == RELEASES:
            rules = snapshot.table().to_pylist()
            if rules and rules[0]["candidate"] == candidate and rules[0]["ref"] == ref:
                decision, evidence = rules, snapshot.id
    if not decision:
        raise GateError(candidate, f"no gate has judged it for {ref}", "run its pipeline first")
    broken = [rule["rule"] for rule in decision if not rule["passed"]]
    if broken:
        raise GateError(candidate, f"the gate refused it: {', '.join(broken)}")
    head = store.refs.head_record(ref)
    seq = head["seq"] if head else None
    store.refs.advance(ref, candidate, expect=seq, evidence={"decision": evidence})
    return {"ref": ref, "snapshot": candidate, "decision": evidence}


def rollback(store: Store, ref: str) -> dict[str, Any]:
    """Point a ref back at what it pointed at before its head.

    Raises:
        ConfigError: there is nothing to go back to.
    """
    history = store.refs.history(ref)
    earlier = [entry for entry in history if entry["snapshot"] != history[-1]["snapshot"]]
    if not earlier:
        raise ConfigError(ref, "has nothing to go back to")
    head, target = history[-1], earlier[-1]["snapshot"]
    evidence = {"rolled_back_from": head["snapshot"]}
    store.refs.advance(ref, target, expect=head["seq"], evidence=evidence)
    return {"ref": ref, "snapshot": target, "was": head["snapshot"]}


def forget(store: Store, source: str, reason: str = "", *, dry_run: bool = False) -> dict[str, Any]:
    """Take a source down, and render the report pages anew that showed clips of it."""
    found = take_down(store, source, reason, dry_run=dry_run)
    holders = {entry["id"] for entry in found["derived"] if entry["holds_content"]}
    runs = [load_run(store, run_id) for run_id in run_ids(store)]
    shown = [run for run in runs if holders & _used(run)]
    if not dry_run:
        for run in shown:
            store.objects.purge(report_key(run.run_id))
        for run in shown:
            _renew_page(store, run)
    for run in runs:
        if run.status == "RUNNING":
            logger.warning("run %s is in progress: forget again when it has ended", run.run_id)
    return {**found, "pages": [run.run_id for run in shown]}


def _used(run: Run) -> set[str]:
    inputs = {snapshot for stage in run.stages for snapshot in stage.inputs.values()}
    return inputs | set(run.outputs.values())


def _renew_page(store: Store, run: Run) -> None:
    """Render a run's page without what is gone, and put it over MLflow's copy."""
    from videoar.records.mlflow_mirror import record_run

    try:
        page = report(store, run.run_id)[1]
        record_run(store, resume_spec(run.run_id, store), run, page)
    except Exception as error:  # noqa: BLE001 - the old page is gone; only its mirror may be left
        where = f"run {run.run_id}"
        logger.warning("%s: MLflow may still show the old page, forget again: %s", where, error)


_REJECT_KEYS = ("item_id", "kind", "stage", "reasons", "detail", "retryable", "uri")


def quarantine(store: Store, name: str | None, reason: str | None = None) -> dict[str, Any]:
    """Return the rows that a run's stages, or the stage of one snapshot, refused.

    Args:
        store: where to look.
        name: run id, prefix of one or snapshot id; None means the newest run.
        reason: only rows with this code among their reasons.

    Returns:
        `{rows, withdrawn}`; `withdrawn` counts rows that went with a take-down.
    """
    refused = [store.snapshot(found) for found in _rejects_of(store, name)]
    rows = [
        {**row, "snapshot": snapshot.id}
        for snapshot in refused
        for table in snapshot.remaining(_REJECT_KEYS)
        for row in table.to_pylist()
    ]
    return {
        "rows": [row for row in rows if reason is None or reason in row["reasons"]],
        "withdrawn": sum(snapshot.rows for snapshot in refused) - len(rows),
    }


def _rejects_of(store: Store, name: str | None) -> list[str]:
    if name is not None and ":" in name:
        snapshot = store.snapshot(name)
        refused = snapshot.id if snapshot.contract == REJECTS else snapshot.commit.rejects
        return [refused] if refused else []
    run = load_run(store, find_run_id(store, name))
    return [stage.rejects for stage in run.stages if stage.rejects]
