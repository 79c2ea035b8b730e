"""Show, compare and explain what a store holds."""

import json
from collections.abc import Iterator
from typing import Any

from videoar.contracts.contract import load_contract
from videoar.contracts.names import REJECTS, RELEASES, SCORES, SOURCES
from videoar.core.errors import ConfigError, DamagedError
from videoar.core.types import Row
from videoar.pipeline.fingerprint import differences
from videoar.records.names import find_run, find_run_or_snapshot, find_snapshot
from videoar.records.run_history import previous_parts, stage_parts
from videoar.records.run_record import events_of, load_run
from videoar.storage.layout import table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.statistics import merge, read_statistics
from videoar.storage.store import Store
from videoar.storage.takedown import SOURCE_COLUMN, withdrawn_keys

_SCORE_KEYS = (
    "metric", "status", "reason", "value", "ci_low", "ci_high", "chance", "higher_is_better",
    "num_samples", "num_reference", "lock_digest",
)  # fmt: skip
_REJECT_KEYS = (
    "item_id", "kind", "stage", "reasons", "detail", "retryable", "uri", "span_start_us",
    "span_end_us",
)  # fmt: skip


def show(store: Store, name: str, rows: int = 5) -> dict[str, Any]:
    """Return a snapshot's manifest, schema, statistics, metrics and first rows.

    Of scores also `scores`: every row with its interval, its protocol lock, the snapshots that it
    was computed from, and what gates have decided on it.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
    """
    snapshot = find_snapshot(store, name)
    commit, contract = snapshot.commit, load_contract(snapshot.contract)
    # withdrawn files have no footer to read: statistics are those of the remaining rows
    removed = withdrawn_keys(store.ledger, f"{table_folder(snapshot.dataset)}/")
    remaining = [file for file in snapshot.files if file.key not in removed]
    statistics = merge(read_statistics(store.objects, remaining, contract))
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
        **({"scores": list(_scores(store, snapshot))} if snapshot.contract == SCORES else {}),
    }


def _scores(store: Store, snapshot: Snapshot) -> Iterator[Row]:
    parents = snapshot.commit.provenance.parents
    decisions = [
        (decision.id, decision.table().to_pylist())
        for decision in store.snapshots()
        if decision.contract == RELEASES
        and decision.commit.provenance.parents.get("scores") == snapshot.id
    ]
    for row in snapshot.table().to_pylist():
        yield {
            **{key: row[key] for key in _SCORE_KEYS},
            "lock": json.loads(row["lock_json"]),
            "parents": parents,
            "gate": [
                {
                    "decision": decision,
                    "passed": bool(rules) and all(rule["passed"] for rule in rules),
                    "rules": [
                        {key: rule[key] for key in ("rule", "ref", "passed", "reason")}
                        for rule in rules
                        if rule["metric"] == row["metric"]
                    ],
                }
                for decision, rules in decisions
            ],
        }


def _first_rows(snapshot: Snapshot, count: int) -> list[Row]:
    if not snapshot.files or count < 1:
        return []
    rows = snapshot.read_file(snapshot.files[0]).slice(0, count).to_pylist()
    # payloads are kilobytes of no text
    return [
        {
            key: f"<{len(value)} B>" if isinstance(value, bytes) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def diff(store: Store, old: str, new: str) -> dict[str, Any]:
    """Compare two snapshots: files and videos that only one has, rows and metrics of both.

    Raises:
        SnapshotNotFoundError: nothing in the store has one of the names.
    """
    before, after = find_snapshot(store, old), find_snapshot(store, new)
    # by content: a file that was copied or written again is the same file
    before_files = {file.sha256: file for file in before.files}
    after_files = {file.sha256: file for file in after.files}
    before_videos, after_videos = _videos(before), _videos(after)
    keys = sorted(before.commit.metrics.keys() | after.commit.metrics.keys())
    return {
        "old": before.id,
        "new": after.id,
        "same": before.digest == after.digest,
        "rows": {"old": before.rows, "new": after.rows},
        "only_old": [f.key for sha, f in before_files.items() if sha not in after_files],
        "only_new": [f.key for sha, f in after_files.items() if sha not in before_files],
        "videos_removed": _missing_in(after_videos, before_videos),
        "videos_added": _missing_in(before_videos, after_videos),
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


def _videos(snapshot: Snapshot) -> dict[str, str]:
    """Return the videos of the rows of a snapshot: identity to display text.

    A listing identifies a video by address and etag, later tables by the SHA-256 of its content.
    """
    known = load_contract(snapshot.contract).arrow_schema.names
    if snapshot.contract == SOURCES:
        rows = snapshot.available_rows(["uri", "etag"])
        return {f"{row['uri']} {row['etag']}": row["uri"] for row in rows}
    if SOURCE_COLUMN not in known or snapshot.contract == REJECTS:
        return {}
    columns = [SOURCE_COLUMN, *(name for name in ("source_uri",) if name in known)]
    rows = snapshot.available_rows(columns)
    return {row[SOURCE_COLUMN]: row.get("source_uri") or row[SOURCE_COLUMN] for row in rows}


def _missing_in(videos: dict[str, str], others: dict[str, str]) -> list[str]:
    return sorted(name for identity, name in others.items() if identity not in videos)


def explain(store: Store, name: str | None, stage: str) -> dict[str, Any]:
    """Return what changed in a stage's fingerprint since the pipeline's run before.

    Returns:
        `{run_id, stage, status, previous_run, changed: [{component, old, new}], damaged}`; the last
        names records of runs in between that cannot be read.

    Raises:
        ConfigError: no such run or stage, or the stage did not start.
    """
    run_id = find_run(store, name)
    run = load_run(store, run_id)
    state = run.stage(stage)
    parts = stage_parts(store, run_id, stage)
    if parts is None:
        raise ConfigError(f"run {run_id}", f"stage {stage} did not start")
    damaged: list[DamagedError] = []
    previous = previous_parts(store, run.pipeline, stage, run_id, damaged.append)
    return {
        "run_id": run_id,
        "stage": stage,
        "status": state.status,
        "previous_run": previous[0] if previous else None,
        "changed": differences(previous[1], parts) if previous else [],
        "damaged": list(map(str, damaged)),
    }


def logs(store: Store, where: str) -> list[Row]:
    """Return the events that a run recorded, in order.

    Args:
        store: where to look.
        where: RUN or RUN/STAGE.

    Raises:
        ConfigError: no such run or stage.
    """
    name, _, stage = where.partition("/")
    run_id = find_run(store, name)
    if stage:
        load_run(store, run_id).stage(stage)
    return [
        event
        for event in events_of(store, run_id)
        if not stage or event.get("stage", {}).get("name") == stage
    ]


def rejected(store: Store, name: str | None = None, reason: str | None = None) -> dict[str, Any]:
    """Return the rows that a run's stages, or the stage of one snapshot, rejected.

    Args:
        store: where to look.
        name: run or snapshot; None means the newest run.
        reason: only rows with this code among their reasons.

    Returns:
        `{rows, withdrawn}`; `withdrawn` counts rows that a takedown has removed.
    """
    snapshots = [store.snapshot(rejects) for rejects in rejects_of(store, name)]
    rows = [
        {**row, "snapshot": snapshot.id}
        for snapshot in snapshots
        for row in snapshot.available_rows(list(_REJECT_KEYS))
    ]
    return {
        "rows": [row for row in rows if reason is None or reason in row["reasons"]],
        "withdrawn": sum(snapshot.rows for snapshot in snapshots) - len(rows),
    }


def rejects_of(store: Store, name: str | None) -> list[str]:
    """Return the snapshots of rejects of a run, or of the stage that produced a snapshot."""
    match = find_run_or_snapshot(store, name)
    if isinstance(match, str):
        return [stage.rejects for stage in load_run(store, match).stages if stage.rejects]
    rejects = match.id if match.contract == REJECTS else match.commit.rejects
    return [rejects] if rejects else []
