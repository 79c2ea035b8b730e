"""`bench runner`: the cost of Ray. Ingest on two Ray workers, and on two processes without Ray.

Also compared with twice one process, which two busy cores do not quite reach. Wall time of the
stage only: Ray is started once per session, by an untimed run on other sources. The headline is the
rate after the first quarter of the sources, because the start of a stage (workers, listing) takes
the same time for a minute's work as for a day's; it is listed among the cases, as are whole runs.

The cost of shards that do nothing is listed as well, see `shards`.

References are kept, so nothing is encoded. Each source is a copy of one film with a few bytes of
its own after the end, because ingest rejects equal files.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

from videoar.bench.films import Film, copies
from videoar.bench.result import BenchResult, compare, in_turns
from videoar.bench.shards import shard_costs
from videoar.bench.stores import TimedEngine, run_stages
from videoar.core.scratch import Scratch
from videoar.engine.base import Engine
from videoar.engine.inline import InlineEngine
from videoar.media.transcode import encode
from videoar.storage.store import open_store

_WORKERS = 2
_SOURCES, _FIRST = 96, 24  # each is a shard; chosen: 72 of them take about two minutes
_SHARDS = (500, 5_000)
_TWICE = f"{_WORKERS} x one process"
_PLAIN = f"{_WORKERS} processes without Ray"
_FILM = Film(78, num_shots=22, height_px=480, width_px=854, rate_fps=24.0)


def run(rounds: int) -> BenchResult:
    """Measure in turns."""
    from videoar.engine.ray_engine import RayEngine

    with Scratch() as name:
        ray = RayEngine("local")
        try:
            runs = in_turns(_contestants(Path(name), ray), rounds)
            costs = shard_costs(Path(name, "shards"), ray, _SHARDS, _WORKERS)
        finally:
            ray.close()
    figures = {name: [run.rate for run in own] for name, own in runs.items()}
    unit = f"78 s sources at 480p per second on {_WORKERS} workers, beyond the first {_FIRST}"
    return compare("runner", unit, figures, cases=_whole_runs(runs) | costs)


class _Throughput(NamedTuple):
    """Throughput of a run."""

    rate: float
    """Sources per second after the first ones."""
    whole_s: float
    """Wall time of the stage."""

    @property
    def start_s(self) -> float:
        """Seconds of the stage beyond those of its sources at that rate."""
        return self.whole_s - _SOURCES / self.rate


def _whole_runs(runs: Mapping[str, Sequence[_Throughput]]) -> dict[str, dict[str, float]]:
    """Return ratios and times of whole runs, and the seconds of starting a stage."""
    rates = {name: [_SOURCES / run.whole_s for run in own] for name, own in runs.items()}
    whole = compare("", "", rates)
    start_s = {name: median(run.start_s for run in runs[name]) for name in ("ours", _PLAIN)}
    return {
        f"whole run, {_SOURCES} sources": {
            **{f"x {name}": ratio for name, ratio in whole.ratios.items()},
            "seconds": round(_SOURCES / whole.ours.median, 2),
        },
        "start of the stage, seconds": {name: round(s, 2) for name, s in start_s.items()},
    }


def _contestants(folder: Path, ray: Engine) -> dict[str, Callable[[int], _Throughput]]:
    """Return functions that ingest all sources, given the number of the turn."""
    sources = _copies(folder, "all", _SOURCES)
    parts = [_copies(folder, f"part{n}", _SOURCES // _WORKERS) for n in range(_WORKERS)]
    # Untimed: starts Ray's workers and imports.
    _ingest(ray, _copies(folder, "few", _WORKERS), folder / "warm", _WORKERS)

    def store(name: str, turn: int) -> Path:
        return folder / f"stores{turn}" / name

    return {
        "ours": lambda turn: _throughput([_ingest(ray, sources, store("ray", turn), _WORKERS)]),
        _TWICE: lambda turn: _linear_scaling(
            _throughput([_ingest_inline(sources, store("inline", turn))])
        ),
        _PLAIN: lambda turn: _throughput(_ingest_in_processes(parts, store("parts", turn))),
    }


class _Run(NamedTuple):
    """One run of the stage."""

    done_s: list[float]
    """Wall-clock time of the end of each shard."""
    whole_s: float


def _throughput(runs: Sequence[_Run]) -> _Throughput:
    """Return the throughput of concurrent runs."""
    done_s = sorted(when for run in runs for when in run.done_s)
    # from the end of the last of the first ones: starting workers does not count
    rate = (len(done_s) - _FIRST) / (done_s[-1] - done_s[_FIRST - 1])
    # the slowest: the corpus is done when all parts are
    return _Throughput(rate, max(run.whole_s for run in runs))


def _linear_scaling(throughput: _Throughput) -> _Throughput:
    """Return the throughput of one process times the number of workers."""
    return _Throughput(throughput.rate * _WORKERS, throughput.whole_s / _WORKERS)


def _ingest_in_processes(parts: Sequence[Path], stores: Path) -> list[_Run]:
    """Ingest each folder in a process of its own, all at once."""
    # spawn: a fork would inherit threads and locks of Ray from this process.
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_ingest_inline, part, stores / part.name) for part in parts]
        return [run.result() for run in runs]


def _ingest_inline(videos: Path, store: Path) -> _Run:
    return _ingest(InlineEngine(), videos, store, 1)


def _copies(folder: Path, name: str, count: int) -> Path:
    film, into = folder / "film.mp4", folder / name
    if not film.exists():
        encode(_FILM.frames(), film, _FILM.rate_fps, crf=23)
    copies(film, into, count)
    return into


def _ingest(engine: Engine, videos: Path, store: Path, workers: int) -> _Run:
    # one per shard: the end of a shard is seen, that of a source is not
    ingest = {
        "stage": "ingest", "size_px": 128, "keep": "references", "sources_per_shard": 1,
        "resources": {"workers": workers},
    }  # fmt: skip
    timed = TimedEngine(engine)
    run = run_stages(open_store(store.as_uri()), {"sources": str(videos)}, {"clips": ingest}, timed)
    return _Run(timed.done_s, run.stage("clips").seconds)
