"""Export a snapshot of tokens as WebDataset tar shards or plain Parquet; a model by `export_model`.

Each shard is built in memory and uploaded in one request. `manifest.json` is written last: a folder
without it is an export that was interrupted, and the same call completes it. Equal rows give equal
bytes.
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

from videoar.contracts.names import MODELS, TOKENS
from videoar.core.errors import ConfigError, ContractError, did_you_mean
from videoar.core.ids import canonical_json, sha256_hex
from videoar.records.names import find_snapshot
from videoar.storage.layout import PROBES_PREFIX, READABLE_LAYOUT_VERSIONS
from videoar.storage.object_store import ObjectStore
from videoar.storage.row_reader import RowReader
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store, open_store
from videoar.storage.token_codec import bytes_per_frame

MANIFEST = "manifest.json"
SAFETENSORS = "safetensors"
_BATCH_ROWS = 64  # chosen: bounds the payload that is held beside the shard
_CHECKSUMS = ("bits_xxh3", "latent_xxh3")
"""Not exported: checksums of the bytes as stored, which were verified on reading."""


def export(
    store: Store,
    name: str,
    form: str,
    to: str,
    *,
    shard_mib: float = 256,
    single_file: bool = False,
) -> dict[str, Any]:
    """Write a snapshot of tokens to a folder or URL; a finished export is not repeated.

    A model is written to a new folder, see `export_model`.

    Args:
        store: where the snapshot is.
        name: its name.
        form: `webdataset` or `parquet`; for a model `safetensors`.
        to: folder or store URL, empty or with the same export in it.
        shard_mib: stored bytes per file; a tar adds its headers.
        single_file: of a model, see `export_model`.

    Returns:
        The manifest: `{format, snapshot, digest, rows, files: [{name, rows, size_bytes, sha256}]}`.

    Raises:
        ConfigError: the format or snapshot cannot be exported, or the folder has other files.
        StorageError: a row is damaged, or a store does not answer.
    """
    snapshot = find_snapshot(store, name)
    _require_format(snapshot, form)
    if snapshot.contract == MODELS:
        from videoar.admin.export_model import export_model  # torch, which tokens do not need

        return export_model(store, snapshot, to, single_file=single_file)
    if single_file:
        what = f"{snapshot.id} is {TOKENS}, only a model can be one file"
        raise ConfigError("--single-file", what)
    url = to if "://" in to else Path(to).absolute().as_uri()
    objects = open_store(url, endpoint=store.endpoint).objects
    source = RowReader(snapshot)
    shards = _shards(source, int(shard_mib * (1 << 20)))
    suffix, write = FORMATS[form]
    # shards are named as TensorFlow and Hugging Face datasets name them
    count = len(shards)
    names = [f"{snapshot.dataset}-{i:05d}-of-{count:05d}.{suffix}" for i in range(count)]
    head = {"format": form, "snapshot": snapshot.id, "digest": snapshot.digest}
    done = _done(objects, to, head, set(names))
    if done is not None:
        return done
    objects.delete(MANIFEST)  # some of its files are missing or truncated
    files = []
    for file, rows in zip(names, shards, strict=True):
        data = write(source, rows)
        objects.put(file, data)
        size = {"rows": len(rows), "size_bytes": len(data), "sha256": sha256_hex(data)}
        files.append({"name": file, **size})
    manifest = {**head, "rows": snapshot.rows, "files": files}
    objects.put(MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _require_format(snapshot: Snapshot, form: str) -> None:
    formats = {TOKENS: list(FORMATS), MODELS: [SAFETENSORS]}
    if form not in (known := [name for names in formats.values() for name in names]):
        raise ConfigError(f"--format {form}", "no such format", did_you_mean(form, known))
    if snapshot.contract not in formats:
        what = f"is {snapshot.contract}, only {' and '.join(formats)} can be exported"
        raise ConfigError(snapshot.id, what, "files of other tables are plain Parquet already")
    if form not in (own := formats[snapshot.contract]):
        what = f"is not a format of {snapshot.contract}"
        raise ConfigError(f"--format {form}", what, f"use {' or '.join(own)}")


def _done(
    objects: ObjectStore, to: str, head: dict[str, str], names: set[str]
) -> dict[str, Any] | None:
    """Return the manifest of the same export if all of its files exist, else None.

    Raises:
        ConfigError: the folder has any other file.
    """
    infos = (info for info in objects.list("") if not info.key.startswith(PROBES_PREFIX))
    existing = {info.key: info.size_bytes for info in infos}
    data = objects.find(MANIFEST)
    manifest: dict[str, Any] = json.loads(data) if data else {}
    listed = {file["name"]: file["size_bytes"] for file in manifest.get("files", ())}
    other = sorted(existing.keys() - names - {MANIFEST})
    is_different = {k: manifest.get(k) for k in head} != head or listed.keys() != names
    if other or (manifest and is_different):
        what = f"has {other[0] if other else 'another export'} in it"
        raise ConfigError(f"--to {to}", what, "give an empty folder")
    return manifest if manifest and listed.items() <= existing.items() else None


def _shards(source: RowReader, shard_bytes: int) -> list[np.ndarray]:
    """Split the rows, in the order of the snapshot, into shards of about equal size."""
    # By stored bytes, which the manifest of the snapshot has: nothing is read to plan the shards.
    size = sum(file.size_bytes for file in source.snapshot.files)
    count = min(math.ceil(size / shard_bytes), source.small.num_rows)
    return np.array_split(np.arange(source.small.num_rows), count) if count else []


def _batches(source: RowReader, rows: np.ndarray) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Yield rows in batches of one file each, with the layout that its footer declares.

    Raises:
        ContractError: the footer declares none, or one of a newer version.
    """
    # The layout is declared per file, so a batch has rows of one file only.
    file = source.payload.file_N[rows]
    for number in np.unique(file):
        notes, where = source.file_metadata[number], source.snapshot.files[number].key
        is_declared = notes.keys() >= {"scales", "tokenizer_digest"}
        if not is_declared or notes.get("layout_version") not in READABLE_LAYOUT_VERSIONS:
            hint = f"see videoar validate {source.snapshot.id} --deep"
            what = "its footer does not declare a known layout of its bits"
            raise ContractError(where, what, hint)
        layout = {"scales": json.loads(notes["scales"]), "tokenizer": notes["tokenizer_digest"]}
        of_file = rows[file == number]
        for start in range(0, len(of_file), _BATCH_ROWS):
            batch = source.take(of_file[start : start + _BATCH_ROWS])
            yield batch.drop_columns(list(_CHECKSUMS)), layout


def _webdataset(source: RowReader, rows: np.ndarray) -> bytes:
    """Write a tar of `<clip>.json`, `<clip>.bits.npy` and `<clip>.latent.npy` per sample."""
    sink = io.BytesIO()
    # USTAR has no extended headers: every reader takes it, and a member costs 512 bytes
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        batches = _batches(source, rows)
        samples = ({**row, **layout} for batch, layout in batches for row in batch.to_pylist())
        for sample in samples:
            bits, latent = sample.pop("bits"), sample.pop("latent")
            t, h, w, k = (sample[name] for name in "thwk")
            width = bytes_per_frame(sample["scales"], k)
            members = {
                "json": canonical_json(sample).encode(),
                "bits.npy": _npy(np.frombuffer(bits, np.uint8).reshape(t, width)),
                "latent.npy": _npy(np.frombuffer(latent, "<f2").reshape(t, k, h, w)),
            }
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{sample['clip_id']}.{suffix}")
                # TarInfo's defaults, time 0 and owner 0, keep equal rows equal bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    # 1.0 is the version that all readers of .npy know; later ones only allow longer headers
    np.lib.format.write_array(sink, array, version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _parquet(source: RowReader, rows: np.ndarray) -> bytes:
    """Write rows with plain binary columns, and the layout from the footer as columns."""
    grids = pa.list_(pa.list_(pa.int32()))
    batches = []
    for batch, layout in _batches(source, rows):
        scales = pa.array([layout["scales"]] * len(batch), grids)
        tokenizers = pa.array([layout["tokenizer"]] * len(batch))
        wide = batch.append_column("scales", scales).append_column("tokenizer", tokenizers)
        batches.append(wide.replace_schema_metadata(None))
    table = pa.concat_tables(batches)
    sink = io.BytesIO()
    # Sign bits and float16 latents are close to random: compressing them costs time and no bytes
    # are saved. Statistics of payloads would put whole values into the footer.
    plain = ["bits", "latent"]
    others = [name for name in table.column_names if name not in plain]
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(
        table,
        sink,
        row_group_size=256,  # chosen: what a shuffling reader fetches at a time
        use_dictionary=strings,
        compression={**dict.fromkeys(others, "zstd"), **dict.fromkeys(plain, "none")},
        write_statistics=others,
    )
    return sink.getvalue()


FORMATS: dict[str, tuple[str, Callable[[RowReader, np.ndarray], bytes]]] = {
    "webdataset": ("tar", _webdataset),
    "parquet": ("parquet", _parquet),
}
