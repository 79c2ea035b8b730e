"""A folder as `videoar generate --out` writes it, of drawn clips."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.ids import sha256_hex
from videoar.media.synthetic import draw, scenes
from videoar.media.transcode import encode_clips


def sample_row(number: int, data: bytes, prompt: str, shape: tuple[int, ...]) -> dict:
    """Return a row of samples@1 without `video_key`, of a video [T, H, W, 3] at 8 fps."""
    return {
        "sample_id": f"{number:032x}", "prompt": prompt, "label": None, "index": 0,
        "seed": number, "model_digest": "m", "tokenizer_digest": "t", "sampler_json": "{}",
        "steps": 1, "num_frames": shape[0], "rate_fps": 8.0, "width_px": shape[2],
        "height_px": shape[1], "video_sha256": sha256_hex(data), "video_size_bytes": len(data),
    }  # fmt: skip


def drawn_samples(count: int, num_frames: int = 9, size_px: int = 32, noise: float = 0):
    """Yield row and MP4 of drawn clips, each of its prompt."""
    random = np.random.default_rng(0)
    for i in range(count):
        scene = scenes()[i % len(scenes())]
        frames = draw(scene, num_frames, size_px, 8.0).astype(np.float64)
        frames = np.clip(frames + noise * random.standard_normal(frames.shape), 0, 255)
        (data,) = encode_clips([frames.astype(np.uint8)], 8.0, 12)
        yield sample_row(i, data, scene.prompt, frames.shape), data


def sample_folder(folder: Path, count: int = 3, **options) -> Path:
    """Write such a folder."""
    folder.mkdir()
    rows = []
    for i, (row, data) in enumerate(drawn_samples(count, **options)):
        (folder / f"{i:05d}.mp4").write_bytes(data)
        rows.append({"path": f"{i:05d}.mp4", **row})
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    return folder
