"""Lineage: the ancestors of a snapshot down to its source videos, or its descendants.

Nothing is recorded for lineage alone: commits name their parents and rows name their sources. The
leaves are source videos with SHA-256, licence and origin. Sources of files that a takedown has
withdrawn are read from its records.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from videoar.contracts.names import CLIPS
from videoar.records.names import SOURCE_PREFIX, find_snapshot
from videoar.storage.layout import table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import find_withdrawal, withdrawn_keys, withdrawn_sources

Node = dict[str, Any]
"""A snapshot or source; `kind` distinguishes them."""
Edge = dict[str, str]


def lineage(store: Store, name: str, *, down: bool = False) -> dict[str, list[Any]]:
    """Return the graph of ancestors (or descendants) of a snapshot, ref, model, sample or source.

    Args:
        store: where to search.
        name: any id that `find_snapshot` resolves.
        down: return descendants instead of ancestors.

    Returns:
        `{"nodes": [...], "edges": [{"from": id, "to": id}]}`; edges point from parent to child.

    Raises:
        SnapshotNotFoundError: nothing in the store has this id.
        WithdrawnError: the id is a source that was taken down.
    """
    start = find_snapshot(store, name)
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    queue = [start]
    # Commits name their parents only, so descendants need one pass over all commits of the store.
    known = {snapshot.id: snapshot for snapshot in store.snapshots()} if down else {}
    descendants = children(known.values())
    while queue:
        snapshot = queue.pop()
        if snapshot.id in nodes:
            continue
        nodes[snapshot.id] = _node(snapshot)
        parents = snapshot.commit.provenance.parents
        neighbours = descendants.get(snapshot.id, []) if down else list(parents.values())
        for other in neighbours:
            pair = (snapshot.id, other) if down else (other, snapshot.id)
            edges.append({"from": pair[0], "to": pair[1]})
            queue.append(known.get(other) or store.snapshot(other))
        if not down and snapshot.contract == CLIPS:
            for source in sources_of(snapshot):
                # several snapshots of clips may be made of one source
                nodes.setdefault(source["id"], source)
                edges.append({"from": source["id"], "to": snapshot.id})
    return {"nodes": list(nodes.values()), "edges": edges}


def _node(snapshot: Snapshot) -> Node:
    provenance = snapshot.commit.provenance
    return {
        "id": snapshot.id,
        "kind": "snapshot",
        "dataset": snapshot.dataset,
        "contract": snapshot.contract,
        "rows": snapshot.rows,
        "run_id": provenance.run_id,
        "fingerprint": provenance.fingerprint,
    }


def sources_of(clips: Snapshot) -> Iterator[Node]:
    """Yield the distinct sources of a snapshot of clips, those of withdrawn files included."""
    taken_down = withdrawn_sources(clips.ledger)
    seen: set[str] = set()
    for source, columns in _source_columns(clips):
        if source not in seen:
            seen.add(source)
            yield {
                "id": f"{SOURCE_PREFIX}{source}",
                "kind": "source",
                "sha256": source,
                **columns,
                "forgotten": source in taken_down,
            }


def _source_columns(clips: Snapshot) -> Iterator[tuple[str, Node]]:
    """Yield source id, and uri, licence and origin, of each row; of withdrawn files without uri."""
    for row in clips.available_rows(["source_id", "source_uri", "licence", "origin"]):
        terms = {"licence": row["licence"], "origin": row["origin"]}
        yield row["source_id"], {"uri": row["source_uri"], **terms}
    # one listing: a request per file would be many for the few that were withdrawn
    noted = withdrawn_keys(clips.ledger, f"{table_folder(clips.dataset)}/")
    for note in (find_withdrawal(clips.ledger, f.key) for f in clips.files if f.key in noted):
        for source, share in note.shares.items() if note else ():
            terms = {"licence": share.licence, "origin": share.origin}
            yield source, {"uri": None, **terms}


def children(snapshots: Iterable[Snapshot]) -> dict[str, list[str]]:
    """Return the ids of the direct children of each snapshot, by the id of the parent."""
    result: dict[str, list[str]] = {}
    for snapshot in snapshots:
        for parent in snapshot.commit.provenance.parents.values():
            result.setdefault(parent, []).append(snapshot.id)
    return result
