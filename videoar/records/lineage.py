"""Lineage: from anything to everything it came from, or to everything made of it.

Nothing is recorded for lineage alone: commits name their parents, rows name their sources, and the
graph is read off them. Ends are the source videos with sha256, licence and origin; of files that a
take-down has withdrawn, its notes still name them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from videoar.contracts.names import CLIPS
from videoar.records.names import SOURCE_PREFIX, find_snapshot
from videoar.storage.layout import table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import find_note, forgotten, withdrawn

Node = dict[str, Any]
Edge = dict[str, str]


def lineage(store: Store, name: str, *, down: bool = False) -> dict[str, list[Any]]:
    """Return the graph above (or below) a snapshot, ref, model digest, sample or source.

    Raises:
        SnapshotNotFoundError: nothing in the store has this id.
        WithdrawnError: it is a source that was taken down.
    """
    start = find_snapshot(store, name)
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    queue = [start]
    below = children(store.snapshots()) if down else {}
    while queue:
        snapshot = queue.pop()
        if snapshot.id in nodes:
            continue
        nodes[snapshot.id] = _node(snapshot)
        parents = snapshot.commit.provenance.parents
        linked = below.get(snapshot.id, []) if down else list(parents.values())
        for other in linked:
            pair = (snapshot.id, other) if down else (other, snapshot.id)
            edges.append({"from": pair[0], "to": pair[1]})
            queue.append(store.snapshot(other))
        if not down and snapshot.contract == CLIPS:
            for source in sources_of(snapshot):
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
    """Yield the distinct sources of a snapshot of clips, also of files that were withdrawn."""
    gone = forgotten(clips.ledger)
    seen: set[str] = set()
    for source, facts in _facts(clips):
        if source not in seen:
            seen.add(source)
            yield {
                "id": f"{SOURCE_PREFIX}{source}",
                "kind": "source",
                "sha256": source,
                **facts,
                "forgotten": source in gone,
            }


def _facts(clips: Snapshot) -> Iterator[tuple[str, Node]]:
    columns = ["source_id", "source_uri", "licence", "origin"]
    for table in clips.remaining(columns):
        for row in table.to_pylist():
            facts = {"licence": row["licence"], "origin": row["origin"]}
            yield row["source_id"], {"uri": row["source_uri"], **facts}
    noted = withdrawn(clips.ledger, f"{table_folder(clips.dataset)}/")
    for note in (find_note(clips.ledger, f.key) for f in clips.files if f.key in noted):
        for source, share in note.shares.items() if note else ():
            facts = {"licence": share.licence, "origin": share.origin}
            yield source, {"uri": None, **facts}


def children(snapshots: Iterable[Snapshot]) -> dict[str, list[str]]:
    """Return the ids of what was made of each snapshot."""
    made: dict[str, list[str]] = {}
    for snapshot in snapshots:
        for parent in snapshot.commit.provenance.parents.values():
            made.setdefault(parent, []).append(snapshot.id)
    return made
