"""What would run, and why. No side effect: a plan reads the store and lists the raw inputs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from videoar.core.errors import ConfigError, ContractError
from videoar.core.types import Frozen
from videoar.pipeline.fingerprint import (
    Components,
    components,
    differences,
    fingerprint,
    shard_fingerprint,
)
from videoar.pipeline.registry import BUILTIN, Registry, make_stage, stage_class
from videoar.pipeline.spec import PipelineSpec, StageSpec
from videoar.pipeline.stage import Inputs, MapStage, Shard, Stage
from videoar.runner.inputs import Listing, resolve
from videoar.runner.runs import ShardCounts, previous_parts
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot

_UNFINISHED = "has not finished before, or a take-down withdrew what it made"


class StagePlan(Frozen):
    """What a run would do with one stage."""

    name: str
    action: Literal["run", "cached", "partial"]
    reason: str
    shards: ShardCounts = ShardCounts()
    snapshot: str | None = None


def build(spec: StageSpec, registry: Registry = BUILTIN) -> Stage[Any]:
    """Make the stage of a spec."""
    return make_stage(spec.type, spec.config.model_dump(), registry)


def check_contracts(
    spec: StageSpec, inputs: Mapping[str, Any], registry: Registry = BUILTIN
) -> None:
    """Refuse an input snapshot of another contract than the port's.

    Raises:
        ContractError: naming stage and port.
    """
    for port, snapshot in inputs.items():
        wanted = stage_class(spec.type, registry).consumes[port].contract
        if snapshot.contract != wanted:
            where = f"stages.{spec.name}.from.{port}"
            raise ContractError(where, f"needs {wanted}, but the input has {snapshot.contract}")


def check_tools(stages: Iterable[StageSpec], registry: Registry = BUILTIN) -> None:
    """Ask all stages for their tools, so that a missing one is known before the first stage runs.

    Raises:
        ConfigError: naming the stage, and the key if the tool is a path of its config.
    """
    for spec in stages:
        try:
            build(spec, registry).tools()
        except ConfigError as error:
            key = next((f".{key}" for key, value in spec.config if value == error.where), "")
            what = f"{error.where}: {error.what}"
            raise ConfigError(f"stages.{spec.name}{key}", what, error.hint) from error


def split_done(
    store: Store, dataset: str, parts: Components, stage: MapStage[Any], shards: Sequence[Shard]
) -> tuple[list[Shard], list[Shard]]:
    """Split shards into those with a record and those that have to run."""
    done: list[Shard] = []
    missing: list[Shard] = []
    known = set(store.ledger.list(f"stages/{dataset}/shards/"))
    for shard in shards:
        name = shard_fingerprint(parts, stage.primary, shard)
        (done if f"stages/{dataset}/shards/{name}.json" in known else missing).append(shard)
    return done, missing


def plan(spec: PipelineSpec, store: Store, registry: Registry = BUILTIN) -> list[StagePlan]:
    """Say for each stage whether it would run, in the order of running.

    Raises:
        ConfigError: an input or a tool cannot be used.
    """
    check_tools(spec.stages, registry)
    known: dict[str, Snapshot | Listing | None] = {
        name: resolve(store, name, url) for name, url in spec.inputs.items()
    }
    plans = []
    for stage in spec.stages:
        made = _plan_stage(spec, stage, known, store, registry)
        known[stage.name] = store.snapshot(made.snapshot) if made.snapshot else None
        plans.append(made)
    return plans


def _plan_stage(
    spec: PipelineSpec,
    stage_spec: StageSpec,
    known: Mapping[str, Snapshot | Listing | None],
    store: Store,
    registry: Registry,
) -> StagePlan:
    waits_for = [source for source in stage_spec.ports.values() if known[source] is None]
    if waits_for:
        reason = f"input {', '.join(sorted(waits_for))} will be made first"
        return StagePlan(name=stage_spec.name, action="run", reason=reason)
    inputs = cast("Inputs", {port: known[source] for port, source in stage_spec.ports.items()})
    check_contracts(stage_spec, inputs, registry)
    stage = build(stage_spec, registry)
    parts = components(stage, inputs)
    found = store.dataset(stage_spec.name, stage.produces).find(fingerprint(parts))
    if found is not None:
        return StagePlan(
            name=stage_spec.name, action="cached", reason="nothing changed", snapshot=found.id
        )
    reason = why(store, spec.name, stage_spec.name, parts)
    if not isinstance(stage, MapStage):
        return StagePlan(name=stage_spec.name, action="run", reason=reason)
    shards = stage.shards(inputs)
    done, _ = split_done(store, stage_spec.name, parts, stage, shards)
    return StagePlan(
        name=stage_spec.name,
        action="partial" if done else "run",
        reason=reason,
        shards=ShardCounts(planned=len(shards), cached=len(done)),
    )


def why(
    store: Store, pipeline: str, stage: str, parts: Components, before: str | None = None
) -> str:
    """Say in one line why a stage has to run."""
    previous = previous_parts(store, pipeline, stage, before)
    if previous is None:
        return "never ran before"
    changed = [entry["component"] for entry in differences(previous[1], parts)]
    return f"changed: {', '.join(changed)}" if changed else _UNFINISHED
