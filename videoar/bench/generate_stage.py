"""The stage `generate` on Ray against the sampler alone: what a batch pays for being a batch.

The sampler alone is `VideoGenerator.sample` in a loop over the same batches, to pixels, on one
thread. The stage also encodes, uploads and records; it has one replica of one core. Steady state:
from the end of the first shard to that of the last one, without starts; wall time, and CPU time of
the driver, the replica and its encoders, to compare where others use the machine. Ray's own servers
do not count: their time goes by the second, not by the clip.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch

from videoar.bench.result import in_turns, processes
from videoar.bench.stores import TimedEngine, commit_model, run_stages
from videoar.core.scratch import Scratch
from videoar.core.types import Row
from videoar.engine.base import Engine
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store, open_store
from videoar.training.generation import VideoGenerator
from videoar.training.sampler_options import SamplerOptions

_PRESET, _FRAMES, _RATE_FPS = "small", 17, 8.0
_SHARDS, _BATCH = 6, 4
_CLIPS = (_SHARDS - 1) * _BATCH
_REPLICA = "ray::ServeReplica"
"""Title of its process."""


class _Rates(NamedTuple):
    """Of the steady state."""

    clips_per_s: float
    cpu_s_per_clip: float


def measure_stage(rounds: int) -> dict[str, dict[str, float]]:
    """Return clips per second of both, and their ratio."""
    from videoar.engine.ray_engine import RayEngine

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TOKENIZERS[_PRESET]).eval()
    model = VideoAR(PRESETS[_PRESET]).eval()
    ray = RayEngine("local")
    with Scratch() as name:
        store = open_store((name / "store").as_uri())
        published = commit_model(store, model, tokenizer)
        try:
            runs = in_turns(
                {
                    "stage": lambda turn: _run_stage(ray, store, published, turn),
                    "sampler": lambda turn: _run_sampler(model, tokenizer, turn),
                },
                rounds,
            )
        finally:
            ray.close()
    stage, sampler = (
        _Rates(*map(median, zip(*runs[name], strict=True))) for name in ("stage", "sampler")
    )
    figures = {
        **stage._asdict(),
        **{f"sampler_{name}": value for name, value in sampler._asdict().items()},
        "x_sampler": stage.clips_per_s / sampler.clips_per_s,
        "x_sampler_by_cpu_time": sampler.cpu_s_per_clip / stage.cpu_s_per_clip,
    }
    return {"stage, 64 px x 17 frames": {name: round(x, 3) for name, x in figures.items()}}


def _run_stage(engine: Engine, store: Store, model: Snapshot, turn: int) -> _Rates:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.writelines(f"{row['prompt']}\n" for row in _rows(turn, _SHARDS * _BATCH))
        prompts.flush()
        cpu = TimedEngine(engine, _cpu_s_of_stage)
        wall = TimedEngine(cpu)
        options = {
            "stage": "generate", "prompts": prompts.name, "seed": turn, "num_frames": _FRAMES,
            "shard_samples": _BATCH,
        }  # fmt: skip
        run_stages(store, {"model": model}, {"samples": options}, wall)
    wall_s, cpu_s = (each.done_s[-1] - each.done_s[0] for each in (wall, cpu))
    return _Rates(_CLIPS / wall_s, cpu_s / _CLIPS)


def _run_sampler(model: VideoAR, tokenizer: VideoTokenizer, turn: int) -> _Rates:
    columns = {"num_frames": _FRAMES, "rate_fps": _RATE_FPS}
    generator = VideoGenerator(model, tokenizer, "", columns, SamplerOptions())
    start, cpu = time.monotonic(), time.process_time()
    for _ in range(_SHARDS - 1):
        generator.sample(_rows(turn, _BATCH))
    return _Rates(_CLIPS / (time.monotonic() - start), (time.process_time() - cpu) / _CLIPS)


def _cpu_s_of_stage() -> float:
    """Return the CPU time of this process and of its replica, with ended children; see proc(5)."""
    running, own = processes(), os.getpid()
    ticks = 0
    for pid, (title, fields) in running.items():
        _, parent = running.get(int(fields[1]), ("", []))
        is_replica = title.startswith(_REPLICA) and parent[1:2] == [str(own)]
        if pid == own or is_replica:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _rows(turn: int, count: int) -> Sequence[Row]:
    return [{"prompt": f"film {turn}, take {i}", "seed": i} for i in range(count)]
