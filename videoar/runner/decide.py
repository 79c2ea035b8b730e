"""The one decision on a stage: cached, partly done or to run, and why.

`plan` prints it and `execute` acts on it, so that both always agree. It reads the store and changes
nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from videoar.core.errors import ConfigError, ContractError
from videoar.pipeline.fingerprint import (
    FingerprintParts,
    ShardFingerprints,
    compute_parts,
    differences,
    fingerprint,
)
from videoar.pipeline.registry import BUILTIN, Registry, make_stage, stage_class
from videoar.pipeline.spec import PipelineSpec, StageSpec
from videoar.pipeline.stage import Inputs, MapStage, Shard, Stage
from videoar.pipeline.work.task import WorkRecord, find_record
from videoar.records.run_history import previous_parts
from videoar.storage import record_folds
from videoar.storage.delta_log import missing_files
from videoar.storage.folds import in_order
from videoar.storage.layout import shard_folds_prefix, shard_record_key, shard_records_prefix
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

Action = Literal["run", "cached", "partial", "skipped"]
_UNFINISHED = "has not finished before, or its files were withdrawn or are missing"


@dataclass(frozen=True)
class ShardWork:
    """The shards of a map stage, split by whether their work was done before."""

    shards: Sequence[Shard] = ()
    done: Mapping[int, WorkRecord] = field(default_factory=dict)
    """Records of finished shards, by the shard's index."""
    missing: Sequence[Shard] = ()
    """Shards to run."""
    keys: Mapping[int, str] = field(default_factory=dict)
    """Of the records of all shards, by the shard's index."""
    unfolded: Sequence[str] = ()
    """Keys of the records of `done` that are in no fold."""
    folds_prefix: str = ""
    """Of the keys of folds of records, see `storage.record_folds`."""
    stale_keys: Sequence[str] = ()
    """Keys of records whose files are missing: a worker would adopt them, so delete them first."""


@dataclass(frozen=True)
class Decision:
    """What a run does with one stage."""

    action: Action
    reason: str
    stage: Stage[Any]
    fingerprint_parts: FingerprintParts
    existing: Snapshot | None = None
    """The output, if the stage is cached."""
    work: ShardWork = ShardWork()

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the output depends on."""
        return fingerprint(self.fingerprint_parts)


def decide(
    store: Store,
    pipeline: PipelineSpec,
    spec: StageSpec,
    inputs: Inputs,
    registry: Registry = BUILTIN,
    before: str | None = None,
) -> Decision:
    """Decide whether a stage has to run.

    The output of another stage of the pipeline with the same fingerprint is its output, too: a
    champion that was scored as a candidate is not scored again.

    Args:
        store: where earlier output and records are.
        pipeline: to find its previous run, and other stages of the type.
        spec: the stage.
        inputs: snapshots by port, or listings that are not committed yet.
        registry: known stages.
        before: only runs older than this id are previous ones.

    Raises:
        ContractError: an input has another contract than its port.
    """
    check_contracts(spec, inputs, registry)
    stage = build(spec, registry)
    fingerprint_parts = compute_parts(stage, inputs, stage.state(store, inputs))
    digest = fingerprint(fingerprint_parts)
    others = [s.name for s in pipeline.stages if s.type == spec.type and s.name != spec.name]
    for name in (spec.name, *others):
        if (existing := store.dataset(name, stage.produces).find(digest)) is not None:
            reason = "nothing changed" if name == spec.name else f"equal to the output of {name}"
            return Decision("cached", reason, stage, fingerprint_parts, existing)
    reason = reason_to_run(store, pipeline.name, spec.name, fingerprint_parts, before)
    if not isinstance(stage, MapStage):
        return Decision("run", reason, stage, fingerprint_parts)
    work = split_by_record(store, spec.name, fingerprint_parts, stage, stage.shards(inputs))
    return Decision("partial" if work.done else "run", reason, stage, fingerprint_parts, work=work)


def skip_reason(
    spec: StageSpec, absent: Mapping[str, str], registry: Registry = BUILTIN
) -> str | None:
    """Return why a stage is skipped; None: it has all inputs that it needs, at least one.

    Args:
        spec: the stage.
        absent: optional inputs that are absent and skipped stages, each with its reason.
        registry: known stages.
    """
    consumes = stage_class(spec.type, registry).consumes
    optional = {port for port, declared in consumes.items() if declared.optional}
    needed = spec.ports.keys() - (optional - spec.config.needs().keys())
    if absent.keys() >= set(spec.ports.values()):
        needed = {*spec.ports}  # of several optional ports, nothing would feed any
    return next((absent[spec.ports[p]] for p in sorted(needed) if spec.ports[p] in absent), None)


def absence(name: str, url: str) -> str:
    """Return why stages that need an optional input are skipped."""
    return f"input {name} is absent: there is no {url.partition('?')[0]}"


def build(spec: StageSpec, registry: Registry = BUILTIN) -> Stage[Any]:
    """Create the stage of a pipeline file's entry."""
    return make_stage(spec.type, spec.config.model_dump(), registry)


def check_contracts(spec: StageSpec, inputs: Inputs, registry: Registry = BUILTIN) -> None:
    """Check that every input has the contract of its port.

    Raises:
        ContractError: names stage and port.
    """
    for port, snapshot in inputs.items():
        declared = stage_class(spec.type, registry).port(port)
        expected = declared.contract if declared else ""
        if snapshot.contract != expected:
            key = f"stages.{spec.name}.from.{port}"
            raise ContractError(key, f"needs {expected}, but the input has {snapshot.contract}")


def check_tools(
    stages: Iterable[StageSpec], registry: Registry = BUILTIN
) -> dict[str, Mapping[str, str]]:
    """Query the tools of all stages, so that a missing one is an error before the first stage runs.

    Returns:
        What `Stage.tools` returns, by the name of the stage.

    Raises:
        ConfigError: names the stage, and the option if the tool is a path in the pipeline file.
    """
    tools = {}
    for spec in stages:
        try:
            tools[spec.name] = build(spec, registry).tools()
        except ConfigError as error:
            # a tool reports its path; the user needs the key of the option that holds it
            key = next((f".{key}" for key, value in spec.config if value == error.where), "")
            what = f"{error.where}: {error.what}"
            raise ConfigError(f"stages.{spec.name}{key}", what, error.hint) from error
    return tools


def check_datasets(stages: Iterable[StageSpec], store: Store, registry: Registry) -> None:
    """Check before any work that every stage writes to a dataset of its own contract.

    Raises:
        ConfigError: a dataset has another contract, e.g. of a stage of another pipeline.
    """
    for spec in stages:
        produces = stage_class(spec.type, registry).produces
        store.dataset(spec.name, produces).ensure_contract()


def split_by_record(
    store: Store,
    dataset: str,
    fingerprint_parts: FingerprintParts,
    stage: MapStage[Any],
    shards: Sequence[Shard],
) -> ShardWork:
    """Split shards into those that have a record with all of its files, and those to run."""
    names = ShardFingerprints(fingerprint_parts, stage.sharded)
    keys = {shard.index: shard_record_key(dataset, names.of(shard)) for shard in shards}
    # one listing instead of a request per shard: in a first run, none of them has a record
    infos = {info.key: info for info in store.objects.list(shard_records_prefix(dataset))}
    listed = [infos[key] for key in keys.values() if key in infos]
    prefix = shard_folds_prefix(dataset, names.group)
    folded = record_folds.read(store.ledger, prefix, listed)
    found = {key: WorkRecord.model_validate_json(text) for key, text in folded.items()}
    others = (info.key for info in listed if info.key not in folded)
    # None: deleted since the listing, by another run that found its files missing
    read = in_order(store.ledger, partial(find_record, store), others)
    found |= {key: record for key, record in read if record}
    records = {index: found[key] for index, key in keys.items() if key in found}
    # all shards together: many files are compared with a listing, not by a request each
    absent = set(missing_files(store.objects, [f for r in records.values() for f in r.all_files]))
    done = {
        index: record
        for index, record in records.items()
        if absent.isdisjoint(file.key for file in record.all_files)
    }
    return ShardWork(
        shards=shards,
        done=done,
        missing=[shard for shard in shards if shard.index not in done],
        stale_keys=[keys[index] for index in records.keys() - done.keys()],
        keys=keys,
        unfolded=[keys[index] for index in done if keys[index] not in folded],
        folds_prefix=prefix,
    )


def reason_to_run(
    store: Store,
    pipeline: str,
    stage: str,
    fingerprint_parts: FingerprintParts,
    before: str | None = None,
) -> str:
    """Return in one line why a stage has to run."""
    previous = previous_parts(store, pipeline, stage, before)
    if previous is None:
        return "never ran before"
    changed = [entry["component"] for entry in differences(previous[1], fingerprint_parts)]
    return f"changed: {', '.join(changed)}" if changed else _UNFINISHED
