"""Compute rows of `scores@1` from clips.

Clips are streamed once. Each contributes a few numbers (predicted attributes, a flicker value, a
feature vector) from which the rows are computed, so memory does not grow with the pixels.

Axes: N clips, T frames, D features.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from videoar.core.types import Row
from videoar.evaluation import metric_names, scorecard, synthetic
from videoar.evaluation.extractor import Clip, Frames
from videoar.evaluation.frechet import FeatureStats, frechet_distance, frechet_interval
from videoar.evaluation.i3d import I3D, MIN_FRAMES, NUM_CLASSES
from videoar.evaluation.i3d_presets import common_metrics
from videoar.evaluation.metrics import psnr_T, ssim_T
from videoar.evaluation.networks import DISTANCE_FRAMES
from videoar.evaluation.pixel_measures import frame_difference
from videoar.evaluation.scorecard import Lock
from videoar.evaluation.vbench import DIMENSIONS, temporal_flickering
from videoar.media.synthetic import parse_prompt
from videoar.model.device import device

Array = NDArray[np.float64]


def features_ND(network: I3D, clips: Iterable[Clip]) -> Array:
    """Return the logits of each clip's first `DISTANCE_FRAMES` frames, one clip at a time."""
    network.to(device())
    # Batches of one: memory stays that of one clip, and its logits do not depend on the others
    # (kernels and their order of summation vary with the batch size).
    with torch.inference_mode():
        logits = [
            network(common_metrics(clip.frames[:DISTANCE_FRAMES]).to(device())) for clip in clips
        ]
    return np.asarray(torch.cat(logits).double().cpu()) if logits else np.empty((0, NUM_CLASSES))


def distance_rows(
    metric: str, samples_ND: Array, reference_ND: Array, floor_ND: Array, *, lock: Lock, seed: int
) -> list[Row]:
    """Return the Frechet distance and its floor: the distance of other real clips at equal N.

    The estimate is biased upwards at small N, so a distance can only be read against the floor.

    Raises:
        ContractError: unequal counts, fewer than two clips, or features that are not finite.
    """
    full = {
        **lock,
        "preset": "common_metrics",
        "num_frames": DISTANCE_FRAMES,
        "covariance": "1/(N-1)",
        "num_clips": len(samples_ND),
    }
    return [
        _frechet_row(metric, samples_ND, reference_ND, full, seed),
        _frechet_row(metric + metric_names.FLOOR, floor_ND, reference_ND, full, seed)
        if len(floor_ND) == len(reference_ND)
        else scorecard.not_evaluated(
            metric + metric_names.FLOOR,
            f"needs {len(reference_ND)} more real clips, {len(floor_ND)} available",
            lock=full,
            higher_is_better=False,
        ),
    ]


def _frechet_row(metric: str, x_ND: Array, y_ND: Array, lock: Lock, seed: int) -> Row:
    scorecard.require_equal_counts(metric, len(x_ND), len(y_ND))
    return scorecard.score_row(
        metric,
        frechet_distance(FeatureStats().update(x_ND), FeatureStats().update(y_ND)),
        lock=lock,
        num_samples=len(x_ND),
        num_reference=len(y_ND),
        interval=frechet_interval(x_ND, y_ND, seed),
        higher_is_better=False,
    )


def no_distance_reason(num_frames: Sequence[Sequence[int]]) -> str:
    """Return why no distance can be computed, an empty string if one can.

    Args:
        num_frames: frames of each clip, per set of clips; the sets have equal sizes.
    """
    if len(num_frames[0]) < 2:
        return f"needs 2 clips per side, {len(num_frames[0])} available"
    shortest = min(count for counts in num_frames for count in counts)
    if shortest < MIN_FRAMES:
        return f"needs {MIN_FRAMES} frames, the shortest clip has {shortest}"
    return ""


class SampleScores:
    """Streaming scores of generated clips: attributes, flicker and motion of each."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.predictions: list[synthetic.Prediction] = []
        self.flicker: list[float] = []
        self.motion: list[float] = []

    def add(self, clip: Clip) -> None:
        """Measure one clip."""
        self.ids.append(clip.id)
        self.texts.append(clip.text)
        self.predictions.append(synthetic.classify(clip.frames, clip.rate_fps))
        self.flicker.append(temporal_flickering(clip.frames))
        self.motion.append(frame_difference(clip.frames))

    def rows(self, prefix: str, lock: Lock, seed: int) -> list[Row]:
        """Return attribute accuracies, flicker, and the motion that flicker must be read against.

        A frozen clip has perfect flicker, so flicker without motion would reward it.
        """
        means = {metric_names.FLICKERING: self.flicker, metric_names.MOTION: self.motion}
        rows = self.synthetic_rows(prefix, lock)
        for metric, values in means.items():
            details = {"per_sample": dict(zip(self.ids, values, strict=True))}
            rows.append(scorecard.mean_row(metric, values, lock=lock, seed=seed, details=details))
        return rows

    def synthetic_rows(self, prefix: str, lock: Lock) -> list[Row]:
        """Return attribute accuracies over the clips with a prompt of the synthetic corpus."""
        # The key `judge` is older than the name of the classifier: renaming it would change the
        # digest of the lock and make new values incomparable with those in existing stores.
        full = {**lock, "judge": synthetic.CLASSIFIER_VERSION}
        scenes = [parse_prompt(text) for text in self.texts]
        pairs = [
            (id_, prediction, scene)
            for id_, prediction, scene in zip(self.ids, self.predictions, scenes, strict=True)
            if scene is not None
        ]
        if not pairs:
            reason = "no prompt is one of the synthetic corpus"
            return synthetic_not_evaluated(prefix, reason, full)
        ids, predictions, prompted = zip(*pairs, strict=True)
        scores = synthetic.synthetic_scores(predictions, prompted)
        scores["all_acc"].details["seen"] = {
            id_: [prediction.colour, prediction.shape, prediction.motion]
            for id_, prediction in zip(ids, predictions, strict=True)
        }
        return [
            scorecard.score_row(
                f"{prefix}/{name}",
                score.value,
                lock=full,
                num_samples=len(pairs),
                interval=(score.low, score.high),
                chance=score.chance,
                details=score.details,
            )
            for name, score in scores.items()
        ]


def synthetic_not_evaluated(prefix: str, reason: str, lock: Lock) -> list[Row]:
    """Return rows without values for the scores of the synthetic corpus."""
    return [
        scorecard.not_evaluated(f"{prefix}/{name}", reason, lock=lock)
        for name in metric_names.SYNTHETIC
    ]


def vbench_rows(lock: Lock) -> list[Row]:
    """Return VBench aggregates without values: 15 of the 16 dimensions have no scorer yet."""
    missing = ", ".join(name for name in DIMENSIONS if name != "temporal_flickering")
    reason = f"no scorer for: {missing}"
    return [scorecard.not_evaluated(name, reason, lock=lock) for name in metric_names.VBENCH]


class ReconstructionScores:
    """Scores of reconstructed real clips: the upper bound of what the generator can reach."""

    def __init__(self) -> None:
        self._synthetic = SampleScores()
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._examples: list[Mapping[str, str]] = []
        self._by_scale: list[Mapping[str, str]] = []

    def add(self, real: Clip, frames_THWC: Frames) -> None:
        """Compare a real clip with its reconstruction."""
        self._psnr.append(float(psnr_T(real.frames, frames_THWC).mean()))
        self._ssim.append(float(ssim_T(real.frames, frames_THWC).mean()))
        self._synthetic.add(Clip(real.id, frames_THWC, real.rate_fps, real.text))

    def add_example(self, clip_id: str, real_key: str, recon_key: str) -> None:
        """Record the keys of a real clip's video and of its reconstruction."""
        self._examples.append({"clip_id": clip_id, "real_key": real_key, "recon_key": recon_key})

    def add_scale(self, clip_id: str, grid: str, recon_key: str) -> None:
        """Record the key of a reconstruction from the scales up to a grid."""
        self._by_scale.append({"clip_id": clip_id, "grid": grid, "recon_key": recon_key})

    def rows(self, lock: Lock, seed: int) -> list[Row]:
        """Return mean PSNR (dB) and SSIM, and the attribute accuracies of the reconstructions."""
        videos = {"examples": self._examples, "by_scale": self._by_scale}
        psnr, ssim = metric_names.RECONSTRUCTION
        row = partial(scorecard.mean_row, lock=lock, seed=seed, num_reference=len(self._psnr))
        return [
            row(psnr, self._psnr, details=videos),
            row(ssim, self._ssim),
            *self._synthetic.synthetic_rows("rendered_recon", lock),
        ]


def reconstruction_not_evaluated(reason: str, lock: Lock) -> list[Row]:
    """Return rows without values for the reconstruction scores."""
    rows = [
        scorecard.not_evaluated(name, reason, lock=lock) for name in metric_names.RECONSTRUCTION
    ]
    return rows + synthetic_not_evaluated("rendered_recon", reason, lock)
