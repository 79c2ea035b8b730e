"""Train the transformer on latents: corrupt the history, predict the bits that repair it.

One idea: every random choice of a step comes from a generator seeded with (seed, step, rank), so a
run is a pure function of its inputs and resumes deterministically: bit for bit on a CPU, on a GPU
up to the order in which some kernels add.

The token store holds continuous latents; the bits that are predicted are computed from them in
every step, because a flipped bit of the history changes the labels after it. At 8x8x5 latents that
is under a tenth of the step.

B batch, T latent frames, K bits, H W latent grid.
Source: arXiv 2601.05966 sections 5 and 6.1.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from videoar.core.ids import seed_from
from videoar.model.schedule import latent_frames
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import random_frame_mask
from videoar.model.transformer.corruption import draw_flips, flip_probabilities
from videoar.model.transformer.loss import BitLoss, bit_loss
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_forcing_inputs
from videoar.training.checkpoint import Part, load_state, save_state
from videoar.training.collectives import all_reduce_gradients, all_reduce_sum
from videoar.training.config import Phase, TransformerTraining
from videoar.training.optimizer import MovingAverage, NonFiniteGuard, finite, make_adamw, set_rate

_NO_ROWS = BitLoss(torch.zeros(()), torch.zeros(()))
_HISTORY_POINTS = 200  # chosen: enough for a curve, small in a checkpoint


class Loader(Protocol):
    """The part of `TokenLoader` that the trainer uses: iterating runs one epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches with `latent_BTKHW`, `captions` and `global_size`."""
        ...

    def state_dict(self) -> dict[str, int | str]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue after a position."""
        ...


class TransformerTrainer:
    """One rank of a training run.

    Args:
        model: trained in place; equal on all ranks.
        training: phases, optimizer, corruption.
        make_loader: returns this rank's loader for a global batch size.
        rank: number of this rank; several must have joined a torch process group.
    """

    def __init__(
        self,
        model: VideoAR,
        training: TransformerTraining,
        make_loader: Callable[[int], Loader],
        rank: int = 0,
    ) -> None:
        self.model, self.training, self.rank = model.train(), training, rank
        model.checkpoint_activations = training.checkpoint_activations
        # The uncompiled module stays the owner of the weights: names in checkpoints do not change.
        self.network = torch.compile(model) if training.compile else model
        self.quantizer = MultiScaleBSQ(model.cfg.num_bits, model.cfg.scales)
        self.optimizer = make_adamw(model, training.optimizer)
        self.average = MovingAverage(model, training.optimizer.ema)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._make_loader = make_loader
        self._loader_state: dict[str, int | str] | None = None
        self._guard = NonFiniteGuard()

    @property
    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds; the names are part of its format."""
        return {"model": self.model, "optimizer": self.optimizer, "average": self.average.weights}

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an existing folder."""
        progress = {"step": self.step, "loader": self._loader_state, "history": self.history}
        save_state(folder, self.parts, progress | {"bad_steps": self._guard.bad_steps})

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint."""
        progress = load_state(folder, self.parts)
        self.step, self.history = progress["step"], progress["history"]
        self._loader_state = progress["loader"]
        self._guard.bad_steps = progress["bad_steps"]

    def run(self, after_step: Callable[["TransformerTrainer", Mapping[str, float]], None]) -> None:
        """Take the remaining steps, calling `after_step` after each."""
        while self.step < self.training.steps:
            index, done = self.training.phase_at(self.step)
            phase = self.training.phases[index]
            batches = self._batches(phase)
            for inner in range(done, phase.steps):
                metrics = self.take_step(next(batches), phase, inner)
                if inner == phase.steps - 1:
                    # A checkpoint of this step resumes in the next phase, whose loader has another
                    # batch size and begins with its own first epoch.
                    self._loader_state = None
                self._finish_step(metrics)
                after_step(self, metrics)

    def _batches(self, phase: Phase) -> Iterator[dict[str, Any]]:
        loader = self._make_loader(phase.batch_size)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        while True:
            for batch in loader:
                self._loader_state = (
                    loader.state_dict()
                )  # the position after the batch that is trained next
                yield batch

    def take_step(self, batch: Mapping[str, Any], phase: Phase, inner: int) -> dict[str, float]:
        """Update the weights once; return metrics of the global batch.

        A step whose loss or gradient is not finite is skipped.

        Args:
            batch: this rank's rows.
            phase: part of the curriculum.
            inner: number of the step inside the phase, from 0: each phase has its own schedule.

        Raises:
            StageError: several steps in a row had a loss or gradient that is not finite.
        """
        rate = self.training.optimizer.rate(inner, phase.steps)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        rows = len(batch["captions"])
        # The last batch of an epoch may leave this rank no rows; it still joins the collectives.
        scored = self._score(batch, phase) if rows else _NO_ROWS
        # Losses are means over own rows; scaled by their share, gradients of ranks add up to that
        # of the mean over the global batch, however many rows each rank has.
        share = rows / batch["global_size"]
        if rows:
            (scored.loss * share).backward()
        all_reduce_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.training.optimizer.clip_norm
        )
        own = share * torch.stack([scored.loss.detach(), scored.accuracy.detach()])
        loss, accuracy = all_reduce_sum(own.to(norm.device)).tolist()
        checked = {"loss": loss, "gradient_norm": norm.item()}
        if self._guard.accept(self.step, checked):
            self.optimizer.step()
            self.average.update(self.model, self.step)
        self.step += 1
        return {**checked, "bit_accuracy": accuracy, "learning_rate": rate}

    def _score(self, batch: Mapping[str, Any], phase: Phase) -> BitLoss:
        device, stride = self.model.device, self.model.cfg.time_stride
        latent_BKTHW = batch["latent_BTKHW"].to(device, non_blocking=True).transpose(1, 2)
        if phase.num_frames:
            latent_BKTHW = latent_BKTHW[:, :, : latent_frames(phase.num_frames, stride)]
        size, frames = latent_BKTHW.shape[0], latent_BKTHW.shape[2]
        # On the CPU: a CUDA generator draws other numbers from the same seed.
        random = torch.Generator().manual_seed(seed_from(self.training.seed, self.step, self.rank))
        drop_B = torch.rand(size, generator=random) < self.training.drop_text
        flips = self._flips((size, frames), random)
        keep = random_frame_mask((size, frames), phase.p_mask, random) if phase.p_mask else None
        pyramid = self.quantizer.pyramid(latent_BKTHW, flips)
        layout = self.model.layout(1 + stride * (frames - 1))
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.training.precision == "bf16"
        ):
            logits = self.network(
                teacher_forcing_inputs(layout.scheme, pyramid.accumulated),
                self.model.encode_text(batch["captions"], drop_B),
                layout,
                keep_BTT=None if keep is None else keep.to(device),
            )
        return bit_loss(logits, flatten_bits(layout.scheme, pyramid.bits), layout.weight_l)

    def _flips(self, shape_BT: tuple[int, int], random: torch.Generator) -> list[Tensor] | None:
        corruption, cfg = self.training.corruption, self.model.cfg
        if corruption.is_clean:
            return None
        p_BTS = flip_probabilities((*shape_BT, len(cfg.scales)), corruption, random)
        shapes = [(h, w, cfg.num_bits) for h, w in cfg.scales]
        return [flip.to(self.model.device) for flip in draw_flips(p_BTS, shapes, random)]

    def _finish_step(self, metrics: Mapping[str, float]) -> None:
        every = max(1, self.training.steps // _HISTORY_POINTS)
        if self.step % every == 0 or self.step in {1, self.training.steps}:
            self.history.append({"step": self.step, **finite(metrics)})
