"""Takedown: delete one source from the store, and list what was derived from it.

The tombstone is created first and rejects the source from then on. Then everything that holds its
content is deleted: its clips, every Parquet file with rows of it, reconstructions of its clips, and
all features of prompts, which are computed again (which of them are of its captions is not known).
Listings are rewritten without it, and its address is removed from the records of runs. Models and
samples derive from it statistically; they are listed and stay. Commits stay, they hold no content.
Source files outside of the store are never touched.

Each step derives its work from the files, or from the withdrawal records of files that are already
deleted. A call that was killed at any line is completed by a second call, with the same result.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from videoar.contracts.contract import load_contract
from videoar.contracts.names import EVALSETS, FEATURES, SCORES, SOURCES
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, DamagedError, SnapshotNotFoundError
from videoar.core.redact import redact
from videoar.core.types import Commit, FileRef, Row
from videoar.pipeline.registry import stage_class
from videoar.records.lineage import children
from videoar.records.names import SOURCE_PREFIX
from videoar.records.run import ShardCounts
from videoar.storage import layout, takedown
from videoar.storage.collection import wait_for_collection
from videoar.storage.delta_log import iter_commits
from videoar.storage.folds import in_order
from videoar.storage.ledger import replace_in_record
from videoar.storage.reader import read_file
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

Holders = Mapping[str, takedown.Withdrawal]
"""Parquet files with rows of the source, by key; deleted ones by their withdrawal records."""
Mentions = Mapping[str, tuple[FileRef, set[str]]]
"""Listings, by key, and the addresses of the source in them."""
_HINT = "videoar lineage NAME --json has the sha256 of each source"


def forget(
    store: Store, source: str, reason: str = "", *, dry_run: bool = False, replan: bool = False
) -> dict[str, Any]:
    """Take one source down; with `dry_run` only return what would be deleted.

    A run in progress is not stopped: it fails when it next writes rows of the source, or reads
    features of a prompt, which it computes again when it is resumed. Call this
    again after its end, to delete what it wrote before.

    Args:
        store: the store.
        source: SHA-256 of the source, all 64 digits, with or without `source:` before it.
        reason: why; kept in the tombstone.
        dry_run: change nothing.
        replan: also return what would have to run again; equal before and after the takedown.

    Returns:
        `{source, reason, deleted, rewritten, derived, evalsets, tombstone, dry_run, damaged}`, and
        `replan`:
        `[{run_id, pipeline, stages}]`, the stages as `plan` has them. `deleted`
        and `rewritten` count what all calls for this source have deleted and which listings they
        have rewritten. `rows` in `derived` are rows of the source. `evalsets` are the names of the
        evaluation sets on which nothing can be compared any more. `damaged` names the commits that
        cannot be read: the takedown is not done, because what derives from them is not known.

    Raises:
        ConfigError: this is no SHA-256.
        SnapshotNotFoundError: nothing in the store is of this source.
    """
    source = source.lower().removeprefix(SOURCE_PREFIX)
    if not re.fullmatch("[0-9a-f]{64}", source):  # a prefix would do, but this deletes data
        raise ConfigError(source or "''", "is not a SHA-256", f"64 hex digits; {_HINT}")
    tombstone = takedown.find_tombstone(store.ledger, source)
    commits, damaged = _commits(store)
    files = _files(store, commits)
    of_source = takedown.files_of_source(store.objects, store.ledger, source, files)
    holders = dict(of_source)
    if tombstone is None and not holders:
        raise SnapshotNotFoundError(source, f"no source of this SHA-256 in {store.url}", _HINT)
    # All reading comes before the first deletion: the result describes the store as it was.
    snapshots: dict[str, Snapshot] = {}
    for commit in commits:  # several of one digest mean the first one
        snapshots.setdefault(commit.snapshot, Snapshot(store.objects, store.ledger, commit))
    derived = _derived(snapshots, store.refs.by_target(), holders, source)
    removable = _removable_objects(store, snapshots.values(), files, holders, source)
    known = set(tombstone.addresses) if tombstone else set()
    # of a takedown that was not done because of damage, the tombstone may lack some
    addresses = known | _addresses(snapshots, commits, holders, source, is_whole=not damaged)
    mentions = _mentions(store, commits, files, addresses)
    rewritten = mentions.keys() | _rewritten_before(store, source)
    # A second call counts what the first one deleted, so both return the same numbers.
    if not dry_run:
        tombstone = tombstone or takedown.Tombstone(
            source=source,
            reason=redact(reason),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            addresses=tuple(sorted(addresses)),
        )
        _withdraw(store, tombstone, holders, removable, mentions)
    size_bytes = sum(file.size_bytes for file in holders.values()) + sum(removable.values())
    return {
        "source": source,
        "reason": tombstone.reason if tombstone else reason,
        "deleted": {"objects": len(removable), "files": len(holders), "bytes": size_bytes},
        "rewritten": len(rewritten),
        "derived": derived,
        "evalsets": [
            name
            for entry in derived
            if entry["contract"] == EVALSETS and entry["holds_content"]
            for name in entry["refs"] or [entry["id"]]
        ],
        "tombstone": layout.tombstone_key(source),
        "dry_run": dry_run,
        "damaged": damaged,
        **({"replan": _replan(store, snapshots, derived, holders, source)} if replan else {}),
    }


def _withdraw(
    store: Store,
    tombstone: takedown.Tombstone,
    holders: Holders,
    removable: Mapping[str, int],
    mentions: Mentions,
) -> None:
    """Delete in an order such that the call can be repeated after a kill at any line.

    Withdrawal records come before deletions: without them the next call could not
    determine the content of a deleted file.
    """
    source = tombstone.source
    # From here on no write of rows of this source succeeds, in any process.
    store.ledger.create(layout.tombstone_key(source), tombstone.model_dump())
    crash_point("forget.tombstone")
    # A run that resumes later would adopt these records, and commit files that are deleted.
    _drop_work_records(store, holders)
    crash_point("forget.records")
    _scrub(store, {uri for _, uris in mentions.values() for uri in uris})
    for file, uris in mentions.values():
        _rewrite(store, source, file, uris)
        crash_point("forget.listing")
    objects = {
        key: takedown.Withdrawal(source=source, size_bytes=size) for key, size in removable.items()
    }
    for key, withdrawal in [*holders.items(), *objects.items()]:
        store.ledger.create(layout.withdrawal_key(key), withdrawal.model_dump())
    crash_point("forget.notes")
    for key in removable:
        store.objects.purge(key)  # unlike `delete`, also its older versions in a versioned bucket
    crash_point("forget.objects")
    for key in holders:
        store.objects.purge(key)
        crash_point("forget.file")
    for info in list(store.objects.list(layout.TEXT_FEATURES_PREFIX)):
        store.objects.purge(info.key)
    store.objects.sweep()  # half-written copies that a killed writer has left


def _commits(store: Store) -> tuple[list[Commit], list[str]]:
    """Return all commits, and what is wrong with those that cannot be read, nor what follows."""
    try:
        return list(iter_commits(store.objects)), []
    except DamagedError:  # which ones: log by log
        commits, damaged = list[Commit](), list[str]()
        for dataset in store.objects.folders(layout.TABLES_PREFIX):
            try:
                commits += iter_commits(store.objects, dataset)
            except DamagedError as error:
                damaged.append(str(error))
        return commits, damaged


def _files(store: Store, commits: Iterable[Commit]) -> list[FileRef]:
    """Return the files of all tables; of those that a commit names, what it has of them."""
    known = {file.key: file for commit in commits for file in commit.files}
    return [known.get(file.key, file) for file in takedown.data_files(store.objects)]


def _mentions(
    store: Store, commits: Iterable[Commit], files: Iterable[FileRef], addresses: Collection[str]
) -> Mentions:
    """Return the listings with any of these addresses."""
    result: dict[str, tuple[FileRef, set[str]]] = {}
    others = {f.key for commit in commits if commit.contract != SOURCES for f in commit.files}
    possible = (file for file in files if file.key not in others)
    for file, rows in takedown.listings(store.objects, possible, addresses):
        uris = {uri for uri, etag in rows if takedown.address_digest(uri, etag) in addresses}
        if uris:
            result[file.key] = (file, uris)
    return result


def _rewritten_before(store: Store, source: str) -> set[str]:
    """Return the listings that an earlier call for this source has rewritten."""
    return {key for key, w in _withdrawals(store) if w.source == source and w.replacement}


def _withdrawals(store: Store) -> Iterator[tuple[str, takedown.Withdrawal]]:
    """Yield the withdrawn files of all tables with their records."""
    for key in takedown.withdrawn_keys(store.ledger, layout.TABLES_PREFIX):
        withdrawal = takedown.find_withdrawal(store.ledger, key)
        if withdrawal is not None:
            yield key, withdrawal


def _rewrite(store: Store, source: str, file: FileRef, uris: Collection[str]) -> None:
    """Replace a listing by one without these addresses."""
    rows = read_file(store.objects, file, None)
    kept = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(list(uris), pa.string()))))
    dataset = store.dataset(layout.dataset_of(file.key), SOURCES)
    replacement = dataset.write(kept)
    size_bytes = file.size_bytes
    withdrawal = takedown.Withdrawal(source=source, size_bytes=size_bytes, replacement=replacement)
    store.ledger.create(layout.withdrawal_key(file.key), withdrawal.model_dump())
    if wait_for_collection(store):
        dataset.write(kept)  # garbage until the record named it; never again
    store.objects.purge(file.key)


def _scrub(store: Store, uris: Collection[str]) -> None:
    """Remove addresses from the records of runs: errors in them may contain one.

    A record is overwritten, never absent. On a versioned bucket, older versions of all records are
    purged last, including those that a killed call has left.
    """
    # as JSON has them; longest first: `a.mp4` may be the beginning of `a.mp4?x`
    texts = {text for uri in uris for text in (uri, json.dumps(uri)[1:-1])}
    by_length = [text.encode() for text in sorted(texts, key=len, reverse=True)]
    for key in store.ledger.list(layout.RUNS_PREFIX):
        data = store.objects.find(key) if key.endswith(".json") else None
        if data is not None and any(uri in data for uri in by_length):
            if layout.is_folded_events(key):
                store.objects.purge(key)  # derived from records that are scrubbed themselves
            else:
                store.objects.put(key, replace_in_record(key, data, by_length, b"(taken down)"))
            crash_point("forget.scrub")
    # derived from what is scrubbed now
    folds = [*store.ledger.list(layout.folds_prefix(layout.RUNS_PREFIX))] if uris else ()
    for key in folds:
        store.objects.purge(key)
    if uris:
        store.objects.purge_older(layout.RUNS_PREFIX)


def _drop_work_records(store: Store, holders: Holders) -> None:
    """Delete the work records that name these files, so that their shards run again."""
    keys = store.ledger.list(layout.STAGES_PREFIX)
    for key, record in in_order(store.ledger, store.ledger.read, keys):
        files = [*(record or {}).get("files", ()), *(record or {}).get("rejects", ())]
        if any(file["key"] in holders for file in files):
            store.objects.delete(key)


def _share(holders: Holders, key: str, source: str) -> takedown.Share:
    return holders[key].shares[source] if key in holders else takedown.Share()


def _derived(
    snapshots: Mapping[str, Snapshot], refs: Mapping[str, list[str]], holders: Holders, source: str
) -> list[Row]:
    """List the snapshots with rows of a source, and their descendants.

    A table with a column of sources shows whether it derives from this one: clips without
    a row of it do not, nor does a model that was trained on them. So the search ends there.
    """
    rows = {
        name: sum(_share(holders, file.key, source).rows for file in snapshot.files)
        for name, snapshot in snapshots.items()
    }
    descendants = children(snapshots.values())
    queue = [name for name, count in rows.items() if count]
    reached: dict[str, Snapshot] = {}
    while queue:  # breadth first, so that the result lists parents before their children
        name = queue.pop(0)
        if name not in reached and (rows[name] or not _has_sources(snapshots[name].contract)):
            reached[name] = snapshots[name]
            queue += descendants.get(name, [])
    return [
        {
            "id": name,
            "dataset": snapshot.dataset,
            "contract": snapshot.contract,
            "rows": rows[name],
            "holds_content": rows[name] > 0,
            "refs": refs.get(name, []),
            "run_id": snapshot.commit.provenance.run_id,
        }
        for name, snapshot in reached.items()
    ]


def _replan(
    store: Store,
    snapshots: Mapping[str, Snapshot],
    derived: Iterable[Row],
    holders: Holders,
    source: str,
) -> list[Row]:
    """Return the stages that made derived snapshots, by run.

    Of a map stage, shards are counted by the files that they made: a shard without rows has none,
    and one with rows of this source alone is not planned again.
    """
    runs: dict[str, Row] = {}
    for entry in derived:
        snapshot = snapshots[entry["id"]]
        provenance = snapshot.commit.provenance
        record = store.ledger.read(layout.run_key(provenance.run_id)) or {"stages": ()}
        types = {stage["name"]: stage["type"] for stage in record["stages"]}
        if provenance.stage != snapshot.dataset or provenance.stage not in types:
            continue  # rejects of a stage, or rows that no stage made
        run = {"run_id": provenance.run_id, "pipeline": provenance.pipeline, "stages": []}
        shards = ShardCounts(planned=1)
        if entry["holds_content"] and stage_class(types[provenance.stage]).shape == "map":
            having = [f.key for f in snapshot.files if _share(holders, f.key, source).rows]
            kept = len(snapshot.files) - len(having)
            # without the source, nothing is left of the others
            mixed = sum(len(holders[key].shares) > 1 for key in having)
            shards = ShardCounts(planned=kept + mixed, cached=kept)
        again = sorted(p for p in provenance.parents.values() if p in {e["id"] for e in derived})
        reason = f"depends on {', '.join(again)}" if again else "has rows of the source"
        runs.setdefault(provenance.run_id, run)["stages"].append({
            "name": provenance.stage,
            "action": "partial" if shards.cached else "run",
            "reason": reason,
            "shards": shards.model_dump(),
            "snapshot": snapshot.id,
        })
    return list(runs.values())


def _has_sources(contract: str) -> bool:
    # vectors of generated samples have no source, although their model may derive from it
    columns = load_contract(contract).arrow_schema.names
    return contract != FEATURES and takedown.SOURCE_COLUMN in columns


def _addresses(
    snapshots: Mapping[str, Snapshot],
    commits: Iterable[Commit],
    holders: Holders,
    source: str,
    *,
    is_whole: bool,
) -> set[str]:
    """Return digests of the source's addresses, from the listings that its rows were made from.

    With `is_whole` it is an error that one of them has no commit.
    """
    result: set[str] = set()
    for commit in commits:
        shares = [_share(holders, file.key, source) for file in commit.files]
        # Rows have the address without the etag, listings have both: the place joins them.
        places = {place for share in shares for place in share.places}
        if places:
            result |= {
                takedown.address_digest(uri, etag)
                for uri, etag in _listed(snapshots, commit, is_whole=is_whole)
                if takedown.place_digest(uri) in places
            }
    return result


def _listed(
    snapshots: Mapping[str, Snapshot], commit: Commit, *, is_whole: bool
) -> Iterator[tuple[str, str]]:
    """Yield uri and etag of each row of the listings that a commit was made from."""
    for parent in commit.provenance.parents.values():
        listing = snapshots.get(parent)
        if listing is None and not is_whole:
            continue
        if listing is None:
            raise SnapshotNotFoundError(parent, f"no such snapshot, but {commit.snapshot} names it")
        if listing.contract == SOURCES:
            for row in listing.table(list(takedown.ADDRESS_COLUMNS)).to_pylist():
                yield row["uri"], row["etag"]


def _removable_objects(
    store: Store,
    snapshots: Collection[Snapshot],
    files: Iterable[FileRef],
    holders: Holders,
    source: str,
) -> dict[str, int]:
    """Return keys and bytes of its clips and their reconstructions that no other source needs.

    Objects are content-addressed: two sources with the same clip share one object.
    """
    shares = [file.shares[source] for file in holders.values()]
    clips = {key: size for share in shares for key, size in share.objects.items()}
    taken_down = takedown.withdrawn_sources(store.ledger) | {source}
    shared = _still_referenced(store, files, clips.keys(), taken_down)
    result = {key: size for key, size in sorted(clips.items()) if key not in shared}
    for key in sorted(_reconstructions(store, snapshots, taken_down, holders)):
        withdrawal = takedown.find_withdrawal(store.ledger, key)
        stored = [info.size_bytes for info in store.objects.list(key)]  # none: deleted before
        result[key] = withdrawal.size_bytes if withdrawal else sum(stored)
    return result


def _still_referenced(
    store: Store, files: Iterable[FileRef], keys: Collection[str], taken_down: Collection[str]
) -> set[str]:
    """Return the keys that rows of sources not taken down refer to, in withdrawn files too."""
    withdrawn = dict(_withdrawals(store))
    referenced: set[str] = set()
    for withdrawal in withdrawn.values():
        # the withdrawal record of a removed file lists the clips that its sources shared
        for other in withdrawal.shares.keys() - taken_down:
            referenced |= withdrawal.shares[other].objects.keys() & keys
    digests = {digest for key in keys if (digest := layout.object_sha256(key))}
    possible = (f for f in files if f.key not in withdrawn and takedown.may_have(f, digests))
    columns = [takedown.SOURCE_COLUMN, "video_key"]
    wanted = pa.array(list(keys), pa.string())
    for _, rows in takedown.read_each(store.objects, possible, columns):
        if rows.num_columns == 2:  # a table with sources and videos
            matching = rows.filter(pc.is_in(rows["video_key"], wanted)).to_pylist()
            referenced |= {
                row["video_key"]
                for row in matching
                if row[takedown.SOURCE_COLUMN] not in taken_down
            }
    return referenced


def _reconstructions(
    store: Store, snapshots: Iterable[Snapshot], taken_down: Collection[str], holders: Holders
) -> set[str]:
    """Return the videos that `score` made of clips of these sources only."""
    files = [*holders.values(), *(withdrawal for _, withdrawal in _withdrawals(store))]
    shares = (file.shares[other] for file in files for other in file.shares.keys() & taken_down)
    clips = {clip for share in shares for clip in share.clips}
    clips_of: dict[str, set[str]] = {}
    for snapshot in snapshots:
        if snapshot.contract == SCORES:
            for text in snapshot.table(["details_json"])["details_json"].to_pylist():
                details = json.loads(text)
                for shown in (*details.get("examples", ()), *details.get("by_scale", ())):
                    clips_of.setdefault(shown["recon_key"], set()).add(shown["clip_id"])
    return {key for key, used in clips_of.items() if used <= clips}
