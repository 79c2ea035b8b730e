"""`bench cuts`: our shot changes against PySceneDetect's, on films whose edit is known.

A transition counts as found when a detection lies within two frames of it; each detection counts
once, every other one is false. PySceneDetect (an optional package: `videoar[bench]`) runs as its
documentation shows it, with its default thresholds, on the same files in the same turn.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from videoar.bench.films import KINDS, Disturbance, Film, Transition
from videoar.bench.result import BenchResult, compare, cpu_seconds, shuffled
from videoar.core.errors import ConfigError
from videoar.media.scan import ScanPlan, detect_transitions
from videoar.media.transcode import encode_stream

_CODECS = (
    ("libx264", "mp4", 23),
    ("libx264", "mp4", 33),
    ("libx265", "mp4", 28),
    ("libvpx-vp9", "webm", 38),
    ("mpeg4", "avi", 6),
)
_RATES_FPS = (24.0, 25.0, 30.0)
_FIRST_SEED = 100  # thresholds were chosen on films 0 to 29
_SLACK = 2
Found = list[tuple[int, int]]


@dataclass
class _Tally:
    """One detector's record."""

    found: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0


def run(num_films: int) -> BenchResult:
    """Measure on freshly drawn films.

    Raises:
        ConfigError: PySceneDetect is not installed.
    """
    detectors = {"ours": _ours, **_peers()}
    tallies = {name: _Tally() for name in detectors}
    wanted: Counter[str] = Counter()
    frames = 0
    for number in range(num_films):
        rate_fps, (codec, suffix, quality) = _RATES_FPS[number % 3], _CODECS[number % 5]
        film = Film(_FIRST_SEED + number, num_shots=14, rate_fps=rate_fps)
        _, transitions, disturbances = film.plan()
        wanted.update(transition.kind for transition in transitions)
        with tempfile.TemporaryDirectory(prefix="videoar-bench-") as folder:
            path = Path(folder) / f"film.{suffix}"
            encode_stream(film.frames(), path, rate_fps, codec, quality)
            for name in shuffled(list(detectors), number):
                found: Found = []
                seconds = cpu_seconds(partial(_detect, detectors[name], path, found))
                tallies[name].cpu_s += seconds
                _count(tallies[name], transitions, found, disturbances)
        frames += sum(1 for _ in film.frames())
    cases = {name: _row(tally, wanted) for name, tally in tallies.items()}
    figures = {name: [frames / tally.cpu_s] for name, tally in tallies.items()}
    notes = (f"{num_films} films, {frames} frames, {wanted.total()} transitions: {dict(wanted)}",)
    return compare("cuts", "frames per CPU-second", figures, cases=cases, notes=notes)


def _detect(detector: Callable[[Path], Found], path: Path, into: Found) -> None:
    into += detector(path)


def _ours(path: Path) -> Found:
    return [(change.first, change.last) for change in detect_transitions(path, ScanPlan())]


def _peers() -> dict[str, Callable[[Path], Found]]:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, open_video
    except ImportError as error:
        raise ConfigError(
            "bench cuts", f"{error.name} is missing", "install videoar[bench]"
        ) from None

    def detect(path: Path, detector: type) -> Found:
        manager = SceneManager()
        manager.add_detector(detector())
        manager.detect_scenes(open_video(str(path)))
        cuts = [start.frame_num for start, _ in manager.get_scene_list()][1:]
        return [(cut, cut) for cut in cuts]

    return {
        "pyscenedetect content": lambda path: detect(path, ContentDetector),
        "pyscenedetect adaptive": lambda path: detect(path, AdaptiveDetector),
    }


def _count(
    tally: _Tally, wanted: Sequence[Transition], found: Found, disturbances: Sequence[Disturbance]
) -> None:
    used: set[int] = set()
    for transition in wanted:
        for index, (first, last) in enumerate(found):
            is_near = first <= transition.last + _SLACK and last >= transition.first - _SLACK
            if is_near and index not in used:
                used.add(index)
                tally.found[transition.kind] += 1
                break
    for index in set(range(len(found))) - used:
        tally.false[next(_causes(found[index], disturbances), "other")] += 1


def _causes(place: tuple[int, int], disturbances: Sequence[Disturbance]) -> Iterator[str]:
    for disturbance in disturbances:
        if place[0] <= disturbance.last + 3 and place[1] >= disturbance.first - 3:
            yield disturbance.kind


def _row(tally: _Tally, wanted: Counter[str]) -> dict[str, float]:
    hits, false = tally.found.total(), tally.false.total()
    precision, recall = hits / max(1, hits + false), hits / wanted.total()
    row = {
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "precision": precision,
        "recall": recall,
        **{f"recall_{kind}": tally.found[kind] / max(1, wanted[kind]) for kind in KINDS},
        **{f"false_{cause}": count for cause, count in sorted(tally.false.items())},
    }
    return {name: round(value, 3) for name, value in row.items()}
