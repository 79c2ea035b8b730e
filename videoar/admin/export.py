"""A snapshot in formats that others read: WebDataset tar shards, or plain Parquet.

Shards are made whole in memory and put whole; `manifest.json` comes last, so a folder without it is
an export that was cut off, and the same call again finishes it. Equal rows give equal bytes.
"""

import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.contracts.names import TOKENS
from videoar.core.errors import ConfigError, ContractError, did_you_mean
from videoar.core.ids import canonical_json, sha256_hex
from videoar.records.names import find_snapshot
from videoar.storage.layout import PROBES_PREFIX, READABLE_LAYOUT_VERSIONS
from videoar.storage.object_store import ObjectStore
from videoar.storage.row_reader import RowReader
from videoar.storage.store import Store, open_store
from videoar.storage.token_codec import frame_bytes

MANIFEST = "manifest.json"
_PART_ROWS = 64
_CHECKSUMS = ("bits_xxh3", "latent_xxh3")
"""Left out: they are of the store's bytes, and were compared when rows were read."""


def export(
    store: Store, name: str, form: str, to: str, *, shard_mib: float = 256
) -> dict[str, Any]:
    """Write a snapshot of tokens to a folder or URL, or find that this has been done.

    Returns:
        The manifest: `{format, snapshot, digest, rows, files: [{name, rows, size_bytes, sha256}]}`.

    Raises:
        ConfigError: the format or snapshot cannot be exported, or the folder has something else.
        StorageError: a row is damaged, or a store does not answer.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form}", "no such format", did_you_mean(form, FORMATS))
    snapshot = find_snapshot(store, name)
    if snapshot.contract != TOKENS:
        what = f"is {snapshot.contract}, only {TOKENS} can be exported"
        raise ConfigError(snapshot.id, what, "files of other tables are plain Parquet already")
    objects = _open(to, store.endpoint)
    source = RowReader(snapshot)
    shards = _shards(source, int(shard_mib * (1 << 20)))
    suffix, write = FORMATS[form]
    names = [
        f"{snapshot.dataset}-{i:05d}-of-{len(shards):05d}.{suffix}" for i in range(len(shards))
    ]
    head = {"format": form, "snapshot": snapshot.id, "digest": snapshot.digest}
    done = _done(objects, to, head, set(names))
    if done is not None:
        return done
    objects.delete(MANIFEST)  # of files that have gone or shrunk since: unfinished until the end
    files = []
    for file, rows in zip(names, shards, strict=True):
        data = write(source, rows)
        objects.put(file, data)
        size = {"rows": len(rows), "size_bytes": len(data), "sha256": sha256_hex(data)}
        files.append({"name": file, **size})
    manifest = {**head, "rows": snapshot.rows, "files": files}
    objects.put(MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _open(to: str, endpoint: str) -> ObjectStore:
    url = to if "://" in to else Path(to).absolute().as_uri()
    return open_store(url, endpoint=endpoint).objects


def _done(
    objects: ObjectStore, to: str, head: dict[str, str], names: set[str]
) -> dict[str, Any] | None:
    """Return the manifest of the same export, if all of its files are there.

    Raises:
        ConfigError: the folder has anything else in it.
    """
    there = {i.key: i.size_bytes for i in objects.list("") if not i.key.startswith(PROBES_PREFIX)}
    found = objects.find(MANIFEST)
    manifest: dict[str, Any] = json.loads(found) if found else {}
    listed = {file["name"]: file["size_bytes"] for file in manifest.get("files", ())}
    other = sorted(there.keys() - names - {MANIFEST})
    is_other = {k: manifest.get(k) for k in head} != head or listed.keys() != names
    if other or (manifest and is_other):
        what = f"has {other[0] if other else 'another export'} in it"
        raise ConfigError(f"--to {to}", what, "give an empty folder")
    return manifest if manifest and listed.items() <= there.items() else None


def _shards(source: RowReader, shard_bytes: int) -> list[np.ndarray]:
    """Cut the rows, in the order of the snapshot, into parts of about equal size."""
    size = sum(file.size_bytes for file in source.snapshot.files)
    count = min(math.ceil(size / shard_bytes), source.small.num_rows)
    return np.array_split(np.arange(source.small.num_rows), count) if count else []


def _parts(source: RowReader, rows: np.ndarray) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Yield rows in parts of one file each, with what its footer says of how to read them.

    Raises:
        ContractError: the footer does not say it.
    """
    file = source.payload.file_N[rows]
    for number in np.unique(file):
        notes, where = source.notes[number], source.snapshot.files[number].key
        said = notes.keys() >= {"scales", "tokenizer_digest"}
        if not said or notes.get("layout_version") not in READABLE_LAYOUT_VERSIONS:
            hint = f"see videoar validate {source.snapshot.id} --deep"
            raise ContractError(where, "its footer does not say how its bits are laid out", hint)
        own = {"scales": json.loads(notes["scales"]), "tokenizer": notes["tokenizer_digest"]}
        mine = rows[file == number]
        for start in range(0, len(mine), _PART_ROWS):
            yield source.take(mine[start : start + _PART_ROWS]).drop_columns(list(_CHECKSUMS)), own


def _webdataset(source: RowReader, rows: np.ndarray) -> bytes:
    """Write a tar of `<clip>.json`, `<clip>.bits.npy` and `<clip>.latent.npy` per sample."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        samples = ({**row, **own} for part, own in _parts(source, rows) for row in part.to_pylist())
        for facts in samples:
            bits, latent = facts.pop("bits"), facts.pop("latent")
            t, h, w, k = (facts[name] for name in "thwk")
            width = frame_bytes(facts["scales"], k)
            members = {
                "json": canonical_json(facts).encode(),
                "bits.npy": _npy(np.frombuffer(bits, np.uint8).reshape(t, width)),
                "latent.npy": _npy(np.frombuffer(latent, "<f2").reshape(t, k, h, w)),
            }
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{facts['clip_id']}.{suffix}")  # no time, no owner
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _parquet(source: RowReader, rows: np.ndarray) -> bytes:
    """Write rows with plain binary columns, and per row what the footer of a store's file says."""
    grids = pa.list_(pa.list_(pa.int32()))
    parts = []
    for part, own in _parts(source, rows):
        scales = pa.array([own["scales"]] * len(part), grids)
        makers = pa.array([own["tokenizer"]] * len(part))
        wide = part.append_column("scales", scales).append_column("tokenizer", makers)
        parts.append(wide.replace_schema_metadata(None))
    table = pa.concat_tables(parts)
    sink = io.BytesIO()
    plain = ["bits", "latent"]
    others = [name for name in table.column_names if name not in plain]
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(
        table,
        sink,
        row_group_size=256,
        use_dictionary=strings,
        compression={**dict.fromkeys(others, "zstd"), **dict.fromkeys(plain, "none")},
        write_statistics=others,
    )
    return sink.getvalue()


FORMATS: dict[str, tuple[str, Callable[[RowReader, np.ndarray], bytes]]] = {
    "webdataset": ("tar", _webdataset),
    "parquet": ("parquet", _parquet),
}
