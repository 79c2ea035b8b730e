"""From clips to rows of `scores@1`.

The one idea: clips stream by once. Each leaves a few numbers behind (a verdict, a flicker value, a
feature vector), and rows are made from those, so memory does not grow with the pixels.

Axes: N clips, T frames, D features.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from videoar.core.types import Row
from videoar.evaluation import scorecard, synthetic
from videoar.evaluation.frechet import FeatureStats, frechet_distance, frechet_interval
from videoar.evaluation.i3d import I3D, MIN_FRAMES, NUM_CLASSES, preprocess
from videoar.evaluation.metrics import psnr_T, ssim_T
from videoar.evaluation.scorecard import Lock
from videoar.evaluation.vbench import DIMENSIONS, temporal_flickering
from videoar.media.synthetic import parse_prompt
from videoar.model.device import device

Frames = NDArray[np.uint8]
Array = NDArray[np.float64]

DISTANCE_FRAMES = 16  # Source: StyleGAN-V and TATS protocols, 16 frames per clip
RENDERED = (*(f"{name}_acc" for name in (*synthetic.ATTRIBUTES, "all")), "valid_frac")


@dataclass(frozen=True)
class Clip:
    """A decoded clip with what is known about it."""

    id: str
    frames: Frames
    """[T, H, W, 3], RGB."""
    rate_fps: float
    text: str


def features_ND(network: I3D, clips: Iterable[Clip]) -> Array:  # noqa: N802 - shape suffix
    """Return the logits of each clip's first `DISTANCE_FRAMES` frames, one clip at a time."""
    network.to(device())
    with torch.inference_mode():
        logits = [network(preprocess(clip.frames[:DISTANCE_FRAMES]).to(device())) for clip in clips]
    return np.asarray(torch.cat(logits).double().cpu()) if logits else np.empty((0, NUM_CLASSES))


def distance_rows(
    metric: str, samples_ND: Array, reference_ND: Array, floor_ND: Array, *, lock: Lock, seed: int
) -> list[Row]:
    """Return the distance and, beside it, the floor: what other real clips get at the same N.

    Raises:
        ContractError: unequal or too small N, or features that are not finite.
    """
    full = {
        **lock,
        "preset": "common_metrics",
        "num_frames": DISTANCE_FRAMES,
        "covariance": "1/(N-1)",
        "num_clips": len(samples_ND),
    }
    return [
        _distance_row(metric, samples_ND, reference_ND, full, seed),
        _distance_row(f"{metric}/floor", floor_ND, reference_ND, full, seed)
        if len(floor_ND) == len(reference_ND)
        else scorecard.not_evaluated(
            f"{metric}/floor",
            f"needs {len(reference_ND)} more real clips, there are {len(floor_ND)}",
            lock=full,
            higher_is_better=False,
        ),
    ]


def _distance_row(metric: str, x_ND: Array, y_ND: Array, lock: Lock, seed: int) -> Row:
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


def why_no_distance(num_frames: Sequence[Sequence[int]]) -> str:
    """Return why sets of clips with these frame counts have no distance, empty if they have."""
    if len(num_frames[0]) < 2:
        return f"needs 2 clips on either side, there are {len(num_frames[0])}"
    shortest = min(count for counts in num_frames for count in counts)
    if shortest < MIN_FRAMES:
        return f"needs {MIN_FRAMES} frames, clips have {shortest}"
    return ""


class SampleScores:
    """What generated clips leave behind as they stream by."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.verdicts: list[synthetic.Verdict] = []
        self.flicker: list[float] = []
        self.motion: list[float] = []

    def add(self, clip: Clip) -> None:
        """Look at one clip."""
        self.ids.append(clip.id)
        self.texts.append(clip.text)
        self.verdicts.append(synthetic.judge(clip.frames, clip.rate_fps))
        self.flicker.append(temporal_flickering(clip.frames))
        self.motion.append(frame_difference(clip.frames))

    def rows(self, prefix: str, lock: Lock, seed: int) -> list[Row]:
        """Return exact scores, flicker and the measure of motion that keeps flicker honest."""
        means = {"temporal_flickering": self.flicker, "proxy/frame_diff_top5": self.motion}
        return [
            *self.rendered_rows(prefix, lock),
            *(
                scorecard.score_row(
                    metric,
                    float(np.mean(values)),
                    lock=lock,
                    num_samples=len(values),
                    interval=scorecard.mean_interval(values, seed),
                    details={"per_sample": dict(zip(self.ids, values, strict=True))},
                )
                for metric, values in means.items()
            ),
        ]

    def rendered_rows(self, prefix: str, lock: Lock) -> list[Row]:
        """Judge the clips whose text is a prompt of the synthetic corpus."""
        full = {**lock, "judge": synthetic.JUDGE_VERSION}
        scenes = [parse_prompt(text) for text in self.texts]
        pairs = [
            (id_, verdict, scene)
            for id_, verdict, scene in zip(self.ids, self.verdicts, scenes, strict=True)
            if scene is not None
        ]
        if not pairs:
            reason = "no text is a prompt of the synthetic corpus"
            return rendered_absent(prefix, reason, full)
        ids, verdicts, wanted = zip(*pairs, strict=True)
        scores = synthetic.rendered_scores(verdicts, wanted)
        seen = {id_: [v.colour, v.shape, v.motion] for id_, v in zip(ids, verdicts, strict=True)}
        scores["all_acc"].details["seen"] = seen
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


def rendered_absent(prefix: str, reason: str, lock: Lock) -> list[Row]:
    """Return the rows that say why there are no rendered scores."""
    return [scorecard.not_evaluated(f"{prefix}/{name}", reason, lock=lock) for name in RENDERED]


def frame_difference(frames_THWC: Frames) -> float:
    """Return the mean of the largest 5 % of absolute differences between neighbours, in [0, 1]."""
    steps = np.abs(np.diff(frames_THWC.astype(np.int16), axis=0)).mean(axis=-1).ravel()
    top = max(1, len(steps) // 20)
    return float(np.partition(steps, -top)[-top:].mean() / 255)


def vbench_rows(lock: Lock) -> list[Row]:
    """Return the VBench aggregates: absent while fifteen dimensions have no scorer here."""
    missing = ", ".join(name for name in DIMENSIONS if name != "temporal_flickering")
    reason = f"no scorer for: {missing}"
    return [
        scorecard.not_evaluated(f"vbench/{name}", reason, lock=lock)
        for name in ("total", "quality", "semantic")
    ]


class ReconstructionScores:
    """Round trips of real clips through the tokenizer: the ceiling of what a model can reach."""

    def __init__(self) -> None:
        self._judged = SampleScores()
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._examples: list[Mapping[str, str]] = []
        self._by_scale: list[Mapping[str, str]] = []

    def add(self, real: Clip, frames_THWC: Frames) -> None:
        """Compare a real clip with its reconstruction."""
        self._psnr.append(float(psnr_T(real.frames, frames_THWC).mean()))
        self._ssim.append(float(ssim_T(real.frames, frames_THWC).mean()))
        self._judged.add(Clip(real.id, frames_THWC, real.rate_fps, real.text))

    def add_example(self, clip_id: str, real_key: str, recon_key: str) -> None:
        """Remember where a real clip and its reconstruction can be seen."""
        self._examples.append({"clip_id": clip_id, "real_key": real_key, "recon_key": recon_key})

    def add_scale(self, clip_id: str, grid: str, recon_key: str) -> None:
        """Remember where a clip can be seen as its scales up to a grid rebuild it."""
        self._by_scale.append({"clip_id": clip_id, "grid": grid, "recon_key": recon_key})

    def rows(self, lock: Lock, seed: int) -> list[Row]:
        """Return mean PSNR (dB) and SSIM, and the rendered scores of the reconstructions."""
        seen = {"examples": self._examples, "by_scale": self._by_scale}
        return [
            self._row("recon/psnr", self._psnr, lock, seed, seen),
            self._row("recon/ssim", self._ssim, lock, seed, {}),
            *self._judged.rendered_rows("rendered_recon", lock),
        ]

    @staticmethod
    def _row(
        metric: str, values: Sequence[float], lock: Lock, seed: int, details: dict[str, Any]
    ) -> Row:
        return scorecard.score_row(
            metric,
            float(np.mean(values)),
            lock=lock,
            num_samples=len(values),
            num_reference=len(values),
            interval=scorecard.mean_interval(values, seed),
            details=details,
        )


def reconstruction_absent(reason: str, lock: Lock) -> list[Row]:
    """Return the rows that say why there are no reconstruction scores."""
    names = ("recon/psnr", "recon/ssim")
    rows = [scorecard.not_evaluated(name, reason, lock=lock) for name in names]
    return rows + rendered_absent("rendered_recon", reason, lock)
