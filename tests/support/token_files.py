"""Snapshots of tokens whose bits follow from their latents, made without a tokenizer."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.admin.validate import requantize
from videoar.core.ids import digest_json
from videoar.core.types import Provenance
from videoar.storage.token_codec import checksum
from videoar.storage.writer import ROW_GROUP_BYTES

SCALES = [(1, 1), (2, 2), (4, 5)]
SHAPE = (2, 3, 4, 5)  # t, k, h, w
NOTES = {
    "tokenizer_digest": "a" * 64,
    "scales": json.dumps(SCALES),
    "interpolation": "area down, bilinear up",
    "layout_version": "1",
}


def token_rows(start, rows, shape=SHAPE, scales=SCALES, source=None, **notes):
    """Return rows of `tokens@1` numbered from `start`, each of its own source by default."""
    random = np.random.default_rng(start)
    latents = random.normal(size=(rows, *shape)).astype("<f2")
    bits = requantize(latents, scales)
    ids = range(start, start + rows)
    table = pa.table({
        "clip_id": [f"{i:032x}" for i in ids],
        "source_id": [f"{i if source is None else source:064x}" for i in ids],
        "split": ["train"] * rows,
        "label": [f"class {i % 3}" for i in ids],
        "caption": [f"caption {i}" if i % 4 else None for i in ids],
        "rate_fps": [8.0] * rows,
        "start_s": [float(i) for i in ids],
        "duration_s": [1.0] * rows,
        **{name: [size] * rows for name, size in zip("tkhw", shape, strict=True)},
        "bits": bits,
        "latent": [latent.tobytes() for latent in latents],
        "bits_xxh3": [checksum(value) for value in bits],
        "latent_xxh3": [checksum(latent.tobytes()) for latent in latents],
    })
    return table.replace_schema_metadata({**NOTES, "scales": json.dumps(scales), **notes})


def changed(table, column, row, value):
    """Return the table with one value replaced."""
    values = table[column].to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


def commit_tables(
    store,
    *tables,
    dataset="tokens",
    contract="tokens@1",
    row_group_bytes=ROW_GROUP_BYTES,
    **parents,
):
    """Commit tables as a snapshot of one file each."""
    target = store.dataset(dataset, contract)
    files = [target.write(table, row_group_bytes) for table in tables]
    made = Provenance(
        run_id="r",
        pipeline="p",
        stage=dataset,
        fingerprint=digest_json([file.sha256 for file in files]),
        code_version="c",
        parents=parents,
    )
    return target.commit(files, made, {})


def flip_silently(store, file, column):
    """Flip a bit so that a reader without checksums gets other values and no error."""
    good = store.objects.get(file.key)
    there = pq.read_table(pa.BufferReader(good), columns=[column])
    metadata = pq.read_metadata(pa.BufferReader(good))
    chunk = metadata.row_group(0).column(metadata.schema.names.index(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    for place in range(start, start + chunk.total_compressed_size):
        data = bytearray(good)
        data[place] ^= 1
        try:
            read = pq.read_table(pa.BufferReader(data), columns=[column])
            if read.num_rows == there.num_rows and read.to_pylist() != there.to_pylist():
                store.objects.put(file.key, bytes(data))
                return
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no such bit in {column}")
