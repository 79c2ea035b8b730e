"""A folder store with many objects, of which rows name nine tenths, to measure walks over it.

`python -m tests.support.many_objects FOLDER NUMBER` makes one.
"""

import sys
from pathlib import Path

import pyarrow as pa

from videoar.bench.stores import commit
from videoar.contracts.contract import load_contract
from videoar.contracts.names import SAMPLES
from videoar.core.ids import sha256_hex
from videoar.storage.layout import object_key
from videoar.storage.store import open_store

ROWS_PER_FILE = 1_000


def make(folder: Path, number: int) -> None:
    schema = load_contract(SAMPLES).arrow_schema
    other = {
        "prompt": "p", "index": 0, "seed": 0, "model_digest": "m", "tokenizer_digest": "t",
        "sampler_json": "{}", "steps": 1, "num_frames": 9, "rate_fps": 8.0, "width_px": 8,
        "height_px": 8,
    }  # fmt: skip
    tables, rows = [], []
    for i in range(number):
        data = b"%d" % i
        sha256 = sha256_hex(data)
        path = folder / object_key(sha256, ".mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)  # not by the store, which syncs each
        video = {"video_key": object_key(sha256, ".mp4"), "video_sha256": sha256}
        if i % 10:
            id_ = {"sample_id": sha256[:32], "video_size_bytes": len(data)}
            rows.append(dict.fromkeys(schema.names) | other | video | id_)
        if rows and (len(rows) == ROWS_PER_FILE or i == number - 1):
            tables.append(pa.Table.from_pylist(rows, schema))
            rows = []
    commit(open_store(folder.absolute().as_uri()), "drawn", SAMPLES, tables)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
