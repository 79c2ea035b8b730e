"""Decide whether a model may take a ref such as `champion`: one row per rule, fail closed.

The stage only decides; the runner moves the ref when every rule passed.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.types import Row
from videoar.evaluation.scorecard import Rule, evaluate_rule
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store


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

    def reduce(self, inputs: Inputs, store: Store) -> Iterator[Output]:
        """Yield one table with a row per rule."""
        scores = _by_metric(inputs["scores"])
        champion = self._champion(store)
        decisions = [evaluate_rule(rule, scores, champion) for rule in self.config.rules]
        common = {"candidate": inputs["model"].id, "ref": self.config.ref}
        rows = [{**decision.model_dump(), **common} for decision in decisions]
        num_passed = sum(decision.passed for decision in decisions)
        yield Output(
            pa.Table.from_pylist(rows),
            metrics={"rules": float(len(rows)), "rules_passed": float(num_passed)},
        )

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
