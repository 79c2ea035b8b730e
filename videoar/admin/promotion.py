"""Read the decisions of promotion gates, and move refs by them.

A gate fails closed: without a decision, or with a broken rule in the newest one, no ref moves.
"""

from typing import Any

from videoar.contracts.names import RELEASES
from videoar.core.errors import ConfigError, GateError
from videoar.core.types import Row
from videoar.records.names import find_run, find_snapshot
from videoar.records.run_record import load_run
from videoar.storage.delta_log import iter_commits
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store


def gate(store: Store, name: str | None = None) -> dict[str, Any]:
    """Return the decision of a run's promotion gate; None means the newest run.

    Returns:
        `{passed, decision, candidate, ref, rules: [{name, value, bound, passed, reason}]}`.

    Raises:
        GateError: the run has no decision.
    """
    run = load_run(store, find_run(store, name))
    for snapshot_id in run.outputs.values():
        snapshot = store.snapshot(snapshot_id)
        if snapshot.contract == RELEASES:
            return _decision(snapshot)
    hint = "only a pipeline with a stage `promote` decides; nothing is promoted without a decision"
    raise GateError(f"run {run.run_id}", "has no gate decision", hint)


def _decision(snapshot: Snapshot) -> dict[str, Any]:
    rows = snapshot.table().to_pylist()
    return {
        "passed": bool(rows) and all(row["passed"] for row in rows),  # all([]) is true
        "decision": snapshot.id,
        "candidate": rows[0]["candidate"] if rows else None,
        "ref": rows[0]["ref"] if rows else None,
        "rules": [
            {
                "name": row["rule"],
                **{key: row[key] for key in ("value", "bound", "passed", "reason")},
            }
            for row in rows
        ],
    }


def promote(store: Store, model: str, ref: str = "champion") -> dict[str, Any]:
    """Point a ref at a model that its gate has passed.

    Returns:
        `{ref, snapshot, decision}`.

    Raises:
        GateError: no decision on this model for this ref, or its newest one has a broken rule.
    """
    candidate = find_snapshot(store, model).id
    decision = newest_decision(store, candidate, ref)
    if decision is None:
        raise GateError(candidate, f"no gate has evaluated it for {ref}", "run its pipeline first")
    broken = [rule["name"] for rule in decision["rules"] if not rule["passed"]]
    if broken:
        raise GateError(candidate, f"blocked by its gate: {', '.join(broken)}", "see videoar gate")
    head = store.refs.head_record(ref)
    seq = head["seq"] if head else None  # another move since then makes `advance` fail
    evidence = {"decision": decision["decision"]}
    store.refs.advance(ref, candidate, expect=seq, evidence=evidence)
    return {"ref": ref, "snapshot": candidate, "decision": decision["decision"]}


def newest_decision(store: Store, candidate: str, ref: str | None = None) -> Row | None:
    """Return the newest decision on a model, for a ref or for any.

    Newest by run id, which sorts by time: commits come dataset by dataset, and a pipeline may call
    its gate by any name.
    """
    made_by = {
        commit.snapshot: commit.provenance.run_id
        for commit in iter_commits(store.objects)
        if commit.contract == RELEASES
    }
    for snapshot_id in sorted(made_by, key=lambda key: made_by[key], reverse=True):
        decision = _decision(store.snapshot(snapshot_id))
        if decision["candidate"] == candidate and ref in {None, decision["ref"]}:
            return decision
    return None


def rollback(store: Store, ref: str) -> dict[str, Any]:
    """Point a ref back at what it pointed at before.

    Returns:
        `{ref, snapshot, was}`.

    Raises:
        ConfigError: no such ref, or it never pointed at anything else.
    """
    history = store.refs.history(ref)
    if not history:
        known = ", ".join(store.refs.names())
        raise ConfigError(ref, "no such ref", f"known: {known}" if known else "")
    # a move that repeats the snapshot of the head is not an earlier state
    earlier = [entry for entry in history if entry["snapshot"] != history[-1]["snapshot"]]
    if not earlier:
        raise ConfigError(ref, "has no earlier snapshot")
    head, target = history[-1], earlier[-1]["snapshot"]
    evidence = {"rolled_back_from": head["snapshot"]}
    store.refs.advance(ref, target, expect=head["seq"], evidence=evidence)
    return {"ref": ref, "snapshot": target, "was": head["snapshot"]}
