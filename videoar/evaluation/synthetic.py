"""Judge clips of the synthetic corpus by arithmetic, with no learned network in between.

The one idea: figures are vivid and backgrounds are grey, so the chroma of a pixel, divided by the
chroma of the figure, is the share of the pixel that the figure covers. From that matte follow the
colour (direction of the mean chroma), the motion (robust slope of the centroid) and the shape (the
template of the same area and centroid that overlaps best). About 2 ms per frame at 64 px.

Axes: N clips, T frames, H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoar.media.synthetic import COLOURS, MOTIONS, SHAPES, Scene, coverage, held_out

JUDGE_VERSION = 1
"""Part of the protocol lock: raise it when a verdict can change."""

ATTRIBUTES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": tuple(MOTIONS)}

_MIN_CHROMA = 0.2  # chosen: backgrounds stay below 0.07, figures lie above 0.5
_AREA = (0.012, 0.20)  # chosen: real figures cover 0.034 to 0.091 of the frame
_COMPACT = 0.8  # chosen: share of the matte that must lie within reach of its centre
_MIN_SPEED = 0.045  # sides per second; chosen: a third of the slowest real figure
_MIN_FOUND = 0.5  # share of frames with a figure for a clip to count as valid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What a clip shows. Attributes are None where the clip gives no answer."""

    found: tuple[bool, ...]
    """Per frame, whether there is a figure."""
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    speed: float = 0.0
    """Short sides per second along the main axis."""

    @property
    def is_valid(self) -> bool:
        """Whether a figure was found in enough frames."""
        return float(np.mean(self.found)) >= _MIN_FOUND


@dataclass(frozen=True)
class Proportion:
    """A share of clips with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    chance: float | None
    details: dict[str, Any]


def judge(frames_THWC: NDArray[np.uint8], rate_fps: float) -> Verdict:
    """Say which figure a clip shows and where it goes.

    Args:
        frames_THWC: RGB, uint8.
        rate_fps: frames per second.

    Returns:
        The verdict; `motion` is None for a figure that stands still.
    """
    figures = [_segment(frame) for frame in frames_THWC]
    found = tuple(figure is not None for figure in figures)
    seen = [(t / rate_fps, figure) for t, figure in enumerate(figures) if figure is not None]
    if len(seen) < max(2, _MIN_FOUND * len(found)):
        return Verdict(found)
    side = min(frames_THWC.shape[1:3])
    centres = np.array([figure.centre_yx for _, figure in seen]) / side
    motion, speed = _motion(np.array([time_s for time_s, _ in seen]), centres)
    colour = _nearest_colour(np.mean([figure.chroma for _, figure in seen], axis=0))
    overlaps = np.mean([figure.overlaps() for _, figure in seen], axis=0)
    return Verdict(found, colour, SHAPES[int(np.argmax(overlaps))], motion, speed)


@dataclass(frozen=True)
class _Figure:
    matte: Array
    chroma: Array
    """Mean chroma vector of the figure."""
    centre_yx: Array

    def overlaps(self) -> list[float]:
        """Return the overlap (IoU) with each shape of the same area and centroid."""
        y = np.arange(self.matte.shape[0])[:, None] - self.centre_yx[0]
        x = np.arange(self.matte.shape[1])[None, :] - self.centre_yx[1]
        scores = []
        for shape in SHAPES:
            radius = math.sqrt(self.matte.sum() / _unit_area(shape))
            template = coverage(shape, x, y, radius)
            both = np.minimum(template, self.matte).sum()
            scores.append(float(both / np.maximum(template, self.matte).sum()))
        return scores


def _segment(frame_HWC: NDArray[np.uint8]) -> _Figure | None:
    chroma_HW2 = _chroma(frame_HWC.astype(np.float64) / 255)
    chroma_HW2 -= np.median(chroma_HW2, axis=(0, 1))  # the background's tint
    strength_HW = np.hypot(chroma_HW2[..., 0], chroma_HW2[..., 1])
    peak = float(np.quantile(strength_HW, 1 - _AREA[0]))
    if peak < _MIN_CHROMA:
        return None
    core_HW = strength_HW > 0.6 * peak
    full = float(np.median(strength_HW[core_HW]))
    matte_HW = np.clip((strength_HW / full - 0.2) / 0.7, 0, 1)
    weight = matte_HW / matte_HW.sum()
    y, x = np.indices(matte_HW.shape)
    centre_yx = np.array([(weight * y).sum(), (weight * x).sum()])
    reach = 1.8 * math.sqrt(matte_HW.sum() / math.pi)
    near_HW = np.hypot(y - centre_yx[0], x - centre_yx[1]) <= reach
    if not _AREA[0] <= matte_HW.mean() <= _AREA[1] or weight[near_HW].sum() < _COMPACT:
        return None
    return _Figure(matte_HW, chroma_HW2[core_HW].mean(axis=0), centre_yx)


def _chroma(rgb: Array) -> Array:
    """Project RGB in [0, 1] along grey: hue becomes an angle, pure colours get length 1."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.stack([red - (green + blue) / 2, math.sqrt(0.75) * (green - blue)], axis=-1)


def _nearest_colour(chroma_2: Array) -> str:
    palette = _chroma(np.array(list(COLOURS.values()), dtype=np.float64))
    closeness = palette @ chroma_2 / np.hypot(palette[:, 0], palette[:, 1])
    return tuple(COLOURS)[int(np.argmax(closeness))]


def _motion(times_s: Array, centres_yx: Array) -> tuple[str | None, float]:
    """Return the direction and the speed of the main axis by the median of all pairwise slopes.

    Source: the Theil-Sen estimator; it ignores up to 29 % of wild points.
    """
    pairs = np.array(list(combinations(range(len(times_s)), 2)))
    first, second = pairs[:, 0], pairs[:, 1]
    slopes = (centres_yx[second] - centres_yx[first]) / (times_s[second] - times_s[first])[:, None]
    speed_yx = np.median(slopes, axis=0)
    axis = int(np.argmax(np.abs(speed_yx)))
    speed = float(abs(speed_yx[axis]))
    if speed < _MIN_SPEED:
        return None, speed
    heading = (0, np.sign(speed_yx[0])) if axis == 0 else (np.sign(speed_yx[1]), 0)
    return next(name for name, step in MOTIONS.items() if step == heading), speed


@lru_cache
def _unit_area(shape: str) -> float:
    grid = np.arange(-200, 201, dtype=np.float64)
    return float(coverage(shape, grid[None, :], grid[:, None], 100).sum()) / 100**2


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion.

    Source: E. B. Wilson, JASA 22 (1927), score interval with z = 1.96.
    """
    z, share = 1.959964, successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def rendered_scores(verdicts: Sequence[Verdict], wanted: Sequence[Scene]) -> dict[str, Proportion]:
    """Compare verdicts with what the prompts asked for.

    Args:
        verdicts: one per clip, N >= 1, all of clips with the same number of frames.
        wanted: the scene of each clip's prompt.

    Returns:
        `colour_acc`, `shape_acc`, `motion_acc`, `all_acc` and `valid_frac`. A clip without a
        figure, or for motion one that stands still, counts as wrong. Details hold the confusion
        tables {wanted: {seen: count}}, accuracy on combinations that the corpus never showed, and
        the share of clips with a figure in each frame.
    """
    pairs = list(zip(verdicts, wanted, strict=True))
    hits = {
        name: [getattr(verdict, name) == getattr(scene, name) for verdict, scene in pairs]
        for name in ATTRIBUTES
    }
    hits["all"] = [all(triple) for triple in zip(*hits.values(), strict=True)]
    chances = {name: 1 / len(words) for name, words in ATTRIBUTES.items()}
    chances["all"] = math.prod(chances.values())
    details = {name: {"confusion": _confusion(pairs, name)} for name in ATTRIBUTES}
    details["all"] = _composition(hits["all"], wanted)
    scores = {f"{name}_acc": _proportion(hits[name], chances[name], details[name]) for name in hits}
    found_per_frame = np.mean([verdict.found for verdict in verdicts], axis=0).tolist()
    scores["valid_frac"] = _proportion(
        [verdict.is_valid for verdict in verdicts], None, {"found_per_frame": found_per_frame}
    )
    return scores


def _proportion(hits: Sequence[bool], chance: float | None, details: dict[str, Any]) -> Proportion:
    low, high = wilson(sum(hits), len(hits))
    return Proportion(sum(hits) / len(hits), low, high, chance, details)


def _confusion(pairs: Sequence[tuple[Verdict, Scene]], attribute: str) -> dict[str, dict[str, int]]:
    words = ATTRIBUTES[attribute]
    table = {word: dict.fromkeys((*words, "none"), 0) for word in words}
    for verdict, scene in pairs:
        table[getattr(scene, attribute)][getattr(verdict, attribute) or "none"] += 1
    return table


def _composition(hits: Sequence[bool], wanted: Sequence[Scene]) -> dict[str, Any]:
    hidden = {scene.prompt for scene in held_out()}
    new = [hit for hit, scene in zip(hits, wanted, strict=True) if scene.prompt in hidden]
    return {"held_out": {"num_samples": len(new), "num_right": sum(new)}}
