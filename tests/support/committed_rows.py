"""Rows that are written by hand, committed as snapshots of one made-up run."""

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.types import Provenance
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

SHA = "ab" * 32
_NEUTRAL = {pa.string(): "x", pa.bool_(): True, pa.list_(pa.int64()): [1, 2, 3]}
_FIXED = {
    "cut_in": "start", "source_id": SHA, "video_sha256": SHA, "digest": SHA, "files": [],
    "metrics": [], "rotation_deg": 0, "split": "train", "kind": "clip", "status": "ok",
}  # fmt: skip


def full_row(contract: str, **values) -> dict:
    """Fill the columns that may not be null with neutral values."""
    fields = [field for field in load_contract(contract).arrow_schema if not field.nullable]
    neutral = {field.name: _NEUTRAL.get(field.type, 2) for field in fields}
    return {**neutral, **{k: v for k, v in _FIXED.items() if k in neutral}, **values}


class RowWriter:
    """Commits rows as snapshots of one made-up run."""

    def __init__(self, store) -> None:
        self.store = store
        self.ids: dict[str, str] = {}

    def commit(self, name, contract, rows, parents=(), rejects=None):
        """Commit rows; `parents` are names of earlier snapshots, or ports to such names."""
        ports = parents if isinstance(parents, dict) else {parent: parent for parent in parents}
        provenance = Provenance(
            run_id="r1", pipeline="p", stage=name, fingerprint=f"f-{name}", code_version="0",
            parents={port: self.ids[parent] for port, parent in ports.items()},
        )  # fmt: skip
        rejects_id = None
        if rejects:
            rejects_id = self.commit(f"{name}.rejects", "rejects@1", rejects)
        dataset = self.store.dataset(name, contract)
        full = [full_row(contract, **row) for row in rows]
        schema = load_contract(contract).arrow_schema
        table = pa.Table.from_pylist(full, schema=pa.schema([schema.field(n) for n in full[0]]))
        snapshot = dataset.commit([dataset.write(table)], provenance, {}, rejects_id)
        self.ids[name] = snapshot.id
        return snapshot.id


def commit_source(store: Store, name: str) -> Snapshot:
    """Commit a listing of one source."""
    dataset = store.dataset("videos", "sources@1")
    provenance = Provenance(
        run_id="r", pipeline="p", stage=name, fingerprint=name, code_version="c"
    )
    size = pa.array([1], pa.int64())
    rows = pa.table({"uri": [name], "name": [name], "etag": [name], "size_bytes": size})
    return dataset.commit([dataset.write(rows)], provenance, {})
