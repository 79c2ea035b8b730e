"""Verbs on data: snapshots, their lineage and their contracts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from videoar.api.runs import Document
from videoar.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from videoar.admin.validate import Mistake
    from videoar.contracts.contract import Contract
    from videoar.pipeline.stage_reference import StageReference
    from videoar.storage.store import Store


def show(store: Store, name: str, rows: int = 5) -> Document:
    """Return a snapshot's manifest, schema, statistics, metrics and first rows.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
    """
    from videoar.admin import inspect

    return inspect.show(store, name, rows)


def diff(store: Store, old: str, new: str) -> Document:
    """Compare two snapshots: files and videos that only one has, rows and metrics of both.

    Raises:
        SnapshotNotFoundError: nothing in the store has one of the names.
    """
    from videoar.admin import inspect

    return inspect.diff(store, old, new)


def lineage(store: Store, name: str, *, down: bool = False) -> Document:
    """Return the graph of a snapshot's ancestors, or of its descendants.

    Returns:
        `{nodes: [...], edges: [{from, to}]}`; sources are nodes with sha256, licence and origin.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
        WithdrawnError: it is a source that was taken down.
    """
    from videoar.records import lineage

    return lineage.lineage(store, name, down=down)


def quarantine(store: Store, name: str | None = None, reason: str | None = None) -> Document:
    """Return the rows that a run's stages, or the stage of one snapshot, rejected.

    Args:
        store: where to look.
        name: run or snapshot; None means the newest run.
        reason: only rows with this code among their reasons.

    Returns:
        `{rows, withdrawn}`; `withdrawn` counts rows that a takedown has removed.
    """
    from videoar.admin import inspect

    return inspect.rejected(store, name, reason)


def validate(
    store: Store, name: str, *, deep: bool = False, tokenizer: str | None = None
) -> list[Mistake]:
    """Return what is wrong with the rows and files of a snapshot; empty if nothing is.

    Args:
        store: where the snapshot is.
        name: its name.
        deep: also check pages, layout, payload, and the objects that rows name.
        tokenizer: name of the tokenizer that the tokens must be of; None means their own parent.

    Raises:
        ConfigError: `tokenizer` is no tokenizer.
        StorageError: the store does not answer; nothing was checked.
    """
    from videoar.admin.validate import validate_snapshot

    return validate_snapshot(store, name, deep=deep, tokenizer=tokenizer)


def validate_pipeline(path: Path) -> list[Mistake]:
    """Return the mistakes of a pipeline file; empty if there are none."""
    from videoar.admin import validate

    return validate.validate_pipeline(path)


def schema(contract: str) -> Contract:
    """Return a data contract by id, e.g. `clips@1`; without `@` the newest major version.

    Raises:
        ConfigError: no such contract.
    """
    from videoar.contracts.contract import contract_ids, load_contract

    known = contract_ids()
    matches = [name for name in known if contract in (name, name.partition("@")[0])]
    if not matches:
        # quotes for an empty name: an error line without its subject could not be understood
        raise ConfigError(contract or "''", "no such contract", did_you_mean(contract, known))
    # as numbers: `@10` is newer than `@9`
    return load_contract(max(matches, key=lambda name: int(name.partition("@")[2])))


def stages(name: str | None = None) -> list[StageReference]:
    """Return the input ports, output contract and options of a stage type, or of all types.

    Raises:
        ConfigError: no stage of this type.
    """
    from videoar.pipeline.stage_reference import stage_references

    return stage_references([name] if name else [])


def export(
    store: Store,
    name: str,
    form: str,
    to: str,
    *,
    shard_mib: float = 256,
    single_file: bool = False,
) -> Document:
    """Write tokens as WebDataset or Parquet, or a model; see `videoar.admin.export`.

    Returns:
        The manifest: `{format, snapshot, digest, rows, files: [{name, rows, size_bytes, sha256}]}`.

    Raises:
        ConfigError: the format or snapshot cannot be exported, or the folder is not empty.
        StorageError: a row or file is damaged, or a store does not answer.
    """
    from videoar.admin import export

    return export.export(store, name, form, to, shard_mib=shard_mib, single_file=single_file)
