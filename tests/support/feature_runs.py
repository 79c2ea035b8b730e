"""Runs of `features` alone on drawn clips."""

import pyarrow as pa

from tests.support.clip_rows import clip_row, clips_of, stored
from tests.support.stage_chain import commit
from videoar.contracts.contract import load_contract
from videoar.media.synthetic import draw, scenes
from videoar.pipeline.stage import Output
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

NETWORKS = ["lite0", "pixels", "synthetic"]


def file_rows(store: Store, num_files: int, per_file: int, first: int = 0) -> list[list[dict]]:
    """Return rows of clips of 9 frames of 32 px, in files; every clip is drawn differently."""
    count = num_files * per_file
    drawn = [draw(scenes()[i % len(scenes())], 9, 32, 8.0) for i in range(first, first + count)]
    rows = [clip_row(f"{first + i}", **video) for i, video in enumerate(stored(store, drawn))]
    return [rows[i : i + per_file] for i in range(0, count, per_file)]


def document(port: str, snapshot: Snapshot, **options: object) -> dict:
    """Return a pipeline that computes the features of a snapshot."""
    stage = {"stage": "features", "from": {port: "given"}, "networks": NETWORKS, **options}
    return {
        "pipeline": "p",
        "inputs": {"given": f"snapshot://{snapshot.id}"},
        "stages": {"features": stage},
    }


def prepare(store: Store, num_files: int = 3, per_file: int = 3) -> dict:
    """Commit clips in files; return the pipeline."""
    return document("clips", clips_of(store, *file_rows(store, num_files, per_file)))


def scored(store: Store, **resources: int) -> dict:
    """Commit clips and samples; return the pipeline that scores the samples on the clips."""
    clips = clips_of(store, *file_rows(store, 2, 8))
    samples = samples_of(store, *file_rows(store, 2, 4, first=16))
    options = {"networks": NETWORKS, "resources": resources}
    ports = {"samples": "made", "evalset": "evalset"}
    chosen = {"num_reference": 8, "num_prompts": 0, "reference_split": "all"}
    return {
        "pipeline": "p",
        "inputs": {"real": f"snapshot://{clips.id}", "made": f"snapshot://{samples.id}"},
        "stages": {
            "evalset": {"stage": "evalset", "from": {"clips": "real"}, **chosen},
            "sample_features": {"stage": "features", "from": {"samples": "made"}, **options},
            "reference_features": {"stage": "features", "from": {"evalset": "evalset"}, **options},
            "scores": {
                "stage": "score",
                "from": ports | {name: name for name in ("sample_features", "reference_features")},
            },
        },
    }


def samples_of(store: Store, *files: list[dict]) -> Snapshot:
    """Commit lists of clips as files of generated samples."""
    schema = load_contract("samples@1").arrow_schema
    tables = [pa.Table.from_pylist([sample_row(row) for row in rows], schema) for rows in files]
    return commit(store, "samples", "samples@1", list(map(Output, tables)), rows=len(files))


def sample_row(row: dict) -> dict:
    """Return the row of a sample whose video is that of a clip."""
    shared = ("num_frames", "rate_fps", "width_px", "height_px", "video_key", "video_sha256")
    return {
        "sample_id": row["clip_id"],
        "prompt": "a red disc moving left",
        "index": 0,
        "seed": 0,
        "model_digest": "m",
        "tokenizer_digest": "t",
        "sampler_json": "{}",
        "steps": 1,
        "video_size_bytes": row["video_size_bytes"],
        **{name: row[name] for name in shared},
    }
