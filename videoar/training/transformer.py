"""Train the transformer on latents: phases, steps, held-out numbers, checkpoints.

One idea: a run is a pure function of its inputs. The rows of a step follow from the position of the
loader, the random choices from the rows (`Objective`), so a run resumes deterministically: bit for
bit on a CPU at the same world size; up to the order of additions on a GPU or at another one.

    phase      budget in steps or tokens; its own data, warm-up and cosine
    step       rows -> parts -> loss and gradients -> one sum over ranks -> clip -> AdamW -> average
    metrics    read one step late: reading waits for the device, and then the next step's kernels
               are already queued

Source: arXiv 2601.05966 sections 5 and 6.1.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from videoar.core.errors import StageError
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import VideoAR
from videoar.training.checkpoint import Part, restoring, save_state
from videoar.training.collectives import (
    all_reduce_gradients,
    all_reduce_sum,
    exchanging_passes,
    world_size,
)
from videoar.training.config import Phase, TransformerTraining
from videoar.training.held_out import HeldOutLoader, evaluate
from videoar.training.objective import Objective, Rows
from videoar.training.optimizer import MovingAverage, NonFiniteGuard, finite, make_adamw, set_rate
from videoar.training.parallel import is_sharded, shard, whole
from videoar.training.spikes import LossSpikeError, SpikeDetector

logger = logging.getLogger(__name__)
_HISTORY_POINTS = 200  # chosen: enough for a curve, small in a checkpoint


class Loader(Protocol):
    """The part of `TokenLoader` and `TokenMixture` that the trainer uses."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches with `latent_BTKHW`, `captions`, `first_row` and `global_size`.

        Batches of a mixture name their `store`.
        """

    def state_dict(self) -> dict[str, int | str]:
        """Return the position."""

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue after a position."""


class TrainingData(Protocol):
    """This rank's data of each phase."""

    def train(self, phase: Phase) -> Loader:
        """Return a loader at the start of epoch 0."""

    def held_out(self, phase: Phase) -> Mapping[str, HeldOutLoader]:
        """Return the loaders of the split `val` by store; empty without val rows."""


@dataclass
class Progress:
    """Where a training is; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    phase: int = 0
    done: int = 0
    """Steps or tokens of the phase, the unit of its budget."""
    evaluations: int = 0
    """Of the phase."""
    best_loss: float = math.inf
    """Lowest val loss of the phase so far."""
    worse_evaluations: int = 0
    """In a row, since the lowest val loss."""
    rollbacks: int = 0
    """After spikes of the loss."""


class TransformerTrainer:
    """One rank of a training run.

    Args:
        model: trained in place; equal on all ranks.
        training: phases, optimizer, corruption.
        data: this rank's batches; several ranks must have joined a torch process group.
    """

    def __init__(self, model: VideoAR, training: TransformerTraining, data: TrainingData) -> None:
        self.model, self.training, self.data = model.train(), training, data
        model.checkpointing = training.activation_checkpointing
        on_gpu = model.device.type == "cuda"
        if on_gpu if training.compile is None else training.compile:
            model.compile_layers()
        if training.shard and world_size() > 1:
            shard(model, torch.bfloat16 if training.precision == "bf16" else None)
        self.objective = Objective(model, training)
        self.optimizer = make_adamw(model, training.optimizer)
        self.average = MovingAverage(model, training.optimizer.ema)
        self.best = MovingAverage(model, 0.0) if training.validation.patience else None
        """The averaged weights of the lowest val loss of the newest phase."""
        self.progress = Progress()
        self.history: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        """Of the last step that was read."""
        self.held_out: dict[str, float] = {}
        """Of the weights that would be published now: those of the last or best evaluation."""
        self._loader_state: dict[str, int | str] | None = None
        self._guard = NonFiniteGuard()
        self._spikes = SpikeDetector(training.spike) if training.spike else None
        self._num_skipped = 0
        """Batches that the loader passes over next, after a rollback."""
        self._last_skip = (-1, 0)
        """Step of the checkpoint of the last rollback, and the batches skipped after it."""
        self.is_preempted: Callable[[], bool] = lambda: False
        """Whether this rank will be taken away."""
        self.has_notice = False
        """Whether any rank announced so, as of the last step that was read."""
        self._unread: tuple[int, float, Tensor] | None = None
        """Step, learning rate and metrics on the device."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self.progress.phase == len(self.training.phases)

    @property
    def is_at_phase_end(self) -> bool:
        """Whether the last step ended a phase or the training."""
        return self.is_done or self.progress.done == 0

    @property
    def expected_steps(self) -> int:
        """Steps of all phases, estimated for budgets in tokens; for displays."""
        steps = self.training.steps
        if steps is not None or self.is_done:
            return steps or self.step
        phases, progress = self.training.phases, self.progress
        share = (progress.phase + progress.done / phases[progress.phase].budget) / len(phases)
        return max(self.step + 1, round(self.step / max(share, 1e-9)))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to publish: the average, of the best evaluation if there is a patience."""
        return (self.best or self.average).weights

    @property
    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds; the names are part of its format."""
        parts: dict[str, Part] = {
            "model": self.model, "optimizer": self.optimizer, "average": self.average.weights
        }  # fmt: skip
        return parts | ({"best": self.best.weights} if self.best else {})

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an existing folder."""
        self.read_metrics()
        # as text: the first best loss is infinite, which JSON has no number for
        progress = vars(self.progress) | {"best_loss": repr(self.progress.best_loss)}
        state = {
            "progress": progress,
            "loader": self._loader_state,
            "history": self.history,
            "metrics": finite(self.metrics),
            "held_out": self.held_out,
            "bad_steps": self._guard.bad_steps,
            "recent_losses": self._spikes.recent if self._spikes else [],
        }
        save_state(folder, self.parts, state)

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint."""
        with restoring(folder, self.parts) as state:
            saved = state["progress"] | {"best_loss": float(state["progress"]["best_loss"])}
            self.progress = Progress(**saved)
            self.history, self.metrics = state["history"], state["metrics"]
            self.held_out, self._loader_state = state["held_out"], state["loader"]
            self._guard.bad_steps = state["bad_steps"]
            if self._spikes:
                self._spikes.recent = state["recent_losses"]

    def roll_back(
        self, load: Callable[[Callable[[Path], None]], object], spike: LossSpikeError
    ) -> None:
        """Go back to the last checkpoint; the batches since then are skipped.

        Args:
            load: calls its argument with the folder of the last checkpoint, see `resume`.
            spike: why.

        Raises:
            StageError: the training was rolled back too often.
        """
        rollbacks = self.progress.rollbacks + 1
        if self._spikes and rollbacks > self._spikes.config.max_rollbacks:
            what = f"{spike}; rolled back {rollbacks - 1} times before"
            raise StageError("training.spike", what, "lower the learning rate, or raise factor")
        self._unread = None
        load(self.load)
        self.progress.rollbacks = rollbacks
        checkpoint_step, skipped = self._last_skip
        # A second spike after the same checkpoint: else the batch that caused it comes again.
        before = skipped if checkpoint_step == self.step else 0
        self._num_skipped = before + spike.step + 1 - self.step
        self._last_skip = self.step, self._num_skipped
        self.log(self.step, {"skipped_batches": self._num_skipped})
        logger.warning(
            "%s; back to step %d, %d batches are skipped", spike, self.step, self._num_skipped
        )

    def run(self, after_step: Callable[["TransformerTrainer"], None]) -> None:
        """Take the remaining steps, calling `after_step` after each."""
        while not self.is_done:
            index = self.progress.phase
            phase = self.training.phases[index]
            batches = self._batches(phase)
            # Opening a store reads columns of all of its rows: not for nothing.
            held_out = self.data.held_out(phase) if self.training.validation.points else {}
            while self.progress.phase == index and not self.is_done:
                batch = next(batches)
                with exchanging_passes():
                    self.take_step(batch, phase, self.progress.done)
                self.progress.step += 1
                self.progress.done += 1 if phase.steps else self._num_tokens(batch, phase)
                self._evaluate_if_due(phase, held_out)
                patience = self.training.validation.patience or math.inf
                is_over = self.progress.worse_evaluations >= patience
                if is_over or self.progress.done >= phase.budget:
                    self._end_phase(has_held_out=bool(held_out))
                after_step(self)
        self.read_metrics()

    def _end_phase(self, *, has_held_out: bool) -> None:
        # A checkpoint of this step resumes in the next phase, whose loader begins with its own
        # first epoch.
        self._loader_state = None
        progress = self.progress
        progress.phase += 1
        progress.done = progress.evaluations = progress.worse_evaluations = 0
        # Losses of phases do not compare: their val rows have other frames and grids.
        progress.best_loss = math.inf
        if not has_held_out:  # earlier numbers are not those of the weights to publish
            self.held_out = {}
            if self.best is not None:
                self.best.copy_from(self.average)

    def _batches(self, phase: Phase) -> Iterator[dict[str, Any]]:
        loader = self.data.train(phase)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        while True:
            for batch in loader:
                # the position after the batch that is trained next
                self._loader_state = loader.state_dict()
                if self._num_skipped:
                    self._num_skipped -= 1
                    continue
                yield batch

    def take_step(self, batch: Mapping[str, Any], phase: Phase, done: int) -> None:
        """Update the weights once.

        A step whose loss or gradient is not finite changes no weights.

        Args:
            batch: this rank's rows of a global batch.
            phase: part of the curriculum.
            done: steps or tokens of the phase before this step, for the learning rate.

        Raises:
            StageError: several steps before this one had a loss or gradient that is not finite.
        """
        rate = self.training.optimizer.rate(done, phase.budget, phase.learning_rate)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        frames = phase.frames_of(batch.get("store"))
        rows = self.objective.rows(batch, frames, seed_of=(self.step,))
        # loss, accuracy, notices of preemption
        own = torch.zeros(3, device=self.model.device)
        own[2] = float(self.is_preempted())  # a fill: copying from the host would wait
        for part in self.objective.parts(rows, phase):
            own[:2] += self._backward(part, phase, len(part) / batch["global_size"])
        if not is_sharded(self.model):  # else the backward pass has added them up
            all_reduce_gradients(self.model.parameters())
        clip_norm = self.training.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        metrics = torch.cat([all_reduce_sum(own), whole(norm)[None]])
        # The fused kernel reads this on the device and skips the update if it is 1: with a check
        # on the host, every step would wait for the device.
        is_bad = ~torch.isfinite(metrics).all()
        self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.average.update(self.model, self.step)
        self.read_metrics()
        self._unread = (self.step, rate, metrics)

    def _backward(self, rows: Rows, phase: Phase, share: float) -> Tensor:
        """Add the gradients of some rows; return their share of the batch's loss and accuracy.

        Losses are means over rows; scaled by their share, gradients of parts and ranks add up to
        that of the mean over the global batch, however many rows each has.
        """
        predicted = self.objective.predict(rows, phase, is_training=True, flips=True)
        weight_l = predicted.layout.weight_l
        scored = bit_loss(predicted.logits_BLK2, predicted.bits_BLK, weight_l)
        (scored.loss * share).backward()
        return share * torch.stack([scored.loss.detach(), scored.accuracy])

    def read_metrics(self) -> None:
        """Read the metrics of the last step, which waits for the device.

        All ranks must call this after the same steps, because it may raise.

        Raises:
            LossSpikeError: the loss of the step was one.
            StageError: several steps in a row had a loss or gradient that is not finite.
        """
        if self._unread is None:
            return
        (step, rate, on_device), self._unread = self._unread, None
        loss, accuracy, notices, norm = on_device.tolist()
        self.has_notice = notices > 0
        if self._guard.accept(step, {"loss": loss, "gradient_norm": norm}) and self._spikes:
            self._spikes.check(step, loss)
        self.metrics = {
            "loss": loss, "gradient_norm": norm, "bit_accuracy": accuracy, "learning_rate": rate
        }  # fmt: skip
        if self._is_history_point(step + 1):
            self.log(step + 1, self.metrics)

    def _is_history_point(self, step: int) -> bool:
        steps = self.training.steps
        if steps is None:
            # With budgets in tokens the number of steps is not known: points get sparser instead.
            return step % max(1, 1 << max(0, step.bit_length() - 7)) == 0
        return step % max(1, steps // _HISTORY_POINTS) == 0 or step in {1, steps}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add values of a step to the history."""
        if not self.history or self.history[-1]["step"] != step:
            self.history.append({"step": step})
        self.history[-1] |= finite(metrics)

    def _num_tokens(self, batch: Mapping[str, Any], phase: Phase) -> int:
        frames = phase.frames_of(batch.get("store"))
        return self.objective.num_tokens(batch, phase, frames)

    def _evaluate_if_due(self, phase: Phase, held_out: Mapping[str, HeldOutLoader]) -> None:
        """Evaluate the averaged weights at evenly spaced parts of the phase's budget."""
        progress, validation = self.progress, self.training.validation
        due = min(progress.done, phase.budget) * validation.points // phase.budget
        if due <= progress.evaluations or not held_out:
            return
        progress.evaluations = due
        self.read_metrics()
        with exchanging_passes(), self.average.applied_to(self.model):
            values = evaluate(self.objective, held_out, phase)
        self.log(self.step, values)
        if values["val/loss"] < progress.best_loss or self.best is None:
            progress.best_loss, progress.worse_evaluations = values["val/loss"], 0
            self.held_out = values
            if self.best is not None:
                self.best.copy_from(self.average)
            return
        progress.worse_evaluations += 1
