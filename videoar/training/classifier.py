"""Training of a clip classifier: batches drawn by the step alone, resumed from checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from videoar.core.ids import seed_from
from videoar.model.classifier import ClassifierConfig, ClipClassifier
from videoar.training.checkpoint import Part, restoring, save_state
from videoar.training.config import ClassifierTraining, OptimizerConfig
from videoar.training.data.excerpt_loader import Clips
from videoar.training.optimizer import NonFiniteGuard, make_adamw, set_rate

_SHIFT_PX = 4  # chosen: a quarter of the small objects' size at 64 px


class ClassifierTrainer:
    """One training run on one device.

    Args:
        options: shape and training of the network.
        classes: names of the classes.
        clips: frames_THWC, uint8, of equal size.
        labels: number of each clip's class.
        device: where to train.
    """

    def __init__(
        self,
        options: ClassifierTraining,
        classes: tuple[str, ...],
        clips: Clips,
        labels: Sequence[int],
        device: str,
    ) -> None:
        self._options, self._device = options, device
        self._clips, self._labels = clips, torch.tensor(labels)
        cfg = ClassifierConfig(
            classes=classes,
            width=options.width,
            size_px=options.size_px,
            num_frames=options.num_frames,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.net = ClipClassifier(cfg).to(device)
        self._schedule = OptimizerConfig(learning_rate=options.learning_rate)
        self._optimizer = make_adamw(self.net, self._schedule)
        self._guard = NonFiniteGuard()
        self.step = 0
        self.history: list[dict[str, float]] = []

    def train_step(self) -> dict[str, float]:
        """Take one step; return its loss.

        Raises:
            StageError: several losses in a row were not finite.
        """
        random = np.random.default_rng(seed_from("classifier", self._options.seed, self.step))
        chosen = random.integers(len(self._clips), size=self._options.batch_clips)
        frames = [_augmented(self._clips[int(i)], self.net.cfg.num_frames, random) for i in chosen]
        set_rate(self._optimizer, self._schedule.rate(self.step, self._options.steps))
        self._optimizer.zero_grad()
        frames_BTHWC = torch.from_numpy(np.stack(frames)).to(self._device)
        loss = self.net.loss(frames_BTHWC, self._labels[chosen].to(self._device))
        loss.backward()
        metrics = {"train/loss": loss.item()}
        if self._guard.accept(self.step, metrics):
            self._optimizer.step()
        self.step += 1
        return metrics

    def accuracy(self, clips: Clips, labels: Sequence[int]) -> float:
        """Return the fraction of clips whose class is predicted."""
        frames = (torch.from_numpy(clips[i])[None].to(self._device) for i in range(len(clips)))
        self.net.eval()
        predicted = [int(self.net.predict(clip_1THWC)) for clip_1THWC in frames]
        self.net.train()
        return float(np.mean(np.array(predicted) == np.array(labels)))

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on into an existing folder."""
        progress = {"step": self.step, "history": self.history, "bad_steps": self._guard.bad_steps}
        save_state(folder, self._state(), progress)

    def load(self, folder: Path) -> None:
        """Resume from a folder that `save` wrote."""
        with restoring(folder, self._state()) as progress:
            self.step, self.history = progress["step"], progress["history"]
            self._guard.bad_steps = progress["bad_steps"]

    def _state(self) -> dict[str, Part]:
        return {"net": self.net, "adam": self._optimizer}


def _augmented(frames_THWC: np.ndarray, num_frames: int, random: np.random.Generator) -> np.ndarray:
    """Return an excerpt, shifted by a few pixels; not mirrored, as left and right are classes."""
    start = int(random.integers(max(0, len(frames_THWC) - num_frames) + 1))
    frames = frames_THWC[start : start + num_frames]
    frames = np.pad(frames, ((0, num_frames - len(frames)), (0, 0), (0, 0), (0, 0)), mode="edge")
    dy, dx = random.integers(-_SHIFT_PX, _SHIFT_PX + 1, size=2)
    return np.roll(frames, (int(dy), int(dx)), axis=(1, 2))
