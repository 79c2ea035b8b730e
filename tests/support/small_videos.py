"""Small rendered videos, and a pipeline of ingest and filter that runs in this process."""

import hashlib
from itertools import count
from pathlib import Path

import numpy as np

from videoar.core.ids import seed_from
from videoar.engine.inline import InlineEngine
from videoar.media.transcode import encode
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run import Run
from videoar.runner.execute import Execution
from videoar.storage.store import Store


def draw(
    path: Path, seed: int, num_frames: int = 20, height_px: int = 64, width_px: int = 64
) -> None:
    """Write a video of noise that moves sideways, different for every seed."""
    shape = (height_px // 8, 3 * width_px // 8, 3)
    cells = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    wide = cells.repeat(8, 0).repeat(8, 1)
    frames = [np.roll(wide, 2 * t, 1)[:, :width_px] for t in range(num_frames)]
    encode(np.stack(frames), path, 12.0)


def address(folder: Path, stem: str, per_shard: int, *, ends_shard: bool) -> Path:
    """Return a path whose address ends a shard of that mean size, or one that does not."""
    paths = (folder / f"{stem}-{k}.mp4" for k in count())
    return next(path for path in paths if (seed_from(path.as_uri()) % per_shard == 0) == ends_shard)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def document(videos: Path | str, per_shard: int = 1) -> dict:
    options = {"rate_fps": None, "size_px": 32, "sources_per_shard": per_shard}
    stages = {
        "clips": {"stage": "ingest", "from": {"sources": "videos"}, **options},
        "good": {"stage": "filter", "from": {"clips": "clips"}, "policy": "permissive",
                 "dedup": False},
    }  # fmt: skip
    return {"pipeline": "p", "inputs": {"videos": str(videos)}, "stages": stages}


def run(store: Store, doc: dict) -> Run:
    return Execution(parse_pipeline(doc, "p.yaml"), store, InlineEngine()).run()


def shards(finished: Run, stage: str = "clips") -> tuple[int, int, int]:
    """Return how many shards were planned, cached and done."""
    counts = finished.stage(stage).shards
    return counts.planned, counts.cached, counts.done
