"""Lineage: from anything to everything it came from, or to everything made of it.

Nothing is recorded for lineage alone: commits name their parents, rows name their sources, and the
graph is read off them. Ends are the source videos with sha256 and licence.
"""

from collections.abc import Iterator
from typing import Any

from videoar.core.errors import SnapshotNotFoundError
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot

Node = dict[str, Any]
Edge = dict[str, str]
_ROW_KEYS = {
    "samples@1": ("sample_id", "video_sha256"),
    "models@1": ("digest",),
    "clips@1": ("clip_id", "source_id", "video_sha256"),
}


def lineage(store: Store, name: str, *, down: bool = False) -> dict[str, list[Any]]:
    """Return the graph above (or below) a snapshot, ref, model digest, sample or source.

    Raises:
        SnapshotNotFoundError: nothing in the store has this id.
    """
    start = find(store, name)
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    queue = [start]
    children = _children(store) if down else {}
    while queue:
        snapshot = queue.pop()
        if snapshot.id in nodes:
            continue
        nodes[snapshot.id] = _node(snapshot)
        parents = snapshot.commit.provenance.parents
        linked = children.get(snapshot.id, []) if down else list(parents.values())
        for other in linked:
            pair = (snapshot.id, other) if down else (other, snapshot.id)
            edges.append({"from": pair[0], "to": pair[1]})
            queue.append(store.snapshot(other))
        if not down and snapshot.contract == "clips@1":
            for source in _sources(snapshot):
                nodes.setdefault(source["id"], source)
                edges.append({"from": source["id"], "to": snapshot.id})
    return {"nodes": list(nodes.values()), "edges": edges}


def find(store: Store, name: str) -> Snapshot:
    """Return the snapshot that an id means: its own, a ref, or that of a row in it.

    Raises:
        SnapshotNotFoundError: nothing in the store has this id.
    """
    try:
        return store.snapshot(name)
    except SnapshotNotFoundError:
        for snapshot in store.snapshots():
            keys = _ROW_KEYS.get(snapshot.contract, ())
            for column in keys:
                if name in snapshot.table(columns=[column])[column].to_pylist():
                    return snapshot
        raise


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


def _sources(clips: Snapshot) -> Iterator[Node]:
    columns = ["source_id", "source_uri", "licence", "origin"]
    seen: set[str] = set()
    for row in clips.table(columns=columns).to_pylist():
        if row["source_id"] not in seen:
            seen.add(row["source_id"])
            yield {
                "id": f"source:{row['source_id']}",
                "kind": "source",
                "sha256": row["source_id"],
                "uri": row["source_uri"],
                "licence": row["licence"],
                "origin": row["origin"],
            }


def _children(store: Store) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for snapshot in store.snapshots():
        for parent in snapshot.commit.provenance.parents.values():
            made.setdefault(parent, []).append(snapshot.id)
    return made
