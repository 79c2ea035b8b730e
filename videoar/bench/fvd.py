"""`bench fvd`: the Frechet distance compared with scipy's `sqrtm`, and the stage with its network.

    sqrtm        the distance as published scripts compute it: the trace of the square root of the
                 product of both covariances (an optional package: `videoar[bench]`)
    bare I3D     the network of `features`, here with random weights, on clips in memory

The headline is the distance of 400 features, of given means and covariances. The stage is one of
the cases, by the clock and by CPU time, which depends less on what else runs on the machine: it
reads, decodes and commits beside the network, and loads the network in every turn.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from videoar.bench.result import BenchResult, compare, cpu_seconds, import_peer, in_turns
from videoar.bench.stores import decoded, ingested, run_stages
from videoar.core.scratch import Scratch
from videoar.evaluation.extractor import Clip, Extractor
from videoar.evaluation.frechet import FeatureStats, frechet_distance
from videoar.evaluation.registry import open_extractor
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store, open_store

_FEATURES = 400  # logits of I3D
_VECTORS = 512  # chosen: more than features, so that no covariance is singular
_DISTANCES = 5  # chosen: of a turn, about a second
_CLIPS = 48  # chosen: half a minute of the network
_SIZE_PX = 48
_NETWORK, _SQRTM, _BARE = "random_i3d", "scipy sqrtm", "bare I3D"


def run(rounds: int, num_clips: int = _CLIPS) -> BenchResult:
    """Measure both in turns.

    Raises:
        ConfigError: scipy is not installed.
    """
    rates, case = _distances(rounds)
    with Scratch() as folder:
        stage = _stage(open_store(Path(folder).as_uri()), num_clips, rounds)
    unit = f"Frechet distances of {_FEATURES} features per second"
    return compare("fvd", unit, rates, cases={"distance": case, "stage features": stage})


def _distances(rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return distances per second by contestant; the ratio of times, and how far values differ."""
    sqrtm = import_peer("bench fvd", "scipy.linalg").sqrtm
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(_FEATURES, _FEATURES))
    a, b = (FeatureStats().update(draw.normal(i, 1, (_VECTORS, _FEATURES)) @ mix) for i in (0, 1))

    def published() -> float:
        (mean_a, cov_a), (mean_b, cov_b) = a.moments(), b.moments()
        root = np.trace(sqrtm(cov_a @ cov_b)).real
        return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root)

    contestants: dict[str, Callable[[], float]] = {
        "ours": partial(frechet_distance, a, b), _SQRTM: published,
    }  # fmt: skip
    works = {name: partial(_rate, partial(_repeat, work)) for name, work in contestants.items()}
    rates = {name: [_DISTANCES * r for r in own] for name, own in in_turns(works, rounds).items()}
    ours, theirs = (work() for work in contestants.values())
    return rates, {
        "time_to_sqrtm": round(median(rates[_SQRTM]) / median(rates["ours"]), 3),
        "relative_difference": float(f"{abs(ours / theirs - 1):.2g}"),
    }


def _repeat(work: Callable[[], object]) -> None:
    for _ in range(_DISTANCES):
        work()


def _rate(work: Callable[[], object], _turn: int) -> float:
    start = time.perf_counter()
    work()
    return 1 / (time.perf_counter() - start)


def _stage(store: Store, num_clips: int, rounds: int) -> dict[str, float]:
    """Return clips per second of the stage and of its network, and their ratios."""
    uri = f"rendered://shapes?num_videos={num_clips}&seed=0"
    clips = ingested(store, uri, size_px=_SIZE_PX, max_clips_per_source=1)
    _features(store, clips, "warm", "pixels")  # not timed: it imports
    torch.set_num_threads(1)  # as the stage does
    extractor = open_extractor(_NETWORK)
    in_memory = decoded(store, clips)
    works = {
        # another stage name per turn: nothing is reused
        "ours": lambda turn: _features(store, clips, f"turn{turn}", _NETWORK),
        _BARE: lambda _turn: _vectors(extractor, in_memory),
    }
    timed = {name: partial(_times, work) for name, work in works.items()}
    runs = in_turns(timed, rounds)
    wall_s, cpu_s = ({name: [t[i] for t in own] for name, own in runs.items()} for i in (0, 1))
    ratios = [
        round(median(bare / ours for ours, bare in zip(s["ours"], s[_BARE], strict=True)), 3)
        for s in (wall_s, cpu_s)
    ]
    return {
        "to_bare": ratios[0],
        "cpu_to_bare": ratios[1],
        "clips_per_s": round(len(in_memory) / median(wall_s["ours"]), 2),
        "bare_clips_per_s": round(len(in_memory) / median(wall_s[_BARE]), 2),
    }


def _times(work: Callable[[int], None], turn: int) -> tuple[float, float]:
    """Return the wall time and the CPU time of a turn."""
    start = time.perf_counter()
    cpu_s = cpu_seconds(partial(work, turn))
    return time.perf_counter() - start, cpu_s


def _features(store: Store, clips: Snapshot, name: str, network: str) -> None:
    run_stages(store, {"clips": clips}, {name: {"stage": "features", "networks": [network]}})


def _vectors(extractor: Extractor, clips: list[Clip]) -> None:
    for clip in clips:
        extractor.vectors(clip)
