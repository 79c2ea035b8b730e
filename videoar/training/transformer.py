"""Train the transformer on latents: corrupt the history, predict the bits that repair it.

One idea: every random choice of a step comes from a generator seeded with (seed, step, rank), so a
run is a pure function of its inputs and a resumed run goes on as the first would have: on a CPU to
the bit, on a GPU up to the order in which some kernels add.

Cost: pyramids are rebuilt at every step because flips change the labels; at 8x8x5 latents that is
under a tenth of the step.

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
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_inputs
from videoar.training.checkpoint import load_state, save_state
from videoar.training.collectives import sum_gradients, sum_over_ranks
from videoar.training.config import Phase, TransformerTraining
from videoar.training.optimizer import MovingAverage, Patience, finite, make_adamw, set_rate

_NOTHING = BitLoss(torch.zeros(()), torch.zeros(()))
_HISTORY = 200  # points of the loss curve that are kept


class Loader(Protocol):
    """What the trainer needs of `TokenLoader`: iterating runs one epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches with `latent_BTKHW`, `captions` and `global_size`."""
        ...

    def state_dict(self) -> dict[str, int | str]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go to a position."""
        ...


class TransformerTrainer:
    """Training as an object that can stop and go on.

    Args:
        model: trained in place; equal on all ranks.
        training: how.
        make_loader: global batch size to this rank's loader.
        rank: number of this member of the gang; a gang must have joined a torch process group.
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
        self.network = torch.compile(model) if training.compile else model
        self.quantizer = MultiScaleBSQ(model.cfg.num_bits, model.cfg.scales)
        self.optimizer = make_adamw(model.parameters(), training.optimizer)
        self.average = MovingAverage(model, training.optimizer.ema)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._make_loader = make_loader
        self._loader_state: dict[str, int | str] | None = None
        self._patience = Patience()

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that changes, by name."""
        return {"model": self.model, "optimizer": self.optimizer, "average": self.average.weights}

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an existing folder."""
        progress = {"step": self.step, "loader": self._loader_state, "history": self.history}
        save_state(folder, self.parts, progress | {"bad_steps": self._patience.bad_steps})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        progress = load_state(folder, self.parts)
        self.step, self.history = progress["step"], progress["history"]
        self._loader_state = progress["loader"]
        self._patience.bad_steps = progress["bad_steps"]

    def run(self, after_step: Callable[["TransformerTrainer", Mapping[str, float]], None]) -> None:
        """Take the remaining steps, calling `after_step` after each."""
        while self.step < self.training.steps:
            index, done = self.training.phase_at(self.step)
            phase = self.training.phases[index]
            batches = self._batches(phase)
            for inner in range(done, phase.steps):
                metrics = self.take_step(next(batches), phase, inner)
                if inner == phase.steps - 1:  # a checkpoint of now goes on with the next phase
                    self._loader_state = None
                self._remember(metrics)
                after_step(self, metrics)

    def _batches(self, phase: Phase) -> Iterator[dict[str, Any]]:
        loader = self._make_loader(phase.batch_size)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        while True:
            for batch in loader:
                self._loader_state = loader.state_dict()
                yield batch

    def take_step(self, batch: Mapping[str, Any], phase: Phase, inner: int) -> dict[str, float]:
        """Update the weights once; return metrics of the whole batch, on whatever ranks it lies.

        A step whose loss or gradient is not finite is skipped.

        Raises:
            StageError: several steps in a row had a loss or gradient that is not finite.
        """
        rate = self.training.optimizer.rate(inner, phase.steps)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        rows = len(batch["captions"])
        scored = self._score(batch, phase) if rows else _NOTHING  # a short batch may leave us none
        share = rows / batch["global_size"]
        if rows:
            (scored.loss * share).backward()
        sum_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.training.optimizer.clip_norm
        )
        own = share * torch.stack([scored.loss.detach(), scored.accuracy.detach()])
        loss, accuracy = sum_over_ranks(own.to(norm.device)).tolist()
        checked = {"loss": loss, "gradient_norm": norm.item()}
        if self._patience.allows(self.step, checked):
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
        source = torch.Generator().manual_seed(seed_from(self.training.seed, self.step, self.rank))
        drop_B = torch.rand(size, generator=source) < self.training.drop_text
        flips = self._flips((size, frames), source)
        keep = random_frame_mask((size, frames), phase.p_mask, source) if phase.p_mask else None
        pyramid = self.quantizer.pyramid(latent_BKTHW, flips)
        layout = self.model.layout(1 + stride * (frames - 1))
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.training.precision == "bf16"
        ):
            logits = self.network(
                teacher_inputs(layout.scheme, pyramid.accumulated),
                self.model.encode_text(batch["captions"], drop_B),
                layout,
                keep_BTT=None if keep is None else keep.to(device),
            )
        return bit_loss(logits, flatten_bits(layout.scheme, pyramid.bits), layout.weight_l)

    def _flips(self, shape_BT: tuple[int, int], source: torch.Generator) -> list[Tensor] | None:
        corruption, cfg = self.training.corruption, self.model.cfg
        if corruption.is_clean:
            return None
        p_BTS = flip_probabilities((*shape_BT, len(cfg.scales)), corruption, source)
        shapes = [(h, w, cfg.num_bits) for h, w in cfg.scales]
        return [flip.to(self.model.device) for flip in draw_flips(p_BTS, shapes, source)]

    def _remember(self, metrics: Mapping[str, float]) -> None:
        every = max(1, self.training.steps // _HISTORY)
        if self.step % every == 0 or self.step in {1, self.training.steps}:
            self.history.append({"step": self.step, **finite(metrics)})
