"""Tokens whose values are the number of their row, and comparison of loaded batches."""

import numpy as np
import pyarrow as pa

from videoar.core.types import Provenance
from videoar.storage import open_store
from videoar.storage.token_codec import checksum
from videoar.storage.writer import ROW_GROUP_BYTES


def token_table(start, rows, shape=(2, 3, 4, 5), corrupt=None):
    ids = range(start, start + rows)
    latents = [np.full(shape, i, "<f2").tobytes() for i in ids]
    sums = [checksum(latent) + (i == corrupt) for i, latent in zip(ids, latents, strict=True)]
    return pa.table({
        "clip_id": [f"{i:032x}" for i in ids],
        "source_id": [f"{i:064x}" for i in ids],
        "split": ["val" if i % 5 == 4 else "train" for i in ids],
        "label": [f"class {i % 3}" for i in ids],
        "caption": [None if i == 0 else f"caption {i}" for i in ids],
        **dict.fromkeys(("rate_fps", "start_s", "duration_s"), [1.0] * rows),
        **{name: [size] * rows for name, size in zip("tkhw", shape, strict=True)},
        "bits": [b"x"] * rows,
        "latent": latents,
        "bits_xxh3": [0] * rows,
        "latent_xxh3": sums,
    })


def commit(*tables, **options):
    store = open_store(f"memory://{np.random.default_rng().integers(1 << 62)}")
    return commit_to(store, *tables, **options)


def commit_to(store, *tables, row_group_bytes=ROW_GROUP_BYTES):
    dataset = store.dataset("tokens", "tokens@1")
    files = [dataset.write(table, row_group_bytes) for table in tables]
    made = Provenance(run_id="r", pipeline="p", stage="s", fingerprint="f", code_version="c")
    return dataset.commit(files, made, {})


def contents(loader):
    """Return clip ids and latents of the batches, copied because buffers are reused."""
    batches = [(batch["clip_ids"], batch["latent_BTKHW"].numpy().copy()) for batch in loader]
    for clips, latents in batches:
        assert [int(clip, 16) for clip in clips] == latents[:, 0, 0, 0, 0].tolist()
    return batches


def assert_equal(some, others):
    assert [clips for clips, _ in some] == [clips for clips, _ in others]
    for (_, one), (_, other) in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)
