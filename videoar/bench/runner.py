"""`bench runner`: what Ray costs. Ingest on two Ray workers, and on two processes without Ray.

Compared with twice one process as well, which two busy cores do not quite give. Wall time of the
stage alone: starting Ray is paid once a session, by a run on other sources that nobody times. The
headline is the rate after the first quarter of the sources; a stage's start (workers, listing)
costs the same whether it does a minute's work or a day's, and is among the cases, as are the whole
runs.

References are kept, so nothing is encoded. Each source is a copy of one drawn film with a few bytes
of its own behind the end, as equal files would be refused.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from videoar.bench.films import Film, copies
from videoar.bench.result import BenchResult, compare, shuffled
from videoar.engine.base import Engine, ShardDone
from videoar.engine.inline import InlineEngine
from videoar.media.transcode import encode_stream
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.task import StageTask, WorkRecord
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

_WORKERS = 2
_SOURCES, _FIRST = 96, 24  # each is a shard
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
    figures = {name: [turn[name].rate for turn in found] for name in found[0]}
    unit = f"78 s sources at 480p per second on {_WORKERS} workers, beyond the first {_FIRST}"
    return compare("runner", unit, figures, cases=_whole_runs(found))


class _Pace(NamedTuple):
    """How a run went."""

    rate: float
    """Sources per second after the first ones."""
    whole_s: float
    """Wall time of the stage."""

    @property
    def start_s(self) -> float:
        """What the stage took beyond its sources at that rate."""
        return self.whole_s - _SOURCES / self.rate


def _whole_runs(found: Sequence[dict[str, _Pace]]) -> dict[str, dict[str, float]]:
    """Return ratios and times with everything in them, and what a stage costs beside its work."""
    rates = {name: [_SOURCES / turn[name].whole_s for turn in found] for name in found[0]}
    whole = compare("", "", rates)
    start_s = {name: median(turn[name].start_s for turn in found) for name in ("ours", _PLAIN)}
    return {
        f"whole run, {_SOURCES} sources": {
            **{f"x {name}": ratio for name, ratio in whole.ratios.items()},
            "seconds": round(_SOURCES / whole.ours.median, 2),
        },
        "start of the stage, seconds": {name: round(s, 2) for name, s in start_s.items()},
    }


class _Contest:
    """The sources, and who ingests them."""

    def __init__(self, folder: Path, ray: Engine) -> None:
        self._folder, self._ray = folder, ray
        self._all = _copies(folder, "all", _SOURCES)
        share = _SOURCES // _WORKERS
        self._parts = [_copies(folder, f"part{n}", share) for n in range(_WORKERS)]
        _ingest(ray, _copies(folder, "few", _WORKERS), folder / "warm", _WORKERS)

    def turn(self, turn: int) -> dict[str, _Pace]:
        """Let everybody ingest all sources once."""
        stores = self._folder / f"stores{turn}"
        contestants = {
            "ours": lambda: _pace([_ingest(self._ray, self._all, stores / "ray", _WORKERS)]),
            _TWICE: lambda: _doubled(_pace([_ingest_alone(self._all, stores / "inline")])),
            _PLAIN: lambda: _pace(_ingest_apart(self._parts, stores)),
        }
        return {name: contestants[name]() for name in shuffled(list(contestants), turn)}


class _Run(NamedTuple):
    """One run of the stage."""

    done_s: list[float]
    """When each shard was done, by the clock on the wall."""
    whole_s: float


class _Watched:
    """An engine whose finished shards are timed."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name, self.done_s = engine, engine.name, list[float]()

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Pass on, and note the time of each shard."""

        def note(shard: Shard, record: WorkRecord) -> None:
            self.done_s.append(time.time())
            done(shard, record)

        self._engine.map(task, shards, note)

    def loop(self, task: StageTask) -> WorkRecord:
        """Pass on."""
        return self._engine.loop(task)

    def reduce(self, task: StageTask) -> WorkRecord:
        """Pass on."""
        return self._engine.reduce(task)

    def close(self) -> None:
        """Leave the engine open: it serves several runs."""


def _pace(runs: Sequence[_Run]) -> _Pace:
    """Return the pace of runs that went on side by side."""
    done_s = sorted(when for run in runs for when in run.done_s)
    rate = (len(done_s) - _FIRST) / (done_s[-1] - done_s[_FIRST - 1])
    return _Pace(rate, max(run.whole_s for run in runs))


def _doubled(pace: _Pace) -> _Pace:
    return _Pace(pace.rate * _WORKERS, pace.whole_s / _WORKERS)


def _ingest_apart(parts: Sequence[Path], stores: Path) -> list[_Run]:
    """Ingest each folder in a process of its own, all at once."""
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_ingest_alone, part, stores / part.name) for part in parts]
        return [run.result() for run in runs]


def _ingest_alone(videos: Path, store: Path) -> _Run:
    return _ingest(InlineEngine(), videos, store, 1)


def _copies(folder: Path, name: str, count: int) -> Path:
    film, into = folder / "film.mp4", folder / name
    if not film.exists():
        encode_stream(_FILM.frames(), film, _FILM.rate_fps, "libx264", 23)
    copies(film, into, count)
    return into


def _ingest(engine: Engine, videos: Path, store: Path, workers: int) -> _Run:
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
    watched = _Watched(engine)
    run = Execution(spec, open_store(store.as_uri()), watched).run()
    return _Run(watched.done_s, run.stage("clips").seconds)
