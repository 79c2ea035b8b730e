"""Read the decisions of promotion gates."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from videoar.contracts.names import RELEASES
from videoar.core.errors import GateError
from videoar.core.prefetch import concurrently
from videoar.core.types import Row
from videoar.records.names import find_run
from videoar.records.run_record import load_run
from videoar.storage.delta_log import iter_commits
from videoar.storage.layout import DECISIONS_LOG
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store


def gate(store: Store, name: str | None = None) -> dict[str, Any]:
    """Return the decision of a run's promotion gate; None means the newest run.

    Of several gates, the first one that blocked, else the first one.

    Returns:
        `{passed, decision, candidate, ref, champion, champion_seq, rules: [{name, value, bound,
        passed, reason}]}`.

    Raises:
        GateError: the run has no decision.
    """
    run = load_run(store, find_run(store, name))
    outputs = (store.snapshot(snapshot_id) for snapshot_id in run.outputs.values())
    decisions = [_decision(snapshot) for snapshot in outputs if snapshot.contract == RELEASES]
    if not decisions:
        before = run.error or next((s.reason for s in run.stages if s.status == "SKIPPED"), "")
        hint = before or "only a pipeline with a stage `promote` decides"
        raise GateError(f"run {run.run_id}", "has no gate decision", hint)
    return min(decisions, key=lambda decision: decision["passed"])


def _decision(snapshot: Snapshot) -> dict[str, Any]:
    rows = snapshot.table().to_pylist()
    first = rows[0] if rows else {}
    return {
        "passed": bool(rows) and all(row["passed"] for row in rows),  # all([]) is true
        "decision": snapshot.id,
        **{key: first.get(key) for key in ("candidate", "ref", "champion", "champion_seq")},
        "rules": [
            {
                "name": row["rule"],
                **{key: row[key] for key in ("value", "bound", "passed", "reason")},
            }
            for row in rows
        ],
    }


def newest_decision(store: Store, candidate: str, ref: str | None = None) -> Row | None:
    """Return the newest decision on a model, for a ref or for any.

    Newest by the log of decisions: neither datasets, run ids nor clocks have their order. One that
    is not in the log (a kill before its record) counts as newest unless its dataset has a later
    one, and one of an earlier version, which kept no log, as older. Of equally new ones the one
    that blocks is returned.
    """
    with ThreadPoolExecutor(1) as beside:  # the log takes as long to read as the commits
        log = beside.submit(lambda: list(store.ledger.entries(DECISIONS_LOG)))
        commits = {c.snapshot: c for c in iter_commits(store.objects, contract=RELEASES)}
        numbers = {entry["decision"]: number for number, entry in enumerate(log.result())}
    # by the commits first: each decision would take requests, of which few are on this model
    parents = {n: c.provenance.parents.values() for n, c in commits.items()}
    on_it = [name for name, of_it in parents.items() if not of_it or candidate in of_it]
    recorded = [commits[snapshot] for snapshot in numbers if snapshot in commits]
    versions = {c.dataset: c.version for c in sorted(recorded, key=lambda c: c.version)}

    def age(decision: Row) -> tuple[int, int, str, bool]:
        commit = commits[decision["decision"]]
        blocks = not decision["passed"]
        if (number := numbers.get(commit.snapshot)) is not None:
            return 1, number, "", blocks
        if decision["champion_seq"] is None or commit.version < versions.get(commit.dataset, -1):
            return 0, 0, commit.provenance.run_id, blocks
        return 2, 0, "", blocks

    snapshots = [Snapshot(store.objects, store.ledger, commits[name]) for name in on_it]
    decisions = (decision for _, decision in concurrently(_decision, snapshots))
    matching = [d for d in decisions if d["candidate"] == candidate and ref in {None, d["ref"]}]
    return max(matching, key=age, default=None)
