"""Decide whether a ref such as `champion` moves to a model: one row per rule, fail closed.

The decision is a snapshot like any other. The ref moves after it is committed, if every rule
passed, with the decision as evidence.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.errors import GateError
from videoar.core.types import Row
from videoar.evaluation.scorecard import Rule, evaluate_rule
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)


class PromoteConfig(StageConfig):
    """Options of `promote`."""

    ref: str = Field(default="champion", min_length=1)
    """Ref that the gate guards."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """All must hold."""


class PromoteStage(ReduceStage[PromoteConfig]):
    """A model and its scores to a decision."""

    name = "promote"
    consumes: ClassVar[Mapping[str, Port]] = {"model": Port(MODELS), "scores": Port(SCORES)}
    produces = RELEASES
    config_type = PromoteConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per rule."""
        scores = _by_metric(inputs["scores"])
        champion = self._champion(context.store)
        decisions = [evaluate_rule(rule, scores, champion) for rule in self.config.rules]
        common = {"candidate": inputs["model"].id, "ref": self.config.ref}
        rows = [{**decision.model_dump(), **common} for decision in decisions]
        num_passed = sum(decision.passed for decision in decisions)
        yield Output(
            pa.Table.from_pylist(rows),
            metrics={"rules": float(len(rows)), "rules_passed": float(num_passed)},
        )

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        """Move the ref; see `apply_promotion`."""
        apply_promotion(output, store, run_id)

    def _champion(self, store: Store) -> Mapping[str, Row] | None:
        """Return the scores that the ref's holder was promoted on, None if nobody holds it.

        A holder without them (promoted by hand) yields an empty card, so that comparing fails.
        """
        record = store.refs.head_record(self.config.ref)
        if record is None:
            return None
        decision = record["evidence"].get("decision")
        parents = store.snapshot(decision).commit.provenance.parents if decision else {}
        return _by_metric(store.snapshot(parents["scores"])) if "scores" in parents else {}


def _by_metric(scores: Snapshot) -> dict[str, Row]:
    return {row["metric"]: row for row in scores.table().to_pylist()}


def apply_promotion(decision: Snapshot, store: Store, run_id: str) -> None:
    """Move the ref of a decision, unless this decision has moved it before.

    Raises:
        GateError: a rule is broken, or there is no rule.
        SnapshotConflictError: the ref has moved since its head was read.
    """
    rules = decision.table().to_pylist()
    broken = [rule for rule in rules if not rule["passed"]]
    if broken or not rules:
        reasons = "; ".join(f"{rule['rule']}: {rule['reason']}" for rule in broken)
        what = reasons or "no rule was evaluated"
        raise GateError(f"gate {decision.dataset}", what, "nothing was promoted")
    ref, candidate = rules[0]["ref"], rules[0]["candidate"]
    history = store.refs.history(ref)
    # a resumed run gets here again: a ref that was rolled back since must not move forward again
    if any(entry["evidence"].get("decision") == decision.id for entry in history):
        return
    head = store.refs.head_record(ref)
    store.refs.advance(
        ref,
        candidate,
        expect=head["seq"] if head else None,
        evidence={"decision": decision.id},
        by_run=run_id,
    )
    logger.info("promoted %s to %s", candidate, ref)
