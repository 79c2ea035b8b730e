"""Samples that are scored during a training: points of a curve, by the code of the score card.

Real clips are the val rows, as the tokenizer decodes them; the prompts are theirs. So few samples
show a trend and no value to report: distances of small sets are biased, and the frames of both
sides were not encoded as videos.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from videoar.core.errors import ConfigError
from videoar.core.ids import seed_from
from videoar.evaluation.extractor import Clip
from videoar.evaluation.frechet import FeatureStats, frechet_distance
from videoar.evaluation.metric_names import SYNTHETIC
from videoar.evaluation.registry import open_extractor
from videoar.evaluation.sample_values import FeatureTable, sample_values
from videoar.model.schedule import latent_frames
from videoar.model.tokenizer.network import VideoTokenizer, frames_from_video
from videoar.storage.snapshot import Snapshot
from videoar.training.config import SampleScoring
from videoar.training.data.token_loader import Batch, TokenLoader
from videoar.training.generation import VideoGenerator
from videoar.training.model_store import clip_shape
from videoar.training.transformer import TransformerTrainer

_SPACE = ("lite0", "mean4")
_SAMPLES_AT_ONCE = 8  # chosen: the memory of a small batch


class SampleScorer:
    """Generates and scores samples of the averaged weights of a training.

    Args:
        trainer: of the training.
        scoring: its option `sampling`.
        tokenizer: of the tokens, on the device of the model.
        stores: token stores; val rows of the first one with any are the reference.

    Raises:
        ConfigError: there are fewer than two val rows of the grid of the model, or the settings of
            the sampler do not fit it.
    """

    def __init__(
        self,
        trainer: TransformerTrainer,
        scoring: SampleScoring,
        tokenizer: VideoTokenizer,
        stores: Collection[Snapshot],
    ) -> None:
        training, cfg = trainer.training, trainer.model.cfg
        self._trainer = trainer
        self._extractors = [open_extractor(name) for name in ("lite0", "synthetic")]
        batch = _val_rows(trainer, stores, scoring.num)
        latent_BKTHW = batch["latent_BTKHW"].float().transpose(1, 2).to(trainer.model.device)
        if (num_frames := training.phases[-1].num_frames) is not None:
            latent_BKTHW = latent_BKTHW[:, :, : latent_frames(num_frames, cfg.time_stride)]
        self._rows = [
            {"prompt": prompt, "seed": seed_from("sample", training.seed, prompt, i)}
            for i, prompt in enumerate(batch["captions"])
        ]
        with torch.inference_mode():
            bits = tokenizer.quantizer.encode(latent_BKTHW)
            real_B3THW = tokenizer.detokenize(bits)
        clips = clip_shape(stores, None, cfg.time_stride)
        columns = {"num_frames": real_B3THW.shape[2], "rate_fps": clips.rate_fps if clips else 1.0}
        self._generator = VideoGenerator(trainer.model, tokenizer, "", columns, scoring).checked()
        real = frames_from_video(real_B3THW).cpu().numpy()
        self._reference = self._features(real).vectors(*_SPACE, self._ids)

    @property
    def _ids(self) -> list[str]:
        return [str(i) for i in range(len(self._rows))]

    def __call__(self) -> dict[str, float]:
        """Return the scores of the current averaged weights.

        `samples/frechet_lite0`, and `samples/rendered/*` if prompts are of the synthetic corpus.
        """
        model = self._trainer.model
        with self._trainer.average.applied_to(model), torch.inference_mode():
            model.eval()
            features = self._features(np.concatenate(list(self._frames())))
            model.train()
        x_ND = features.vectors(*_SPACE, self._ids)
        own, real = (FeatureStats().update(vectors) for vectors in (x_ND, self._reference))
        values = {"samples/frechet_lite0": frechet_distance(own, real)}
        texts = dict(zip(self._ids, (row["prompt"] for row in self._rows), strict=True))
        for name in SYNTHETIC:
            right = sample_values(f"rendered/{name}", features, texts)
            if right:
                values[f"samples/rendered/{name}"] = float(np.mean([*right.values()]))
        return values

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames [B, T, H, W, 3] of all samples, batch by batch."""
        for first in range(0, len(self._rows), _SAMPLES_AT_ONCE):
            made = self._generator.sample(self._rows[first : first + _SAMPLES_AT_ONCE])
            yield frames_from_video(made.video_B3THW).cpu().numpy()

    def _features(self, frames_BTHWC: NDArray[np.uint8]) -> FeatureTable:
        rate_fps = self._generator.columns["rate_fps"]
        rows = [
            {
                "clip_id": id_,
                "network": extractor.name,
                "network_digest": extractor.digest,
                "preset": preset,
                "vector": vector,
            }
            for id_, frames, row in zip(self._ids, frames_BTHWC, self._rows, strict=True)
            for extractor in self._extractors
            for preset, vector in extractor.vectors(
                Clip(id_, frames, rate_fps, row["prompt"])
            ).items()
        ]
        return FeatureTable([pa.Table.from_pylist(rows)])


def _val_rows(trainer: TransformerTrainer, stores: Iterable[Snapshot], num: int) -> Batch:
    """Return val rows of the grid of the model, at most `num`, of the first store with any.

    Raises:
        ConfigError: there are fewer than two.
    """
    count = 0
    for tokens in stores:
        with suppress(ConfigError):  # no such rows
            loader = TokenLoader(
                tokens,
                num,
                trainer.training.seed,
                split="val",
                grids=[trainer.model.cfg.scales[-1]],
                prompt_of=trainer.training.prompt,
                verify=True,
            )
            batch = next(iter(loader))
            if (count := len(batch["captions"])) > 1:
                return batch
    what = f"a store has {count} val rows of one shape, 2 are needed"
    raise ConfigError("training.sampling", what, "add val clips, or leave it out")
