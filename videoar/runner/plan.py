"""What a run would do, and why. No side effect: a plan reads the store and lists the raw inputs."""

from collections.abc import Mapping
from typing import cast

from videoar.core.types import Frozen
from videoar.pipeline.registry import BUILTIN, Registry
from videoar.pipeline.spec import PipelineSpec, StageSpec
from videoar.pipeline.stage import Inputs
from videoar.records.run import ShardCounts
from videoar.runner.decide import (
    Action,
    absence,
    check_datasets,
    check_tools,
    decide,
    skip_reason,
)
from videoar.runner.inputs import Listing, nothing_new, resolve
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

KnownInputs = Mapping[str, Snapshot | Listing | None]
"""Inputs and stages by name; None for the output of a stage that has to run first."""


class StagePlan(Frozen):
    """What a run would do with one stage."""

    name: str
    action: Action
    reason: str
    shards: ShardCounts = ShardCounts()
    snapshot: str | None = None


def plan(spec: PipelineSpec, store: Store, registry: Registry = BUILTIN) -> list[StagePlan]:
    """Plan every stage, in the order of execution.

    Raises:
        ConfigError: an input or a tool cannot be used.
    """
    check_tools(spec.stages, registry)
    check_datasets(spec.stages, store, registry)
    known: dict[str, Snapshot | Listing | None] = {
        name: resolve(store, name, url) for name, url in spec.inputs.items()
    }
    if reason := nothing_new(store, spec, known):
        return [StagePlan(name=s.name, action="skipped", reason=reason) for s in spec.stages]
    absent = {name: absence(name, spec.inputs[name]) for name in known if known[name] is None}
    plans = []
    for stage in spec.stages:
        if (reason := skip_reason(stage, absent, registry)) is not None:
            absent[stage.name] = reason
            plans.append(StagePlan(name=stage.name, action="skipped", reason=reason))
            continue
        result = _plan_stage(spec, stage.without(absent), known, store, registry)
        known[stage.name] = store.snapshot(result.snapshot) if result.snapshot else None
        plans.append(result)
    return plans


def _plan_stage(
    spec: PipelineSpec, stage: StageSpec, known: KnownInputs, store: Store, registry: Registry
) -> StagePlan:
    # no fingerprint without the digests of all inputs: of these stages nothing else is known
    pending = sorted(source for source in stage.ports.values() if known[source] is None)
    if pending:
        reason = f"depends on {', '.join(pending)}, which has to run first"
        return StagePlan(name=stage.name, action="run", reason=reason)
    # a `Listing` has what planning reads of a snapshot
    inputs = cast("Inputs", {port: known[source] for port, source in stage.ports.items()})
    decision = decide(store, spec, stage, inputs, registry)
    work = decision.work
    return StagePlan(
        name=stage.name,
        action=decision.action,
        reason=decision.reason,
        shards=ShardCounts(planned=len(work.shards), cached=len(work.done)),
        snapshot=decision.existing.id if decision.existing else None,
    )
