"""Rows of `scores@1` of real clips that a tokenizer has encoded and decoded."""

from collections.abc import Mapping
from functools import partial

from videoar.core.types import Row
from videoar.evaluation import scorecard, synthetic
from videoar.evaluation.extractor import Clip, Frames
from videoar.evaluation.measure import not_evaluated_rows, synthetic_names, synthetic_row
from videoar.evaluation.metric_names import RECONSTRUCTION
from videoar.evaluation.metrics import psnr_T, ssim_T
from videoar.evaluation.scorecard import Lock
from videoar.media.synthetic import Scene, parse_prompt

_PREFIX = "rendered_recon"


class ReconstructionScores:
    """Scores of reconstructed real clips: the upper bound of what the generator can reach."""

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._seen: list[synthetic.Prediction] = []
        self._scenes: list[Scene] = []
        self._examples: list[Mapping[str, str]] = []
        self._by_scale: list[Mapping[str, str]] = []

    def add(self, real: Clip, frames_THWC: Frames) -> None:
        """Compare a real clip with its reconstruction."""
        self._psnr.append(float(psnr_T(real.frames, frames_THWC).mean()))
        self._ssim.append(float(ssim_T(real.frames, frames_THWC).mean()))
        if (scene := parse_prompt(real.text)) is not None:
            self._scenes.append(scene)
            self._seen.append(synthetic.classify(frames_THWC, real.rate_fps))

    def add_example(self, clip_id: str, real_key: str, recon_key: str) -> None:
        """Record the keys of a real clip's video and of its reconstruction."""
        self._examples.append({"clip_id": clip_id, "real_key": real_key, "recon_key": recon_key})

    def add_scale(self, clip_id: str, grid: str, recon_key: str) -> None:
        """Record the key of a reconstruction from the scales up to a grid."""
        self._by_scale.append({"clip_id": clip_id, "grid": grid, "recon_key": recon_key})

    def rows(self, lock: Lock, seed: int) -> list[Row]:
        """Return mean PSNR (dB) and SSIM, and the attribute accuracies of the reconstructions."""
        videos = {"examples": self._examples, "by_scale": self._by_scale}
        psnr, ssim = RECONSTRUCTION
        row = partial(scorecard.mean_row, lock=lock, seed=seed, num_reference=len(self._psnr))
        return [
            row(psnr, self._psnr, details=videos),
            row(ssim, self._ssim),
            *self._synthetic_rows(lock),
        ]

    def _synthetic_rows(self, lock: Lock) -> list[Row]:
        names = synthetic_names(_PREFIX)
        if not self._scenes:
            return not_evaluated_rows(names, "no caption is one of the synthetic corpus", lock)
        full = {**lock, "network_digest": synthetic.SyntheticClassifier.digest}
        return [synthetic_row(name, self._seen, self._scenes, full) for name in names]
