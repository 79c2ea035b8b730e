"""Classify clips of the synthetic corpus by arithmetic, without a learned network.

Figures are saturated and backgrounds are grey, so the chroma of a pixel, divided by the chroma of
the figure, is the fraction of the pixel that the figure covers (an alpha matte). The matte yields
the colour (direction of the mean chroma), the motion (robust slope of the centroid over time) and
the shape (the template of equal area and centroid with the largest IoU). About 2 ms per frame at
64 px.

Axes: N clips, T frames, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoar.core.errors import ContractError
from videoar.evaluation.extractor import Clip, Vector
from videoar.media.synthetic import COLOURS, MOTIONS, SHAPES, Scene, coverage, held_out

CLASSIFIER_VERSION = 2
"""Part of the protocol lock (stored as `judge`): raise it when a prediction can change."""

ATTRIBUTES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": tuple(MOTIONS)}

_MIN_CHROMA = 0.2  # chosen: backgrounds stay below 0.07, figures lie above 0.5
_AREA = (0.03, 0.30)  # chosen: real figures cover 0.081 to 0.181 of the frame
_COMPACT = 0.8  # chosen: fraction of the matte that must lie near its centroid
_MIN_SPEED = 0.035  # short sides per second; chosen: a third of the slowest real figure
_MIN_DETECTED = 0.5  # chosen: fraction of frames with a figure for a clip to be valid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Predicted attributes of a clip; None where no class can be assigned."""

    detected: tuple[bool, ...]
    """Per frame, whether a figure was detected."""
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    speed: float = 0.0
    """Short sides of the frame per second, along the axis of motion; a float32."""

    @property
    def is_valid(self) -> bool:
        """Whether a figure was detected in at least half of the frames."""
        return float(np.mean(self.detected)) >= _MIN_DETECTED


def encode(prediction: Prediction) -> NDArray[np.float32]:
    """Return a prediction as numbers: colour, shape, motion (index or -1), speed, detected [T]."""
    classes = [
        values.index(value) if (value := getattr(prediction, name)) else -1
        for name, values in ATTRIBUTES.items()
    ]
    return np.array([*classes, prediction.speed, *prediction.detected], dtype=np.float32)


def decode(vector: ArrayLike) -> Prediction:
    """Return the prediction that `encode` encoded.

    Raises:
        ContractError: no prediction is encoded by these numbers.
    """
    numbers = np.asarray(vector).tolist()
    classes, frames = numbers[: len(ATTRIBUTES)], numbers[len(ATTRIBUTES) + 1 :]
    pairs = zip(classes, ATTRIBUTES.values(), strict=False)
    fits = all(index in range(-1, len(values)) for index, values in pairs)
    if not (frames and fits and set(frames) <= {0, 1}):
        raise ContractError("synthetic", f"no prediction: {numbers}", "compute the features again")
    named = {
        name: values[int(index)] if index >= 0 else None
        for (name, values), index in zip(ATTRIBUTES.items(), classes, strict=True)
    }
    return Prediction(tuple(map(bool, frames)), **named, speed=numbers[len(ATTRIBUTES)])


def is_right(score: str, prediction: Prediction, prompted: Scene) -> bool:
    """Return whether a clip counts as right for a score such as `colour_acc`."""
    if score == "valid_frac":
        return prediction.is_valid
    name = score.removesuffix("_acc")
    names = ATTRIBUTES if name == "all" else (name,)
    return all(getattr(prediction, name) == getattr(prompted, name) for name in names)


class SyntheticClassifier:
    """Extractor of the encoded prediction, preset `scene`."""

    name = "synthetic"
    digest = f"synthetic-{CLASSIFIER_VERSION}"

    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return the vector of `encode`."""
        return {"scene": encode(classify(clip.frames, clip.rate_fps))}


@dataclass(frozen=True)
class Proportion:
    """Fraction of clips with its 95 % Wilson interval and the value expected from guessing."""

    value: float
    low: float
    high: float
    chance: float | None
    details: dict[str, Any]


def classify(frames_THWC: NDArray[np.uint8], rate_fps: float) -> Prediction:
    """Return colour, shape and direction of motion of the figure in a clip.

    Args:
        frames_THWC: RGB, uint8.
        rate_fps: frames per second.

    Returns:
        The prediction; `motion` is None if the figure does not move.
    """
    figures = [_segment(frame) for frame in frames_THWC]
    detected = tuple(figure is not None for figure in figures)
    located = [(t / rate_fps, figure) for t, figure in enumerate(figures) if figure is not None]
    # A speed needs two positions; below half of the frames the clip counts as invalid anyway.
    if len(located) < max(2, _MIN_DETECTED * len(detected)):
        return Prediction(detected)
    side = min(frames_THWC.shape[1:3])
    centres = np.array([figure.centre_yx for _, figure in located]) / side
    motion, speed = _motion(np.array([time_s for time_s, _ in located]), centres)
    colour = _nearest_colour(np.mean([figure.chroma for _, figure in located], axis=0))
    overlaps = np.mean([figure.overlaps() for _, figure in located], axis=0)
    return Prediction(detected, colour, SHAPES[int(np.argmax(overlaps))], motion, speed)


@dataclass(frozen=True)
class _Figure:
    matte: Array
    chroma: Array
    """Mean chroma vector of the figure."""
    centre_yx: Array

    def overlaps(self) -> list[float]:
        """Return the IoU with each shape at equal area and centroid, in the order of `SHAPES`."""
        y = np.arange(self.matte.shape[0])[:, None] - self.centre_yx[0]
        x = np.arange(self.matte.shape[1])[None, :] - self.centre_yx[1]
        scores = []
        for shape in SHAPES:
            # At equal area the IoU compares shapes, not sizes.
            radius = math.sqrt(self.matte.sum() / _unit_area(shape))
            template = coverage(shape, x, y, radius)
            both = np.minimum(template, self.matte).sum()
            scores.append(float(both / np.maximum(template, self.matte).sum()))
        return scores


def _segment(frame_HWC: NDArray[np.uint8]) -> _Figure | None:
    chroma_HW2 = _chroma(frame_HWC.astype(np.float64) / 255)
    # Backgrounds have a slight tint; a figure covers less than half of the frame, so the median is
    # background.
    chroma_HW2 -= np.median(chroma_HW2, axis=(0, 1))
    strength_HW = np.hypot(chroma_HW2[..., 0], chroma_HW2[..., 1])
    # A quantile rather than the maximum: single wild pixels must not set the scale.
    peak = float(np.quantile(strength_HW, 1 - _AREA[0]))
    if peak < _MIN_CHROMA:
        return None
    core_HW = strength_HW > 0.6 * peak
    full = float(np.median(strength_HW[core_HW]))
    # H.264 with 4:2:0 subsampling blurs chroma over two pixels: the ramp is clipped at both ends.
    matte_HW = np.clip((strength_HW / full - 0.2) / 0.7, 0, 1)
    weight = matte_HW / matte_HW.sum()
    y, x = np.indices(matte_HW.shape)
    centre_yx = np.array([(weight * y).sum(), (weight * x).sum()])
    # 1.8 radii of the disc of equal area: chosen to contain every shape, corners included.
    reach = 1.8 * math.sqrt(matte_HW.sum() / math.pi)
    near_HW = np.hypot(y - centre_yx[0], x - centre_yx[1]) <= reach
    if not _AREA[0] <= matte_HW.mean() <= _AREA[1] or weight[near_HW].sum() < _COMPACT:
        return None
    return _Figure(matte_HW, chroma_HW2[core_HW].mean(axis=0), centre_yx)


def _chroma(rgb: Array) -> Array:
    """Return (R - (G + B) / 2, sqrt(3) / 2 (G - B)): hue is its angle, a pure colour has length 1.

    This is RGB in [0, 1] projected along the grey axis, so brightness cancels.
    """
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.stack([red - (green + blue) / 2, math.sqrt(0.75) * (green - blue)], axis=-1)


def _nearest_colour(chroma_2: Array) -> str:
    palette = _chroma(np.array(list(COLOURS.values()), dtype=np.float64))
    # Largest cosine: the length of the vector is saturation, which blur and compression reduce.
    closeness = palette @ chroma_2 / np.hypot(palette[:, 0], palette[:, 1])
    return tuple(COLOURS)[int(np.argmax(closeness))]


def _motion(times_s: Array, centres_yx: Array) -> tuple[str | None, float]:
    """Return direction and speed along the dominant axis, from the median of all pairwise slopes.

    Source: Theil-Sen estimator; its breakdown point is 29 % of outliers.
    """
    pairs = np.array(list(combinations(range(len(times_s)), 2)))
    first, second = pairs[:, 0], pairs[:, 1]
    slopes = (centres_yx[second] - centres_yx[first]) / (times_s[second] - times_s[first])[:, None]
    speed_yx = np.median(slopes, axis=0)
    axis = int(np.argmax(np.abs(speed_yx)))
    speed = float(np.float32(abs(speed_yx[axis])))  # so that its encoding is exact
    if speed < _MIN_SPEED:
        return None, speed
    # MOTIONS holds (x, y) steps, arrays hold (y, x).
    heading = (0, np.sign(speed_yx[0])) if axis == 0 else (np.sign(speed_yx[1]), 0)
    return next(name for name, step in MOTIONS.items() if step == heading), speed


@lru_cache
def _unit_area(shape: str) -> float:
    # Summed numerically, so that `coverage` stays the only definition of a shape.
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


def synthetic_scores(
    predictions: Sequence[Prediction], prompted: Sequence[Scene]
) -> dict[str, Proportion]:
    """Return the accuracy of generated clips against the scenes of their prompts.

    Args:
        predictions: one per clip, N >= 1, all of clips with the same number of frames.
        prompted: scene of each clip's prompt.

    Returns:
        `colour_acc`, `shape_acc`, `motion_acc`, `all_acc` and `valid_frac`. A clip without a
        figure counts as wrong; for `motion_acc` also one whose figure does not move. Details hold
        the confusion matrices {prompted: {predicted: count}}, the accuracy on combinations that
        are held out of the corpus, and the fraction of clips with a figure in each frame.
    """
    pairs = list(zip(predictions, prompted, strict=True))
    hits = {name: [is_right(name, *pair) for pair in pairs] for name in (*ATTRIBUTES, "all")}
    chances = {name: 1 / len(words) for name, words in ATTRIBUTES.items()}
    # Three independent guesses.
    chances["all"] = math.prod(chances.values())
    details = {name: {"confusion": _confusion_matrix(pairs, name)} for name in ATTRIBUTES}
    details["all"] = _composition(hits["all"], prompted)
    scores = {f"{name}_acc": _proportion(hits[name], chances[name], details[name]) for name in hits}
    found_per_frame = np.mean([prediction.detected for prediction in predictions], axis=0).tolist()
    scores["valid_frac"] = _proportion(
        [is_right("valid_frac", *pair) for pair in pairs],
        None,
        {"found_per_frame": found_per_frame},
    )
    return scores


def _proportion(hits: Sequence[bool], chance: float | None, details: dict[str, Any]) -> Proportion:
    low, high = wilson(sum(hits), len(hits))
    return Proportion(sum(hits) / len(hits), low, high, chance, details)


def _confusion_matrix(
    pairs: Sequence[tuple[Prediction, Scene]], attribute: str
) -> dict[str, dict[str, int]]:
    values = ATTRIBUTES[attribute]
    matrix = {value: dict.fromkeys((*values, "none"), 0) for value in values}
    for prediction, scene in pairs:
        matrix[getattr(scene, attribute)][getattr(prediction, attribute) or "none"] += 1
    return matrix


def _composition(hits: Sequence[bool], prompted: Sequence[Scene]) -> dict[str, Any]:
    unseen = {scene.prompt for scene in held_out()}
    result = [hit for hit, scene in zip(hits, prompted, strict=True) if scene.prompt in unseen]
    return {"held_out": {"num_samples": len(result), "num_right": sum(result)}}
