"""The stage `generate` on Ray against the sampler alone: what a batch pays for being a batch.

The sampler alone is `VideoGenerator.sample` in a loop over the same batches, to pixels, on one
thread. The stage also encodes, uploads and records; it has one replica of one core. Steady state:
from the end of the first shard to that of the last one, without starts; wall time, and CPU time of
all processes of this Ray, which is what remains to compare where others use the machine.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from videoar.bench.result import in_turns
from videoar.bench.stores import TimedEngine, commit, commit_tokenizer, run_stages
from videoar.contracts.names import MODELS
from videoar.core.types import Row
from videoar.engine.base import Engine
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store, open_store
from videoar.training.generation import VideoGenerator
from videoar.training.model_store import ClipShape, publish_model
from videoar.training.sampler_options import SamplerOptions

_PRESET, _FRAMES, _RATE_FPS = "small", 17, 8.0
_SHARDS, _BATCH = 6, 4
_CLIPS = (_SHARDS - 1) * _BATCH


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
    with tempfile.TemporaryDirectory(prefix="videoar-bench-") as name:
        store = open_store((Path(name) / "store").as_uri())
        published = _publish(store, model, tokenizer)
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


def _publish(store: Store, model: VideoAR, tokenizer: VideoTokenizer) -> Snapshot:
    of_tokenizer = commit_tokenizer(store, tokenizer)
    (digest,) = of_tokenizer.table(["digest"])["digest"].to_pylist()
    row = publish_model(
        model, store, weights=model.state_dict(), step=0, metrics={}, history=[],
        tokenizer_digest=digest, clips=ClipShape(_RATE_FPS, _FRAMES),
    )  # fmt: skip
    return commit(store, "model", MODELS, [row])


def _run_stage(engine: Engine, store: Store, model: Snapshot, turn: int) -> _Rates:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.writelines(f"{row['prompt']}\n" for row in _rows(turn, _SHARDS * _BATCH))
        prompts.flush()
        cpu = TimedEngine(engine, _cpu_s_of_all)
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


def _cpu_s_of_all() -> float:
    """Return the CPU time of this process and its descendants, with ended ones; see proc(5)."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(seconds[pid] for pid in ours)


def _rows(turn: int, count: int) -> Sequence[Row]:
    return [{"prompt": f"film {turn}, take {i}", "seed": i} for i in range(count)]
