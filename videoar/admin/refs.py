"""The history of refs, and freezing a snapshot under a name."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from videoar.admin.registry import mirror_move
from videoar.contracts.names import EVALSETS, MODELS
from videoar.core.errors import ConfigError, DamagedError, SnapshotConflictError, did_you_mean
from videoar.core.ids import is_safe_key
from videoar.core.names import NAME_HINT, is_name
from videoar.core.types import Row
from videoar.evaluation.evalset import require_intact
from videoar.records.names import LAST, find_snapshot
from videoar.storage.ledger import Record
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_COLUMNS = ("target", "by", "user", "at", "evidence")


def refs(store: Store, name: str | None = None) -> dict[str, Any]:
    """Return all records of a ref, the oldest first; without a name the head of every ref.

    Returns:
        `{refs: [{name, target, seq, by, user, at, evidence}]}`, of a damaged record only name and
        seq, and `damaged`, what is wrong with it. `by` is the run or the user that
        moved the ref, `at` the time in seconds since 1970; both may be missing in old records.
        `evidence` is why: of a promotion `decision`, of a rollback `rolled_back_from` and `reason`.

    Raises:
        ConfigError: no such ref.
    """
    names = store.refs.names() if name is None else [name] if is_safe_key(name) else []
    rows = [row for ref in names for row in list(_rows(store, ref))[-1 if name is None else 0 :]]
    if name is not None and not rows:
        known = store.refs.names()
        raise ConfigError(name or "''", "no such ref", did_you_mean(name, known) if known else "")
    return {"refs": rows}


def _rows(store: Store, ref: str) -> Iterator[Row]:
    for number, record in store.refs.records(ref):
        if isinstance(record, DamagedError):
            yield {**dict.fromkeys(_COLUMNS), "name": ref, "seq": number, "damaged": str(record)}
        else:
            yield _row(ref, record)


def _row(name: str, record: Record) -> Row:
    return {
        "name": name,
        "target": record["snapshot"],
        "seq": record["seq"],
        "by": record["by_run"] or record.get("user"),
        "user": record.get("user"),
        "at": record.get("at"),
        "evidence": record["evidence"],
    }


def freeze(store: Store, name: str, ref: str) -> dict[str, Any]:
    """Pin a snapshot as `ref://REF`; a second call for the same snapshot changes nothing.

    Returns:
        As `refs`, of the head.

    Raises:
        ConfigError: the ref points at another snapshot; it is no name; or the snapshot is a
            transformer, whose refs are moved by gates.
        GateError: an evaluation set whose source was taken down.
    """
    if not is_name(ref) or ref == LAST:
        raise ConfigError(f"--as {ref}", "cannot be the name of a ref", NAME_HINT)
    snapshot = find_snapshot(store, name)
    _check(snapshot)
    if store.refs.head_record(ref) is None:
        with suppress(SnapshotConflictError):  # another call was first: its snapshot is compared
            store.refs.advance(ref, snapshot.id, expect=None, evidence={"frozen": True})
            mirror_move(store, ref)
    head = store.refs.head_record(ref)
    if head is None or head["snapshot"] != snapshot.id:
        target = head and head["snapshot"]
        raise ConfigError(f"--as {ref}", f"points at {target} already", "choose another name")
    return {"refs": [_row(ref, head)]}


def _check(snapshot: Snapshot) -> None:
    if snapshot.contract == EVALSETS:
        require_intact(snapshot)
    if snapshot.contract == MODELS:
        kinds = snapshot.table(["kind"])["kind"].to_pylist()
        # a frozen champion would be one that no gate has evaluated
        if "transformer" in kinds:
            what = "is a model, whose refs are moved by gates"
            raise ConfigError(snapshot.id, what, "promote it")
