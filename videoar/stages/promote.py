"""Evaluate the rules of a promotion gate; move a ref such as `champion` if all of them pass.

The decision is a snapshot with one row per rule, which names the entry of the ref that it was made
against. That entry is part of the fingerprint, and the ref moves from it only: if another run has
moved the ref since, the decision is taken again. A missing or incomparable score fails its rule.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError, GateError, RefMovedError, StorageError
from videoar.core.types import Row
from videoar.evaluation.gate import Rule, ScoreCard, evaluate_rule
from videoar.evaluation.paired import SampleSet
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.layout import DECISIONS_LOG
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)


class PromoteConfig(StageConfig):
    """Options of `promote`."""

    ref: str = Field(default="champion", min_length=1)
    """Ref that moves to the model."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """Conditions on metrics of `scores`; all must pass."""
    allow_without_samples: bool = False
    """Allow rules none of which judges generated samples, such as `recon/psnr` alone."""

    @model_validator(mode="after")
    def _judge_samples(self) -> "PromoteConfig":
        if not self.allow_without_samples and not any(rule.judges_samples for rule in self.rules):
            names = ", ".join(sorted({rule.metric for rule in self.rules}))
            what = f"no rule judges generated samples, only {names}"
            raise ValueError(f"{what} (add a rule, or set allow_without_samples: true)")
        return self


class PromoteStage(ReduceStage[PromoteConfig]):
    """Evaluate the scores of a model against the rules of a gate."""

    name = "promote"
    consumes: ClassVar[Mapping[str, Port]] = {
        "model": Port(MODELS),
        "scores": Port(SCORES),
        "champion_scores": Port(SCORES, optional=True),
    }
    produces = RELEASES
    config_type = PromoteConfig

    def state(self, store: Store, inputs: Inputs) -> Mapping[str, str]:
        """Return the entry of the ref that the candidate is compared with."""
        # the scores that were given are those of the head
        candidate = "" if "champion_scores" in inputs else inputs["model"].id
        return decided_against(store, self.config.ref, candidate)

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per rule."""
        candidate = self._card(inputs["scores"], context.store)
        champion = self._champion_card(inputs, context)
        results = [evaluate_rule(rule, candidate, champion) for rule in self.config.rules]
        common = {
            "candidate": inputs["model"].id,
            "ref": self.config.ref,
            **decision_columns(context.state),
        }
        rows = [{**result.model_dump(), **common} for result in results]
        num_passed = sum(result.passed for result in results)
        yield Output(
            pa.Table.from_pylist(rows),
            metrics={"rules": float(len(rows)), "rules_passed": float(num_passed)},
        )

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        """Move the ref; see `apply_promotion`."""
        apply_promotion(output, store, run_id)

    def _champion_card(self, inputs: Inputs, context: StageContext) -> ScoreCard | None:
        """Return the scores of the ref's current holder; None: there is none.

        Those that were given, else those of its own decision. A model that was promoted without a
        decision has none: the empty card fails every comparison.
        """
        champion, seq, store = context.state["champion"], _seq(context.state), context.store
        if seq < 0:
            return None
        if (scores := inputs.get("champion_scores")) is not None:
            if (model := _scored_model(scores, store)) != champion:
                what = f"port champion_scores has scores of {model}, the ref points at {champion}"
                raise RefMovedError(self.config.ref, what, "connect scores of samples of the ref")
            return self._card(scores, store)
        own = promoted_on(store, self.config.ref, champion, seq)
        return self._card(own, store) if own else ScoreCard({}, "it has no scores")

    def _card(self, scores: Snapshot, store: Store) -> ScoreCard:
        rows = {row["metric"]: row for row in scores.table().to_pylist()}
        # vectors of thousands of clips: read only where a rule compares them
        is_paired = any(rule.noninferior is not None for rule in self.config.rules)
        return ScoreCard(rows, _sample_set(scores, store) if is_paired else "not read")


def promoted_on(store: Store, ref: str, model: str, seq: int) -> Snapshot | None:
    """Return the scores that a ref was moved to a model on, up to its entry `seq`; None: none."""
    decision = _promotion(store.refs.history(ref)[: seq + 1], model)
    scores = store.snapshot(decision).commit.provenance.parents.get("scores") if decision else None
    return store.snapshot(scores) if scores else None


def _sample_set(scores: Snapshot, store: Store) -> SampleSet | str:
    """Return the samples and vectors that scores were computed from, or why they are missing."""
    try:
        return SampleSet.of(scores, store)
    except (ContractError, GateError, StorageError) as error:
        if getattr(error, "retryable", False):
            raise
        return str(error)


def _scored_model(scores: Snapshot, store: Store) -> str | None:
    """Return the model whose samples were scored; None: the scores do not say."""
    samples = scores.commit.provenance.parents.get("samples")
    return store.snapshot(samples).commit.provenance.parents.get("model") if samples else None


def decided_against(store: Store, ref: str, candidate: str = "") -> dict[str, str]:
    """Return the entry of a ref that a decision is made against, as `Stage.state`.

    Of a candidate that the ref was moved to before, that is the entry of that decision, so that
    the same run again finds it: after its own promotion, or after a rollback from it.
    """
    history = store.refs.history(ref)
    if candidate and (decision := _promotion(history, candidate)):
        row = store.snapshot(decision).table().to_pylist()[0]
        if row["champion_seq"] is not None:
            return {"champion": row["champion"] or "", "champion_seq": str(row["champion_seq"])}
    champion, seq = (history[-1]["snapshot"], history[-1]["seq"]) if history else ("", -1)
    return {"champion": champion, "champion_seq": str(seq)}


def decision_columns(state: Mapping[str, str]) -> Row:
    """Return the columns of `releases@1` that name what a decision was made against."""
    return {"champion": state["champion"] or None, "champion_seq": _seq(state)}


def _seq(state: Mapping[str, str]) -> int:
    return int(state["champion_seq"])


def _promotion(history: Sequence[Mapping[str, Any]], model: str) -> str | None:
    """Return the newest decision that moved a ref to a model, None if there is none."""
    decisions = [
        entry["evidence"].get("decision") for entry in history if entry["snapshot"] == model
    ]
    return next((decision for decision in reversed(decisions) if decision), None)


def record_decision(store: Store, decision: str, run_id: str) -> None:
    """Append a decision to the log that orders the decisions of a store; idempotent.

    Neither commits (of several datasets) nor run ids (a run may be resumed) nor clocks order them.
    """
    newest = store.ledger.last(DECISIONS_LOG)
    if newest is None or newest["decision"] != decision:
        record = {"decision": decision, "by_run": run_id}
        store.ledger.fold(DECISIONS_LOG, store.ledger.append(DECISIONS_LOG, record))


def apply_promotion(decision: Snapshot, store: Store, run_id: str) -> None:
    """Move the ref of a decision, unless its candidate was promoted before.

    A run moves a ref to a model once. After a rollback or another promotion the model does not
    come back by a run that is repeated or resumed, only by hand.

    Raises:
        GateError: a rule failed, or there is no rule.
        RefMovedError: the ref has moved since the entry that the decision was made against.
    """
    record_decision(store, decision.id, run_id)
    crash_point("decision-recorded")
    rules = decision.table().to_pylist()
    failed = [rule for rule in rules if not rule["passed"]]
    # fail closed: a decision without a rule is not one that all rules passed
    if failed or not rules:
        reasons = "; ".join(f"{rule['rule']}: {rule['reason']}" for rule in failed)
        what = reasons or "no rule was evaluated"
        raise GateError(f"gate {decision.dataset}", what, "nothing was promoted")
    ref, candidate, seq = (rules[0][key] for key in ("ref", "candidate", "champion_seq"))
    if _promotion(store.refs.history(ref), candidate):
        if store.refs.head(ref) != candidate:
            logger.warning("%s was %s before: only videoar promote moves it back", candidate, ref)
        return
    if seq is None:
        what = "was decided by an earlier version, which did not record the champion"
        raise GateError(f"gate {decision.dataset}", what, "run its pipeline again")
    try:
        move(store, decision.id, rules[0], run_id)
    except RefMovedError:
        # an equal run was faster: its decision is the same snapshot
        if _promotion(store.refs.history(ref), candidate) != decision.id:
            raise
    logger.info("promoted %s to %s", candidate, ref)


def move(store: Store, decision: str, rule: Row, run_id: str = "") -> None:
    """Move the ref of a decision from the entry that it was made against.

    Args:
        store: where the ref is.
        decision: id of the decision, kept as evidence.
        rule: a row of it.
        run_id: of the run that moves it.

    Raises:
        RefMovedError: the ref has another entry since.
    """
    seq = rule["champion_seq"]
    store.refs.advance(
        rule["ref"],
        rule["candidate"],
        expect=seq if seq >= 0 else None,
        evidence={"decision": decision},
        by_run=run_id,
    )
    crash_point("ref-moved")
