"""Rejected rows: list them, have sources tried again, keep clips in spite of their verdict.

Both decisions are records, and both change what the next run computes, by its inputs: a source that
is to be tried again is listed with another etag, and accepted clips are a snapshot that `filter`
reads (`accepted: ref://accepted?optional=true`).
"""

from typing import Any

import pyarrow as pa

from videoar import __version__
from videoar.admin.inspect import rejected, rejects_of
from videoar.contracts.contract import load_contract
from videoar.contracts.names import REJECTS
from videoar.core.errors import ConfigError, RefMovedError
from videoar.core.ids import digest_json
from videoar.core.redact import redact
from videoar.core.types import Provenance
from videoar.storage.layout import ACCEPTED, retries_log
from videoar.storage.ledger import current_user
from videoar.storage.store import Store
from videoar.storage.takedown import place_digest

_COLUMNS = load_contract(REJECTS).arrow_schema.names


def retry(
    store: Store, name: str | None = None, code: str | None = None, reason: str = ""
) -> dict[str, Any]:
    """Have rejected sources read again by the next run, with the others of their shards.

    Args:
        store: of the rows.
        name: run, snapshot or rejected item, as of `rejected`.
        code: only rows with this reason code.
        reason: kept in the records.

    Returns:
        `{rows}`: the rejected rows.

    Raises:
        ConfigError: no source was rejected there.
    """
    found = rejected(store, name, code)["rows"]
    rows = [row for row in found if row["kind"] == "source" and row["uri"]]
    if not rows:
        raise ConfigError(name or "last", "no rejected source", "list them: videoar quarantine ls")
    for uri in sorted({row["uri"] for row in rows}):
        record = {"user": current_user(), "reason": redact(reason)}
        store.ledger.append(retries_log(place_digest(uri)), record)
    return {"rows": rows}


def accept(store: Store, clips: list[str], reason: str, name: str | None = None) -> dict[str, Any]:
    """Have `filter` keep clips that it rejected.

    Args:
        store: of the rows.
        clips: their ids.
        reason: why; kept in the rows and in the record of the ref.
        name: run or snapshot that rejected them; None means the newest run.

    Returns:
        `{rows, snapshot}`: the rows that were added, and all accepted ones.

    Raises:
        ConfigError: an id is not that of a clip that was rejected there.
    """
    snapshots = map(store.snapshot, rejects_of(store, name))
    found = {
        row["item_id"]: row | {"detail": f"accepted by {current_user()}: {redact(reason)}"}
        for snapshot in snapshots
        for row in snapshot.available_rows(_COLUMNS)
        if row["kind"] == "clip"
    }
    for clip in clips:
        if clip not in found:
            raise ConfigError(clip, "is no rejected clip", "list them: videoar quarantine ls")
    added = [found[clip] for clip in clips]
    dataset = store.dataset(ACCEPTED, REJECTS)
    while True:
        head = store.refs.head_record(ACCEPTED)
        before = store.snapshot(head["snapshot"]).table(_COLUMNS).to_pylist() if head else []
        by_id = {row["item_id"]: row for row in [*before, *added]}
        rows = [by_id[clip] for clip in sorted(by_id)]
        provenance = Provenance(
            run_id="quarantine-accept", pipeline="quarantine accept", stage=ACCEPTED,
            fingerprint=digest_json(rows), code_version=__version__,
        )  # fmt: skip
        table = pa.Table.from_pylist(rows, load_contract(REJECTS).arrow_schema)
        snapshot = dataset.commit([dataset.write(table)], provenance, {})
        evidence = {"accepted": clips, "reason": redact(reason)}
        try:
            seq = head["seq"] if head else None
            store.refs.advance(ACCEPTED, snapshot.id, expect=seq, evidence=evidence)
        except RefMovedError:  # another call has accepted others: add these to them
            continue
        return {"rows": added, "snapshot": snapshot.id}
