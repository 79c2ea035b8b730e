"""What is predicted from the rows of a batch: corrupt the history, predict the bits that repair it.

One idea: every random choice (dropped text, flipped bits, hidden frames) is a function of the seed
of its row (`draws`), and the seed of a row is a function of (seed of the run, step, number of the
row in the global batch). So the loss does not depend on how rows are divided over ranks,
accumulated parts and devices.

The token store holds continuous latents; the bits that are predicted are computed from them in
every step, because a flipped bit of the history changes the labels after it.

B rows, T latent frames, K bits, H W latent grid, L visual tokens.
Source: arXiv 2601.05966 sections 4.2, 5 and 6.1.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoar.core.ids import seed_from
from videoar.model.schedule import Scales, latent_frames, scale_schedule, tokens_per_frame
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Layout, random_frame_mask
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.corruption import draw_flips
from videoar.model.transformer.draws import TEXT, bernoulli
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_forcing_inputs
from videoar.training.config import Phase, TransformerTraining
from videoar.training.parallel import is_sharded

PADDING_CAPTION = ""
"""Prompt of padding; a table of text features must hold it."""


@dataclass(frozen=True)
class Rows:
    """Rows of a global batch, latents and seeds on the device of the model."""

    latent_BKTHW: Tensor
    captions: Sequence[str]
    seed_B: Tensor
    is_padding: bool = False
    """Whether this is a row of zeros, for a pass without rows."""

    def __len__(self) -> int:
        """Return the number of rows, 0 for padding."""
        return 0 if self.is_padding else len(self.captions)

    def parts(self, most: int, *, pads: bool = False) -> list["Rows"]:
        """Divide the rows into at most `most` parts whose sizes differ by at most one.

        Args:
            most: number of parts.
            pads: return exactly `most`, the last ones perhaps padding: the ranks of a sharded model
                must run the same passes, however many rows they have.
        """
        size, number = len(self), min(most, len(self))
        cuts = [size * i // number for i in range(number + 1)] if number else [0]
        parts = [
            Rows(self.latent_BKTHW[a:b], self.captions[a:b], self.seed_B[a:b])
            for a, b in itertools.pairwise(cuts)
        ]
        zeros = self.latent_BKTHW.new_zeros(1, *self.latent_BKTHW.shape[1:])
        padding = Rows(zeros, [PADDING_CAPTION], self.seed_B.new_zeros(1), is_padding=True)
        return parts + [padding] * (most - number if pads else 0)


@dataclass(frozen=True)
class Prediction:
    """Logits beside the bits that they predict."""

    logits_BLK2: Tensor
    bits_BLK: Tensor
    layout: Layout


def scales_of(cfg: ModelConfig, phase: Phase, grid: tuple[int, int]) -> Scales:
    """Return the scale schedule of a latent grid: the phase's, the model's, else the standard."""
    for scales in (*phase.scales, cfg.scales):
        if scales[-1] == grid:
            return scales
    return scale_schedule(*grid)


class Objective:
    """Predictions of a model on rows.

    Args:
        model: owner of the weights.
        training: corruption, dropped text, precision, seed.
    """

    def __init__(self, model: VideoAR, training: TransformerTraining) -> None:
        self.model, self.training = model, training

    def rows(
        self, batch: Mapping[str, Any], num_frames: int | None, *, seed_of: Sequence[int | str]
    ) -> Rows:
        """Move a rank's rows of a batch to the device and derive their seeds.

        Args:
            batch: as `TokenLoader` yields it.
            num_frames: pixel frames that are kept; None keeps all.
            seed_of: what the seeds depend on beside the run's seed and the number of the row.
        """
        device = self.model.device
        latent = batch["latent_BTKHW"]
        if num_frames is not None:
            latent = latent[:, : latent_frames(num_frames, self.model.cfg.time_stride)]
        numbers = range(batch["first_row"], batch["first_row"] + len(batch["captions"]))
        seeds = [seed_from(self.training.seed, *seed_of, number) for number in numbers]
        return Rows(
            latent.to(device, non_blocking=True).transpose(1, 2),
            batch["captions"],
            torch.tensor(seeds, dtype=torch.int64).to(device, non_blocking=True),
        )

    def parts(self, rows: Rows, phase: Phase) -> list[Rows]:
        """Return the rows of each pass of a step."""
        return rows.parts(phase.accumulate, pads=is_sharded(self.model))

    def num_tokens(self, batch: Mapping[str, Any], phase: Phase, num_frames: int | None) -> int:
        """Return the visual tokens of the global batch that a rank's batch belongs to."""
        _, frames, _, height, width = batch["latent_BTKHW"].shape
        if num_frames is not None:
            frames = min(frames, latent_frames(num_frames, self.model.cfg.time_stride))
        per_frame = tokens_per_frame(scales_of(self.model.cfg, phase, (height, width)))
        return int(batch["global_size"]) * frames * per_frame

    def frames_and_scales(self, rows: Rows, phase: Phase) -> tuple[int, int]:
        """Return the latent frames and the number of scales of rows."""
        frames, height, width = rows.latent_BKTHW.shape[2:]
        return frames, len(scales_of(self.model.cfg, phase, (height, width)))

    def predict(self, rows: Rows, phase: Phase, *, is_training: bool, flips: bool) -> Prediction:
        """Run the network on rows.

        Args:
            rows: at least one.
            phase: scale schedules and hidden frames.
            is_training: drop texts and hide frames as the run is configured.
            flips: corrupt the history as the run is configured.
        """
        cfg, training, seed_B = self.model.cfg, self.training, rows.seed_B
        num_bits, frames, *grid = rows.latent_BKTHW.shape[1:]
        scales = scales_of(cfg, phase, (grid[0], grid[1]))
        flipped = None
        if flips and not training.corruption.is_clean:
            shapes = [(h, w, num_bits) for h, w in scales]
            flipped = draw_flips(seed_B, frames, shapes, training.corruption)
        drop_B = keep_BTT = None
        if is_training:
            drop_B = bernoulli(seed_B, TEXT, 1, training.drop_text)[:, 0]
            if phase.p_mask:
                keep_BTT = random_frame_mask(seed_B, frames, phase.p_mask)
        pyramid = MultiScaleBSQ(num_bits, scales).pyramid(rows.latent_BKTHW, flipped)
        layout = self.model.layout(1 + cfg.time_stride * (frames - 1), scales)
        is_bf16 = training.precision == "bf16"
        with torch.autocast(seed_B.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            logits = self.model(
                teacher_forcing_inputs(layout.scheme, pyramid.accumulated),
                self.model.encode_text(rows.captions, drop_B),
                layout,
                keep_BTT=keep_BTT,
            )
        return Prediction(logits, flatten_bits(layout.scheme, pyramid.bits), layout)
