"""Evaluate the rules of a promotion gate; move a ref such as `champion` if all of them pass.

The decision is a snapshot with one row per rule. The ref moves after the commit, with the id of the
decision as evidence. A missing or incomparable score fails its rule.
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
    """Ref that moves to the model."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """Conditions on metrics of `scores`; all must pass."""


class PromoteStage(ReduceStage[PromoteConfig]):
    """Evaluate the scores of a model against the rules of a gate."""

    name = "promote"
    consumes: ClassVar[Mapping[str, Port]] = {"model": Port(MODELS), "scores": Port(SCORES)}
    produces = RELEASES
    config_type = PromoteConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per rule."""
        scores = _by_metric(inputs["scores"])
        # read from the ref, which is no input: a cached decision is not evaluated again when the
        # champion changes
        champion = self._champion_scores(context.store)
        results = [evaluate_rule(rule, scores, champion) for rule in self.config.rules]
        common = {"candidate": inputs["model"].id, "ref": self.config.ref}
        rows = [{**result.model_dump(), **common} for result in results]
        num_passed = sum(result.passed for result in results)
        yield Output(
            pa.Table.from_pylist(rows),
            metrics={"rules": float(len(rows)), "rules_passed": float(num_passed)},
        )

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        """Move the ref; see `apply_promotion`."""
        apply_promotion(output, store, run_id)

    def _champion_scores(self, store: Store) -> Mapping[str, Row] | None:
        """Return the scores by metric that the ref's model was promoted on; None: no such ref.

        A model that was promoted by hand has no scores: the empty mapping fails every comparison.
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
        GateError: a rule failed, or there is no rule.
        SnapshotConflictError: the ref has moved since its head was read.
    """
    rules = decision.table().to_pylist()
    failed = [rule for rule in rules if not rule["passed"]]
    # fail closed: a decision without a rule is not one that all rules passed
    if failed or not rules:
        reasons = "; ".join(f"{rule['rule']}: {rule['reason']}" for rule in failed)
        what = reasons or "no rule was evaluated"
        raise GateError(f"gate {decision.dataset}", what, "nothing was promoted")
    ref, candidate = rules[0]["ref"], rules[0]["candidate"]
    history = store.refs.history(ref)
    # A resumed run repeats this call. If the ref was rolled back in between, it must stay there.
    if any(entry["evidence"].get("decision") == decision.id for entry in history):
        return
    # compare-and-swap: of two promotions at once one fails, and decides again on the new head
    head = store.refs.head_record(ref)
    store.refs.advance(
        ref,
        candidate,
        expect=head["seq"] if head else None,
        evidence={"decision": decision.id},
        by_run=run_id,
    )
    logger.info("promoted %s to %s", candidate, ref)
