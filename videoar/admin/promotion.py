"""Move refs by the decisions of promotion gates, and back.

A gate fails closed: without a decision, or with a broken rule in the newest one, no ref moves.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from videoar.admin.decisions import newest_decision
from videoar.admin.registry import mirror_move
from videoar.contracts.names import RELEASES
from videoar.core.errors import ConfigError, GateError, RefMovedError, one_line
from videoar.core.ids import is_safe_key
from videoar.core.redact import redact
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import compute_parts, fingerprint
from videoar.records.mlflow.client import import_ahead
from videoar.records.names import find_snapshot
from videoar.records.run_history import stage_parts
from videoar.stages.promote import (
    PromoteConfig,
    PromoteStage,
    decided_against,
    move,
    record_decision,
)
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 10
"""chosen: five decisions, each taken against a head and then moved from it."""


def promote(store: Store, model: str, ref: str = "champion") -> dict[str, Any]:
    """Point a ref at a model that its gate has passed.

    If the ref has moved since the decision, the rules are evaluated again, against the model that
    it points at now.

    Returns:
        `{ref, snapshot, decision}`.

    Raises:
        GateError: no decision on this model for this ref, or its newest one has a broken rule.
    """
    import_ahead(store)
    candidate = find_snapshot(store, model).id
    for _ in range(_MAX_ATTEMPTS):
        decision = newest_decision(store, candidate, ref)
        if decision is None:
            hint = "run its pipeline first"
            raise GateError(candidate, f"no gate has evaluated it for {ref}", hint)
        broken = [f"{r['name']}: {r['reason']}" for r in decision["rules"] if not r["passed"]]
        if broken:
            what = f"blocked by its gate: {'; '.join(broken)}"
            raise GateError(candidate, what, f"decision {decision['decision']}")
        result = {"ref": ref, "snapshot": candidate, "decision": decision["decision"]}
        head = decided_against(store, ref)
        if head["champion"] == candidate:
            return result
        if str(decision["champion_seq"]) != head["champion_seq"]:
            _decide_again(store, decision["decision"], head)
            continue
        try:
            move(store, decision["decision"], decision)
        except RefMovedError as error:
            logger.info("decided again: %s", error)
            continue
        mirror_move(store, ref)
        return result
    raise GateError(candidate, f"{ref} moved during each of its decisions", "run again")


def _decide_again(store: Store, decision: str, state: Mapping[str, str]) -> None:
    """Evaluate the rules of a decision against another head of the ref, and commit the result.

    The scores are those of the decision. Those of the head are its own: this generates no samples,
    so a head that was scored under another protocol fails the rules that compare.

    Raises:
        GateError: the rules or the scores are not known any more.
    """
    made = store.snapshot(decision).commit.provenance
    parts = stage_parts(store, made.run_id, made.stage) or {}
    parents = {port: made.parents.get(port, "") for port in ("model", "scores")}
    hint = "run its pipeline again"
    if parts.get("stage") != PromoteStage.name or not all(parents.values()):
        raise GateError(decision, "cannot be decided again: the rules are not recorded", hint)
    try:
        stage = PromoteStage(PromoteConfig.model_validate(parts["config"]))
    except ValidationError as error:
        raise GateError(decision, f"cannot be decided again: {one_line(error)}", hint) from error
    inputs = {port: store.snapshot(parent) for port, parent in parents.items()}
    (output,) = stage.reduce(inputs, StageContext(store, state=state))
    dataset = store.dataset(made.stage, RELEASES)
    # as the run of the pipeline would commit it: one of the two finds that of the other
    digest = fingerprint(compute_parts(stage, inputs, state))
    again = made.model_copy(update={"fingerprint": digest, "parents": parents})
    made_again = dataset.commit([dataset.write(output.rows)], again, output.metrics)
    record_decision(store, made_again.id, "")


def rollback(store: Store, ref: str, to: str | None = None, reason: str = "") -> dict[str, Any]:
    """Point a ref back at what it pointed at before; a second time, one further back.

    Args:
        store: where the ref is.
        ref: its name.
        to: a snapshot that the ref pointed at; None: the one before that of the head.
        reason: why; kept in the record of the move.

    Returns:
        `{ref, snapshot, was, reason}`.

    Raises:
        ConfigError: no such ref, or it never pointed at anything else, or not at `to`.
        SnapshotNotFoundError: the store does not have the snapshot.
        RefMovedError: another call has moved the ref meanwhile.
    """
    history = store.refs.history(ref) if is_safe_key(ref) else []
    if not history:
        known = ", ".join(store.refs.names())
        raise ConfigError(ref or "''", "no such ref", f"known: {known}" if known else "")
    *earlier, was = _path_to_head(history)
    if to is not None:
        target = find_snapshot(store, to).id
        if target not in (entry["snapshot"] for entry in history):
            raise ConfigError(f"--to {to}", f"{ref} never pointed at it", f"see: refs {ref}")
        if target == was:
            raise ConfigError(f"--to {to}", f"{ref} points at it already")
    elif earlier:
        target = store.snapshot(earlier[-1]).id
    else:
        raise ConfigError(ref, "has no earlier snapshot")
    reason = redact(reason)
    evidence = {"rolled_back_from": was, "reason": reason}
    store.refs.advance(ref, target, expect=history[-1]["seq"], evidence=evidence)
    mirror_move(store, ref)
    return {"ref": ref, "snapshot": target, "was": was, "reason": reason}


def _path_to_head(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the snapshots that a ref was moved forward over, up to that of its head.

    Example: a b c, rolled back to b, is a b; then rolled back to a is a; then promoted d is a d.
    """
    path: list[str] = []
    for entry in history:
        snapshot = entry["snapshot"]
        if "rolled_back_from" in entry["evidence"] and snapshot in path:
            while path[-1] != snapshot:
                path.pop()
        # a move that repeats the snapshot of the head is not an earlier state
        elif path[-1:] != [snapshot]:
            path.append(snapshot)
    return path
