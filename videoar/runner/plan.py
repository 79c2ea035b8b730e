"""What would run, and why. No side effect: a plan reads the store and lists the raw inputs."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from videoar.pipeline.work import WorkRecord, find_record
from videoar.records.run_record import ShardCounts, previous_parts
from videoar.runner.inputs import Listing, resolve
from videoar.storage.delta_log import missing_files
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_RECORDS_AT_ONCE = 16
_UNFINISHED = "has not finished before, or files that it made were withdrawn or lost"


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
) -> tuple[dict[int, WorkRecord], list[Shard], list[str]]:
    """Split shards into those with a record and those that have to run.

    Returns:
        Records of what is done, by the shard's index; the shards to run; the keys of records that
        do not count, because files are gone which they speak of.
    """
    prefix = f"stages/{dataset}/shards"
    known = set(store.ledger.list(f"{prefix}/"))
    names = {shard.index: shard_fingerprint(parts, stage.primary, shard) for shard in shards}
    keys = {index: f"{prefix}/{name}.json" for index, name in names.items()}
    there = {index: key for index, key in keys.items() if key in known}
    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as pool:
        found = list(pool.map(lambda key: find_record(store, key), there.values()))
    records = {index: record for index, record in zip(there, found, strict=True) if record}
    files = [file for record in records.values() for file in record.all_files]
    gone = set(missing_files(store.objects, files))
    done = {i: r for i, r in records.items() if gone.isdisjoint(f.key for f in r.all_files)}
    missing = [shard for shard in shards if shard.index not in done]
    return done, missing, [keys[index] for index in records.keys() - done.keys()]


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
    done, *_ = split_done(store, stage_spec.name, parts, stage, shards)
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
