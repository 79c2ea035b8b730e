"""`bench damage`: which damage of real clips each feature network sees, and how evenly.

Real clips are split into two halves. The distance between them is the floor of the network. Then
the clips of one half are damaged at five strengths, and their distance to the other half is
compared with the floor: a network sees a damage if the lower end of the interval at the greatest
strength lies above the upper end of the floor's, and its distance is monotonic if every strength
is farther away than the one before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoar.bench.result import BenchResult, compare
from videoar.bench.stores import decoded, ingested
from videoar.core.errors import ConfigError
from videoar.core.ids import seed_from
from videoar.core.scratch import Scratch
from videoar.evaluation.extractor import Clip, Extractor, Frames
from videoar.evaluation.frechet import frechet_interval, frechet_of_vectors
from videoar.evaluation.registry import open_extractor
from videoar.storage.store import open_store

Features = NDArray[np.float64]
NETWORKS = ("lite0", "random_i3d", "pixels")
_SIZE_PX, _FRAMES, _RATE_FPS = 64, 16, 8.0
STRENGTHS = 5


def blur(frames_THWC: Frames, strength: int) -> Frames:
    """Return frames convolved with a Gaussian of 0.5, 1, 2, 3 or 5 px."""
    sigma = (0.5, 1.0, 2.0, 3.0, 5.0)[strength]
    x = np.arange(-round(3 * sigma) - 1, round(3 * sigma) + 2)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    kernel /= kernel.sum()
    result = frames_THWC.astype(np.float32)
    for axis in (1, 2):
        widths = [(len(x) // 2,) * 2 if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(result, widths, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(x), axis)
        result = windows @ kernel.astype(np.float32)
    return _as_uint8(result)


def noise(frames_THWC: Frames, strength: int) -> Frames:
    """Return frames with white noise of a standard deviation of 5, 10, 20, 40 or 80 levels."""
    generator = np.random.default_rng(seed_from("noise", strength, int(frames_THWC.sum())))
    sigma = 5 * 2**strength
    return _as_uint8(frames_THWC + generator.normal(0, sigma, frames_THWC.shape))


def drop(frames_THWC: Frames, strength: int) -> Frames:
    """Return a clip in which only every 2nd, 3rd, 4th, 8th or 16th frame differs from the last."""
    step = (2, 3, 4, 8, 16)[strength]
    return frames_THWC[np.arange(len(frames_THWC)) // step * step]


def shuffle(frames_THWC: Frames, strength: int) -> Frames:
    """Return the frames in a random order within groups of 2, 3, 4, 8 or 16."""
    size = (2, 3, 4, 8, 16)[strength]
    generator = np.random.default_rng(seed_from("shuffle", strength, int(frames_THWC.sum())))
    starts = range(0, len(frames_THWC), size)
    return np.concatenate([generator.permutation(frames_THWC[i : i + size]) for i in starts])


def colour(frames_THWC: Frames, strength: int) -> Frames:
    """Return frames with 8, 16, 32, 48 or 64 levels more of red and less of blue."""
    levels = (8, 16, 32, 48, 64)[strength]
    return _as_uint8(frames_THWC.astype(np.float32) + np.array([levels, 0, -levels]))


DAMAGES: Mapping[str, Callable[[Frames, int], Frames]] = {
    "blur": blur, "noise": noise, "dropped frames": drop, "shuffled frames": shuffle,
    "colour shift": colour,
}  # fmt: skip


def _as_uint8(values: ArrayLike) -> Frames:
    levels: Frames = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return levels


def run(videos: Path | None, rounds: int) -> BenchResult:
    """Measure on 32 clips per half for each round: drawn ones, or of a folder of videos.

    Raises:
        ConfigError: the folder has fewer videos.
    """
    count = 64 * rounds
    # more than are needed: the corpus has some videos on purpose that ingest rejects
    drawn = f"rendered://shapes?num_videos={count * 5 // 4}&seed=0"
    clips = _clips(str(videos or drawn), count)
    reference, real = clips[::2], clips[1::2]
    cases: dict[str, dict[str, float]] = {}
    for network in NETWORKS:
        cases |= measure(open_extractor(network), reference, real)
    figures = {"ours": [_num_seen(cases, "lite0")]} | {
        name: [_num_seen(cases, name)] for name in NETWORKS[1:]
    }
    where = "drawn" if videos is None else "of a folder"
    notes = (
        f"{len(real)} against {len(reference)} clips {where}, {_FRAMES} frames at {_SIZE_PX} px",
    )
    return compare("damage", "damages seen of 5", figures, cases=cases, notes=notes)


def measure(
    extractor: Extractor, reference: Sequence[Clip], real: Sequence[Clip]
) -> dict[str, dict[str, float]]:
    """Return the distances over the floor of every damage, by network, preset and damage."""
    base = _features(extractor, reference)
    floors = _features(extractor, real)
    result: dict[str, dict[str, float]] = {}
    for name, damage in DAMAGES.items():
        steps = [
            _features(extractor, [replace(c, frames=damage(c.frames, k)) for c in real])
            for k in range(STRENGTHS)
        ]
        for preset, x_ND in base.items():
            case = f"{extractor.name}/{preset} {name}"
            result[case] = _curve(x_ND, floors[preset], [step[preset] for step in steps])
    return result


def _curve(
    reference_ND: Features, real_ND: Features, steps: Sequence[Features]
) -> dict[str, float]:
    floor = frechet_of_vectors(real_ND, reference_ND)
    distances = [frechet_of_vectors(step, reference_ND) for step in steps]
    _, floor_high = frechet_interval(real_ND, reference_ND, seed=0)
    low, _ = frechet_interval(steps[-1], reference_ND, seed=0)
    return {
        **{str(k): round(distance / floor, 3) for k, distance in enumerate(distances, start=1)},
        "floor": round(floor, 4),
        "seen": float(low > floor_high),
        "monotonic": float(all(a <= b for a, b in pairwise(distances))),
    }


def _features(extractor: Extractor, clips: Sequence[Clip]) -> dict[str, Features]:
    vectors = [extractor.vectors(clip) for clip in clips]
    return {name: np.stack([v[name] for v in vectors]).astype(np.float64) for name in vectors[0]}


def _num_seen(cases: Mapping[str, Mapping[str, float]], network: str) -> float:
    """Return how many damages at least one preset of a network sees."""
    seen = {
        case.partition(" ")[2]
        for case, values in cases.items()
        if case.startswith(f"{network}/") and values["seen"]
    }
    return float(len(seen))


def _clips(sources: str, count: int) -> list[Clip]:
    """Return the first clip of each video, in the order of their ids, which are hashes.

    Raises:
        ConfigError: there are fewer.
    """
    options = {
        "size_px": _SIZE_PX, "rate_fps": _RATE_FPS, "find_shots": False, "max_clips_per_source": 1,
    }  # fmt: skip
    with Scratch() as folder:
        store = open_store(Path(folder).as_uri())
        found = decoded(store, ingested(store, sources, **options))
    if len(found) < count:
        raise ConfigError(sources, f"has {len(found)} clips, {count} are needed")
    clips = sorted(found, key=lambda clip: clip.id)[:count]
    return [replace(clip, frames=clip.frames[:_FRAMES]) for clip in clips]
