"""`bench runner`: what Ray costs. Ingest on two Ray workers, and on two processes without Ray.

Compared with twice one process as well, which two busy cores do not quite give. Wall time of the
stage alone, by its own record: starting Ray is paid once a session, by a run on other sources that
nobody times. Each contestant does a short and a long run. The headline is what the sources that the
long one has more took, for all of them; a stage's start (workers, listing, commit) costs the same
whether it does a minute's work or a day's, and is among the cases, as are the whole runs.

References are kept, so nothing is encoded. Each source is a copy of one drawn film with a few bytes
of its own behind the end, as equal files would be refused.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
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
_SHORT, _LONG = 48, 144  # sources
_TWICE = f"{_WORKERS} x one process"
_PLAIN = f"{_WORKERS} processes without Ray"
_FILM = Film(78, num_shots=22, height_px=480, width_px=854, rate_fps=24.0)


def run(rounds: int) -> BenchResult:
    """Measure in turns."""
    from videoar.engine.ray_engine import RayEngine

    with tempfile.TemporaryDirectory(prefix="videoar-bench-") as name:
        ray = RayEngine("local")
        try:
            contest = _Contest(Path(name), ray)
            found = [contest.turn(turn) for turn in range(rounds)]
        finally:
            ray.close()
    figures = {
        name: [(_LONG - _SHORT) / (turn[name, _LONG] - turn[name, _SHORT]) for turn in found]
        for name in ("ours", _TWICE, _PLAIN)
    }
    unit = f"78 s sources at 480p per second on {_WORKERS} workers, beyond the first {_SHORT}"
    return compare("runner", unit, figures, cases=_whole_runs(found))


Seconds = dict[tuple[str, int], float]
"""By contestant and number of sources."""


def _whole_runs(found: list[Seconds]) -> dict[str, dict[str, float]]:
    """Return ratios and times with everything in them, and what a stage costs before its work."""
    cases = {}
    for count in (_SHORT, _LONG):
        seconds = {name: [turn[name, count] for turn in found] for name, _ in found[0]}
        case = compare("", "", {name: [1 / s for s in runs] for name, runs in seconds.items()})
        cases[f"whole run, {count} sources"] = {
            **{f"x {name}": ratio for name, ratio in case.ratios.items()},
            "seconds": round(1 / case.ours.median, 2),
        }
    share = _SHORT / (_LONG - _SHORT)
    cases["start of the stage, seconds"] = {
        name: round(
            median(t[name, _SHORT] * (1 + share) - t[name, _LONG] * share for t in found), 2
        )
        for name in ("ours", _PLAIN)
    }
    return cases


class _Contest:
    """The sources, and who ingests them."""

    def __init__(self, folder: Path, ray: Engine) -> None:
        self._folder, self._ray = folder, ray
        self._all = {count: _copies(folder, f"all{count}", count) for count in (_SHORT, _LONG)}
        self._halves = {
            count: [_copies(folder, f"{count}h{n}", count // _WORKERS) for n in range(_WORKERS)]
            for count in (_SHORT, _LONG)
        }
        few = _copies(folder, "few", _WORKERS)
        _seconds(ray, few, folder / "warm", _WORKERS)

    def turn(self, turn: int) -> Seconds:
        """Let everybody ingest both sets once; return wall times, of one process halved."""
        taken: Seconds = {}
        for count in (_SHORT, _LONG):
            stores = self._folder / f"stores{turn}" / str(count)
            videos = self._all[count]
            taken["ours", count] = _seconds(self._ray, videos, stores / "ray", _WORKERS)
            taken[_PLAIN, count] = _plain_seconds(self._halves[count], stores)
            alone_s = _seconds(InlineEngine(), videos, stores / "inline", 1)
            taken[_TWICE, count] = alone_s / _WORKERS
        return taken


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
