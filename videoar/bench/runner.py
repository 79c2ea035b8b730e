"""`bench runner`: what Ray costs. Ingest on two Ray workers, and on two processes without Ray.

Compared with twice one process as well, which two busy cores do not quite give. Wall time of the
stage alone, by its own record: starting Ray is paid once a session, by a run on other sources that
nobody times. References are kept, so nothing is encoded. Each source is a copy of one drawn film
with a few bytes of its own behind the end, as equal files would be refused.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from videoar.bench.films import Film, copies
from videoar.bench.result import BenchResult, compare
from videoar.engine.base import Engine
from videoar.engine.inline import InlineEngine
from videoar.media.transcode import encode_stream
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

_WORKERS = 2
_NUM_SOURCES = 144
_TWICE = f"{_WORKERS} x one process"
_PLAIN = f"{_WORKERS} processes without Ray"
_FILM = Film(78, num_shots=22, height_px=480, width_px=854, rate_fps=24.0)


def run(rounds: int) -> BenchResult:
    """Measure in turns."""
    from videoar.engine.ray_engine import RayEngine

    with tempfile.TemporaryDirectory(prefix="videoar-bench-") as name:
        folder = Path(name)
        sources, few = _copies(folder, "all", _NUM_SOURCES), _copies(folder, "few", _WORKERS)
        halves = [_copies(folder, f"h{n}", _NUM_SOURCES // _WORKERS) for n in range(_WORKERS)]
        ray = RayEngine("local")
        figures: dict[str, list[float]] = {"ours": [], _TWICE: [], _PLAIN: []}
        try:
            _seconds(ray, few, folder / "warm", _WORKERS)
            for turn in range(rounds):
                alone_s = _seconds(InlineEngine(), sources, folder / f"inline{turn}", 1)
                ray_s = _seconds(ray, sources, folder / f"ray{turn}", _WORKERS)
                plain_s = _plain_seconds(halves, folder / f"plain{turn}")
                figures["ours"].append(_NUM_SOURCES / ray_s)
                figures[_TWICE].append(_WORKERS * _NUM_SOURCES / alone_s)
                figures[_PLAIN].append(_NUM_SOURCES / plain_s)
        finally:
            ray.close()
    return compare("runner", f"78 s sources at 480p per second on {_WORKERS} workers", figures)


def _plain_seconds(halves: list[Path], stores: Path) -> float:
    """Ingest each folder in a process of its own, all at once; return the time of the slowest."""
    with ProcessPoolExecutor(len(halves), mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_seconds_alone, half, stores / half.name) for half in halves]
        return max(run.result() for run in runs)


def _seconds_alone(videos: Path, store: Path) -> float:
    return _seconds(InlineEngine(), videos, store, 1)


def _copies(folder: Path, name: str, count: int) -> Path:
    film, into = folder / "film.mp4", folder / name
    if not film.exists():
        encode_stream(_FILM.frames(), film, _FILM.rate_fps, "libx264", 23)
    copies(film, into, count)
    return into


def _seconds(engine: Engine, videos: Path, store: Path, workers: int) -> float:
    document: dict[str, Any] = {
        "pipeline": "bench",
        "inputs": {"videos": str(videos)},
        "stages": {
            "clips": {
                "stage": "ingest",
                "from": {"sources": "videos"},
                "size_px": 128,
                "keep": "references",
                "sources_per_shard": 1,
                "resources": {"workers": workers},
            }
        },
    }
    spec = parse_pipeline(document, "bench")
    return Execution(spec, open_store(store.as_uri()), engine).run().stage("clips").seconds
