"""A take-down: one source leaves the store, and what was made of it is named.

First comes the tombstone, which keeps the source out from then on; then everything that holds its
content is deleted. Each step finds again what it has to do, from the files or from the notes of
those that are gone: killed anywhere, a second call finishes it and answers the same. Deleted are
the clips, every Parquet file with rows of the source and the reconstructions of its clips; listings
are written anew without it, and its address goes from the records of runs. Models and samples
derive from it statistically, they are named and stay. Commits stay, they hold no content. Source
files outside of the store are never touched.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from videoar.contracts.contract import load_contract
from videoar.contracts.names import SCORES, SOURCES
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, SnapshotNotFoundError
from videoar.core.types import Commit, FileRef
from videoar.records.lineage import children
from videoar.storage.delta_log import iter_commits
from videoar.storage.layout import (
    RUNS_PREFIX,
    STAGES_PREFIX,
    TABLES_PREFIX,
    dataset_of,
    tombstone_key,
    withdrawal_key,
)
from videoar.storage.reader import read_file
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import (
    ADDRESS_COLUMNS,
    SOURCE_COLUMN,
    Share,
    Tombstone,
    Withdrawal,
    address_digest,
    data_files,
    files_of_source,
    find_tombstone,
    find_withdrawal,
    listings,
    place_digest,
    withdrawn_keys,
    withdrawn_sources,
)

Held = Mapping[str, Withdrawal]
"""Parquet files with rows of the source, by key."""
Naming = Mapping[str, tuple[FileRef, set[str]]]
"""Listings, by key, and the addresses of the source that they name."""
_HINT = "videoar lineage SNAPSHOT shows the sha256 of each source"


def forget(store: Store, source: str, reason: str = "", *, dry_run: bool = False) -> dict[str, Any]:
    """Take one source down; with `dry_run` only say what that would do.

    A run in progress is not stopped: it fails when it next writes rows of the source. What it wrote
    before is found by calling this again when it has ended.

    Returns:
        `{source, reason, deleted, rewritten, derived, tombstone, dry_run}`; `deleted` counts all
        that this take-down has removed, `rewritten` the listings that named it, by whichever call.
        In `derived`, `rows` are those of the source.

    Raises:
        ConfigError: this is no SHA-256.
        SnapshotNotFoundError: nothing in the store is of this source.
    """
    source = source.lower()
    if not re.fullmatch("[0-9a-f]{64}", source):
        raise ConfigError(source or "''", "is no SHA-256", f"64 hex digits; {_HINT}")
    stone = find_tombstone(store.ledger, source)
    held = dict(files_of_source(store.objects, store.ledger, source))
    if stone is None and not held:
        raise SnapshotNotFoundError(source, f"no source of this SHA-256 in {store.url}", _HINT)
    snapshots = {snapshot.id: snapshot for snapshot in store.snapshots()}
    derived = _derived(snapshots, _heads(store), held, source)
    removable = _removable_objects(store, snapshots.values(), held, source)
    addresses = set(stone.addresses) if stone else _addresses(store, held, source)
    naming = _naming(store, addresses)
    rewritten = naming.keys() | _rewritten_before(store, source)
    if not dry_run:
        stone = stone or Tombstone(
            source=source,
            reason=reason,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            addresses=tuple(sorted(addresses)),
        )
        _withdraw(store, stone, held, removable, naming)
    size_bytes = sum(note.size_bytes for note in held.values()) + sum(removable.values())
    return {
        "source": source,
        "reason": stone.reason if stone else reason,
        "deleted": {"objects": len(removable), "files": len(held), "bytes": size_bytes},
        "rewritten": len(rewritten),
        "derived": derived,
        "tombstone": tombstone_key(source),
        "dry_run": dry_run,
    }


def _withdraw(
    store: Store, stone: Tombstone, held: Held, removable: Mapping[str, int], naming: Naming
) -> None:
    store.ledger.create(tombstone_key(stone.source), stone.model_dump())
    crash_point("forget.tombstone")
    _drop_work_records(store, held)
    crash_point("forget.records")
    _scrub(store, {uri for _, uris in naming.values() for uri in uris})
    for file, uris in naming.values():
        _rewrite(store, stone.source, file, uris)
        crash_point("forget.listing")
    notes = {key: Withdrawal(source=stone.source, size_bytes=n) for key, n in removable.items()}
    for key, note in [*held.items(), *notes.items()]:
        store.ledger.create(withdrawal_key(key), note.model_dump())
    crash_point("forget.notes")
    for key in removable:
        store.objects.purge(key)
    crash_point("forget.objects")
    for key in held:
        store.objects.purge(key)
        crash_point("forget.file")
    store.objects.sweep()


def _naming(store: Store, addresses: Collection[str]) -> Naming:
    """Return the listings that name one of these addresses."""
    found: dict[str, tuple[FileRef, set[str]]] = {}
    for file, rows in listings(store.objects):
        uris = {uri for uri, etag in rows if address_digest(uri, etag) in addresses}
        if uris:
            found[file.key] = (file, uris)
    return found


def _rewritten_before(store: Store, source: str) -> set[str]:
    """Return the listings that this take-down has already written anew."""
    noted = withdrawn_keys(store.ledger, TABLES_PREFIX)
    notes = {key: find_withdrawal(store.ledger, key) for key in noted}
    return {key for key, n in notes.items() if n and n.source == source and n.replacement}


def _rewrite(store: Store, source: str, file: FileRef, uris: Collection[str]) -> None:
    """Put a listing without some addresses in a listing's place."""
    rows = read_file(store.objects, file, None)
    kept = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(list(uris), pa.string()))))
    dataset = dataset_of(file.key)
    replacement = store.dataset(dataset, SOURCES).write(kept)
    note = Withdrawal(source=source, size_bytes=file.size_bytes, replacement=replacement)
    store.ledger.create(withdrawal_key(file.key), note.model_dump())
    store.objects.purge(file.key)


def _scrub(store: Store, uris: Collection[str]) -> None:
    """Take addresses out of the records of runs, whose errors may name a source.

    A record is replaced, never absent. Older versions go at the end, also those that a call which
    was killed in between has left.
    """
    for key in store.ledger.list(RUNS_PREFIX):
        data = store.objects.find(key) if key.endswith(".json") else None
        clean = data
        for uri in sorted(uris, key=len, reverse=True):
            clean = clean.replace(uri.encode(), b"(taken down)") if clean else clean
        if clean is not None and clean != data:
            store.objects.put(key, clean)
            crash_point("forget.scrub")
    if uris:
        store.objects.purge_older(RUNS_PREFIX)


def _drop_work_records(store: Store, held: Held) -> None:
    """Make undone the shards and reductions that wrote these files: they have to run again."""
    for key in store.ledger.list(STAGES_PREFIX):
        record = store.ledger.read(key) or {}
        files = [*record.get("files", ()), *record.get("rejects", ())]
        if any(file["key"] in held for file in files):
            store.objects.delete(key)


def _share(held: Held, key: str, source: str) -> Share:
    return held[key].shares[source] if key in held else Share()


def _rows(snapshot: Snapshot, held: Held, source: str) -> int:
    return sum(_share(held, file.key, source).rows for file in snapshot.files)


def _heads(store: Store) -> dict[str, list[str]]:
    """Return the names of the refs that point at each snapshot."""
    heads: dict[str, list[str]] = {}
    for name in store.refs.names():
        heads.setdefault(store.refs.head(name) or "", []).append(name)
    return heads


def _derived(
    snapshots: Mapping[str, Snapshot], heads: Mapping[str, list[str]], held: Held, source: str
) -> list[dict[str, Any]]:
    """List the snapshots that hold rows of a source, and what was made of those.

    A table that names the source of each row tells by itself whether it holds this one: clips
    without a row of it do not derive from it, nor does a model that was trained on them.
    """
    rows = {name: _rows(snapshot, held, source) for name, snapshot in snapshots.items()}
    below = children(snapshots.values())
    queue = [name for name, count in rows.items() if count]
    found: dict[str, Snapshot] = {}
    while queue:
        name = queue.pop(0)
        if name not in found and (rows[name] or not _names_sources(snapshots[name].contract)):
            found[name] = snapshots[name]
            queue += below.get(name, [])
    return [
        {
            "id": name,
            "dataset": snapshot.dataset,
            "contract": snapshot.contract,
            "rows": rows[name],
            "holds_content": rows[name] > 0,
            "refs": heads.get(name, []),
            "run_id": snapshot.commit.provenance.run_id,
        }
        for name, snapshot in found.items()
    ]


def _names_sources(contract: str) -> bool:
    return SOURCE_COLUMN in load_contract(contract).arrow_schema.names


def _addresses(store: Store, held: Held, source: str) -> set[str]:
    """Return where the source was found: what the listings say that its rows were made from."""
    found: set[str] = set()
    for commit in iter_commits(store.objects):
        shares = [_share(held, file.key, source) for file in commit.files]
        places = {place for share in shares for place in share.places}
        if places:
            found |= {
                address_digest(uri, etag)
                for uri, etag in _listed(store, commit)
                if place_digest(uri) in places
            }
    return found


def _listed(store: Store, commit: Commit) -> Iterator[tuple[str, str]]:
    for parent in commit.provenance.parents.values():
        listing = store.snapshot(parent)
        if listing.contract == SOURCES:
            for row in listing.table(list(ADDRESS_COLUMNS)).to_pylist():
                yield row["uri"], row["etag"]


def _removable_objects(
    store: Store, snapshots: Collection[Snapshot], held: Held, source: str
) -> dict[str, int]:
    """Return keys and bytes of its clips and their reconstructions that no other source needs."""
    shares = [note.shares[source] for note in held.values()]
    clips = {key: size for share in shares for key, size in share.objects.items()}
    gone = withdrawn_sources(store.ledger) | {source}
    shared = _needed_by_others(store, clips.keys(), gone)
    found = {key: size for key, size in sorted(clips.items()) if key not in shared}
    for key in sorted(_reconstructions(store, snapshots, gone, held)):
        note = find_withdrawal(store.ledger, key)
        stored = [info.size_bytes for info in store.objects.list(key)]
        found[key] = note.size_bytes if note else sum(stored)
    return found


def _needed_by_others(store: Store, keys: Collection[str], gone: Collection[str]) -> set[str]:
    """Return the keys that rows of sources outside of `gone` name, or did."""
    noted = withdrawn_keys(store.ledger, TABLES_PREFIX)
    needed: set[str] = set()
    for note in filter(None, (find_withdrawal(store.ledger, key) for key in noted)):
        for other in note.shares.keys() - gone:
            needed |= note.shares[other].objects.keys() & keys
    for file in data_files(store.objects):
        if file.key not in noted:
            needed |= _needed_in(store, file, keys, gone)
    return needed


def _needed_in(
    store: Store, file: FileRef, keys: Collection[str], gone: Collection[str]
) -> set[str]:
    rows = read_file(store.objects, file, [SOURCE_COLUMN, "video_key"])
    if rows.num_columns < 2:
        return set()
    named = rows.filter(pc.is_in(rows["video_key"], pa.array(list(keys), pa.string())))
    return {row["video_key"] for row in named.to_pylist() if row[SOURCE_COLUMN] not in gone}


def _reconstructions(
    store: Store, snapshots: Collection[Snapshot], gone: Collection[str], held: Held
) -> set[str]:
    """Return the videos that `score` made of clips of these sources, and of no other's."""
    noted = (
        find_withdrawal(store.ledger, key) for key in withdrawn_keys(store.ledger, TABLES_PREFIX)
    )
    notes = [*held.values(), *filter(None, noted)]
    clips = {
        c for note in notes for other in note.shares.keys() & gone for c in note.shares[other].clips
    }
    made_of: dict[str, set[str]] = {}
    for snapshot in snapshots:
        if snapshot.contract == SCORES:
            for text in snapshot.table(["details_json"])["details_json"].to_pylist():
                details = json.loads(text)
                for shown in (*details.get("examples", ()), *details.get("by_scale", ())):
                    made_of.setdefault(shown["recon_key"], set()).add(shown["clip_id"])
    return {key for key, of in made_of.items() if of <= clips}
